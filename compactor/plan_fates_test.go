package compactor

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/deletion"
)

// content is which samples a block has: of each block that was cut from a head, the series
// of which leaves, as bits. See leaves.
type content map[ulid.ULID]uint64

// fates is a world in which tenants and series are deleted and a quota holds. It knows,
// of each sample, whether it should be there.
type fates struct {
	*world
	t      *testing.T
	random *rand.Rand
	seed   uint64
	c      *Compactor // over a bucket that has the deletions alone

	content map[ulid.ULID]content
	weight  map[ulid.ULID]int64 // bytes of a leaf of each block that was cut
	sizes   map[ulid.ULID]int64
	quota   int64
	held    map[ulid.ULID]blockstore.Block // cut and not uploaded

	alive     content              // what was not deleted
	rationed  content              // what went because of the quota
	selects   map[ulid.ULID]uint64 // the leaves that each deletion is about
	unsettled map[ulid.ULID]*unsettled
	before    blockstore.TenantDeletions  // the deletions as they were when the pass began
	recorded  *blockstore.TenantDeletions // as they are; nil: they have changed since they were read
}

// unsettled is a deletion that was accepted while ingesters held blocks, each its own.
type unsettled struct {
	held []ulid.ULID            // as they were when it was accepted
	away map[ulid.ULID]struct{} // of these, the ones whose ingester has not carried it out
}

func newFates(t *testing.T, seed uint64) *fates {
	t.Helper()
	w := newWorld()
	w.now = time.UnixMilli(0).Add(100 * 24 * time.Hour)
	f := &fates{
		world: w, t: t, random: rand.New(rand.NewPCG(seed, 2)), seed: seed,
		content: map[ulid.ULID]content{}, weight: map[ulid.ULID]int64{}, sizes: map[ulid.ULID]int64{}, held: map[ulid.ULID]blockstore.Block{},
		alive: content{}, rationed: content{}, selects: map[ulid.ULID]uint64{}, unsettled: map[ulid.ULID]*unsettled{},
	}
	f.c = fixtureOver(t, blockstore.New(objstore.NewInMemBucket(), nil)).Compactor
	f.c.now = func() time.Time { return w.now }
	return f
}

// cut makes a block, which the ingester keeps for a while or uploads.
func (f *fates) cut() {
	id := f.add("b", randomBlock(f.random, f.now))
	block := f.blocks[id]
	f.weight[id] = 1 + f.random.Int64N(5)
	f.alive[id] = leaves(block)
	f.holds(id, content{id: leaves(block)})
	if f.random.IntN(4) == 0 {
		f.held[id] = block
		delete(f.blocks, id)
	}
}

func (f *fates) holds(block ulid.ULID, what content) {
	f.content[block] = what
	f.sizes[block] = 1
	for source, bits := range what {
		for ; bits != 0; bits &= bits - 1 {
			f.sizes[block] += f.weight[source]
		}
	}
}

// uploadHeld uploads blocks that an ingester has kept, each with the probability 1 in n. An
// ingester that has not carried out a deletion is away; the others do not wait for it.
func (f *fates) uploadHeld(n int) {
	for _, id := range sorted(f.held) {
		away := false
		for _, u := range f.unsettled {
			_, due := u.away[id]
			away = away || due
		}
		if f.random.IntN(n) == 0 && !away {
			f.blocks[id] = f.held[id]
			delete(f.held, id)
		}
	}
}

// accept deletes the tenant or, of all blocks, the series of some leaves.
func (f *fates) accept() {
	d := blockstore.Deletion{MinMs: deletion.MinTime, MaxMs: deletion.MaxTime, Accepted: f.now, Blocks: []ulid.ULID{}}
	f.last++
	d.ID = ulid.MustNew(f.last, nil)
	f.selects[d.ID] = math.MaxUint64
	if d.WholeTenant = f.random.IntN(2) == 0; !d.WholeTenant {
		f.selects[d.ID] = f.random.Uint64()
		d.Selectors = []string{"some"}
	}
	for _, id := range sorted(f.blocks) {
		d.Blocks = append(d.Blocks, blockstore.Sources(f.blocks[id].Meta)...)
	}
	for id := range f.alive {
		f.alive[id] &^= f.selects[d.ID]
	}
	f.recorded = nil
	require.NoError(f.t, f.c.store.PutDeletion(f.t.Context(), acme, d))
	u := &unsettled{held: sorted(f.held), away: map[ulid.ULID]struct{}{}}
	for _, id := range u.held {
		u.away[id] = struct{}{}
	}
	f.unsettled[d.ID] = u
}

// settleDeletions has the ingesters carry out deletions, each with the probability 1 in n,
// and settles those that all have. From then on an ingester has nothing of what is deleted,
// and of a tenant that was deleted no block.
func (f *fates) settleDeletions(n int) {
	whole := map[ulid.ULID]bool{}
	for _, d := range f.deletions().Active {
		whole[d.ID] = d.WholeTenant
	}
	for _, id := range slices.SortedFunc(maps.Keys(f.unsettled), ulid.ULID.Compare) {
		u := f.unsettled[id]
		for _, block := range u.held {
			if _, due := u.away[block]; !due || f.random.IntN(n) != 0 {
				continue
			}
			delete(u.away, block)
			if whole[id] {
				delete(f.held, block)
			} else if _, ok := f.held[block]; ok {
				f.holds(block, f.without(block, []ulid.ULID{id}))
			}
		}
		if len(u.away) == 0 && f.random.IntN(n) == 0 {
			f.recorded = nil
			require.NoError(f.t, f.c.store.SettleDeletion(f.t.Context(), acme, id, u.held))
			delete(f.unsettled, id)
		}
	}
}

func (f *fates) deletions() blockstore.TenantDeletions {
	if f.recorded == nil {
		of, err := f.c.store.DeletionsOf(f.t.Context(), acme)
		require.NoError(f.t, err)
		require.NoError(f.t, of.Fault)
		f.recorded = &of
	}
	return *f.recorded
}

// pass returns all that a compactor does in a pass, in no order.
func (f *fates) pass() (steps []func()) {
	s := f.state
	s.over, s.dropped = map[ulid.ULID]struct{}{}, droppedOf(f.before, f.blocks)
	if f.quota > 0 {
		s.over = overQuota(f.blocks, f.sizes, f.quota)
	}
	todo := plan(s)
	for _, job := range todo.compactions {
		for _, block := range job.blocks {
			id := block.Meta.ULID
			require.True(f.t, f.blocks[id].Deletion == nil || slices.Contains(todo.unmarks, id), "seed %d: block %s is marked and compacted", f.seed, id)
		}
		steps = append(steps, func() { f.merge(job, 1+f.random.IntN(len(job.shards))) })
	}
	for _, m := range todo.marks {
		steps = append(steps, func() { f.mark(m) })
	}
	for _, id := range todo.unmarks {
		steps = append(steps, func() { f.takeOff(id) })
	}
	for _, id := range todo.deletions {
		steps = append(steps, func() { f.remove(id) })
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.over), ulid.ULID.Compare) {
		steps = append(steps, func() { f.mark(mark{block: id, reason: blockstore.DeletionQuota}) })
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.dropped), ulid.ULID.Compare) {
		steps = append(steps, func() { f.mark(mark{block: id, reason: blockstore.DeletionTenant}) })
	}
	return append(append(steps, f.rewrites()...), f.finish)
}

func (f *fates) takeOff(id ulid.ULID) {
	if _, ok := f.blocks[id]; ok {
		f.unmark(id)
	}
}

// rewrites returns the steps that write blocks anew without deleted series.
func (f *fates) rewrites() (steps []func()) {
	set := f.set(func(d *blockstore.ActiveDeletion) bool { return d.Settlement != nil && !d.WholeTenant })
	for _, block := range rewritable(f.blocks) {
		_, ids := set.Of(&block)
		if len(ids) == 0 {
			continue
		}
		steps = append(steps, func() {
			if _, ok := f.blocks[block.Meta.ULID]; !ok {
				return
			}
			left := f.without(block.Meta.ULID, ids)
			if len(left) == 0 {
				f.mark(mark{block: block.Meta.ULID, reason: blockstore.DeletionEmpty})
				return
			}
			anew := block
			f.last++
			anew.Meta.ULID = ulid.MustNew(f.last, nil)
			anew.Meta.Compaction.Level++
			anew.Extension.Deletions = unique(slices.Concat(block.Extension.Deletions, ids))
			f.blocks[anew.Meta.ULID] = anew
			f.holds(anew.Meta.ULID, left)
		})
	}
	return steps
}

func (f *fates) set(want func(*blockstore.ActiveDeletion) bool) deletion.Set {
	var some []blockstore.ActiveDeletion
	for _, d := range f.deletions().Active {
		if want(&d) {
			some = append(some, d)
		}
	}
	set, err := deletion.NewSet(some)
	require.NoError(f.t, err)
	return set
}

// without returns what is left of a block after some deletions.
func (f *fates) without(block ulid.ULID, deletions []ulid.ULID) content {
	left := content{}
	for source, bits := range f.content[block] {
		for _, id := range deletions {
			bits &^= f.selects[id]
		}
		if bits != 0 {
			left[source] = bits
		}
	}
	return left
}

// merge carries out a job up to the upload of the nth result.
func (f *fates) merge(job compaction, n int) {
	for _, id := range job.ids() {
		if _, ok := f.blocks[id]; !ok {
			return
		}
	}
	job, wait, err := f.c.erasing(f.t.Context(), acme, job)
	require.NoError(f.t, err)
	if wait {
		return
	}
	settled := f.set(func(d *blockstore.ActiveDeletion) bool { return d.Settlement != nil })
	whole := content{}
	for k := range job.blocks {
		_, ids := settled.Of(&job.blocks[k])
		for source, bits := range f.without(job.blocks[k].Meta.ULID, ids) {
			whole[source] |= bits
		}
	}
	if len(whole) == 0 && !job.splits() {
		for _, id := range job.ids() {
			f.mark(mark{block: id, reason: blockstore.DeletionEmpty})
		}
		return
	}
	made := f.last
	f.compactSome(job, n)
	for made++; made <= f.last; made++ {
		id := ulid.MustNew(made, nil)
		part := content{}
		for source, bits := range whole {
			if bits &= leaves(f.blocks[id]); bits != 0 {
				part[source] = bits
			}
		}
		f.holds(id, part)
	}
}

// remove deletes a block. What a quota has taken away must not come back.
func (f *fates) remove(id ulid.ULID) {
	block, ok := f.blocks[id]
	if !ok {
		return
	}
	if block.Deletion != nil && block.Deletion.Reason == blockstore.DeletionQuota {
		// Another block may have some of it, while a split is under way.
		kept, superseded := content{}, blockstore.Superseded(f.blocks)
		for other, block := range f.blocks {
			_, ok := superseded[other]
			comes := block.Deletion == nil || slices.Contains([]blockstore.DeletionReason{
				blockstore.DeletionQuota,
				blockstore.DeletionCompacted, // whose mark is taken off, since what superseded it is damaged
				blockstore.DeletionRetention, // it is not the quota that takes it away, and who is late may write it anew
			}, block.Deletion.Reason)
			if other != id && !ok && comes {
				for source, bits := range f.content[other] {
					kept[source] |= bits
				}
			}
		}
		for source, bits := range f.content[id] {
			f.rationed[source] |= bits &^ kept[source]
		}
	}
	delete(f.blocks, id)
}

// finish completes the deletions that no block needs.
func (f *fates) finish() {
	for _, d := range f.deletions().Active {
		if d.Settlement != nil && !needed(&d, f.blocks) {
			f.recorded = nil
			require.NoError(f.t, f.c.store.FinishDeletion(f.t.Context(), acme, blockstore.Receipt{Deletion: d.Deletion}))
		}
	}
}

// read returns the samples that queriers read, and those that they hide for as long as
// nobody knows whether they were there when a deletion was accepted.
func (f *fates) read() (read, pending content) {
	read, pending = content{}, content{}
	all := f.set(func(*blockstore.ActiveDeletion) bool { return true })
	open := f.set(func(d *blockstore.ActiveDeletion) bool { return d.Settlement == nil })
	superseded := blockstore.Superseded(f.blocks)
	for id, block := range f.blocks {
		if _, ok := superseded[id]; ok || block.Hidden() {
			continue
		}
		_, ids := all.Of(&block)
		for source, bits := range f.without(id, ids) {
			read[source] |= bits
		}
		if _, ids := open.Of(&block); len(ids) > 0 {
			for source, bits := range f.content[id] {
				pending[source] |= bits
			}
		}
	}
	return read, pending
}

// requireRight fails if a sample is missing that should be there, or there is one that
// was deleted.
func (f *fates) requireRight(when string) {
	read, pending := f.read()
	excused := content{}
	for id, block := range f.blocks {
		if block.Deletion != nil && block.Deletion.Reason == blockstore.DeletionQuota {
			for source, bits := range f.content[id] {
				excused[source] |= bits
			}
		}
	}
	for id, block := range f.begin {
		if _, ok := f.held[id]; ok {
			continue
		}
		require.Zero(f.t, read[id]&^f.alive[id], "seed %d, %s: samples of block %s are read that were deleted", f.seed, when, id)
		require.Zero(f.t, read[id]&f.rationed[id], "seed %d, %s: samples of block %s are read again that the quota took away", f.seed, when, id)
		if !f.expired(block.Meta) {
			missing := f.alive[id] &^ (read[id] | pending[id] | excused[id] | f.rationed[id])
			require.Zero(f.t, missing, "seed %d, %s: samples of block %s are missing", f.seed, when, id)
		}
	}
}

// requireNothingTwice fails if a sample is read from two blocks of which none is damaged.
func (f *fates) requireNothingTwice() {
	read := content{}
	superseded := blockstore.Superseded(f.blocks)
	for id, block := range f.blocks {
		if _, ok := superseded[id]; ok || block.Hidden() || block.NoCompact != nil {
			continue
		}
		for source, bits := range f.content[id] {
			require.Zero(f.t, read[source]&bits, "seed %d: source %s is read twice", f.seed, source)
			read[source] |= bits
		}
	}
}

// seeds returns those that are run: make chaos runs many, others some, and those that have
// found a fault.
func seeds() (all []uint64) {
	some := 60
	if os.Getenv("HUNDREDFOLD_CHAOS_ROUNDS") != "" {
		some = 2000
	}
	for seed := range some {
		all = append(all, uint64(seed)) //nolint:gosec // it is not negative
	}
	return append(all, 209, 390)
}

// TestEachSampleIsReadUnlessItWasDeletedWhateverHappens lets blocks arrive, late ones too,
// the tenant and series be deleted, quotas come and go and passes of the compactor break
// off or do a thing twice, all at random, and looks after each step what queriers read.
func TestEachSampleIsReadUnlessItWasDeletedWhateverHappens(t *testing.T) {
	for _, seed := range seeds() {
		f := newFates(t, seed)
		if f.random.IntN(3) == 0 {
			f.retention = 20 * 24 * time.Hour
		}
		for round := range 30 {
			for range f.random.IntN(4) {
				f.cut()
			}
			f.uploadHeld(4)
			f.before = f.deletions()
			switch f.random.IntN(8) {
			case 0:
				f.accept()
			case 1:
				f.quota = 0
			case 2:
				f.quota = 1 + f.random.Int64N(3000)
			case 3:
				if ids := sorted(f.blocks); len(ids) > 0 && f.random.IntN(4) == 0 {
					f.damage(ids[f.random.IntN(len(ids))])
				}
			}
			f.settleDeletions(3)
			steps := f.pass()
			for range len(steps) {
				steps[f.random.IntN(len(steps))]()
				f.requireRight(fmt.Sprintf("round %d", round))
			}
			f.now = f.now.Add(time.Duration(f.random.IntN(150)) * time.Minute)
			f.requireRight(fmt.Sprintf("after round %d", round))
		}
		f.settleDeletions(1)
		f.uploadHeld(1)
		for range 20 {
			f.before = f.deletions()
			for _, step := range f.pass() {
				step()
				f.requireRight("at the end")
			}
			f.now = f.now.Add(3 * time.Hour)
		}
		if !slices.ContainsFunc(sorted(f.blocks), func(id ulid.ULID) bool { return f.blocks[id].NoCompact != nil }) {
			require.Empty(t, f.deletions().Active, "seed %d: a deletion is not completed", seed)
		}
		f.requireNothingTwice()
	}
}
