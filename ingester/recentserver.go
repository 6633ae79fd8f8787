package ingester

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
	"google.golang.org/grpc"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/frame"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	queryv1 "github.com/hundredfold/hundredfold/proto/query/v1"
)

var errRange = errors.New("the range ends before it begins")

// recentServer is the RecentService.
type recentServer struct {
	queryv1.UnimplementedRecentServiceServer

	ing *Ingester

	mu struct {
		sync.Mutex
		named []*cluster.Placement // as current ones, the newest first
	}
}

// namedKept is how many placements that were named as current ones can be asked for:
// queriers ask at once.
const namedKept = 8

// holding is Ingester.holding, and names the current placement besides: a querier that
// has not heard of it yet asks its members, too, for samples that a distributor which
// has may have placed under it already.
func (s *recentServer) holding(about subject) wire.Holding {
	h := s.ing.holding(about.db)
	self := s.ing.self.Load()
	if self == nil || self.Current == nil {
		return h
	}
	p := self.Current()
	if len(p.Members()) == 0 {
		return h
	}
	s.name(p)
	ref := Placed{Placement: p, Shard: s.ing.deps.Limits(about.tenant).ShardSize}.ref()
	if !slices.Contains(h.Placements, ref) {
		h.Placements = append(h.Placements, ref)
	}
	return h
}

func (s *recentServer) name(p *cluster.Placement) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mu.named) > 0 && s.mu.named[0].Hash() == p.Hash() {
		return
	}
	s.mu.named = append([]*cluster.Placement{p}, s.mu.named[:min(len(s.mu.named), namedKept-1)]...)
}

// definition returns the placement with the hash that this ingester has named, or nil.
func (s *recentServer) definition(hash uint64) *cluster.Placement {
	s.mu.Lock()
	named := slices.Clone(s.mu.named)
	s.mu.Unlock()
	for _, p := range named {
		if p.Hash() == hash {
			return p
		}
	}
	for _, t := range s.ing.all() {
		if held := t.held.Load(); held != nil && held.placements != nil {
			if p := held.placements.find(hash); p != nil {
				return p
			}
		}
	}
	return nil
}

// subject is what a request is about.
type subject struct {
	tenant   tenant.ID
	db       *tenantDB // nil if nothing of the tenant is held
	matchers []*labels.Matcher
}

func (s *recentServer) subject(id string, matchers []*queryv1.Matcher) (subject, error) {
	parsed, err := tenant.Parse(id)
	if err != nil {
		return subject{}, err
	}
	ms, err := wire.MatchersFromProto(matchers)
	if err != nil {
		return subject{}, err
	}
	return subject{tenant: parsed, db: s.ing.lookup(parsed), matchers: ms}, nil
}

// Select implements queryv1.RecentServiceServer.
func (s *recentServer) Select(req *queryv1.SelectRequest, stream grpc.ServerStreamingServer[queryv1.SelectResponse]) error {
	return wire.GRPCError(s.selectSeries(req, stream))
}

func (s *recentServer) selectSeries(req *queryv1.SelectRequest, stream grpc.ServerStreamingServer[queryv1.SelectResponse]) (err error) {
	about, err := s.subject(req.GetTenant(), req.GetMatchers())
	if err != nil {
		return err
	}
	if req.GetMinMs() > req.GetMaxMs() {
		return wire.Invalid(errRange)
	}
	hints := &storage.SelectHints{
		Start: req.GetMinMs(), End: req.GetMaxMs(), Limit: int(req.GetLimit()),
		ShardIndex: req.GetShardIndex(), ShardCount: req.GetShardCount(),
		// A chunk that reaches beyond the range is sent as it is: the same bytes from
		// every replica.
		DisableTrimming: true,
	}
	out := s.stream(req, stream)
	ctx := stream.Context()
	if about.db == nil {
		return stream.Send(&queryv1.SelectResponse{Holding: wire.HoldingToProto(s.holding(about))})
	}
	if req.GetLabelsOnly() {
		hints.Func = "series" // Prometheus's way to say that no samples are wanted.
		q, err := about.db.querier(hints.Start, hints.End)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, q.Close()) }()
		if err := stream.Send(&queryv1.SelectResponse{Holding: wire.HoldingToProto(s.holding(about))}); err != nil {
			return err
		}
		return out.end(out.Labels(ctx, q.Select(ctx, true, hints, about.matchers...)))
	}
	q, err := about.db.chunkQuerier(hints.Start, hints.End)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	if err := stream.Send(&queryv1.SelectResponse{Holding: wire.HoldingToProto(s.holding(about))}); err != nil {
		return err
	}
	return out.end(out.Chunks(ctx, q.Select(ctx, true, hints, about.matchers...)))
}

// selectStream sends series in frames.
type selectStream struct {
	frame.SelectStream
	send func(*queryv1.SelectResponse) error
}

func (s *recentServer) stream(req *queryv1.SelectRequest, stream grpc.ServerStreamingServer[queryv1.SelectResponse]) *selectStream {
	out := &selectStream{send: func(m *queryv1.SelectResponse) error {
		if err := stream.Send(m); err != nil {
			return err
		}
		s.ing.metrics.sentBytes.Add(float64(len(m.GetFrame())))
		return nil
	}}
	out.SelectStream = frame.SelectStream{
		Send:    func(frame []byte) error { return out.send(&queryv1.SelectResponse{Frame: frame}) }, // it is encoded when Send returns
		MinTime: req.GetMinMs(), MaxTime: req.GetMaxMs(), Limit: int(req.GetLimit()),
	}
	return out
}

// end sends what is left of an answer.
func (s *selectStream) end(rest []byte, warnings []string, err error) error {
	if err != nil || len(rest) == 0 && len(warnings) == 0 {
		return err
	}
	return s.send(&queryv1.SelectResponse{Frame: rest, Warnings: warnings})
}

// Labels implements queryv1.RecentServiceServer.
func (s *recentServer) Labels(ctx context.Context, req *queryv1.LabelsRequest) (*queryv1.LabelsResponse, error) {
	resp, err := s.labels(ctx, req)
	return resp, wire.GRPCError(err)
}

func (s *recentServer) labels(ctx context.Context, req *queryv1.LabelsRequest) (resp *queryv1.LabelsResponse, err error) {
	about, err := s.subject(req.GetTenant(), req.GetMatchers())
	if err != nil {
		return nil, err
	}
	if req.GetMinMs() > req.GetMaxMs() {
		return nil, wire.Invalid(errRange)
	}
	if about.db == nil {
		return &queryv1.LabelsResponse{Holding: wire.HoldingToProto(s.holding(about))}, nil
	}
	q, err := about.db.querier(req.GetMinMs(), req.GetMaxMs())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	resp = &queryv1.LabelsResponse{Holding: wire.HoldingToProto(s.holding(about))}
	hints := &storage.LabelHints{Limit: int(req.GetLimit())}
	var warnings annotations.Annotations
	if req.GetName() == "" {
		resp.Values, warnings, err = q.LabelNames(ctx, hints, about.matchers...)
	} else {
		resp.Values, warnings, err = q.LabelValues(ctx, req.GetName(), hints, about.matchers...)
	}
	if limit := int(req.GetLimit()); limit > 0 && len(resp.GetValues()) > limit {
		resp.Values = resp.GetValues()[:limit]
	}
	for _, warning := range warnings.AsErrors() {
		resp.Warnings = append(resp.Warnings, warning.Error())
	}
	return resp, err
}

// Exemplars implements queryv1.RecentServiceServer.
func (s *recentServer) Exemplars(ctx context.Context, req *queryv1.ExemplarsRequest) (*queryv1.ExemplarsResponse, error) {
	resp, err := s.exemplars(ctx, req)
	return resp, wire.GRPCError(err)
}

func (s *recentServer) exemplars(ctx context.Context, req *queryv1.ExemplarsRequest) (*queryv1.ExemplarsResponse, error) {
	about, err := s.subject(req.GetTenant(), nil)
	if err != nil {
		return nil, err
	}
	selectors, err := wire.SelectorsFromProto(req.GetSelectors())
	if err != nil {
		return nil, err
	}
	resp := &queryv1.ExemplarsResponse{}
	if about.db != nil {
		q, err := about.db.exemplarQuerier(ctx)
		if err != nil {
			return nil, err
		}
		found, err := q.Select(req.GetMinMs(), req.GetMaxMs(), selectors...)
		if err != nil {
			return nil, err
		}
		resp.Series = wire.ExemplarsToProto(found)
	}
	resp.Holding = wire.HoldingToProto(s.holding(about))
	return resp, nil
}

// Metadata implements queryv1.RecentServiceServer.
func (s *recentServer) Metadata(_ context.Context, req *queryv1.MetadataRequest) (*queryv1.MetadataResponse, error) {
	about, err := s.subject(req.GetTenant(), nil)
	if err != nil {
		return nil, wire.GRPCError(err)
	}
	resp := &queryv1.MetadataResponse{}
	if about.db != nil {
		resp.Metadata = wire.MetadataToProto(about.db.metadataOf(req.GetMetric()))
	}
	resp.Holding = wire.HoldingToProto(s.holding(about))
	return resp, nil
}

// Stats implements queryv1.RecentServiceServer.
func (s *recentServer) Stats(_ context.Context, req *queryv1.StatsRequest) (*queryv1.StatsResponse, error) {
	about, err := s.subject(req.GetTenant(), nil)
	if err != nil {
		return nil, wire.GRPCError(err)
	}
	resp := &queryv1.StatsResponse{}
	if about.db != nil {
		if stats, ok := about.db.stats(req.GetLabel(), int(req.GetLimit())); ok {
			resp = wire.StatsToProto(stats)
		}
	}
	resp.Holding = wire.HoldingToProto(s.holding(about))
	return resp, nil
}

// Placements implements queryv1.RecentServiceServer. What is not known is left out.
func (s *recentServer) Placements(_ context.Context, req *queryv1.PlacementsRequest) (*queryv1.PlacementsResponse, error) {
	resp := &queryv1.PlacementsResponse{}
	for _, hash := range req.GetHashes() {
		if p := s.definition(hash); p != nil {
			resp.Definitions = append(resp.Definitions, p.Encode(nil))
		}
	}
	return resp, nil
}

// ApplyDeletions implements queryv1.RecentServiceServer.
func (s *recentServer) ApplyDeletions(ctx context.Context, req *queryv1.ApplyDeletionsRequest) (*queryv1.ApplyDeletionsResponse, error) {
	id, err := tenant.Parse(req.GetTenant())
	if err != nil {
		return nil, wire.GRPCError(err)
	}
	done, err := s.ing.ApplyDeletions(ctx, id)
	if err != nil {
		return nil, wire.GRPCError(err)
	}
	resp := &queryv1.ApplyDeletionsResponse{}
	for _, d := range done {
		resp.Done = append(resp.Done, &queryv1.CarriedOutDeletion{Id: d.ID.Bytes(), Blocks: wire.ULIDsToProto(d.Blocks)})
	}
	return resp, nil
}
