package wire

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
	ingestv1 "github.com/hundredfold/hundredfold/proto/ingest/v1"
)

// sent returns m after the way over the network.
func sent[M proto.Message](t testing.TB, m M) M {
	t.Helper()
	encoded, err := proto.Marshal(m)
	require.NoError(t, err)
	got := m.ProtoReflect().New().Interface().(M)
	require.NoError(t, proto.Unmarshal(encoded, got))
	return got
}

func TestAResultSurvivesTheNetwork(t *testing.T) {
	want := write.Result{Written: write.Counts{Samples: 1, Histograms: 2, Exemplars: 3}, Unknown: []uint32{4, 9}}
	want.RejectItems(&write.SeriesError{Reason: write.ReasonTooOld, Detail: "an hour too old", Labels: `{a="b"}`},
		write.Item{Kind: write.KindSample, Index: 7}, write.Item{Kind: write.KindSample, Index: 2},
		write.Item{Kind: write.KindHistogram, Index: 1}, write.Item{Kind: write.KindExemplar}, write.Item{Kind: write.KindSeries, Index: 5})
	want.RejectItems(&write.SeriesError{Reason: "of_a_later_release", Class: write.ClassLimited, Detail: "?"}, write.Item{Kind: write.KindSeries, Index: 6})

	m := sent(t, ResultToProto(12, want, nil))
	require.Equal(t, uint64(12), m.GetId())
	got, err := ResultFromProto(m)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.EqualError(t, got.Err(), want.Err().Error())

	got, err = ResultFromProto(sent(t, ResultToProto(1, write.Result{}, nil)))
	require.NoError(t, err)
	require.Equal(t, write.Result{}, got)
}

func TestReasonsOfALaterReleaseKeepTheirClass(t *testing.T) {
	for sent, want := range map[ingestv1.RejectionClass]write.Class{
		ingestv1.RejectionClass_REJECTION_CLASS_INVALID:     write.ClassInvalid,
		ingestv1.RejectionClass_REJECTION_CLASS_LIMITED:     write.ClassLimited,
		ingestv1.RejectionClass_REJECTION_CLASS_UNAVAILABLE: write.ClassUnavailable,
		99: write.ClassUnavailable,
		0:  write.ClassUnavailable,
	} {
		result, err := ResultFromProto(&ingestv1.PushResponse{Rejected: []*ingestv1.Rejection{{Reason: "of_a_later_release", Class: sent, Samples: []uint32{0}}}})
		require.NoError(t, err)
		class, ok := result.Class()
		require.True(t, ok)
		require.Equal(t, want, class, "%s", sent)
		var merged write.Result
		merged.Merge(result)
		require.Equal(t, want, merged.Rejected[0].Class())
	}
}

func TestAFailureOfAPushSurvivesTheNetwork(t *testing.T) {
	cause := errors.New("the disk is full")
	for _, c := range []struct {
		err  error
		want error
	}{
		{Unavailable(cause, 0), Unavailable(cause, 0)},
		{Unavailable(cause, 1500*time.Microsecond), Unavailable(cause, 2*time.Millisecond)},
		{Unavailable(cause, time.Duration(math.MaxInt64)), Unavailable(cause, math.MaxUint32*time.Millisecond)},
		{Invalid(cause), Invalid(cause)},
		{cause, cause},
		{context.Canceled, Unavailable(errors.New("context canceled"), 0)},
		{context.DeadlineExceeded, Unavailable(errors.New("context deadline exceeded"), 0)},
		{tenant.ErrNoTenant, Invalid(errors.New("no tenant in the request"))},
		{tenant.ErrInvalidID, Invalid(errors.New("invalid tenant name"))},
		{errors.New("label \xff"), errors.New("label \uFFFD")},
	} {
		result, err := ResultFromProto(sent(t, ResultToProto(1, write.Result{Written: write.Counts{Samples: 5}}, c.err)))
		require.Equal(t, c.want, err)
		require.Equal(t, write.Result{}, result, "nothing is known of what was stored")
	}
}

func TestRejectionsThatNameNobodyAreAFailure(t *testing.T) {
	var result write.Result
	result.Reject(&write.SeriesError{Reason: write.ReasonTooOld}, 3)
	_, err := ResultFromProto(sent(t, ResultToProto(1, result, nil)))
	require.EqualError(t, err, "BUG: 3 were rejected as sample_too_old, but 0 are named")
	require.Equal(t, 500, HTTPStatus(err))
}

func TestResultsOfAHostilePeer(t *testing.T) {
	result, err := ResultFromProto(nil)
	require.NoError(t, err)
	require.Equal(t, write.Result{}, result)

	result, err = ResultFromProto(sent(t, &ingestv1.PushResponse{
		Samples: math.MaxUint64,
		Rejected: []*ingestv1.Rejection{
			{}, {}, {Reason: "x", Samples: []uint32{math.MaxUint32}}, {Reason: "x", Series: []uint32{1}},
		},
	}))
	require.NoError(t, err)
	require.Positive(t, result.Written.Samples)
	require.Len(t, result.Rejected, 2, "by reason")
	require.Error(t, result.Err())
}

func TestItemsThatWereNotSentAreFound(t *testing.T) {
	counts := write.Counts{Samples: 3, Histograms: 2, Exemplars: 1}
	for kind, most := range map[write.Kind]uint32{
		write.KindSample: 3, write.KindHistogram: 2, write.KindExemplar: 1, write.KindSeries: 4,
	} {
		for index, ok := range map[uint32]bool{0: true, most - 1: true, most: false, math.MaxUint32: false} {
			var r write.Result
			r.RejectItems(&write.SeriesError{Reason: write.ReasonTooOld}, write.Item{Kind: kind, Index: index})
			require.Equal(t, ok, CheckItems(r, 4, counts) == nil, "kind %d, index %d", kind, index)
		}
	}
	require.NoError(t, CheckItems(write.Result{Unknown: []uint32{0, 3}}, 4, counts))
	require.Error(t, CheckItems(write.Result{Unknown: []uint32{4}}, 4, counts))
}
