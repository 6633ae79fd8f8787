package querier

import (
	"fmt"
	"net/http"

	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
)

const (
	// maxListedBytes bounds the labels of all series of an answer that is put together
	// in memory though no limit on samples says much about its size: some 500,000 series.
	maxListedBytes = 128 << 20

	// seriesFunc is what Prometheus's API writes into the hints of a Select for /series,
	// which needs labels only.
	seriesFunc = "series"
)

// listing counts the labels of the series in one answer. One goroutine.
type listing struct{ bytes uint64 }

// bound returns set, ended with an error once the answer has too many labels.
func (l *listing) bound(set storage.SeriesSet) storage.SeriesSet {
	return &listedSeries{set: set, listing: l}
}

type listedSeries struct {
	set     storage.SeriesSet
	listing *listing
	err     error

	begun bool // the first series was looked for, and whether there is one
	first bool
	taken bool // Next has returned it
}

// begin looks for the first series: before that, a set knows no warnings.
func (s *listedSeries) begin() {
	if !s.begun {
		s.begun, s.first = true, s.set.Next()
	}
}

func (s *listedSeries) advance() bool {
	s.begin()
	if !s.taken {
		s.taken = true
		return s.first
	}
	return s.set.Next()
}

func (s *listedSeries) Next() bool {
	if s.err != nil || !s.advance() {
		return false
	}
	s.listing.bytes += s.set.At().Labels().ByteSize()
	if s.listing.bytes > maxListedBytes {
		s.err = &limitError{
			text:   fmt.Sprintf("the answer needs more than %d MiB for the labels of its series: select fewer with match[], or on /series set limit", maxListedBytes>>20),
			status: http.StatusUnprocessableEntity,
		}
		return false
	}
	return true
}

func (s *listedSeries) At() storage.Series { return s.set.At() }

func (s *listedSeries) Err() error {
	if s.err != nil {
		return s.err
	}
	return s.set.Err()
}

// Warnings begins to read: Prometheus's API asks for them before it looks at any series.
func (s *listedSeries) Warnings() annotations.Annotations {
	s.begin()
	return s.set.Warnings()
}
