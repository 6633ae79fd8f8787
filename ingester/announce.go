package ingester

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

const (
	// announceTimeout bounds one call to a querier.
	announceTimeout = 30 * time.Second
	// pendingAnnouncements bounds what waits to be told. More are dropped: they are
	// hints, and queriers list the bucket anyway.
	pendingAnnouncements = 256
)

// Conns are connections to the other processes of a cluster, by address.
type Conns interface {
	Conn(address string) (grpc.ClientConnInterface, error)
}

// Announcer tells all queriers of a cluster which blocks are new in the bucket, and
// asks them which they read from there. It is safe for concurrent use.
type Announcer struct {
	src    cluster.Source
	conns  Conns
	logger *slog.Logger
	queue  chan announcement
}

type announcement struct {
	tenant tenant.ID
	block  ulid.ULID
}

// NewAnnouncer returns an Announcer to the queriers that src knows.
func NewAnnouncer(src cluster.Source, conns Conns, logger *slog.Logger) *Announcer {
	return &Announcer{src: src, conns: conns, logger: logger, queue: make(chan announcement, pendingAnnouncements)}
}

// Uploaded says that a block is new in the bucket. It does not block.
func (a *Announcer) Uploaded(id tenant.ID, block ulid.ULID) {
	select {
	case a.queue <- announcement{id, block}:
	default:
	}
}

// Run tells the queriers of uploads until ctx ends.
func (a *Announcer) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case next := <-a.queue:
			if _, err := a.Confirm(ctx, next.tenant, []ulid.ULID{next.block}); err != nil && ctx.Err() == nil {
				a.logger.Debug("A querier could not be told of a new block; it lists the bucket by itself", "tenant", next.tenant, "block", next.block, "err", err)
			}
		}
	}
}

// Confirm tells all live queriers that the blocks are in the bucket, and returns those
// that every one of them reads from there now. Without a querier they all are: one that
// starts lists the bucket before it answers.
func (a *Announcer) Confirm(ctx context.Context, id tenant.ID, blocks []ulid.ULID) ([]ulid.ULID, error) {
	queriers := a.src.View().Running(cluster.RoleQuerier)
	visible := make([][]ulid.ULID, len(queriers))
	errs := make([]error, len(queriers))
	var group errgroup.Group
	for i, q := range queriers {
		group.Go(func() error {
			visible[i], errs[i] = a.ask(ctx, q.GRPC, id, blocks)
			if errs[i] != nil {
				errs[i] = fmt.Errorf("querier %s at %s: %w", q.ID, q.GRPC, errs[i])
			}
			return nil
		})
	}
	_ = group.Wait() // the functions return nil: one must not stop the others
	return slices.DeleteFunc(slices.Clone(blocks), func(b ulid.ULID) bool {
		return slices.ContainsFunc(visible, func(of []ulid.ULID) bool { return !slices.Contains(of, b) })
	}), errors.Join(errs...)
}

func (a *Announcer) ask(ctx context.Context, address string, id tenant.ID, blocks []ulid.ULID) ([]ulid.ULID, error) {
	conn, err := a.conns.Conn(address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	req := &queryv1.UploadedRequest{Tenant: string(id)}
	for _, b := range blocks {
		req.Blocks = append(req.Blocks, b.Bytes())
	}
	resp, err := queryv1.NewBlocksServiceClient(conn).Uploaded(ctx, req)
	if err != nil {
		return nil, err
	}
	var visible []ulid.ULID
	for _, raw := range resp.GetVisible() {
		var b ulid.ULID
		if err := b.UnmarshalBinary(raw); err != nil {
			return nil, fmt.Errorf("a block in the answer: %w", err)
		}
		visible = append(visible, b)
	}
	return visible, nil
}
