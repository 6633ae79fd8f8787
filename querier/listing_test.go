package querier

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// endless has series of 1 MiB of labels each, without end, and counts them.
type endless struct {
	*edge
	served *int
}

func (e endless) Querier(tenant.ID, int64, int64) (storage.Querier, error) {
	return endlessQuerier{Querier: storage.NoopQuerier(), served: e.served}, nil
}

type endlessQuerier struct {
	storage.Querier
	served *int
}

func (q endlessQuerier) Select(context.Context, bool, *storage.SelectHints, ...*labels.Matcher) storage.SeriesSet {
	now := int(time.Now().UnixMilli())
	return &endlessSet{served: q.served, series: storage.NewListSeries(
		labels.FromStrings("__name__", "x", "long", strings.Repeat("l", 1<<20)), chunks.GenerateSamples(now, 1))}
}

type endlessSet struct {
	served *int
	series storage.Series
}

func (s *endlessSet) Next() bool                        { *s.served++; return true }
func (s *endlessSet) At() storage.Series                { return s.series }
func (s *endlessSet) Err() error                        { return nil }
func (s *endlessSet) Warnings() annotations.Annotations { return nil }

func TestAnswersThatListSeriesAreBounded(t *testing.T) {
	for _, path := range []string{
		"/api/v1/series?match[]=x",
		"/api/v1/series?match[]=x&match[]=y",
		"/federate?match[]=x",
	} {
		r := newRig(t, rigOption{})
		r.refresh()
		served := 0
		r.edge = Direct(endless{r.ingester, &served})

		got := r.get(alice, path)

		require.Equal(t, http.StatusUnprocessableEntity, got.Code, path)
		require.Contains(t, got.Body, "more than 128 MiB for the labels", path)
		require.LessOrEqual(t, served, 130, path)

		if strings.HasPrefix(path, "/api") {
			got = r.get(alice, path+"&limit=1")
			require.Equal(t, http.StatusOK, got.Code, path)
		}
	}
}
