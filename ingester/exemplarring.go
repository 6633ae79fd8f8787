package ingester

import (
	"context"
	"fmt"
	"math"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
)

const (
	// exemplarRingFirst is the size of a tenant's ring at its first exemplar, and
	// exemplarRingGrowth by what it grows when it is full: an entry takes 64 bytes, whether
	// or not there is an exemplar in it, and most tenants send none.
	exemplarRingFirst  = 256
	exemplarRingGrowth = 4
)

// exemplarRing is the size of the ring in which a TSDB keeps its exemplars. It grows with
// what comes, up to the tenant's limit. Used by whoever has the tenant's appending, or opens
// the TSDB.
type exemplarRing struct {
	size, used int
	window     int64 // within which the TSDB takes out-of-order samples, in ms
}

// fit gives up what the ring of a TSDB that was just opened has no use for: it is opened
// with the whole of it, since its log may have that many.
func (r *exemplarRing) fit(db *tsdb.DB) error {
	if r.size == 0 {
		return nil
	}
	q, err := db.ExemplarQuerier(context.Background())
	if err != nil {
		return fmt.Errorf("count exemplars: %w", err)
	}
	found, err := q.Select(math.MinInt64, math.MaxInt64, []*labels.Matcher{labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".*")})
	if err != nil {
		return fmt.Errorf("count exemplars: %w", err)
	}
	r.used = 0
	for i := range found {
		r.used += len(found[i].Exemplars)
	}
	return r.resize(db, stepFor(r.used, r.size))
}

// room makes room for n more exemplars, if the limit allows it; the oldest make way else.
func (r *exemplarRing) room(db *tsdb.DB, n, limit int) error {
	r.used = min(r.used+n, max(limit, r.size))
	if r.used <= r.size {
		return nil
	}
	return r.resize(db, stepFor(r.used, limit))
}

func (r *exemplarRing) resize(db *tsdb.DB, size int) error {
	if size == r.size {
		return nil
	}
	if err := r.apply(db, size, r.window); err != nil {
		return fmt.Errorf("make room for %d exemplars: %w", size, err)
	}
	return nil
}

// apply tells the TSDB both numbers, which it takes only together.
func (r *exemplarRing) apply(db *tsdb.DB, size int, window int64) error {
	err := db.ApplyConfig(&config.Config{StorageConfig: config.StorageConfig{
		TSDBConfig:      &config.TSDBConfig{OutOfOrderTimeWindow: window},
		ExemplarsConfig: &config.ExemplarsConfig{MaxExemplars: int64(size)},
	}})
	if err != nil {
		return err
	}
	r.size, r.window = size, window
	return nil
}

// stepFor returns the size of a ring that has room for n exemplars, at most limit.
func stepFor(n, limit int) int {
	if n == 0 {
		return 0
	}
	size := exemplarRingFirst
	for size < n && size < limit {
		size *= exemplarRingGrowth
	}
	return min(size, limit)
}
