package cluster

import (
	"context"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/compactor"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/blockwriter"
	"github.com/hundredfold/hundredfold/querier"
	"github.com/hundredfold/hundredfold/querier/queriertest"
)

const (
	minute = int64(60_000)
	hour   = 60 * minute
)

// stopping is a bucket that stops who uploads a block, when that is complete, until it is
// told to go on.
type stopping struct {
	objstore.Bucket
	uploaded chan<- stop
}

// stop says that a block is in the bucket. Whoever receives it closes proceed.
type stop struct {
	block   ulid.ULID
	proceed chan struct{}
}

// Upload implements objstore.Bucket.
func (b stopping) Upload(ctx context.Context, name string, r io.Reader, opts ...objstore.ObjectUploadOption) error {
	err := b.Bucket.Upload(ctx, name, r, opts...)
	id, isBlock := ulid.ParseStrict(path.Base(path.Dir(name)))
	if err == nil && isBlock == nil && path.Base(name) == "meta.json" {
		s := stop{id, make(chan struct{})}
		b.uploaded <- s
		<-s.proceed
	}
	return err
}

// blocksWorld is a cluster with two queriers and two compactors that know nothing of each
// other, and a Prometheus's TSDB that gets the same samples. All queriers look at the bucket
// seldom, so that what they know of it is mostly old.
type blocksWorld struct {
	*world
	oracle   *tsdb.DB
	queriers []*querier.Querier
	read     []storage.Queryable // of the queriers
	passes   []func(context.Context) error
	uploaded []chan stop // by the compactor of the pass
	written  int64       // ms; all samples before it are in both
}

func newBlocksWorld(t *testing.T) *blocksWorld {
	w := &blocksWorld{world: (&world{t: t, keep: time.Hour, seldom: true}).begin()}
	opts := tsdb.DefaultOptions()
	opts.MinBlockDuration, opts.MaxBlockDuration = 100*hour, 100*hour
	var err error
	w.oracle, err = tsdb.Open(t.TempDir(), nil, nil, opts, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.oracle.Close()) })
	w.queriers = []*querier.Querier{w.querier, w.newQuerier(querier.NewClusterIngester(w.net, w.net, limitsOf, nil, nil), w.store)}
	for _, q := range w.queriers {
		w.read = append(w.read, &queriertest.Storage{Tenant: acme, Queryable: q.Queryable()})
	}
	for range 2 {
		uploaded := make(chan stop)
		cfg := compactor.Default()
		cfg.Dir = filepath.Join(t.TempDir(), "compactor")
		c, err := compactor.New(cfg, compactor.Deps{Store: blockstore.New(stopping{w.files, uploaded}, nil), Limits: limitsOf})
		require.NoError(t, err)
		w.passes, w.uploaded = append(w.passes, c.RunOnce), append(w.uploaded, uploaded)
	}
	w.written = time.Now().UnixMilli()
	return w
}

// appendUntil appends samples of ten series, one each two minutes, up to a time.
func (w *blocksWorld) appendUntil(end int64, apps ...storage.AppenderV2) {
	w.t.Helper()
	for ; w.written < end; w.written += 2 * minute {
		for i := range 10 {
			ls := labels.FromStrings("__name__", "requests_total", "pod", fmt.Sprint(i))
			v, h := float64(w.written/minute%1000+int64(i)), tsdbutil.GenerateTestHistogram(w.written/minute%100)
			if i >= 8 {
				ls, v = labels.FromStrings("__name__", "latency", "pod", fmt.Sprint(i)), 0
			} else {
				h = nil
			}
			for _, app := range apps {
				_, err := app.Append(0, ls, 0, w.written, v, h, nil, storage.AOptions{})
				require.NoError(w.t, err)
			}
		}
	}
	for _, app := range apps {
		require.NoError(w.t, app.Commit())
	}
}

// uploadShards puts what the oracle has of a time into the bucket, as ingesters cut it for a tenant
// with too many series for one block.
func (w *blocksWorld) uploadShards(mint, maxt int64) {
	w.t.Helper()
	var specs []blockwriter.Spec
	for i := range uint64(2) {
		meta := tsdb.BlockMeta{ULID: ulid.Make(), MinTime: mint, MaxTime: maxt}
		meta.Compaction = tsdb.BlockMetaCompaction{Level: 1, Sources: []ulid.ULID{meta.ULID}}
		specs = append(specs, blockwriter.Spec{Meta: meta, Extension: blockstore.Extension{Shard: &blockstore.Shard{Index: i, Count: 2}}})
	}
	head := tsdb.NewRangeHead(w.oracle.Head(), mint, maxt-1)
	pending, err := blockwriter.Write(w.t.Context(), blockwriter.Config{Parent: w.t.TempDir()}, []tsdb.BlockReader{head}, specs)
	require.NoError(w.t, err)
	require.Len(w.t, pending, 2)
	for _, p := range pending {
		dir, err := p.Commit()
		require.NoError(w.t, err)
		require.NoError(w.t, w.store.Upload(w.t.Context(), acme, dir))
		w.notice(p.Meta.ULID)
	}
}

// notice has the queriers look at a block that is new in the bucket.
func (w *blocksWorld) notice(block ulid.ULID) {
	for _, q := range w.queriers {
		q.BlockUploaded(acme, block)
	}
	synctest.Wait()
}

// requireSame requires that each querier has what the oracle has.
func (w *blocksWorld) requireSame(when string, args ...any) {
	w.t.Helper()
	want := samplesOf(w.t, w.oracle)
	require.Len(w.t, want, 10)
	for i, q := range w.read {
		got := samplesOf(w.t, q)
		for name := range want {
			require.Len(w.t, got[name], len(want[name]), "querier %d, series %s, %s", i, name, fmt.Sprintf(when, args...))
		}
		require.Equal(w.t, want, got)
	}
}

// compact lets both compactors make a pass at once, over the bucket as it is. Each time that one
// of them has uploaded a block, queriers are asked: before they know of it and after. The first
// block of each is in the bucket only when both know what they will do.
func (w *blocksWorld) compact() (uploaded int) {
	w.t.Helper()
	ended := make(chan error)
	for _, pass := range w.passes {
		go func() { ended <- pass(context.WithoutCancel(w.t.Context())) }()
	}
	var held []stop
	for running := len(w.passes); running > 0; {
		var next stop
		select {
		case err := <-ended:
			require.NoError(w.t, err)
			running--
		case next = <-w.uploaded[0]:
			held = append(held, next)
		case next = <-w.uploaded[1]:
			held = append(held, next)
		}
		if len(held) < running {
			continue // The other one is at work.
		}
		for _, s := range held {
			w.requireSame("with block %s in the bucket, which nobody has been told of", s.block)
			w.notice(s.block)
			w.requireSame("with block %s in the bucket", s.block)
			close(s.proceed)
			uploaded++
		}
		held = nil
	}
	return uploaded
}

// visible returns the blocks that are read.
func (w *blocksWorld) visible() map[ulid.ULID]blockstore.Block {
	w.t.Helper()
	blocks, _, err := w.store.Blocks(w.t.Context(), acme)
	require.NoError(w.t, err)
	superseded := blockstore.Superseded(blocks)
	for id, block := range blocks {
		if _, ok := superseded[id]; ok || block.Hidden() {
			delete(blocks, id)
		}
	}
	return blocks
}

// Samples go from ingesters to the bucket and are merged there twice over, and at no moment
// does a query find fewer or others than were written.
func TestSamplesAreReadOnceWhileBlocksAreHandedOverAndCompacted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBlocksWorld(t)
		begin := w.written
		<-time.After(2 * time.Hour)
		w.appendUntil(begin+2*hour, w.oracle.AppenderV2(t.Context()))
		w.uploadShards(begin, begin+2*hour)
		w.requireSame("in the bucket only")

		both, handed := 0, 0
		for step := range int64(20 * 6) {
			<-time.After(10 * time.Minute)
			w.appendUntil(begin+2*hour+(step+1)*10*minute, w.oracle.AppenderV2(t.Context()), w.pushed.AppenderV2(t.Context()))
			w.requireSame("after step %d", step)
			if step%12 == 11 {
				both += w.compact()
			}
		}
		require.NotZero(t, both)
		for _, n := range w.nodes {
			_, mins, head := n.Oldest(acme)
			require.Greater(t, slices.Min(append(mins, head)), begin+12*hour, "ingesters have handed over what is compacted")
			handed++
		}
		require.Equal(t, 3, handed)

		halves := map[blockstore.Shard]int{}
		var parts [2][]string // samples by shard
		for id, block := range w.visible() {
			if block.Meta.MaxTime > begin+12*hour {
				continue
			}
			halves[block.Shard()]++
			require.Greater(t, block.Meta.Compaction.Level, 1, "block %s", id)
			dir := filepath.Join(t.TempDir(), id.String())
			require.NoError(t, w.store.Download(t.Context(), acme, id, dir))
			for name := range blocktest.Samples(t, dir) {
				parts[block.Shard().Index] = append(parts[block.Shard().Index], name)
			}
		}
		require.Equal(t, map[blockstore.Shard]int{{Index: 0, Count: 2}: 1, {Index: 1, Count: 2}: 1}, halves, "each sample of the first twelve hours is in one block")
		require.Len(t, slices.Concat(parts[0], parts[1]), 10)
	})
}
