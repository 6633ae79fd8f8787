package querier

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier/queriertest"
)

// days is a rig with three days of a counter in blocks of 6 h, and a query over them.
type days struct{ *rig }

func newDays(t *testing.T, dir string) days {
	d := days{newRig(t, rigOption{dir: dir})}
	for at := int64(0); at < 72*hour; at += 6 * hour {
		d.upload(alice, at, at+6*hour, blocktest.Floats("x_total", at, at+6*hour, minute))
	}
	d.refresh()
	return d
}

// ask returns the answer from start to end, in seconds, and how many steps were hits and misses.
func (d days) ask(query string, start, end int64, more string) (body string, hits, misses float64) {
	d.t.Helper()
	count := func(outcome string) float64 { return stepsOf(d, outcome) }
	hits, misses = count("hit"), count("miss")
	got := d.get(alice, "/api/v1/query_range?"+url.Values{"query": {query}, "start": {fmt.Sprint(start)}, "end": {fmt.Sprint(end)}, "step": {"600"}}.Encode()+more)
	require.Equal(d.t, 200, got.Code, got.Body)
	return got.Body, count("hit") - hits, count("miss") - misses
}

const secondsOfADay = 24 * 3600

func TestKeptResultsAreThoseOfAnEvaluation(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "querier")
	d := newDays(t, dir)
	const query = "rate(x_total[1h])"
	plain, hits, misses := d.ask(query, 0, 3*secondsOfADay, "&nocache=1")
	require.Zero(t, hits+misses)
	first, hits, misses := d.ask(query, 0, 3*secondsOfADay, "")
	require.Equal(t, plain, first)
	require.Equal(t, []float64{0, 433}, []float64{hits, misses})
	again, hits, misses := d.ask(query, 0, 3*secondsOfADay, "")
	require.Equal(t, plain, again)
	require.Equal(t, []float64{433, 0}, []float64{hits, misses})

	// A dashboard whose range moves, and other ranges.
	for _, r := range [][2]int64{{600, 3*secondsOfADay + 600}, {7 * 600, secondsOfADay}, {86400 - 600, 86400 + 600}, {0, 600}} {
		plain, _, _ = d.ask(query, r[0], r[1], "&nocache=1")
		again, _, misses = d.ask(query, r[0], r[1], "")
		require.Equal(t, plain, again)
		require.LessOrEqual(t, misses, 1.)
	}
	// Another phase is another query.
	_, hits, _ = d.ask(query, 1, secondsOfADay+1, "")
	require.Zero(t, hits)
	// It is bypassed by a header, too.
	req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/v1/query_range?query=x_total&start=0&end=86400&step=600", http.NoBody)
	req.Header.Set("Cache-Control", "no-store")
	require.Equal(t, 200, d.do(alice, req).Code)
	_, hits, _ = d.ask("x_total", 0, secondsOfADay, "")
	require.Zero(t, hits)

	// A restart.
	other := days{newRig(t, rigOption{dir: dir, edge: Direct(d.ingester)})}
	other.store = d.store
	other.views.store = d.store
	other.refresh()
	require.NoError(t, other.results.Load())
	again, hits, misses = other.ask(query, 0, 3*secondsOfADay, "")
	plain, _, _ = d.ask(query, 0, 3*secondsOfADay, "&nocache=1")
	require.Equal(t, plain, again)
	require.Equal(t, []float64{433, 0}, []float64{hits, misses})
}

func TestWhatChangesTheDataInvalidatesExactlyItsTime(t *testing.T) {
	d := newDays(t, "")
	const query = "rate(x_total[1h])"
	check := func(what string, wantMisses int) {
		t.Helper()
		plain, _, _ := d.ask(query, 0, 3*secondsOfADay, "&nocache=1")
		got, _, misses := d.ask(query, 0, 3*secondsOfADay, "")
		require.Equal(t, plain, got, what)
		require.InDelta(t, wantMisses, misses, 0, what)
		again, _, misses := d.ask(query, 0, 3*secondsOfADay, "")
		require.Equal(t, plain, again, what)
		require.Zero(t, misses, what)
	}
	d.ask(query, 0, 3*secondsOfADay, "")
	piece := int(6 * hour / (10 * minute))

	d.upload(alice, 13*hour, 14*hour, blocktest.Floats("x_total", 13*hour+1000, 14*hour, minute))
	d.refresh()
	check("a backfilled block", piece)
	d.upload(alice, 23*hour, 24*hour, blocktest.Floats("x_total", 23*hour+2000, 24*hour, minute))
	d.refresh()
	check("a block before a piece, in its window", 2*piece)
	d.upload(bob, 13*hour, 14*hour, blocktest.Floats("x_total", 13*hour+1000, 14*hour, minute))
	d.refresh()
	check("a block of another tenant", 0)
	d.limits.Retention = 0 // whatever a reload changes elsewhere
	check("nothing", 0)

	// A late sample: what ingesters hold is never kept, nor is anything used that it concerns.
	push(t, d.rig, alice, 65*hour)
	plain, _, _ := d.ask(query, 0, 3*secondsOfADay, "&nocache=1")
	got, hits, misses := d.ask(query, 0, 3*secondsOfADay, "")
	require.Equal(t, plain, got)
	require.Zero(t, misses)
	require.InDelta(t, 65*6, hits, 0, "all steps before it")
}

func TestADeletionInvalidatesWhatItHidesAndWhatItHidesNoMore(t *testing.T) {
	d := newDays(t, "")
	const query = "count_over_time(x_total[1h])"
	check := func(what string, wantMisses int) {
		t.Helper()
		d.refresh()
		plain, _, _ := d.ask(query, 0, 3*secondsOfADay, "&nocache=1")
		got, _, misses := d.ask(query, 0, 3*secondsOfADay, "")
		require.Equal(t, plain, got, what)
		require.InDelta(t, wantMisses, misses, 0, what)
		again, _, misses := d.ask(query, 0, 3*secondsOfADay, "")
		require.Equal(t, plain, again, what)
		require.Zero(t, misses, what)
	}
	all := 433
	piece := int(6 * hour / (10 * minute))
	check("nothing is kept yet", all)

	deletion := d.accept(alice, 13*hour, 14*hour, "x_total")
	check("what was there is hidden", piece)
	// It came after the deletion was accepted, which nobody can tell until that is settled.
	late := d.upload(alice, 13*hour, 14*hour, blocktest.Floats("x_total", 13*hour+1000, 14*hour, minute))
	check("a backfilled block, which is hidden", piece)
	hidden := d.counts(alice, 13*hour, 14*hour-1)["x_total"]
	require.Zero(t, hidden)
	d.settle(alice, deletion)
	check("the backfilled block is shown", piece)
	require.Equal(t, 60, d.counts(alice, 13*hour, 14*hour-1)["x_total"], "of %s", late)

	deletion = d.accept(alice, 30*hour, 31*hour, "x_total")
	check("another", piece)
	d.settle(alice, deletion)
	check("settled, which changes nothing that is hidden", 0)
	d.accept(bob, 40*hour, 41*hour, "x_total")
	check("another tenant's", 0)

	// The compactor has put a block in the place of another, with the same samples.
	from, err := d.views.of(alice)
	require.NoError(t, err)
	old := from.overlapping(50*hour, 50*hour)
	require.Len(t, old, 1)
	d.uploadDir(alice, rewritten(t, &old[0]))
	check("a compaction, also for the piece whose window begins in the block", 2*piece)
}

// rewritten returns the directory of a block with the samples of another, which it
// supersedes.
func rewritten(t *testing.T, old *blockstore.Block) string {
	t.Helper()
	dir := blocktest.Write(t, t.TempDir(), old.Meta.MinTime, old.Meta.MaxTime, blocktest.Floats("x_total", old.Meta.MinTime, old.Meta.MaxTime, minute))
	name := filepath.Join(dir, "meta.json")
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	var meta tsdb.BlockMeta
	require.NoError(t, json.Unmarshal(text, &meta))
	meta.Compaction.Level, meta.Compaction.Sources = 2, blockstore.Sources(old.Meta)
	text, err = json.Marshal(meta)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(name, text, 0o644))
	return dir
}

// push stores a sample with the ingester.
func push(t *testing.T, r *rig, id tenant.ID, at int64) {
	s := &queriertest.Storage{Tenant: id, Queryable: r.Queryable(), Push: r.ingester.Push}
	app := s.AppenderV2(t.Context())
	_, err := app.Append(0, labels.FromStrings("__name__", "x_total", "late", "yes"), 0, at, 1, nil, nil, storage.AOptions{})
	require.NoError(t, err)
	require.NoError(t, app.Commit())
}

func TestResultsWithWarningsAndErrorsAreNotKept(t *testing.T) {
	d := newDays(t, "")
	d.upload(alice, 0, hour, blocktest.Floats("odd", 0, hour, minute))
	d.refresh()
	for range 2 { // the name is not that of a counter
		_, hits, _ := d.ask("rate(odd[1h])", 0, secondsOfADay, "")
		require.LessOrEqual(t, hits, 109., "only of pieces without a sample")
	}
	for range 2 {
		require.Equal(t, 422, d.get(alice, "/api/v1/query_range?query=x_total/on()+{__name__=~%22x_total|odd%22}&start=0&end=86400&step=600").Code)
	}
}

func stepsOf(d days, outcome string) float64 {
	families, err := d.registry.Gather()
	require.NoError(d.t, err)
	for _, f := range families {
		if f.GetName() != "hundredfold_querier_results_cache_steps_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == outcome {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func TestInAClusterIngestersAreAskedOnceForWhatTheyDoNotHold(t *testing.T) {
	c := newClusterRig(t, 3, 3)
	d := days{c.rig}
	for at := int64(0); at < 72*hour; at += 6 * hour {
		d.upload(alice, at, at+6*hour, blocktest.Floats("x_total", at, at+6*hour, minute))
	}
	c.refresh()
	holds := func(from int64) {
		for _, r := range c.replicas {
			r.set(func(r *replica) { r.mu.heldMin = from })
		}
	}
	asked := func() (n int) {
		for _, r := range c.replicas {
			n += r.timesAsked()
		}
		return n
	}
	holds(math.MinInt64) // ingesters of a release before do not say
	plain, hits, misses := d.ask("rate(x_total[1h])", 0, 3*secondsOfADay, "")
	require.Zero(t, hits+misses)
	holds(math.MaxInt64)
	before := asked()
	got, _, misses := d.ask("rate(x_total[1h])", 0, 3*secondsOfADay, "")
	require.Equal(t, plain, got)
	require.InDelta(t, 433, misses, 0)
	require.LessOrEqual(t, asked()-before, len(c.replicas))
	got, hits, _ = d.ask("rate(x_total[1h])", 0, 3*secondsOfADay, "")
	require.Equal(t, plain, got)
	require.InDelta(t, 433, hits, 0)
	holds(65 * hour)
	got, hits, _ = d.ask("rate(x_total[1h])", 0, 3*secondsOfADay, "")
	require.Equal(t, plain, got)
	require.InDelta(t, 65*6, hits, 0)
}
