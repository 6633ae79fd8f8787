// Package queriertest lets suites that are written against Prometheus's
// storage.Storage, such as promqltest, run over one tenant of Hundredfold. It is for
// tests only.
package queriertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// batchSpan is the time that one batch covers, in ms. Suites append series by series,
// each over all of its time; senders, and so ingesters, know time only forwards.
const batchSpan = 10 * 60 * 1000

// Storage is a storage.Storage of one tenant: what is appended is pushed as senders
// would push it, what is queried is read as that tenant.
type Storage struct {
	// Tenant owns the samples. Each Storage needs a tenant of its own.
	Tenant tenant.ID
	// Queryable answers for the tenant of the context.
	Queryable storage.SampleAndChunkQueryable
	// Push stores a batch; anything that is not written is an error of the commit.
	Push func(context.Context, tenant.ID, *write.Batch) (write.Result, error)
	// Pushed is called at the end of each commit, say, to move the samples into
	// blocks; nil: nothing.
	Pushed func() error
	// Closed is called by Close; nil: nothing.
	Closed func() error
}

var _ storage.Storage = (*Storage)(nil)

// Querier implements storage.Queryable.
func (s *Storage) Querier(mint, maxt int64) (storage.Querier, error) {
	q, err := s.Queryable.Querier(mint, maxt)
	return sampleQuerier{Querier: q, tenant: s.Tenant}, err
}

// ChunkQuerier implements storage.ChunkQueryable.
func (s *Storage) ChunkQuerier(mint, maxt int64) (storage.ChunkQuerier, error) {
	q, err := s.Queryable.ChunkQuerier(mint, maxt)
	return chunkQuerier{ChunkQuerier: q, tenant: s.Tenant}, err
}

type sampleQuerier struct {
	storage.Querier
	tenant tenant.ID
}

func (q sampleQuerier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	return q.Querier.Select(tenant.NewContext(ctx, q.tenant), sorted, hints, matchers...)
}

type chunkQuerier struct {
	storage.ChunkQuerier
	tenant tenant.ID
}

func (q chunkQuerier) Select(ctx context.Context, sorted bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.ChunkSeriesSet {
	return q.ChunkQuerier.Select(tenant.NewContext(ctx, q.tenant), sorted, hints, matchers...)
}

// Appender implements storage.Appendable. No suite uses it any more.
func (*Storage) Appender(context.Context) storage.Appender {
	panic("BUG: use AppenderV2")
}

// AppenderV2 implements storage.AppendableV2.
func (s *Storage) AppenderV2(ctx context.Context) storage.AppenderV2 {
	return &appender{storage: s, push: func(b *write.Batch) (write.Result, error) { return s.Push(ctx, s.Tenant, b) }}
}

// StartTime implements storage.Storage.
func (*Storage) StartTime() (int64, error) { return math.MinInt64, nil }

// Close implements storage.Storage.
func (s *Storage) Close() error {
	if s.Closed == nil {
		return nil
	}
	return s.Closed()
}

type appender struct {
	storage *Storage
	push    func(*write.Batch) (write.Result, error)
	samples []sample
}

type sample struct {
	labels    labels.Labels
	st, t     int64
	v         float64
	h         *histogram.Histogram
	fh        *histogram.FloatHistogram
	exemplars []exemplar.Exemplar
}

// Append implements storage.AppenderV2.
func (a *appender) Append(_ storage.SeriesRef, ls labels.Labels, st, t int64, v float64, h *histogram.Histogram, fh *histogram.FloatHistogram, opts storage.AppendV2Options) (storage.SeriesRef, error) {
	s := sample{labels: ls, st: st, t: t, v: v, exemplars: opts.Exemplars}
	if h != nil {
		s.h = h.Copy()
	}
	if fh != nil {
		s.fh = fh.Copy()
	}
	a.samples = append(a.samples, s)
	return 0, nil
}

// Commit implements storage.AppenderV2. It pushes the samples in order of time.
func (a *appender) Commit() error {
	slices.SortStableFunc(a.samples, func(x, y sample) int {
		return cmp.Or(cmp.Compare(window(x.t), window(y.t)), labels.Compare(x.labels, y.labels), cmp.Compare(x.t, y.t))
	})
	for rest := a.samples; len(rest) > 0; {
		n := 1
		for n < len(rest) && window(rest[n].t) == window(rest[0].t) {
			n++
		}
		for round := rest[:n]; len(round) > 0; {
			var err error
			if round, err = a.pushBatch(round); err != nil {
				return err
			}
		}
		rest = rest[n:]
	}
	a.samples = nil
	if a.storage.Pushed == nil {
		return nil
	}
	return a.storage.Pushed()
}

func window(t int64) int64 {
	w := t / batchSpan
	if t%batchSpan < 0 {
		w--
	}
	return w
}

// pushBatch pushes samples, which are sorted by series, and returns those that must
// wait for the next batch: a batch keeps floats and histograms apart, so that a series
// cannot have both in one and still be in order of time.
func (a *appender) pushBatch(samples []sample) (later []sample, err error) {
	batch := &write.Batch{}
	hasher := write.NewHasher()
	for len(samples) > 0 {
		n := 1
		for n < len(samples) && labels.Equal(samples[n].labels, samples[0].labels) {
			n++
		}
		same := 1
		for same < n && samples[same].isFloat() == samples[0].isFloat() {
			same++
		}
		addSeries(batch, hasher, samples[:same])
		later = append(later, samples[same:n]...)
		samples = samples[n:]
	}
	result, err := a.push(batch)
	if err := errors.Join(err, result.Err()); err != nil {
		return nil, fmt.Errorf("push %s: %w", batch.Counts(), err)
	}
	return later, nil
}

func (s *sample) isFloat() bool { return s.h == nil && s.fh == nil }

// addSeries adds samples of one series and one kind.
func addSeries(batch *write.Batch, hasher *write.Hasher, samples []sample) {
	var (
		floats     []write.Sample
		histograms []write.Histogram
		exemplars  []exemplar.Exemplar
	)
	for _, s := range samples {
		exemplars = append(exemplars, s.exemplars...)
		if s.isFloat() {
			floats = append(floats, write.Sample{T: s.t, ST: s.st, V: s.v})
			continue
		}
		histograms = append(histograms, write.Histogram{T: s.t, ST: s.st, Int: s.h, Float: s.fh})
	}
	batch.Add(hasher, samples[0].labels, floats, histograms, exemplars)
}

// Rollback implements storage.AppenderV2.
func (a *appender) Rollback() error {
	a.samples = nil
	return nil
}
