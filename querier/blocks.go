package querier

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/disjoint"
	"github.com/hundredfold/hundredfold/internal/externallabels"
	"github.com/hundredfold/hundredfold/internal/mask"
	"github.com/hundredfold/hundredfold/internal/remoteblock"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	// openers is how many blocks one call reads from at once while it looks for series.
	// Most of the time of each is spent waiting for the object store.
	openers = 64
	// drained is how many series of each block are decoded at once, before they are
	// merged with those of others.
	drained = 256
)

// blockError says that a block which a query needs cannot be read. The query fails:
// to leave the block out would be a hole in the answer.
type blockError struct {
	key blockKey
	err error
}

func (e *blockError) Error() string {
	return fmt.Sprintf("block %s of tenant %q, which the query needs, cannot be read: %s", e.key.block, e.key.tenant, e.err)
}

func (e *blockError) Unwrap() error { return e.err }

type blockKey struct {
	tenant tenant.ID
	block  ulid.ULID
}

// openBlock is a block that one session reads, from when it is first needed.
type openBlock struct {
	mu     sync.Mutex // held while it is opened
	reader *remoteblock.Reader
}

// failure returns an error of reading a block as the query reports it: damage stays, and
// what else happens on the way to the object store goes away.
func (q *Querier) failure(ctx context.Context, key blockKey, err error) error {
	var (
		known *blockError
		limit *limitError
	)
	switch {
	case err == nil, errors.As(err, &known), errors.As(err, &limit):
		return err
	case errors.As(err, &limit):
		return limit // there is nothing wrong with the block
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, blockstore.ErrBlockNotFound):
		q.views.hint(key.tenant) // the view is out of date: the next query shall have a better one
	}
	q.metrics.openFailures.Inc()
	partialOf(ctx).spoil(key.block, err)
	err = &blockError{key: key, err: err}
	if errors.Is(err, remoteblock.ErrDamaged) {
		return err
	}
	return unavailable(err)
}

// block returns a block for one Select of the times from mint to maxt, and opens it if
// that is the first.
func (s *session[R]) block(ctx context.Context, meta *blockstore.Block, within timeRange, withChunks bool) (tsdb.BlockReader, error) {
	b, err := s.openBlock(ctx, meta)
	if err != nil {
		return nil, s.q.failure(ctx, blockKey{s.mu.tenant, meta.Meta.ULID}, err)
	}
	return b.Select(ctx, within.mint, within.maxt, withChunks), nil
}

func (s *session[R]) openBlock(ctx context.Context, meta *blockstore.Block) (*remoteblock.Reader, error) {
	s.mu.Lock()
	id := s.mu.tenant
	b := s.mu.blocks[meta.Meta.ULID]
	if b == nil && !s.mu.closed {
		b = &openBlock{}
		s.mu.blocks[meta.Meta.ULID] = b
	}
	s.mu.Unlock()
	if b == nil {
		return nil, errQuerierClosed
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reader != nil {
		return b.reader, nil
	}
	reader, err := s.q.blocks.Open(ctx, id, *meta, budgetOf(ctx))
	if err != nil {
		return nil, err
	}
	b.reader = reader
	s.q.metrics.blocksOpen.Inc()
	return reader, nil
}

// readBlock calls read with a querier of one block, which is closed with the session.
func (s *session[R]) readBlock(ctx context.Context, view *tenantView, meta *blockstore.Block, within timeRange, withChunks bool, read func(R) error) error {
	r, err := s.blockReader(ctx, view, meta, within, withChunks)
	if err == nil {
		err = read(r)
	}
	return s.q.failure(ctx, blockKey{s.mu.tenant, meta.Meta.ULID}, err)
}

// blockReader returns a reader of a block without what view hides of it: of the block
// itself, or of what the queriers that own it send.
func (s *session[R]) blockReader(ctx context.Context, view *tenantView, meta *blockstore.Block, within timeRange, withChunks bool) (R, error) {
	peers := askedPeers(ctx, meta.Meta.ULID)
	if peers == nil {
		peers = s.q.owners.of(s.mu.tenant, meta.Meta.ULID)
	}
	if len(peers) == 0 {
		return s.openHere(ctx, meta, view.filters(meta), within, withChunks)
	}
	owned := ownedBlock{owners: s.q.owners, peers: peers, tenant: s.mu.tenant, block: meta, within: within}
	r := s.ofOwned(owned, func(ctx context.Context) (R, error) { return s.openHere(ctx, meta, nil, within, withChunks) })
	return s.mask(r, view.filters(meta)), nil
}

// openHere returns a reader of a block itself without what filters hide, which is closed
// with the session.
func (s *session[R]) openHere(ctx context.Context, meta *blockstore.Block, filters []mask.Filter, within timeRange, withChunks bool) (R, error) {
	var none R
	block, err := s.block(ctx, meta, within, withChunks)
	if err != nil {
		return none, err
	}
	block = mask.Block(externallabels.Add(disjoint.Block(block), meta.Extension.ExternalLabels), filters...)
	r, err := s.ofBlock(trim(block, within), within.mint, within.maxt)
	if err != nil {
		return none, err
	}
	s.closeLater(r.Close)
	return r, nil
}

// eachBlock calls read for all blocks, many at once.
func eachBlock(ctx context.Context, blocks []blockstore.Block, read func(context.Context, int) error) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(openers)
	for i := range blocks {
		group.Go(func() error { return read(groupCtx, i) })
	}
	return group.Wait()
}

// selectBlocks selects series from all blocks at once, and returns a source for each.
func selectBlocks[R reader, T labelled](ctx context.Context, s *session[R], found holders[R], ask request, begin func(R, *storage.SelectHints, []*labels.Matcher) seriesSet[T]) ([]*seriesSource[T], error) {
	blocks := found.blocks
	sources := make([]*seriesSource[T], len(blocks))
	hints := storage.SelectHints{Start: s.mint, End: s.maxt}
	if ask.hints != nil {
		hints = *ask.hints
	}
	within := timeRange{hints.Start, hints.End}
	if hints.DisableTrimming {
		within = timeRange{math.MinInt64, math.MaxInt64}
	}
	hints.DisableTrimming = true // trimmed does it
	// The readers of a block outlive the group, so they have ctx and not the group's.
	err := eachBlock(ctx, blocks, func(_ context.Context, i int) error {
		return s.readBlock(ctx, found.view, &blocks[i], within, hints.Func != seriesFunc, func(r R) error {
			hints := hints
			key := blockKey{s.mu.tenant, blocks[i].Meta.ULID}
			sources[i] = &seriesSource[T]{
				set:     begin(r, &hints, slices.Clone(ask.matchers)), // Select sorts them
				span:    span{blocks[i].Meta.MinTime, blocks[i].Meta.MaxTime},
				order:   i,
				doubles: len(blocks[i].Extension.ExternalLabels) > 0,
				fail:    func(err error) error { return s.q.failure(ctx, key, err) },
			}
			return sources[i].drain(drained)
		})
	})
	return sources, err
}

// labelsOfBlocks returns the label names or values of all blocks, unordered.
func labelsOfBlocks[R reader](ctx context.Context, s *session[R], found holders[R], ask request, call func(context.Context, R) ([]string, error)) ([][]string, error) {
	texts := make([][]string, len(found.blocks))
	err := eachBlock(ctx, found.blocks, func(_ context.Context, i int) error {
		return s.readBlock(ctx, found.view, &found.blocks[i], ask.timeRange, false, func(r R) error {
			var err error
			texts[i], err = call(ctx, r)
			return err
		})
	})
	return texts, err
}

// trimBlocks forgets what is kept on disk of blocks that are not in view any more.
func (q *Querier) trimBlocks(view *bucketView) error {
	visible := make(map[blockKey]struct{})
	for id, t := range view.tenants {
		for i := range t.blocks {
			visible[blockKey{tenant: id, block: t.blocks[i].Meta.ULID}] = struct{}{}
		}
	}
	return q.blocks.Trim(func(id tenant.ID, block ulid.ULID) bool {
		_, ok := visible[blockKey{tenant: id, block: block}]
		return ok
	})
}

// removeCopies removes the copies of whole blocks that earlier releases kept in dir.
func removeCopies(dir string) error {
	tenants, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range tenants {
		copies, err := os.ReadDir(filepath.Join(dir, t.Name()))
		if err != nil || !t.IsDir() {
			continue // not ours
		}
		for _, c := range copies {
			if _, err := os.Stat(filepath.Join(dir, t.Name(), c.Name(), "chunks")); err == nil {
				errs = append(errs, os.RemoveAll(filepath.Join(dir, t.Name(), c.Name())))
			}
		}
		_ = os.Remove(filepath.Join(dir, t.Name())) // if it is empty
	}
	return errors.Join(errs...)
}
