package querier

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

// applyPatience bounds how long an ingester may take to carry out a deletion before it
// counts as missing. It goes on, and is asked again.
const applyPatience = 30 * time.Second

// listingSkew is by how much clocks may differ of who accepts a deletion and who makes blocks.
const listingSkew = 10 * time.Minute

// Deleter accepts deletions and has them carried out. It is safe for concurrent use.
//
// A deletion is accepted once it is recorded in the bucket with the blocks that are there:
// from then on no querier that has refreshed its deletions shows what existed before,
// whatever fails later. The ingesters carry it out on what they hold; once all have, it is
// settled, and only then can what came late be told from what was there.
type Deleter struct {
	store *blockstore.Store
	edge  deletingEdge
}

// deletingEdge are the ingesters and queriers that have to know of a deletion.
type deletingEdge interface {
	// applyDeletions has the ingesters carry out the recorded deletions of a tenant. done
	// is, by ingester, what they say; missing are those who did not, with the reason.
	// absent are ingesters that cannot be asked now and may come back.
	applyDeletions(ctx context.Context, id tenant.ID) (done [][]applied, missing, absent []string)
	// refreshDeletions has the queriers obey the recorded deletions; missing are those who
	// do not answer.
	refreshDeletions(ctx context.Context, id tenant.ID) (missing []string)
}

// applied is a deletion that an ingester has carried out, with the blocks that it had.
type applied struct {
	id     ulid.ULID
	blocks []ulid.ULID
}

// Accepted says how far a deletion is that was accepted.
type Accepted struct {
	ID ulid.ULID
	// Missing are the live processes that have not acknowledged it, each with the reason.
	Missing []string
}

// Accept records a deletion and has it obeyed and carried out. An error says that it was
// not accepted; it may be in force all the same if the bucket failed half way.
func (d *Deleter) Accept(ctx context.Context, id tenant.ID, want blockstore.Deletion) (Accepted, error) {
	want.ID = ulid.Make()
	want.Accepted = time.Now()
	if !want.WholeTenant {
		want.MaxMs = min(want.MaxMs, want.Accepted.UnixMilli())
	}
	want.Blocks = nil
	// Recorded first and listed then: whatever is in the bucket without having been touched
	// by the deletion is in the list.
	if err := d.store.PutDeletion(ctx, id, want); err != nil {
		return Accepted{}, wire.Unavailable(err, 5*time.Second)
	}
	if err := d.list(ctx, id, &want); err != nil {
		return Accepted{}, wire.Unavailable(err, 5*time.Second)
	}
	missing, err := d.Settle(ctx, id)
	if err != nil {
		missing = append(missing, "the bucket: "+err.Error())
	}
	missing = append(missing, d.edge.refreshDeletions(ctx, id)...)
	slices.Sort(missing)
	return Accepted{ID: want.ID, Missing: missing}, nil
}

// list completes the record of a deletion by the blocks that are in the bucket. It may come
// late, if who accepted the deletion failed half way: what was surely made after it was
// accepted is left out, though blocks may have come that were made before, as by an import.
func (d *Deleter) list(ctx context.Context, id tenant.ID, want *blockstore.Deletion) error {
	blocks, _, err := d.store.Blocks(ctx, id)
	if err != nil {
		return err
	}
	want.Blocks = []ulid.ULID{}
	for _, b := range blocks {
		if want.MaxMs >= b.Meta.MinTime && want.MinMs < b.Meta.MaxTime {
			want.Blocks = append(want.Blocks, blockstore.Sources(b.Meta)...)
		}
	}
	end := want.Accepted.Add(listingSkew)
	want.Blocks = slices.DeleteFunc(want.Blocks, func(source ulid.ULID) bool { return ulid.Time(source.Time()).After(end) })
	slices.SortFunc(want.Blocks, ulid.ULID.Compare)
	want.Blocks = slices.Compact(want.Blocks)
	return d.store.PutDeletion(ctx, id, *want)
}

// Settle has the ingesters carry out the deletions of a tenant that are not settled, and
// records those that all of them have. missing are the live ones that have not.
func (d *Deleter) Settle(ctx context.Context, id tenant.ID) (missing []string, err error) {
	found, err := d.store.DeletionsOf(ctx, id)
	if err == nil {
		err = found.Fault
	}
	if err != nil {
		return nil, err
	}
	var open []blockstore.ActiveDeletion
	for _, a := range found.Active {
		if a.Settlement == nil || a.Blocks == nil {
			open = append(open, a)
		}
	}
	if len(open) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, applyPatience)
	defer cancel()
	done, missing, absent := d.edge.applyDeletions(ctx, id)
	for _, a := range open {
		if a.Blocks == nil { // Who accepted it did not come to list them.
			if err := d.list(ctx, id, &a.Deletion); err != nil {
				return missing, err
			}
		}
		blocks, all := settled(a.ID, done)
		if len(missing)+len(absent) > 0 || !all {
			continue
		}
		if err := d.store.SettleDeletion(ctx, id, a.ID, blocks); err != nil {
			return missing, err
		}
	}
	return missing, nil
}

// settled returns the blocks of a deletion that ingesters had, and whether all of them have
// carried it out.
func settled(id ulid.ULID, done [][]applied) (blocks []ulid.ULID, all bool) {
	for _, of := range done {
		k := slices.IndexFunc(of, func(a applied) bool { return a.id == id })
		if k < 0 {
			return nil, false // It was recorded after that ingester had looked.
		}
		blocks = append(blocks, of[k].blocks...)
	}
	slices.SortFunc(blocks, ulid.ULID.Compare)
	return slices.Compact(blocks), true
}

// NewDeleter returns a Deleter of a process that is alone. obey is called for each
// deletion, to refresh the querier.
func NewDeleter(store *blockstore.Store, ing DeletingIngester, q *Querier) *Deleter {
	return &Deleter{store: store, edge: aloneEdge{ing, q}}
}

// DeletingIngester is an ingester in the same process. Its answer is, by deletion, the
// blocks that it had.
type DeletingIngester func(context.Context, tenant.ID) (map[ulid.ULID][]ulid.ULID, error)

type aloneEdge struct {
	ingester DeletingIngester
	querier  *Querier
}

func (e aloneEdge) applyDeletions(ctx context.Context, id tenant.ID) (done [][]applied, missing, absent []string) {
	found, err := e.ingester(ctx, id)
	if err != nil {
		return nil, []string{"the ingester: " + err.Error()}, nil
	}
	of := []applied{}
	for deletion, blocks := range found {
		of = append(of, applied{deletion, blocks})
	}
	return [][]applied{of}, nil, nil
}

func (e aloneEdge) refreshDeletions(ctx context.Context, _ tenant.ID) []string {
	if err := e.querier.views.deletions.refresh(ctx); err != nil {
		return []string{"the querier: " + err.Error()}
	}
	return nil
}

// NewClusterDeleter returns a Deleter of a member of a cluster.
func NewClusterDeleter(store *blockstore.Store, src cluster.Source, conns Conns) *Deleter {
	return &Deleter{store: store, edge: clusterEdge{src, conns}}
}

type clusterEdge struct {
	src   cluster.Source
	conns Conns
}

func (e clusterEdge) applyDeletions(ctx context.Context, id tenant.ID) (done [][]applied, missing, absent []string) {
	view := e.src.View()
	var (
		mu    sync.Mutex
		group errgroup.Group
	)
	for _, rec := range view.Registry.Readable() {
		peer, alive := view.Peer(rec.ID)
		if !alive {
			absent = append(absent, "ingester "+rec.ID+": it is away")
			continue
		}
		address := rec.Address
		if peer.GRPC != "" {
			address = peer.GRPC
		}
		group.Go(func() error {
			of, err := e.apply(ctx, address, id)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				missing = append(missing, fmt.Sprintf("ingester %s: %s", rec.ID, err))
			} else {
				done = append(done, of)
			}
			return nil
		})
	}
	_ = group.Wait() // the functions return nil: one must not stop the others
	if len(done)+len(missing)+len(absent) == 0 {
		missing = []string{errNoIngester.Error()}
	}
	return done, missing, absent
}

func (e clusterEdge) apply(ctx context.Context, address string, id tenant.ID) ([]applied, error) {
	conn, err := e.conns.Conn(address)
	if err != nil {
		return nil, err
	}
	resp, err := queryv1.NewRecentServiceClient(conn).ApplyDeletions(ctx, &queryv1.ApplyDeletionsRequest{Tenant: string(id)})
	if err != nil {
		return nil, wire.FromGRPC(err)
	}
	of := []applied{}
	for _, carried := range resp.GetDone() {
		ids, err := wire.ULIDsFromProto([][]byte{carried.GetId()})
		if err != nil {
			return nil, err
		}
		blocks, err := wire.ULIDsFromProto(carried.GetBlocks())
		if err != nil {
			return nil, err
		}
		of = append(of, applied{ids[0], blocks})
	}
	return of, nil
}

func (e clusterEdge) refreshDeletions(ctx context.Context, _ tenant.ID) (missing []string) {
	ctx, cancel := context.WithTimeout(ctx, deletionsInterval)
	defer cancel()
	var (
		mu    sync.Mutex
		group errgroup.Group
	)
	for _, q := range e.src.View().Running(cluster.RoleQuerier) {
		group.Go(func() error {
			conn, err := e.conns.Conn(q.GRPC)
			if err == nil {
				_, err = queryv1.NewBlocksServiceClient(conn).RefreshDeletions(ctx, &queryv1.RefreshDeletionsRequest{})
			}
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				missing = append(missing, fmt.Sprintf("querier %s: %s", q.ID, wire.FromGRPC(err)))
			}
			return nil
		})
	}
	_ = group.Wait()
	return missing
}

// RefreshDeletions implements queryv1.BlocksServiceServer.
func (s *blocksServer) RefreshDeletions(ctx context.Context, _ *queryv1.RefreshDeletionsRequest) (*queryv1.RefreshDeletionsResponse, error) {
	if err := s.q.views.deletions.refresh(ctx); err != nil {
		return nil, wire.GRPCError(wire.Unavailable(err, time.Second))
	}
	return &queryv1.RefreshDeletionsResponse{}, nil
}
