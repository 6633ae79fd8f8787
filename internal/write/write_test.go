package write

import (
	"errors"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// sent is a LabelSource of one series, as sent.
type sent []labels.Label

func (s sent) AppendLabels(_ int, b *labels.ScratchBuilder) error {
	if len(s) == 0 {
		return errors.New("unreadable")
	}
	for _, l := range s {
		b.Add(l.Name, l.Value)
	}
	return nil
}

func resolve(s sent, limits tenant.Limits) (labels.Labels, Identity, error) {
	b := Batch{Series: make([]Series, 1), Source: s}
	scratch := labels.NewScratchBuilder(0)
	return b.Resolve(0, limits, &scratch, NewHasher())
}

func TestResolveSortsAndDropsEmptyValues(t *testing.T) {
	want := labels.FromStrings("__name__", "up", "a", "1", "z", "2")
	ls, id, err := resolve(sent{{Name: "z", Value: "2"}, {Name: "e"}, {Name: "__name__", Value: "up"}, {Name: "a", Value: "1"}}, tenant.DefaultLimits())
	require.NoError(t, err)
	require.Equal(t, want, ls)
	require.Equal(t, NewHasher().Labels(want), id)
}

func TestResolveRejectsWhatCannotBeStored(t *testing.T) {
	name := labels.Label{Name: "__name__", Value: "up"}
	limits := tenant.Limits{MaxLabelsPerSeries: 3, MaxLabelNameBytes: 8, MaxLabelValueBytes: 5}
	for _, c := range []struct {
		name   string
		sent   sent
		reason Reason
		detail string
	}{
		{"unreadable", sent{}, ReasonMalformedSeries, "unreadable"},
		{"no name", sent{{Name: "a", Value: "b"}}, ReasonMissingName, "__name__ is missing or empty"},
		{"empty name", sent{{Name: "__name__"}, {Name: "a", Value: "b"}}, ReasonMissingName, "__name__ is missing or empty"},
		{"duplicate", sent{{Name: "a", Value: "1"}, name, {Name: "a", Value: "2"}}, ReasonDuplicateLabel, `"a" stands twice`},
		{"empty label name", sent{name, {Value: "x"}}, ReasonInvalidLabel, "a label name is empty"},
		{"name not UTF-8", sent{name, {Name: "\xff", Value: "x"}}, ReasonInvalidLabel, "is not UTF-8"},
		{"value not UTF-8", sent{name, {Name: "x", Value: "\xc3"}}, ReasonInvalidLabel, "is not UTF-8"},
		{"too many", sent{name, {Name: "a", Value: "1"}, {Name: "b", Value: "1"}, {Name: "c", Value: "1"}}, ReasonTooManyLabels, "max_labels_per_series of 3"},
		{"long name", sent{name, {Name: "123456789", Value: "1"}}, ReasonLabelTooLong, "9 bytes and exceeds the limit max_label_name_bytes of 8"},
		{"long value", sent{name, {Name: "a", Value: "123456"}}, ReasonLabelTooLong, "6 bytes and exceeds the limit max_label_value_bytes of 5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, id, err := resolve(c.sent, limits)
			var fault *SeriesError
			require.ErrorAs(t, err, &fault)
			require.Equal(t, c.reason, fault.Reason)
			require.Contains(t, fault.Error(), c.detail)
			require.True(t, id.IsZero())
		})
	}
}

func TestResolveRejectsSeriesThatTheDecoderMarked(t *testing.T) {
	b := Batch{Series: []Series{{Err: errors.New("reference 9 of 3")}}}
	scratch := labels.NewScratchBuilder(0)
	_, _, err := b.Resolve(0, tenant.Limits{}, &scratch, NewHasher())
	require.EqualError(t, err, "malformed_series: reference 9 of 3")
}

func TestLimitsOfZeroLimitNothing(t *testing.T) {
	_, _, err := resolve(sent{{Name: "__name__", Value: strings.Repeat("x", 100_000)}}, tenant.Limits{})
	require.NoError(t, err)
}

func TestMessagesAreClippedAtACharacter(t *testing.T) {
	_, _, err := resolve(sent{{Name: "__name__", Value: "up"}, {Name: strings.Repeat("ü", 4000), Value: "\xff"}}, tenant.Limits{})
	require.Error(t, err)
	require.Less(t, len(err.Error()), 1500)
	require.Contains(t, err.Error(), "ü…")
}

func TestBatchAddAndReset(t *testing.T) {
	var b Batch
	h := NewHasher()
	one, two := labels.FromStrings("__name__", "a"), labels.FromStrings("__name__", "b")
	for range 2 {
		b.Add(h, one, []Sample{{T: 1, V: 1}, {T: 2, V: 2}}, nil, []exemplar.Exemplar{{Value: 3}})
		b.Add(h, two, nil, []Histogram{{T: 1, Int: &histogram.Histogram{}}}, nil)
		require.Equal(t, Counts{Samples: 2, Histograms: 1, Exemplars: 1}, b.Counts())
		require.Equal(t, Span{Off: 2}, b.Series[1].Samples)
		require.Equal(t, Span{Len: 1}, b.Series[1].Histograms)
		for i, want := range []labels.Labels{one, two} {
			scratch := labels.NewScratchBuilder(0)
			ls, id, err := b.Resolve(i, tenant.Limits{}, &scratch, h)
			require.NoError(t, err)
			require.Equal(t, want, ls)
			require.Equal(t, b.Series[i].ID, id)
		}
		kept := b.Histograms
		b.Reset()
		require.Equal(t, Counts{}, b.Counts())
		require.Nil(t, b.Source)
		require.Nil(t, kept[0].Int, "storage may keep the histogram, the batch may not")
	}
}

func TestResultCountsByReason(t *testing.T) {
	var r Result
	require.NoError(t, r.Err())
	_, rejected := r.Class()
	require.False(t, rejected)

	first := &SeriesError{Reason: ReasonTooOld, Detail: "an hour too old", Labels: `{__name__="a"}`}
	r.Reject(first, 2)
	r.Reject(&SeriesError{Reason: ReasonTooOld, Detail: "two hours too old"}, 3)
	r.Merge(Result{
		Written:  Counts{Samples: 1, Histograms: 2, Exemplars: 3},
		Rejected: []Rejection{{Reason: ReasonFuture, Count: 1, Example: &SeriesError{Reason: ReasonFuture, Detail: "a day ahead"}}},
	})
	require.Equal(t, Counts{Samples: 1, Histograms: 2, Exemplars: 3}, r.Written)
	require.EqualError(t, r.Err(),
		`5 rejected, for example sample_too_old: an hour too old (series {__name__="a"}); 1 rejected, for example sample_in_the_future: a day ahead`)
}

func TestTheGravestReasonDecidesTheClass(t *testing.T) {
	for _, c := range []struct {
		reasons []Reason
		want    Class
	}{
		{[]Reason{ReasonTooOld}, ClassInvalid},
		{[]Reason{ReasonTooOld, ReasonTenantSeriesLimit}, ClassLimited},
		{[]Reason{ReasonInstanceHeapLimit, ReasonTenantSeriesLimit, ReasonTooOld}, ClassUnavailable},
		{[]Reason{ReasonInstanceSeriesLimit}, ClassUnavailable},
	} {
		var r Result
		for _, reason := range c.reasons {
			r.Reject(&SeriesError{Reason: reason}, 1)
		}
		class, ok := r.Class()
		require.True(t, ok)
		require.Equal(t, c.want, class)
	}
}
