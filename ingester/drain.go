package ingester

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

const (
	// drainRetryFirst and drainRetryMost bound the pauses between two tries of what
	// fails, and between two questions whether queriers see the blocks.
	drainRetryFirst = 100 * time.Millisecond
	drainRetryMost  = 5 * time.Second
	// drainingRetryAfter is what senders are told who still come here.
	drainingRetryAfter = time.Second
)

var (
	// errDraining says that the ingester is being emptied.
	errDraining = errors.New("the ingester is draining and takes no new samples")
	// errNotEmpty says that a head has series after all of it was cut.
	errNotEmpty = errors.New("the head holds series still")
)

// DrainPhase is what a drain is at.
type DrainPhase string

// The phases of a drain, in their order.
const (
	DrainUploading  DrainPhase = "uploading"  // heads are cut into blocks, and those uploaded
	DrainConfirming DrainPhase = "confirming" // queriers have to see the blocks
	DrainDone       DrainPhase = "done"
)

// DrainProgress says how far a drain is.
type DrainProgress struct {
	Phase DrainPhase `json:"phase"`
	// Tenants are those with samples here; TenantsUploaded are done with uploading.
	Tenants         int `json:"tenants"`
	TenantsUploaded int `json:"tenants_uploaded"`
	// Cut are the blocks that the drain cut from heads.
	Cut int `json:"blocks_cut"`
	// Uploaded are the local blocks that are in the bucket, and Confirmed those of
	// them that all queriers read from there.
	Uploaded  int `json:"blocks_uploaded"`
	Confirmed int `json:"blocks_confirmed"`
	// Problem is what the drain is trying again because of, if anything.
	Problem string `json:"problem,omitempty"`
}

// Drain empties the ingester into the bucket: it refuses writes from now on, for good,
// cuts all heads, uploads all blocks, and waits until confirm names all of them.
// Reads are served throughout and afterwards. What fails is tried again until ctx
// ends, which is the only way it returns an error; the next call, after a restart
// too, goes on from there.
//
// confirm returns which of the blocks all queriers read from the bucket. progress is
// told of every step; calls do not overlap, and it must not block.
func (i *Ingester) Drain(ctx context.Context, confirm func(context.Context, tenant.ID, []ulid.ULID) ([]ulid.ULID, error), progress func(DrainProgress)) error {
	i.draining.Store(true)
	if err := i.emptying.take(ctx); err != nil {
		return fmt.Errorf("wait for another drain: %w", err)
	}
	defer i.emptying.give()
	i.draining.Store(true) // A Wipe that ended meanwhile takes writes again.
	start := i.now()
	d := drain{ing: i, report: progress}
	blocks, err := d.upload(ctx)
	if err != nil {
		return err
	}
	if err := d.confirm(ctx, blocks, confirm); err != nil {
		return err
	}
	d.note(func(p *DrainProgress) { p.Phase = DrainDone })
	i.logger.Info("The ingester is drained: the bucket has all its samples, and queries read them there",
		"tenants", d.progress.Tenants, "blocks", d.progress.Uploaded, "took", i.now().Sub(start))
	return nil
}

// Wipe uploads all that the ingester holds and deletes it here. It is for an ingester
// that the others gave up, and that is to begin anew: call it before it joins.
// What fails is tried again until ctx ends.
func (i *Ingester) Wipe(ctx context.Context) error {
	if err := i.emptying.take(ctx); err != nil {
		return fmt.Errorf("wait for a drain: %w", err)
	}
	defer i.emptying.give()
	i.draining.Store(true)
	defer i.draining.Store(false)
	d := drain{ing: i, report: func(DrainProgress) {}}
	if _, err := d.upload(ctx); err != nil {
		return err
	}
	for _, t := range i.all() {
		if err := t.wipe(); err != nil {
			return fmt.Errorf("wipe tenant %s: %w", t.id, err)
		}
	}
	i.logger.Info("Uploaded and deleted all that was held here", "tenants", d.progress.Tenants, "blocks", d.progress.Uploaded)
	return nil
}

// takesWrites returns an error while the ingester refuses writes.
func (i *Ingester) takesWrites() error {
	if i.draining.Load() {
		return wire.Unavailable(errDraining, drainingRetryAfter)
	}
	return nil
}

// drain is one drain.
type drain struct {
	ing    *Ingester
	report func(DrainProgress)

	mu       sync.Mutex
	progress DrainProgress
}

func (d *drain) note(change func(*DrainProgress)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.progress)
	d.report(d.progress)
}

// upload cuts and uploads everything and returns the local blocks.
func (d *drain) upload(ctx context.Context) (map[tenant.ID][]ulid.ULID, error) {
	all := d.ing.all()
	d.note(func(p *DrainProgress) { *p = DrainProgress{Phase: DrainUploading, Tenants: len(all)} })
	blocks := map[tenant.ID][]ulid.ULID{}
	var g errgroup.Group
	g.SetLimit(max(maintainers, runtime.GOMAXPROCS(0)))
	for _, t := range all {
		g.Go(func() error {
			var local []ulid.ULID
			err := d.insist(ctx, "empty tenant "+string(t.id), func() (err error) {
				var cut int
				local, cut, err = t.empty(ctx)
				d.note(func(p *DrainProgress) { p.Cut += cut })
				return err
			})
			if err != nil {
				return err
			}
			d.note(func(p *DrainProgress) {
				p.TenantsUploaded++
				p.Uploaded += len(local)
				if len(local) > 0 {
					blocks[t.id] = local // under the lock of note
				}
			})
			return nil
		})
	}
	return blocks, g.Wait()
}

// confirm waits until queriers read all blocks.
func (d *drain) confirm(ctx context.Context, blocks map[tenant.ID][]ulid.ULID, confirm func(context.Context, tenant.ID, []ulid.ULID) ([]ulid.ULID, error)) error {
	d.note(func(p *DrainProgress) { p.Phase = DrainConfirming })
	return d.insist(ctx, "wait for queriers to read the blocks from the bucket", func() error {
		var errs []error
		missing := 0
		for id, unseen := range blocks {
			visible, err := confirm(ctx, id, unseen)
			errs = append(errs, err)
			if blocks[id] = without(unseen, visible); len(blocks[id]) == 0 {
				delete(blocks, id)
			}
			missing += len(blocks[id])
			d.note(func(p *DrainProgress) { p.Confirmed += len(unseen) - len(blocks[id]) })
		}
		if missing > 0 {
			errs = append(errs, fmt.Errorf("%d blocks are not seen by all queriers yet", missing))
			return errors.Join(errs...)
		}
		return nil
	})
}

// insist calls try until it succeeds or ctx ends.
func (d *drain) insist(ctx context.Context, what string, try func() error) error {
	for pause := drainRetryFirst; ; pause = min(2*pause, drainRetryMost) {
		err := try()
		if err == nil {
			d.note(func(p *DrainProgress) { p.Problem = "" })
			return nil
		}
		if ctx.Err() == nil {
			d.ing.logger.Warn("A step of the drain is tried again", "step", what, "pause", pause, "err", err)
			d.note(func(p *DrainProgress) { p.Problem = fmt.Sprintf("%s: %s", what, err) })
		}
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return fmt.Errorf("%s: %w", what, errors.Join(ctx.Err(), err))
		}
	}
}

// wipe deletes the tenant here. The bucket has all of it.
func (t *tenantDB) wipe() error {
	t.working.Lock()
	defer t.working.Unlock()
	_, release, err := t.acquire()
	switch {
	case err == nil:
		t.shipped.release(t.blocks.maxTime()) // Before they are gone: see holding.
		release()
	case !errors.Is(err, errClosed):
		return err
	}
	return errors.Join(t.close(), t.ing.remove(t))
}

// empty cuts the whole head and uploads all blocks. It returns the local blocks and
// how many were cut. Nothing is uploaded before a deletion is carried out, so one that fails
// ends it, and the drain says why; maintenance goes on meanwhile, and makes room.
func (t *tenantDB) empty(ctx context.Context) (blocks []ulid.ULID, cut int, err error) {
	if err := t.repair(); err != nil {
		return nil, 0, err
	}
	if _, err := t.ing.ApplyDeletions(ctx, t.id); err != nil {
		return nil, 0, err
	}
	t.working.Lock()
	defer t.working.Unlock()
	db, release, err := t.acquire()
	if errors.Is(err, errClosed) {
		return nil, 0, nil // The bucket has it all.
	}
	if err != nil {
		return nil, 0, err
	}
	defer release()
	if t.broken.Load() {
		return nil, 0, errBroken // Until repair has opened it anew.
	}
	before := len(t.blocks.get())
	if headHasSamples(db) {
		if err := t.cutAllHeld(ctx, db); err != nil {
			return nil, 0, err
		}
		cut = max(0, len(t.blocks.get())-before)
		if headHasSamples(db) {
			return nil, cut, errNotEmpty
		}
	}
	// What was mended is uploaded, too.
	if err := errors.Join(t.lookAtLeftOut(), t.shipHeld(ctx), t.blocks.notUploaded(math.MaxInt64)); err != nil {
		return nil, cut, err
	}
	for _, b := range t.blocks.get() {
		blocks = append(blocks, b.meta.ULID)
	}
	for _, b := range t.blocks.leftOut() {
		blocks = append(blocks, b.id)
	}
	return blocks, cut, nil
}
