package querier

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/stats"
	v1 "github.com/prometheus/prometheus/web/api/v1"

	"github.com/hundredfold/hundredfold/internal/remoteblock"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// bytesPerPoint is what a point takes in the engine's memory, and in a result.
const bytesPerPoint = 16

// maxOwnedBytes bounds what a query holds of what other queriers have sent it of their
// blocks. It is some days of thousands of series; what is more is read here, block by block.
const maxOwnedBytes = 256 << 20

// account is what one query takes: memory that it holds, and bytes that it has fetched from
// the object store. It refuses what is more than the tenant's limits allow. Everything that
// works for a query finds it in the context: readers of blocks, what ingesters send,
// the engine's points, results. It is safe for concurrent use.
//
// It is an account of what grows with the query, made before the memory is taken, and not a measurement.
type account struct {
	tenant                tenant.ID
	maxHeld, maxFetched   int64    // 0: no limit
	of                    *account // a part's whole; nil: this is one
	held, peak, fetched   atomic.Int64
	owned                 atomic.Int64 // of held: see holdOwned
	maxOwned              int64        // 0: no limit but that of the whole
	steps, stepsFromCache atomic.Int64 // of range queries; see renderStats
}

var _ remoteblock.Budget = (*account)(nil)

func newAccount(id tenant.ID, limits tenant.Limits) *account {
	return &account{tenant: id, maxHeld: limits.MaxQueryBytes, maxFetched: limits.MaxQueryFetchedBytes}
}

type accountKey struct{}

// withAccount returns a context in which a is charged.
func withAccount(ctx context.Context, a *account) context.Context {
	return context.WithValue(ctx, accountKey{}, a)
}

// accountOf returns the account that is charged in ctx; nil: none.
func accountOf(ctx context.Context) *account {
	a, _ := ctx.Value(accountKey{}).(*account)
	return a
}

// budgetOf returns what readers of blocks charge in ctx; nil: nothing.
func budgetOf(ctx context.Context) remoteblock.Budget {
	if a := accountOf(ctx); a != nil {
		return a
	}
	return nil
}

// again returns the account of another run of the query, after a run that came to nothing. What
// that one held is gone, while what it fetched was fetched for the query.
func (a *account) again() *account {
	next := &account{tenant: a.tenant, maxHeld: a.maxHeld, maxFetched: a.maxFetched}
	next.peak.Store(a.peak.Load())
	next.fetched.Store(a.fetched.Load())
	return next
}

// part returns an account of a part of the query that ends before it. What the part
// holds is held by the whole, until release.
func (a *account) part() *account { return &account{of: a} }

// release gives back all that a holds.
func (a *account) release() {
	a.addOwned(-a.owned.Load())
	a.giveBack(a.held.Load())
}

func (a *account) giveBack(bytes int64) {
	a.held.Add(-bytes)
	if a.of != nil {
		a.of.giveBack(bytes)
	}
}

// Hold implements remoteblock.Budget: it is asked before memory is taken.
func (a *account) Hold(bytes int64) error {
	if a.of != nil {
		a.held.Add(bytes) // what is refused is given back with the rest
		return a.of.Hold(bytes)
	}
	held := a.held.Add(bytes)
	if a.maxHeld > 0 && held > a.maxHeld {
		return &limitError{
			text: fmt.Sprintf("the query needs more memory than the limit max_query_bytes of %d allows tenant %q: it held %d bytes and needs %d more, and had fetched %d bytes: ask for fewer series or a shorter range, or raise the limit",
				a.maxHeld, a.tenant, held-bytes, bytes, a.fetched.Load()),
			status: http.StatusUnprocessableEntity,
		}
	}
	for peak := a.peak.Load(); held > peak && !a.peak.CompareAndSwap(peak, held); {
		peak = a.peak.Load()
	}
	return nil
}

// holdOwned is Hold for what other queriers send, of which a query holds maxOwnedBytes or a
// quarter of its limit at most. It reports whether it may: if not, nothing is held, and the block
// is to be read here. So what fits into the limit where one querier is alone fits in a cluster.
func (a *account) holdOwned(bytes int64) bool {
	if a.addOwned(bytes) > a.ownedLimit() || a.maxOwned > 0 && a.owned.Load() > a.maxOwned {
		a.addOwned(-bytes)
		return false
	}
	if a.Hold(bytes) != nil {
		a.dropOwned(bytes)
		return false
	}
	return true
}

// ownedLimit is what the whole query may hold of what other queriers send.
func (a *account) ownedLimit() int64 {
	if a.of != nil {
		return a.of.ownedLimit()
	}
	if a.maxHeld > 0 {
		return min(maxOwnedBytes, a.maxHeld/4)
	}
	return maxOwnedBytes
}

// dropOwned gives back what holdOwned holds.
func (a *account) dropOwned(bytes int64) {
	a.addOwned(-bytes)
	a.giveBack(bytes)
}

// addOwned returns what the whole query holds then.
func (a *account) addOwned(bytes int64) int64 {
	owned := a.owned.Add(bytes)
	if a.of != nil {
		return a.of.addOwned(bytes)
	}
	return owned
}

// Fetch implements remoteblock.Budget: it is told what came from the object store.
func (a *account) Fetch(bytes int64) error {
	if a.of != nil {
		return a.of.Fetch(bytes)
	}
	fetched := a.fetched.Add(bytes)
	if a.maxFetched > 0 && fetched > a.maxFetched {
		return &limitError{
			text: fmt.Sprintf("the query fetches more from the object store than the limit max_query_fetched_bytes of %d allows tenant %q: it has fetched %d bytes, and its answer is not complete: ask for fewer series or a shorter range, or raise the limit; what was fetched is kept, so the same query fetches less if it is asked again soon",
				a.maxFetched, a.tenant, fetched),
			status: http.StatusUnprocessableEntity,
		}
	}
	return nil
}

// charged is a storage that charges the account in the context of a Select for each series: for its labels,
// and for the points that the engine will hold of it, one at each step that it is
// asked for. A series with gaps has fewer; they are not known before it is read.
type charged struct{ storage.Queryable }

// Querier implements storage.Queryable.
func (c charged) Querier(mint, maxt int64) (storage.Querier, error) {
	q, err := c.Queryable.Querier(mint, maxt)
	if err != nil {
		return nil, err
	}
	return chargedQuerier{q}, nil
}

type chargedQuerier struct{ storage.Querier }

// Select implements storage.Querier.
func (q chargedQuerier) Select(ctx context.Context, sortSeries bool, hints *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	set := q.Querier.Select(ctx, sortSeries, hints, matchers...)
	a := accountOf(ctx)
	if a == nil {
		return set
	}
	steps := int64(1)
	if hints != nil && hints.Step > 0 && hints.End > hints.Start {
		steps += (hints.End - hints.Start) / hints.Step
	}
	return &chargedSet{SeriesSet: set, account: a, points: steps * bytesPerPoint}
}

type chargedSet struct {
	storage.SeriesSet
	account *account
	points  int64 // bytes
	at      storage.Series
	err     error
}

// Next implements storage.SeriesSet.
func (s *chargedSet) Next() bool {
	if s.err != nil || !s.SeriesSet.Next() {
		return false
	}
	s.at = s.SeriesSet.At()
	ls := s.at.Labels()
	s.err = s.account.Hold(int64(ls.ByteSize()) + s.points) //nolint:gosec // labels are in memory
	return s.err == nil
}

// At implements storage.SeriesSet.
func (s *chargedSet) At() storage.Series { return s.at }

// Err implements storage.SeriesSet.
func (s *chargedSet) Err() error {
	if s.err != nil {
		return s.err
	}
	return s.SeriesSet.Err()
}

// queryStats is Prometheus's statistics of a query, and what its account says.
type queryStats struct {
	stats.BuiltinStats
	Account accountStats `json:"account"`
}

type accountStats struct {
	PeakBytes      int64 `json:"peakBytes"`
	FetchedBytes   int64 `json:"fetchedBytes"`
	Steps          int64 `json:"steps"`
	StepsFromCache int64 `json:"stepsFromCache"`
}

// renderStats is a v1.StatsRenderer. Steps are those of a range query that was evaluated piece by
// piece; those from the cache have read no sample now.
func renderStats(ctx context.Context, s *stats.Statistics, param string) stats.QueryStats {
	plain := v1.DefaultStatsRenderer(ctx, s, param)
	a := accountOf(ctx)
	if plain == nil || a == nil {
		return plain
	}
	return &queryStats{BuiltinStats: plain.Builtin(), Account: accountStats{
		PeakBytes: a.peak.Load(), FetchedBytes: a.fetched.Load(), Steps: a.steps.Load(), StepsFromCache: a.stepsFromCache.Load(),
	}}
}
