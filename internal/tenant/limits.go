package tenant

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/common/model"
)

// Limits is what one tenant may use. A zero count or duration means "no limit",
// unless the field says otherwise. Messages about a limit name its YAML key, its
// value and the tenant.
type Limits struct {
	// MaxSeries bounds the tenant's series in memory, per ingester.
	MaxSeries int `yaml:"max_series"`
	// ShardSize is how many ingesters hold the tenant's series (a shuffle shard), so
	// that tenants share few of them; 0 spreads them over all.
	ShardSize int `yaml:"shard_size"`
	// MaxLabelsPerSeries bounds the labels of one series, its name included.
	MaxLabelsPerSeries int `yaml:"max_labels_per_series"`
	// MaxLabelNameBytes and MaxLabelValueBytes bound each label.
	MaxLabelNameBytes  int `yaml:"max_label_name_bytes"`
	MaxLabelValueBytes int `yaml:"max_label_value_bytes"`
	// MaxExemplars is the size of the tenant's ring of exemplars; 0 stores none.
	MaxExemplars int `yaml:"max_exemplars"`
	// OutOfOrderWindow is how much older than the tenant's newest sample a sample
	// may be. 0 takes only samples in order.
	OutOfOrderWindow model.Duration `yaml:"out_of_order_window"`
	// Retention is how long samples are kept; 0 keeps them for ever.
	Retention model.Duration `yaml:"retention"`
	// RetentionRules say how long the samples of some series are kept; the first rule
	// that matches a series decides, and Retention for the others.
	RetentionRules []RetentionRule `yaml:"retention_rules,omitempty"`
	// MaxBucketBytes bounds the tenant's blocks in the bucket; the oldest give way.
	MaxBucketBytes int64 `yaml:"max_bucket_bytes"`
	// MaxQuerySamples bounds the samples that one query may hold in memory.
	MaxQuerySamples int `yaml:"max_query_samples"`
	// MaxQueryBytes bounds the memory that one query may hold, by its account: labels, chunks, what
	// ingesters send, the points of the engine and of the result.
	MaxQueryBytes int64 `yaml:"max_query_bytes"`
	// MaxQueryFetchedBytes bounds what one query may fetch from the object store.
	MaxQueryFetchedBytes int64 `yaml:"max_query_fetched_bytes"`
	// MaxQueryDuration bounds how long one query may run.
	MaxQueryDuration model.Duration `yaml:"max_query_duration"`
	// MaxConcurrentQueries bounds the tenant's queries that run at once; more wait.
	MaxConcurrentQueries int `yaml:"max_concurrent_queries"`
}

// DefaultLimits returns the limits of a tenant that the configuration does not name.
func DefaultLimits() Limits {
	return Limits{
		MaxSeries:          5_000_000,
		MaxLabelsPerSeries: 64,
		MaxLabelNameBytes:  1024,
		MaxLabelValueBytes: 4096,
		MaxExemplars:       10_000,
		OutOfOrderWindow:   model.Duration(3 * time.Hour),
		Retention:          model.Duration(365 * 24 * time.Hour),
		MaxQuerySamples:    50_000_000,
		// 50 million samples are 800 MB in the engine; about as much again are their chunks and a result.
		MaxQueryBytes: 2 << 30,
		// Half of the pages that the querier keeps by default: one query shall not drive out those of all others.
		MaxQueryFetchedBytes: 5 << 30,
		MaxQueryDuration:     model.Duration(2 * time.Minute),
		MaxConcurrentQueries: 20,
	}
}

// Validate reports all faults of l, each with its key, value and bound.
func (l Limits) Validate() error {
	var errs []error
	for _, f := range []struct {
		key   string
		value int64
	}{
		{"max_series", int64(l.MaxSeries)},
		{"shard_size", int64(l.ShardSize)},
		{"max_labels_per_series", int64(l.MaxLabelsPerSeries)},
		{"max_label_name_bytes", int64(l.MaxLabelNameBytes)},
		{"max_label_value_bytes", int64(l.MaxLabelValueBytes)},
		{"max_exemplars", int64(l.MaxExemplars)},
		{"max_query_samples", int64(l.MaxQuerySamples)},
		{"max_query_bytes", l.MaxQueryBytes},
		{"max_query_fetched_bytes", l.MaxQueryFetchedBytes},
		{"max_concurrent_queries", int64(l.MaxConcurrentQueries)},
	} {
		if f.value < 0 {
			errs = append(errs, fmt.Errorf("%s: %d is below 0", f.key, f.value))
		}
	}
	if d := time.Duration(l.OutOfOrderWindow); d < 0 || d > 24*time.Hour {
		errs = append(errs, fmt.Errorf("out_of_order_window: %s is outside 0s to 24h", l.OutOfOrderWindow))
	}
	return errors.Join(append(errs, l.validateRetention())...)
}

// LimitsFunc returns the limits in force for a tenant. It is safe for
// concurrent use and cheap; its answer may change from call to call.
type LimitsFunc func(ID) Limits
