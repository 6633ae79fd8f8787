package querier

import (
	"context"
	"time"

	"github.com/oklog/ulid/v2"
	"google.golang.org/grpc"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

// uploadedPatience is how long whoever tells of new blocks waits for a listing of the
// bucket that began after.
const uploadedPatience = 10 * time.Second

// RegisterBlocks serves queryv1.BlocksService, by which ingesters tell which blocks they
// have uploaded and learn which of them queries read, and other queriers read those that
// this one owns.
func (q *Querier) RegisterBlocks(r grpc.ServiceRegistrar) {
	queryv1.RegisterBlocksServiceServer(r, &blocksServer{q: q, serving: make(chan struct{}, servedAtOnce), fetching: make(chan struct{}, fetchedAtOnce)})
}

type blocksServer struct {
	queryv1.UnimplementedBlocksServiceServer
	q        *Querier
	serving  chan struct{} // holds one for each block that is read for another querier
	fetching chan struct{} // holds one for each block that is fetched ahead for another querier
}

// Uploaded implements queryv1.BlocksServiceServer. Blocks that are not read already are
// looked for in the bucket, by name. If one is not there, since it was merged with others
// and deleted meanwhile, it waits for a listing; requests at the same time share one.
func (s *blocksServer) Uploaded(ctx context.Context, req *queryv1.UploadedRequest) (*queryv1.UploadedResponse, error) {
	id, err := tenant.Parse(req.GetTenant())
	if err != nil {
		return nil, wire.GRPCError(err)
	}
	blocks, err := wire.ULIDsFromProto(req.GetBlocks())
	if err != nil {
		return nil, wire.GRPCError(wire.Invalid(err))
	}
	visible := s.visible(id, blocks)
	if len(visible) < len(blocks) || len(blocks) == 0 {
		begun := time.Now()
		ctx, cancel := context.WithTimeout(ctx, uploadedPatience)
		defer cancel()
		if s.q.views.learn(ctx, id, blocks) == nil {
			s.q.views.publish()
			visible = s.visible(id, blocks)
		}
		if len(visible) < len(blocks) || len(blocks) == 0 {
			s.q.views.listedSince(ctx, id, begun)
			visible = s.visible(id, blocks)
		}
	}
	return &queryv1.UploadedResponse{Visible: wire.ULIDsToProto(visible)}, nil
}

func (s *blocksServer) visible(id tenant.ID, blocks []ulid.ULID) []ulid.ULID {
	var out []ulid.ULID
	for _, block := range blocks {
		if s.q.Visible(id, block) {
			out = append(out, block)
		}
	}
	return out
}
