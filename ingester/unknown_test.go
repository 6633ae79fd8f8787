package ingester

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// byIdentity sends labels only of the series that it names.
type byIdentity struct {
	write.Labels
	labelled map[int]bool
}

func (s byIdentity) AppendLabels(i int, b *labels.ScratchBuilder) error {
	if !s.labelled[i] {
		return write.ErrNoLabels
	}
	return s.Labels.AppendLabels(i, b)
}

func (s byIdentity) Labelled(i int) bool { return s.labelled[i] }

// stripped returns b without the labels of all series but some.
func stripped(b *write.Batch, labelled ...int) *write.Batch {
	src := byIdentity{Labels: b.Source.(write.Labels), labelled: map[int]bool{}}
	for _, i := range labelled {
		src.labelled[i] = true
	}
	b.Source = src
	return b
}

// rejected returns all rejected items as text, by reason.
func rejected(r write.Result) map[write.Reason][]string {
	kinds := map[write.Kind]string{write.KindSample: "sample", write.KindHistogram: "histogram", write.KindExemplar: "exemplar", write.KindSeries: "series"}
	out := map[write.Reason][]string{}
	for _, rej := range r.Rejected {
		for _, x := range rej.Items {
			out[rej.Reason] = append(out[rej.Reason], fmt.Sprintf("%s %d", kinds[x.Kind], x.Index))
		}
	}
	return out
}

func TestEveryRejectedElementIsNamed(t *testing.T) {
	f := newFixture(t, withLimits(func(l *tenant.Limits) { l.MaxSeries = 3 }))
	f.push(acme, sample{"a", 0, 1})
	hasher := write.NewHasher()
	ms := func(d time.Duration) int64 { return noon.Add(d).UnixMilli() }
	bad := testHistogram(3)
	bad.Count = 1
	b := &write.Batch{}
	b.Add(hasher, seriesLabels("a"), []write.Sample{{T: ms(0), V: 2}, {T: ms(time.Hour), V: 1}, {T: -5}, {T: ms(-4 * time.Hour)}, {T: ms(time.Second), V: 1}}, nil, nil)
	b.Add(hasher, labels.FromStrings("nameless", "x"), []write.Sample{{T: ms(0)}, {T: ms(1)}}, []write.Histogram{{T: ms(2), Int: testHistogram(1)}}, []exemplar.Exemplar{{Value: 1}})
	b.Add(hasher, seriesLabels("h"), nil, []write.Histogram{{T: ms(0), Int: testHistogram(1)}, {T: ms(time.Second), Int: bad}}, nil)
	b.Add(hasher, seriesLabels("b"), []write.Sample{{T: ms(0), V: 1}}, nil, []exemplar.Exemplar{{Value: 1, Ts: ms(0), HasTs: true}})
	b.Add(hasher, seriesLabels("over the limit"), []write.Sample{{T: ms(0), V: 1}, {T: ms(time.Second), V: 1}}, nil, nil)
	b.Series = append(b.Series, write.Series{Err: fmt.Errorf("torn")})
	b.Source = append(b.Source.(write.Labels), labels.EmptyLabels())
	b.Add(hasher, seriesLabels("not stored"), nil, nil, []exemplar.Exemplar{{Value: 2, Ts: ms(0), HasTs: true}, {Value: 3, Ts: ms(1), HasTs: true}})

	result := f.offer(acme, b)
	require.Equal(t, write.Counts{Samples: 2, Histograms: 1, Exemplars: 1}, result.Written)
	require.Equal(t, map[write.Reason][]string{
		write.ReasonDuplicateTimestamp: {"sample 0"},
		write.ReasonFuture:             {"sample 1"},
		write.ReasonTooOld:             {"sample 2", "sample 3"},
		write.ReasonMissingName:        {"sample 5", "sample 6", "histogram 0"},
		write.ReasonInvalidHistogram:   {"histogram 2"},
		write.ReasonTenantSeriesLimit:  {"sample 8", "sample 9"},
		write.ReasonMalformedSeries:    {"series 5"},
		write.ReasonInvalidExemplar:    {"exemplar 0", "exemplar 2", "exemplar 3"},
	}, rejected(result))
	for _, rej := range result.Rejected {
		require.Len(t, rej.Items, rej.Count, "%s", rej.Reason)
	}
}

func TestEveryElementOfARequestWithNothingValidIsNamed(t *testing.T) {
	f := newFixture(t)
	hasher := write.NewHasher()
	b := &write.Batch{}
	b.Add(hasher, labels.FromStrings("nameless", "x"), []write.Sample{{T: 1}}, []write.Histogram{{T: 2, Int: testHistogram(1)}}, []exemplar.Exemplar{{Value: 1}})
	b.Add(hasher, seriesLabels("a"), []write.Sample{{T: 1}}, nil, nil)
	b.Series = append(b.Series, write.Series{Err: fmt.Errorf("torn")})
	b.Source = append(b.Source.(write.Labels), labels.EmptyLabels())
	result := f.offer("anybody", stripped(b, 0))
	require.Equal(t, []uint32{1}, result.Unknown)
	require.Equal(t, map[write.Reason][]string{
		write.ReasonMissingName:     {"sample 0", "histogram 0", "exemplar 0"},
		write.ReasonMalformedSeries: {"series 2"},
	}, rejected(result))
}

func TestUnknownSeriesWithoutLabelsAreNamedAndNotStored(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"known", 0, 1})
	ex := []exemplar.Exemplar{{Value: 1, Ts: noon.UnixMilli(), HasTs: true}}
	request := func() *write.Batch {
		hasher := write.NewHasher()
		b := &write.Batch{}
		for _, name := range []string{"new", "known", "labelled"} {
			b.Add(hasher, seriesLabels(name), []write.Sample{{T: -1}, {T: noon.UnixMilli(), V: 1}}, nil, ex)
		}
		b.Add(hasher, seriesLabels("exemplars"), nil, nil, ex)
		return b
	}
	result := f.offer(acme, stripped(request(), 2))
	require.Equal(t, []uint32{0, 3}, result.Unknown)
	require.Equal(t, write.Counts{Samples: 2, Exemplars: 2}, result.Written)
	require.Equal(t, map[write.Reason][]string{write.ReasonTooOld: {"sample 2", "sample 4"}}, rejected(result))
	require.Equal(t, map[string][]string{"known": {"0s 1"}, "labelled": {"0s 1"}}, f.stored(acme))

	result = f.offer(acme, stripped(request(), 0, 3))
	require.Empty(t, result.Unknown)
	require.Equal(t, 3, result.Written.Samples)

	f.restart()
	require.Equal(t, []uint32{3}, f.offer(acme, stripped(request())).Unknown, "what has samples is known still")
}

func TestUnknownSeriesMayBeLabelledLaterInTheSameRequest(t *testing.T) {
	f := newFixture(t)
	hasher := write.NewHasher()
	b := &write.Batch{}
	ex := []exemplar.Exemplar{{Value: 1, Ts: noon.UnixMilli(), HasTs: true}}
	b.Add(hasher, seriesLabels("a"), []write.Sample{{T: noon.UnixMilli(), V: 1}}, nil, ex)
	b.Add(hasher, seriesLabels("a"), []write.Sample{{T: noon.UnixMilli() + 1, V: 2}}, nil, nil)
	result := f.offer(acme, stripped(b, 1))
	require.Equal(t, []uint32{0}, result.Unknown)
	require.Equal(t, write.Counts{Samples: 1}, result.Written, "the exemplars of what is unknown come again")
}

func TestExemplarsThatArePolicyToDropAreCountedOnce(t *testing.T) {
	f := newFixture(t, withLimits(func(l *tenant.Limits) { l.MaxExemplars = 0 }))
	hasher := write.NewHasher()
	b := &write.Batch{}
	for _, name := range []string{"a", "b"} {
		b.Add(hasher, seriesLabels(name), []write.Sample{{T: noon.UnixMilli()}}, nil, []exemplar.Exemplar{{Value: 1}})
	}
	result := f.offer(acme, stripped(b, 1))
	require.Equal(t, write.Counts{Samples: 1, Exemplars: 1}, result.Written)
}

func TestKnownSeriesNeedNoLabelsForRetriesAndLateSamples(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1}, sample{"a", time.Minute, 2})
	result := f.offer(acme, stripped(batch(sample{"a", 0, 1}, sample{"a", 30 * time.Second, 3}, sample{"a", 0, 9})))
	require.Equal(t, 2, result.Written.Samples)
	require.Empty(t, result.Unknown)
	require.Equal(t, map[write.Reason][]string{write.ReasonDuplicateTimestamp: {"sample 2"}}, rejected(result))
	require.Contains(t, result.Rejected[0].Example.Error(), `{__name__="m", s="a"}`)
	require.Equal(t, []string{"0s 1", "30s 3", "1m0s 2"}, f.stored(acme)["a"])

	require.NoError(t, f.Flush(context.Background(), acme))
	f.push(acme, sample{"a", 2 * time.Minute, 4})
	f.push(acme, sample{"a", time.Minute, 2})
	result = f.offer(acme, stripped(batch(sample{"a", time.Minute, 2}, sample{"a", 45 * time.Second, 5})))
	require.Equal(t, 2, result.Written.Samples, "what is stored in a block is found by the head's labels")
}

func TestKnownSeriesThatTheHeadDroppedNeedsItsLabels(t *testing.T) {
	f := newFixture(t)
	f.push(acme, sample{"a", 0, 1}, sample{"b", 0, 1})
	f.advance(5 * time.Hour)
	f.push(acme, sample{"b", 2 * time.Hour, 1})
	f.push(acme, sample{"b", 4 * time.Hour, 1})
	require.NoError(t, f.lookup(acme).db.Compact(context.Background()))
	require.EqualValues(t, 1, f.lookup(acme).db.Head().NumSeries(), "only b is in the head still")

	ex := []exemplar.Exemplar{{Value: 1, Ts: noon.UnixMilli(), HasTs: true}}
	again := func() *write.Batch {
		b := &write.Batch{}
		h := write.NewHasher()
		b.Add(h, seriesLabels("b"), []write.Sample{{T: -1}}, nil, nil)
		b.Add(h, seriesLabels("a"), []write.Sample{{T: -1}, {T: noon.UnixMilli(), V: 1}, {T: noon.Add(4 * time.Hour).UnixMilli(), V: 2}}, nil, ex)
		return b
	}
	result := f.offer(acme, stripped(again()))
	require.Equal(t, []uint32{1}, result.Unknown)
	require.Equal(t, write.Counts{}, result.Written)
	require.Equal(t, map[write.Reason][]string{write.ReasonTooOld: {"sample 0"}}, rejected(result), "all of an unknown series comes again")

	onlyExemplars := &write.Batch{}
	onlyExemplars.Add(write.NewHasher(), seriesLabels("a"), nil, nil, ex)
	require.Equal(t, []uint32{0}, f.offer(acme, stripped(onlyExemplars)).Unknown)
	late := f.offer(acme, stripped(batch(sample{"a", 0, 1})))
	require.Equal(t, []uint32{0}, late.Unknown)

	result = f.offer(acme, stripped(again(), 1))
	require.Empty(t, result.Unknown)
	require.Equal(t, write.Counts{Samples: 2, Exemplars: 1}, result.Written)
	require.Equal(t, map[write.Reason][]string{write.ReasonTooOld: {"sample 0", "sample 1"}}, rejected(result), "noon is stored in a block")
}
