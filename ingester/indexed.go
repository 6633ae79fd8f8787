package ingester

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

const (
	// lookAgain is how soon after a look at the tenant's block index there may be another. A
	// block that no index lists yet is looked for less often the longer it has been uploaded.
	lookAgain = time.Minute
	lookMost  = 30 * time.Minute
	// lookValid is how old a look may be by which a block is deleted.
	lookValid = 5 * time.Minute
	// keepUnindexed is how long a block that no index lists stays after its upload. Without
	// a compactor there is none; queriers list the bucket then, and know of the block.
	keepUnindexed = 6 * time.Hour
)

// indexed is what an ingester of a cluster knows of the block index of a tenant: since
// when it lists the local blocks. A block is deleted only after that was so for
// Deps.KeepUploaded, so that a querier which knows the bucket by an index of the last hour
// finds every sample in it or here. It is safe for concurrent use.
//
// Nothing of it is kept over a restart: the time counts anew.
type indexed struct {
	mu         sync.Mutex
	looked     time.Time // when the last look began; zero: never
	generation uint64    // of the index that was seen then; 0: none
	// since is when the looks began to find each uploaded local block in the index.
	since map[ulid.ULID]time.Time
	// required is a generation whose index, and all later ones, list every block that was
	// deleted here; 0: it is not known.
	required uint64
}

// lists reports whether the index has listed a block for so long.
func (x *indexed) lists(block ulid.ULID, keep time.Duration, now time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	since, ok := x.since[block]
	return ok && now.Sub(since) >= keep && now.Sub(x.looked) <= lookValid
}

// needed returns the least generation of an index that lists all that was deleted here.
func (x *indexed) needed() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.required
}

// release notes that a block is about to be deleted.
func (x *indexed) release(block ulid.ULID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.since[block]; ok {
		x.required = max(x.required, x.generation)
		return
	}
	// The index that was seen does not list it. The next one does: it will be made of a
	// listing that is later than the upload.
	x.required = max(x.required, x.generation+1)
}

// copies are the local blocks that are in the bucket, too.
type copies map[ulid.ULID]localCopy

type localCopy struct {
	age     time.Duration // since the upload
	settled bool          // no late sample need be compared with it
	leftOut bool          // queries of its time fail as long as it is here
}

// due reports whether a look is worth a request.
func (x *indexed) due(uploaded copies, keep time.Duration, now time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.looked.IsZero() {
		return true
	}
	ago := now.Sub(x.looked)
	if ago < lookAgain {
		return false
	}
	for block, local := range uploaded {
		since, listed := x.since[block]
		switch {
		case !listed && ago >= min(local.age/2, lookMost):
			return true
		case listed && local.settled && local.age >= keep && now.Sub(since) >= keep && ago > lookValid:
			return true // It may be deleted if it is listed still.
		case listed && local.leftOut && local.age >= keep && ago > lookValid:
			return true
		}
	}
	return false
}

// saw takes in what a look that began at now has seen.
func (x *indexed) saw(index blockstore.Index, uploaded copies, now time.Time) {
	covered := index.Covered()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.looked.IsZero() {
		// What was deleted before this process began, an index listed before that.
		x.required = max(x.required, index.Generation)
	}
	since := make(map[ulid.ULID]time.Time, len(uploaded))
	for block := range uploaded {
		if _, ok := covered[block]; !ok {
			continue
		}
		since[block] = now
		if before, ok := x.since[block]; ok {
			since[block] = before
		}
	}
	x.looked, x.generation, x.since = now, index.Generation, since
}

// lookAtIndex sees which of the local blocks the tenant's index lists, if that is worth a
// request. use is held shared.
func (t *tenantDB) lookAtIndex(ctx context.Context, db *tsdb.DB) error {
	keep := t.ing.deps.KeepUploaded
	if keep <= 0 {
		return nil // The querier of this process says what it reads.
	}
	now := t.ing.now()
	uploaded := copies{}
	for _, b := range t.blocks.get() {
		if age, ok := t.shipped.since(b.meta.ULID, now); ok {
			uploaded[b.meta.ULID] = localCopy{age: age, settled: t.retiring.Load() || b.meta.MaxTime <= t.oldestLate(db)}
		}
	}
	for _, b := range t.blocks.leftOut() {
		if age, ok := t.shipped.since(b.id, now); ok {
			uploaded[b.id] = localCopy{age: age, settled: true, leftOut: true}
		}
	}
	if !t.indexed.due(uploaded, keep, now) {
		return nil
	}
	index, _, err := t.ing.deps.Store.ReadIndex(ctx, t.id)
	if err != nil && !errors.Is(err, blockstore.ErrCorruptIndex) {
		return fmt.Errorf("see which uploaded blocks queriers know: %w", err)
	}
	t.indexed.saw(index, uploaded, now) // a damaged index lists nothing
	return nil
}

// known reports whether queriers have known for long enough that a block, which was
// uploaded so long ago, is in the bucket.
func (t *tenantDB) known(block ulid.ULID, age time.Duration, now time.Time) bool {
	keep := t.ing.deps.KeepUploaded
	if keep <= 0 {
		return true
	}
	return age >= keep && (t.indexed.lists(block, keep, now) || age >= keepUnindexed)
}
