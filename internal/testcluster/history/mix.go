package history

import (
	"slices"
	"strings"

	"github.com/hundredfold/hundredfold/internal/loadgen"
)

// What the queries that are measured select. Nine pods have these two.
const (
	// Buckets is the metric of 42% of the series.
	Buckets = "http_request_duration_seconds_bucket"
	// Counter and Gauge are metrics of nine series each, or of all pods if there are fewer.
	Counter = "container_cpu_usage_seconds_total"
	Gauge   = "container_memory_working_set_bytes"

	few          = 9
	bucketsOfPod = 24
)

// Mix chooses the series of c from a world of loadgen. 42% of them are buckets of
// classic histograms, and Counter and Gauge have nine series each, as in the fleet
// that the figures of other systems were taken from; a pod as loadgen knows it has
// 33% of buckets, so that other series of it are left out, as evenly as possible.
func Mix(c Config) ([]loadgen.Stream, error) {
	buckets := c.Series * 42 / 100
	world := loadgen.World{Seed: c.Seed, Series: c.Series, Interval: c.Interval}
	if !c.Plain {
		// Enough pods for the buckets. The pods' other series are more than enough.
		world.Series = max(1, (buckets+bucketsOfPod-1)/bucketsOfPod) * loadgen.PodSeries
	}
	streams, err := world.Streams()
	if err != nil {
		return nil, err
	}
	all := slices.Collect(streams)
	if c.Plain {
		return all, nil
	}
	return choose(all, c.Series, buckets), nil
}

// choose returns count of the streams, of which the given number are buckets.
func choose(all []loadgen.Stream, count, buckets int) []loadgen.Stream {
	var chosen, rest []loadgen.Stream
	for _, s := range all {
		switch {
		case s.Name() == Buckets && buckets > 0:
			chosen = append(chosen, s)
			buckets--
		case (s.Name() == Counter || s.Name() == Gauge) && s.Pod() < few:
			chosen = append(chosen, s)
		case s.Name() != Buckets && s.Name() != Counter && s.Name() != Gauge:
			rest = append(rest, s)
		}
	}
	if len(chosen) >= count {
		return chosen[:count]
	}
	// Pods in order, so that the first ones are whole and the last ones have buckets only.
	return append(chosen, rest[:min(len(rest), count-len(chosen))]...)
}

// Pods returns the names of the pods, in order, that have a series of the metric.
func Pods(c Config, metric string) ([]string, error) {
	streams, err := Mix(c)
	if err != nil {
		return nil, err
	}
	var pods []string
	for _, s := range streams {
		if s.Name() != metric {
			continue
		}
		if pod := s.Labels().Get("pod"); !slices.Contains(pods, pod) {
			pods = append(pods, strings.Clone(pod))
		}
	}
	return pods, nil
}
