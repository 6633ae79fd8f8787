package ingester

import (
	"context"
	"math"
	"path/filepath"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/value"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

const acme tenant.ID = "acme"

func TestPushedSamplesAreReadBack(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1}, sample{"b", 0, 2}, sample{"a", time.Minute, 3})
	require.Equal(t, map[string][]string{"a": {"0s 1", "1m0s 3"}, "b": {"0s 2"}}, f.stored(acme))
	require.Empty(t, f.stored("other"), "tenants are apart")
}

func TestRetriedRequestStoresNothingTwice(t *testing.T) {
	f := newFixture(t)
	request := []sample{{"a", 0, 1}, {"a", time.Minute, 2}, {"b", 0, 3}, {"a", 30 * time.Second, 4}}
	want := map[string][]string{"a": {"0s 1", "30s 4", "1m0s 2"}, "b": {"0s 3"}}
	f.push(acme, request...)
	f.push(acme, request...)
	require.Equal(t, want, f.stored(acme))

	f.restart()
	f.push(acme, request...)
	require.Equal(t, want, f.stored(acme), "after a restart")

	require.NoError(t, f.Flush(context.Background(), acme))
	f.push(acme, request...)
	require.Equal(t, want, f.stored(acme), "after the samples moved from the head to blocks")
	require.NoError(t, f.Flush(context.Background(), acme))
	require.Equal(t, want, f.inBucket(acme), "nothing was appended a second time")
}

func TestAPushThatFailsForAFaultHereLeavesAllSeriesKnown(t *testing.T) {
	f := newFixture(t, withLimits(func(l *tenant.Limits) { l.OutOfOrderWindow = 0 }))
	f.push(acme, sample{"a", 0, 1}, sample{"b", 0, 2}, sample{"c", 0, 3})
	refs := &f.lookup(acme).refs
	good := *refs
	*refs = seriesRefs{dir: filepath.Join(t.TempDir(), "none"), bound: uint64(slices.Max(f.refs())) + 1}
	request := batch(sample{"a", time.Minute, 1}, sample{"new", time.Minute, 2}, sample{"b", time.Minute, 3})
	_, err := f.Push(context.Background(), acme, request)
	require.ErrorContains(t, err, "reserve references for new series")
	*refs = good
	known := f.offer(acme, stripped(batch(sample{"a", time.Second, 1}, sample{"b", time.Second, 2}, sample{"c", time.Second, 3})))
	require.Empty(t, known.Unknown)
	require.Equal(t, 3, known.Written.Samples, "nothing of what failed counts as stored")
	f.push(acme, sample{"a", time.Minute, 1}, sample{"new", time.Minute, 2}, sample{"b", time.Minute, 3})
	want := f.stored(acme)
	require.Equal(t, []string{"1m0s 2"}, want["new"])
	f.kill()
	require.Equal(t, want, f.stored(acme))
}

func TestOtherValueForTheSameTimeIsRejected(t *testing.T) {
	for name, prepare := range map[string]func(*fixture){
		"in the head":                  func(*fixture) {},
		"in the head, after a restart": func(f *fixture) { f.restart() },
		"in a block":                   func(f *fixture) { require.NoError(f.t, f.Flush(context.Background(), acme)) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.push(acme, sample{"a", 0, 1}, sample{"a", time.Minute, 2}, sample{"a", 30 * time.Second, 3})
			prepare(f)
			result := f.offer(acme, batch(sample{"a", 0, 9}, sample{"a", time.Minute, 9}, sample{"a", 30 * time.Second, 9}, sample{"a", 2 * time.Minute, 4}))
			require.Equal(t, 1, result.Written.Samples)
			require.Len(t, result.Rejected, 1)
			require.Equal(t, write.ReasonDuplicateTimestamp, result.Rejected[0].Reason)
			require.Equal(t, 3, result.Rejected[0].Count)
			require.Contains(t, result.Rejected[0].Example.Error(), `{__name__="m", s="a"}`)
			require.Equal(t, map[string][]string{"a": {"0s 1", "30s 3", "1m0s 2", "2m0s 4"}}, f.stored(acme))
		})
	}
}

func TestDuplicatesWithinOneRequest(t *testing.T) {
	f := newFixture(t)
	result := f.offer(acme, batch(sample{"a", 0, 1}, sample{"a", 0, 1}, sample{"a", 0, 2}, sample{"a", -time.Minute, 5}, sample{"a", -time.Minute, 6}))
	require.Equal(t, 3, result.Written.Samples)
	require.Equal(t, 2, result.Rejected[0].Count)
	require.Equal(t, write.ReasonDuplicateTimestamp, result.Rejected[0].Reason)
	require.Equal(t, map[string][]string{"a": {"-1m0s 5", "0s 1"}}, f.stored(acme))
}

func TestStaleMarkersKeepTheirBits(t *testing.T) {
	f := newFixture(t)
	stale := math.Float64frombits(value.StaleNaN)
	f.push(acme, sample{"a", 0, 1}, sample{"a", time.Minute, stale})
	f.push(acme, sample{"a", time.Minute, stale})
	require.Equal(t, map[string][]string{"a": {"0s 1", "1m0s NaN(7ff0000000000002)"}}, f.stored(acme))
}

func TestHistogramsAreStoredOnce(t *testing.T) {
	f := newFixture(t)
	hasher := write.NewHasher()
	request := func(n int64) *write.Batch {
		b := &write.Batch{}
		b.Add(hasher, seriesLabels("h"), nil, []write.Histogram{
			{T: noon.UnixMilli(), Int: testHistogram(n)},
			{T: noon.Add(time.Minute).UnixMilli(), Int: testHistogram(n + 1)},
		}, nil)
		b.Add(hasher, seriesLabels("f"), nil, []write.Histogram{{T: noon.UnixMilli(), Float: testHistogram(n).ToFloat(nil)}}, nil)
		return b
	}
	result := f.offer(acme, request(1))
	require.NoError(t, result.Err())
	require.Equal(t, 3, result.Written.Histograms)
	before := f.stored(acme)
	require.Len(t, before["h"], 2)

	f.restart()
	require.Equal(t, 3, f.offer(acme, request(1)).Written.Histograms)
	require.Equal(t, before, f.stored(acme))

	conflict := f.offer(acme, request(5))
	require.Equal(t, 0, conflict.Written.Histograms)
	require.Equal(t, write.ReasonDuplicateTimestamp, conflict.Rejected[0].Reason)
}

func TestStaleMarkerOfAHistogramSeriesMayBeRetried(t *testing.T) {
	f := newFixture(t)
	b := &write.Batch{}
	b.Add(write.NewHasher(), seriesLabels("h"), nil, []write.Histogram{{T: noon.UnixMilli(), Int: testHistogram(1)}}, nil)
	require.NoError(t, resultErr(f.offer(acme, b)))
	stale := sample{"h", time.Minute, math.Float64frombits(value.StaleNaN)}
	f.push(acme, stale)
	f.push(acme, stale)
	require.Len(t, f.stored(acme)["h"], 2)
}

func TestInvalidHistogramIsRejectedAndTheRestIsWritten(t *testing.T) {
	f := newFixture(t)
	bad := testHistogram(3)
	bad.Count = 1
	b := &write.Batch{}
	hasher := write.NewHasher()
	b.Add(hasher, seriesLabels("h"), nil, []write.Histogram{{T: noon.UnixMilli(), Int: bad}}, nil)
	b.Add(hasher, seriesLabels("a"), []write.Sample{{T: noon.UnixMilli(), V: 1}}, nil, nil)
	result := f.offer(acme, b)
	require.Equal(t, write.Counts{Samples: 1}, result.Written)
	require.Equal(t, write.ReasonInvalidHistogram, result.Rejected[0].Reason)
}

func TestInvalidHistogramForAStoredTimeIsRejected(t *testing.T) {
	f := newFixture(t)
	push := func(h *histogram.Histogram) write.Result {
		b := &write.Batch{}
		b.Add(write.NewHasher(), seriesLabels("h"), nil, []write.Histogram{{T: noon.UnixMilli(), Int: h}}, nil)
		return f.offer(acme, b)
	}
	require.NoError(t, resultErr(push(testHistogram(1))))
	for name, bad := range map[string]*histogram.Histogram{
		"buckets without spans": {Schema: 1, Count: 2, Sum: 1, PositiveBuckets: []int64{0, 1}},
		"spans without buckets": {Schema: 1, Count: 2, Sum: 1, PositiveSpans: []histogram.Span{{Offset: 0, Length: 5}}},
		"more buckets":          {Schema: 1, Count: 2, Sum: 1, PositiveSpans: []histogram.Span{{Offset: 0, Length: 1}}, PositiveBuckets: []int64{0, 1, 2}},
		"fewer buckets":         {Schema: 1, Count: 2, Sum: 1, PositiveSpans: []histogram.Span{{Offset: 0, Length: 4}}, PositiveBuckets: []int64{0, 1}},
	} {
		require.Equal(t, write.ReasonInvalidHistogram, push(bad).Rejected[0].Reason, name)
	}
}

func TestSamplesBefore1970AreRejected(t *testing.T) {
	f := newFixture(t)
	b := &write.Batch{}
	b.Add(write.NewHasher(), seriesLabels("a"), []write.Sample{{T: -1, V: 1}, {T: math.MinInt64, V: 1}}, nil, nil)
	result := f.offer(acme, b)
	require.Equal(t, 2, result.Rejected[0].Count)
	require.Equal(t, write.ReasonTooOld, result.Rejected[0].Reason)
}

func TestNativeHistogramWithCustomBuckets(t *testing.T) {
	f := newFixture(t)
	b := &write.Batch{}
	b.Add(write.NewHasher(), seriesLabels("h"), nil, []write.Histogram{{T: noon.UnixMilli(), Int: &histogram.Histogram{
		Schema: histogram.CustomBucketsSchema, Count: 3, Sum: 4, CustomValues: []float64{1, 2},
		PositiveSpans: []histogram.Span{{Offset: 0, Length: 3}}, PositiveBuckets: []int64{1, 0, 0},
	}}}, nil)
	require.NoError(t, resultErr(f.offer(acme, b)))
	require.Len(t, f.stored(acme)["h"], 1)
}

func TestSamplesOutsideTheWindowAreRejected(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1}, sample{"late", -2 * time.Hour, 2})
	result := f.offer(acme, batch(sample{"a", -4 * time.Hour, 1}, sample{"b", 11 * time.Minute, 1}, sample{"new", -3*time.Hour - time.Millisecond, 1}))
	require.Equal(t, 0, result.Written.Samples)
	require.Len(t, result.Rejected, 2)
	future, tooOld := result.Rejected[0], result.Rejected[1]
	require.Equal(t, write.ReasonFuture, future.Reason)
	require.Equal(t, write.ReasonTooOld, tooOld.Reason)
	require.Equal(t, 2, tooOld.Count)
	require.Contains(t, tooOld.Example.Error(), "2026-05-04T09:00:00.000Z")
	require.Contains(t, tooOld.Example.Error(), "out_of_order_window of 3h")
	require.Contains(t, tooOld.Example.Error(), "tenant acme")
	require.Equal(t, map[string][]string{"a": {"0s 1"}, "late": {"-2h0m0s 2"}}, f.stored(acme))
}

func TestWithoutAnOutOfOrderWindowOnlyNewerSamplesAreTaken(t *testing.T) {
	f := newFixture(t, withLimits(func(l *tenant.Limits) { l.OutOfOrderWindow = 0 }))
	f.push(acme, sample{"a", 0, 1})
	result := f.offer(acme, batch(sample{"a", -time.Second, 1}, sample{"a", time.Second, 2}))
	require.Equal(t, 1, result.Written.Samples)
	require.NotEmpty(t, result.Rejected)
	f.push(acme, sample{"a", 0, 1}) // A retry is no late sample.
	require.Equal(t, map[string][]string{"a": {"0s 1", "1s 2"}}, f.stored(acme))
}

func TestUnsortedLabelsMeanTheSameSeries(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1})
	builder := labels.NewScratchBuilder(2)
	builder.Add("s", "a")
	builder.Add("__name__", "m")
	b := &write.Batch{}
	b.Add(write.NewHasher(), builder.Labels(), []write.Sample{{T: noon.Add(time.Second).UnixMilli(), V: 2}}, nil, nil)
	require.NoError(t, resultErr(f.offer(acme, b)))
	require.Equal(t, map[string][]string{"a": {"0s 1", "1s 2"}}, f.stored(acme))
	require.EqualValues(t, 1, f.lookup(acme).db.Head().NumSeries())
}

func TestSeriesThatTheHeadDroppedComesBack(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1}, sample{"b", 0, 1})
	f.advance(5 * time.Hour)
	f.push(acme, sample{"b", 2 * time.Hour, 1})
	f.push(acme, sample{"b", 4 * time.Hour, 1})
	require.NoError(t, f.lookup(acme).db.Compact(context.Background()))
	require.EqualValues(t, 1, f.lookup(acme).db.Head().NumSeries(), "only b is in the head still")
	f.push(acme, sample{"a", 4 * time.Hour, 2})
	f.push(acme, sample{"a", 4*time.Hour + time.Second, 3})
	require.Equal(t, []string{"0s 1", "4h0m0s 2", "4h0m1s 3"}, f.stored(acme)["a"])
}

func TestRequestWithNothingValidOpensNoTSDB(t *testing.T) {
	f := newFixture(t)
	b := &write.Batch{}
	b.Add(write.NewHasher(), labels.FromStrings("nameless", "x"), []write.Sample{{T: noon.UnixMilli()}, {T: noon.UnixMilli() + 1}}, nil, nil)
	result := f.offer("anybody", b)
	require.Equal(t, write.ReasonMissingName, result.Rejected[0].Reason)
	require.Equal(t, 2, result.Rejected[0].Count)
	require.NoDirExists(t, filepath.Join(f.dir, "ingester", "anybody"))
}

func TestInvalidSeriesAreRejectedOneByOne(t *testing.T) {
	f := newFixture(t, withLimits(func(l *tenant.Limits) { l.MaxLabelValueBytes = 10 }))
	hasher := write.NewHasher()
	b := &write.Batch{}
	one := []write.Sample{{T: noon.UnixMilli(), V: 1}}
	b.Add(hasher, labels.FromStrings("s", "nameless"), one, nil, nil)
	b.Add(hasher, labels.FromStrings("__name__", "m", "s", "\xff"), one, nil, nil)
	b.Add(hasher, labels.FromStrings("__name__", "m", "s", "12345678901"), one, nil, nil)
	b.Add(hasher, seriesLabels("good"), one, nil, nil)
	result := f.offer(acme, b)
	require.Equal(t, 1, result.Written.Samples)
	var reasons []write.Reason
	for _, r := range result.Rejected {
		reasons = append(reasons, r.Reason)
	}
	require.Equal(t, []write.Reason{write.ReasonMissingName, write.ReasonInvalidLabel, write.ReasonLabelTooLong}, reasons)
	require.Equal(t, map[string][]string{"good": {"0s 1"}}, f.stored(acme))
}

func TestExemplarsAreStoredAloneAndOnce(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1})
	hasher := write.NewHasher()
	offer := func(series string) write.Result {
		b := &write.Batch{}
		b.Add(hasher, seriesLabels(series), nil, nil, []exemplar.Exemplar{{Labels: labels.FromStrings("trace_id", "x"), Value: 1, Ts: noon.UnixMilli(), HasTs: true}})
		return f.offer(acme, b)
	}
	require.Equal(t, 1, offer("a").Written.Exemplars)
	require.Equal(t, 1, offer("a").Written.Exemplars, "a retry")
	unknown := offer("unknown")
	require.Equal(t, 0, unknown.Written.Exemplars)
	require.Equal(t, write.ReasonInvalidExemplar, unknown.Rejected[0].Reason)

	q, err := f.ExemplarQuerier(context.Background(), acme)
	require.NoError(t, err)
	found, err := q.Select(0, math.MaxInt64, []*labels.Matcher{labels.MustNewMatcher(labels.MatchEqual, "s", "a")})
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Len(t, found[0].Exemplars, 1)
}

func TestMetadataSurvivesARestart(t *testing.T) {
	f := newFixture(t)
	md := func(help string) write.Metadata {
		return write.Metadata{Metric: "m", Metadata: metadata.Metadata{Type: "counter", Help: help}}
	}
	f.offer(acme, &write.Batch{Metadata: []write.Metadata{md("old"), md("new")}})
	f.restart()
	require.Equal(t, []metadata.Metadata{{Type: "counter", Help: "new"}, {Type: "counter", Help: "old"}}, f.Metadata(acme, "m")["m"])
	require.Empty(t, f.Metadata("other", ""))
}

func resultErr(r write.Result) error { return r.Err() }

// Metadata from the network aliases a frame of megabytes.
func TestStoredMetadataKeepsNothingOfTheRequest(t *testing.T) {
	f := newFixture(t)
	request := []byte("m" + "gauge" + "bytes" + "help")
	alias := func(from, to int) string { return unsafe.String(&request[from], to-from) }
	b := batch(sample{"a", 0, 1})
	b.Metadata = []write.Metadata{{Metric: alias(0, 1), Metadata: metadata.Metadata{
		Type: model.MetricType(alias(1, 6)), Unit: alias(6, 11), Help: alias(11, 15),
	}}}
	f.offer(acme, b)
	clear(request)
	require.Equal(t, map[string][]metadata.Metadata{"m": {{Type: "gauge", Unit: "bytes", Help: "help"}}}, f.Metadata(acme, ""))
}
