package compactor

import (
	"bufio"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

// TestPlan runs the stories in testdata. A story is a list of commands; after each
// line "----" follows what the commands since the last one have printed. Run with
// -update to write what they print now.
//
//	now 15h                      the time, since the beginning of day 0
//	retention 30d                of the tenant; none at first
//	block NAME FROM-TO [...]     a block appears; options: sources=A,B level=2 hint=H shard=1/2 series=N label=L
//	damaged NAME                 the block gets a mark against compaction
//	lose NAME                    the block vanishes
//	plan                         prints what is to be done
//	apply                        does so, and prints the blocks
//	settle                       plans and does so until nothing is left to do, and prints the blocks
func TestPlan(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			got := runStory(t, string(text))
			if *update {
				require.NoError(t, os.WriteFile(file, []byte(got), 0o600))
				return
			}
			require.Equal(t, string(text), got)
		})
	}
}

var update = flag.Bool("update", false, "write what the stories in testdata print")

// world is a tenant's blocks without their samples. The name of a block stands for
// its ULID, and its sources for its samples.
type world struct {
	state
	names map[ulid.ULID]string
	made  int
	last  uint64
	begin map[ulid.ULID]blockstore.Block // blocks that were not made by a compaction
}

func newWorld() *world {
	return &world{
		state: state{blocks: map[ulid.ULID]blockstore.Block{}, deletionDelay: 2 * time.Hour, now: time.UnixMilli(0)},
		names: map[ulid.ULID]string{},
		begin: map[ulid.ULID]blockstore.Block{},
	}
}

func (w *world) add(name string, block blockstore.Block) ulid.ULID {
	w.last++
	meta := &block.Meta
	meta.ULID = ulid.MustNew(w.last, nil)
	if meta.Compaction.Sources == nil {
		meta.Compaction.Sources = []ulid.ULID{meta.ULID}
		w.begin[meta.ULID] = block
	}
	w.names[meta.ULID] = name
	w.blocks[meta.ULID] = block
	return meta.ULID
}

func (w *world) id(name string) ulid.ULID {
	for id, known := range w.names {
		if known == name {
			return id
		}
	}
	return ulid.ULID{}
}

func (w *world) mark(m mark) {
	block, ok := w.blocks[m.block]
	if ok && block.Deletion == nil {
		block.Deletion = &blockstore.DeletionMark{Time: w.now, Reason: m.reason}
		w.blocks[m.block] = block
	}
}

func (w *world) unmark(id ulid.ULID) {
	block := w.blocks[id]
	block.Deletion = nil
	w.blocks[id] = block
}

func (w *world) damage(id ulid.ULID) {
	block := w.blocks[id]
	block.NoCompact = &blockstore.NoCompactMark{Reason: blockstore.NoCompactDamaged}
	w.blocks[id] = block
}

// compact makes the block that a compaction makes, if all its sources are there.
func (w *world) compact(job compaction) {
	w.compactSome(job, len(job.shards))
}

// compactSome makes the first n of the blocks that a compaction makes.
func (w *world) compactSome(job compaction, n int) {
	for _, id := range job.ids() {
		if _, ok := w.blocks[id]; !ok {
			return
		}
	}
	for _, shard := range job.shards[:n] {
		w.made++
		w.last++
		spec := job.spec(ulid.MustNew(w.last, nil), shard)
		w.names[spec.Meta.ULID] = fmt.Sprintf("C%d", w.made)
		// As the store decodes it.
		text, err := blockstore.EncodeMeta(spec.Meta, spec.Extension)
		if err != nil {
			panic(err)
		}
		meta, extension, err := blockstore.DecodeMeta(spec.Meta.ULID, text)
		if err != nil {
			panic(err)
		}
		w.blocks[meta.ULID] = blockstore.Block{Meta: *meta, Extension: extension}
	}
}

func (w *world) apply(todo actions) {
	for _, id := range todo.unmarks {
		w.unmark(id)
	}
	for _, m := range todo.marks {
		w.mark(m)
	}
	for _, id := range todo.deletions {
		delete(w.blocks, id)
	}
	for _, job := range todo.compactions {
		w.compact(job)
	}
}

func (a actions) empty() bool {
	return len(a.marks)+len(a.unmarks)+len(a.deletions)+len(a.compactions) == 0
}

// settle reports whether a fixed point was reached within the given steps.
func (w *world) settle(steps int) bool {
	for range steps {
		todo := plan(w.state)
		if todo.empty() {
			return true
		}
		w.apply(todo)
	}
	return false
}

func runStory(t *testing.T, text string) string {
	t.Helper()
	w := newWorld()
	var out, printed strings.Builder
	skipping := false
	scanner := bufio.NewScanner(strings.NewReader(text))
	for scanner.Scan() {
		line := scanner.Text()
		switch {
		case skipping && line != "":
			continue
		case line == "----":
			skipping = true
			fmt.Fprintf(&out, "----\n%s", printed.String())
			printed.Reset()
			continue
		}
		skipping = false
		fmt.Fprintln(&out, line)
		if line != "" && !strings.HasPrefix(line, "#") {
			w.command(t, &printed, strings.Fields(line))
		}
	}
	require.NoError(t, scanner.Err())
	return out.String()
}

func (w *world) command(t *testing.T, out *strings.Builder, words []string) {
	t.Helper()
	switch words[0] {
	case "now":
		w.now = time.UnixMilli(0).Add(duration(t, words[1]))
	case "retention":
		w.retention = duration(t, words[1])
	case "block":
		from, to, _ := strings.Cut(words[2], "-")
		block := blockstore.Block{Meta: tsdb.BlockMeta{MinTime: duration(t, from).Milliseconds(), MaxTime: duration(t, to).Milliseconds()}}
		block.Meta.Compaction.Level = 1
		for _, option := range words[3:] {
			w.option(t, &block, option)
		}
		w.add(words[1], block)
	case "damaged":
		w.damage(w.id(words[1]))
	case "lose":
		delete(w.blocks, w.id(words[1]))
	case "plan":
		w.printPlan(out, plan(w.state))
	case "apply":
		w.apply(plan(w.state))
		w.printBlocks(out)
	case "settle":
		require.True(t, w.settle(100), "no fixed point")
		w.printBlocks(out)
	default:
		require.Fail(t, "unknown command", "%v", words)
	}
}

func (w *world) option(t *testing.T, block *blockstore.Block, option string) {
	t.Helper()
	meta := &block.Meta
	key, value, _ := strings.Cut(option, "=")
	switch key {
	case "sources":
		for _, name := range strings.Split(value, ",") {
			meta.Compaction.Sources = append(meta.Compaction.Sources, w.id(name))
		}
	case "level":
		_, err := fmt.Sscan(value, &meta.Compaction.Level)
		require.NoError(t, err)
	case "hint":
		meta.Compaction.Hints = []string{value}
	case "shard":
		var shard blockstore.Shard
		_, err := fmt.Sscanf(value, "%d/%d", &shard.Index, &shard.Count)
		require.NoError(t, err)
		block.Extension.Shard = &shard
	case "series":
		_, err := fmt.Sscan(value, &meta.Stats.NumSeries)
		require.NoError(t, err)
		meta.Stats.NumChunks = meta.Stats.NumSeries
	case "label":
		block.Extension.ExternalLabels = map[string]string{"cluster": value}
	default:
		require.Fail(t, "unknown option", option)
	}
}

func duration(t *testing.T, text string) time.Duration {
	t.Helper()
	if days, ok := strings.CutSuffix(text, "d"); ok {
		return 24 * duration(t, days+"h")
	}
	d, err := time.ParseDuration(text)
	require.NoError(t, err)
	return d
}

func (w *world) printPlan(out *strings.Builder, todo actions) {
	for _, id := range todo.unmarks {
		fmt.Fprintf(out, "unmark %s\n", w.names[id])
	}
	for _, m := range todo.marks {
		fmt.Fprintf(out, "mark %s %s", w.names[m.block], m.reason)
		if m.by != (ulid.ULID{}) {
			fmt.Fprintf(out, " by %s", w.names[m.by])
		}
		fmt.Fprintln(out)
	}
	for _, id := range todo.deletions {
		fmt.Fprintf(out, "delete %s\n", w.names[id])
	}
	for _, job := range todo.compactions {
		fmt.Fprintf(out, "compact %s into the %s from %s", w.list(job.ids()), hours(job.length.Milliseconds()), hours(job.start))
		if job.shards[0].Count > 1 {
			fmt.Fprint(out, ", shards")
			for _, shard := range job.shards {
				fmt.Fprintf(out, " %d/%d", shard.Index, shard.Count)
			}
		}
		if job.vertical {
			fmt.Fprint(out, ", overlapping")
		}
		fmt.Fprintln(out)
	}
	if todo.empty() {
		fmt.Fprintln(out, "nothing to do")
	}
}

func (w *world) printBlocks(out *strings.Builder) {
	for _, id := range sorted(w.blocks) {
		block := w.blocks[id]
		fmt.Fprintf(out, "%s %s-%s", w.names[id], hours(block.Meta.MinTime), hours(block.Meta.MaxTime))
		if shard := block.Extension.Shard; shard != nil {
			fmt.Fprintf(out, " shard %d/%d", shard.Index, shard.Count)
		}
		if sources := block.Meta.Compaction.Sources; len(sources) > 1 || block.Extension.Sources != nil {
			fmt.Fprintf(out, " of %s", w.list(sources))
		}
		if block.Deletion != nil {
			fmt.Fprintf(out, ", %s", block.Deletion.Reason)
		}
		if block.NoCompact != nil {
			fmt.Fprint(out, ", damaged")
		}
		fmt.Fprintln(out)
	}
}

func (w *world) list(ids []ulid.ULID) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = w.names[id]
	}
	return strings.Join(names, " ")
}

func hours(ms int64) string {
	if ms == 0 {
		return "0h"
	}
	text := (time.Duration(ms) * time.Millisecond).String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
}

// TestPlanLosesNothingWhateverHappens lets blocks arrive, jobs run in part and in
// any order, blocks turn out damaged and time pass, all at random, and looks at
// each step whether every sample is still there to be read.
func TestPlanLosesNothingWhateverHappens(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		w := newWorld()
		w.now = time.UnixMilli(0).Add(100 * 24 * time.Hour)
		if random.IntN(2) == 0 {
			w.retention = 20 * 24 * time.Hour
		}
		for range 30 {
			for range random.IntN(4) {
				w.add("b", randomBlock(random, w.now))
			}
			if ids := sorted(w.blocks); len(ids) > 0 && random.IntN(20) == 0 {
				w.damage(ids[random.IntN(len(ids))])
			}
			w.applySome(random, plan(w.state))
			w.now = w.now.Add(time.Duration(random.IntN(150)) * time.Minute)
			w.requireComplete(t, seed)
		}
		require.True(t, w.settle(100), "seed %d: no fixed point", seed)
		w.requireComplete(t, seed)
		w.requireTidy(t, seed)
	}
}

// randomBlock returns a block of two hours, mostly, at a time before now.
func randomBlock(random *rand.Rand, now time.Time) (block blockstore.Block) {
	start := alignDown(now.Add(-time.Duration(random.IntN(26*24))*time.Hour).UnixMilli(), 2*time.Hour)
	if random.IntN(3) > 0 { // most are of today
		start = alignDown(now.Add(-time.Duration(random.IntN(30))*time.Hour).UnixMilli(), 2*time.Hour)
	}
	meta := tsdb.BlockMeta{MinTime: start, MaxTime: start + (2 * time.Hour).Milliseconds()}
	switch random.IntN(10) {
	case 0: // of a head that was cut early
		meta.MaxTime = start + random.Int64N((2 * time.Hour).Milliseconds()) + 1
	case 1: // of another kind of database
		meta.MinTime += random.Int64N(1000)
		meta.MaxTime += random.Int64N((30 * time.Hour).Milliseconds())
	}
	meta.Compaction.Level = 1
	switch random.IntN(6) {
	case 0: // of a large tenant
		count := uint64(2) << random.IntN(3)
		block.Extension.Shard = &blockstore.Shard{Index: random.Uint64N(count), Count: count}
	case 1: // too large for one block
		meta.Stats.NumSeries = blockstore.MaxSeries + random.Uint64N(3*blockstore.MaxSeries)
		meta.Stats.NumChunks = meta.Stats.NumSeries
	}
	if random.IntN(20) == 0 {
		block.Extension.ExternalLabels = map[string]string{"cluster": "eu"}
	}
	block.Meta = meta
	return block
}

// applySome does some of the actions, in any order, some of them twice.
func (w *world) applySome(random *rand.Rand, todo actions) {
	var steps []func()
	for _, m := range todo.marks {
		steps = append(steps, func() { w.mark(m) })
	}
	for _, id := range todo.unmarks {
		steps = append(steps, func() { w.unmark(id) })
	}
	for _, id := range todo.deletions {
		steps = append(steps, func() { delete(w.blocks, id) })
	}
	for _, job := range todo.compactions {
		steps = append(steps, func() { w.compactSome(job, random.IntN(len(job.shards)+1)) })
	}
	for range len(steps) {
		steps[random.IntN(len(steps))]()
	}
}

// leaves returns the smallest shards that there are here and that a block holds, as bits.
func leaves(block blockstore.Block) (bits uint64) {
	for leaf := range uint64(64) {
		if leaf%block.Shard().Count == block.Shard().Index {
			bits |= 1 << leaf
		}
	}
	return bits
}

// readable returns the blocks that readers read.
func (w *world) readable() map[ulid.ULID]blockstore.Block {
	blocks := map[ulid.ULID]blockstore.Block{}
	superseded := blockstore.Superseded(w.blocks)
	for id, block := range w.blocks {
		if _, ok := superseded[id]; !ok && (block.Deletion == nil || block.Deletion.Reason != blockstore.DeletionRetention) {
			blocks[id] = block
		}
	}
	return blocks
}

// requireComplete fails if the samples of a block that ever was, and that the
// retention still covers, are in no block that readers see.
func (w *world) requireComplete(t *testing.T, seed uint64) {
	t.Helper()
	read := map[ulid.ULID]uint64{}
	for _, block := range w.readable() {
		for _, source := range block.Meta.Compaction.Sources {
			read[source] |= leaves(block)
		}
	}
	for id, block := range w.begin {
		if !w.expired(block.Meta) {
			require.Zero(t, leaves(block)&^read[id], "seed %d: samples of block %s are lost", seed, id)
		}
	}
}

// requireTidy fails if blocks overlap which compactions made, or if something is read
// from two blocks of which none is damaged.
func (w *world) requireTidy(t *testing.T, seed uint64) {
	t.Helper()
	var made []blockstore.Block
	read := map[ulid.ULID]uint64{}
	for _, block := range w.readable() {
		if block.NoCompact != nil || block.Deletion != nil {
			continue
		}
		if block.Meta.Compaction.Level > 1 {
			made = append(made, block)
		}
		for _, source := range block.Meta.Compaction.Sources {
			require.Zero(t, read[source]&leaves(block), "seed %d: source %s is read twice", seed, source)
			read[source] |= leaves(block)
		}
	}
	for i, a := range made {
		for _, b := range made[i+1:] {
			apart := a.Meta.MaxTime <= b.Meta.MinTime || b.Meta.MaxTime <= a.Meta.MinTime
			require.True(t, apart || !a.Shard().Overlaps(b.Shard()) || !maps.Equal(a.Extension.ExternalLabels, b.Extension.ExternalLabels),
				"seed %d: blocks %s and %s overlap", seed, a.Meta.ULID, b.Meta.ULID)
		}
	}
}
