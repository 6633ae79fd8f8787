package cluster

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterv1 "github.com/hundredfold/hundredfold/proto/cluster/v1"
)

const (
	// pollEvery is how often a listed peer is asked.
	pollEvery = time.Second
	// aliveFor is how long a listed peer counts as alive after it was heard.
	aliveFor = 3 * time.Second
	// exchangeTimeout bounds one Exchange.
	exchangeTimeout = time.Second
)

// exchangeServer is the Node's gRPC service.
type exchangeServer struct {
	clusterv1.UnimplementedClusterServiceServer
	node *Node
}

// Register adds the service by which nodes exchange registries.
func (n *Node) Register(server grpc.ServiceRegistrar) {
	clusterv1.RegisterClusterServiceServer(server, exchangeServer{node: n})
}

// Exchange implements clusterv1.ClusterServiceServer.
func (s exchangeServer) Exchange(_ context.Context, req *clusterv1.ExchangeRequest) (*clusterv1.ExchangeResponse, error) {
	n := s.node
	p, err := decodeProcess(req.GetNode())
	if err != nil {
		n.metrics.bad.WithLabelValues(badUndecodable).Inc()
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if len(req.GetRegistry()) > 0 {
		n.take(req.GetRegistry())
	}
	n.met(p)
	registry, hash := n.known()
	resp := &clusterv1.ExchangeResponse{Node: n.describe(hash).encode(nil)}
	// Nodes that agree need not tell each other what they know.
	if p.View != hash {
		resp.Registry = Encode(nil, registry.Records()...)
	}
	return resp, nil
}

// exchange tells the node at address of records and learns what it knows.
func (n *Node) exchange(ctx context.Context, address string, records ...Record) (process, error) {
	fail := func(err error) (process, error) {
		return process{}, fmt.Errorf("exchange registries with %s: %w", address, err)
	}
	conn, err := n.deps.Conns.Conn(address)
	if err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	req := &clusterv1.ExchangeRequest{Node: n.describe(n.hash()).encode(nil)}
	if len(records) > 0 {
		req.Registry = Encode(nil, records...)
	}
	resp, err := clusterv1.NewClusterServiceClient(conn).Exchange(ctx, req)
	if err != nil {
		return fail(err)
	}
	p, err := decodeProcess(resp.GetNode())
	if err != nil {
		n.metrics.bad.WithLabelValues(badUndecodable).Inc()
		return fail(err)
	}
	if len(resp.GetRegistry()) > 0 {
		n.take(resp.GetRegistry())
	}
	n.met(p)
	return p, nil
}

// met notes that the process p was spoken to. Between listed peers that is the sign
// of life; under gossip only memberlist says who is alive.
func (n *Node) met(p process) {
	if p.key() == n.self.key() {
		return
	}
	if n.gossip == nil {
		n.came(p)
	}
	n.heard(p)
}

// poll exchanges registries with a listed peer every second, until ctx ends.
func (n *Node) poll(ctx context.Context, address string) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	var last process
	failing := false
	for {
		// The whole registry is told only to a peer that was seen to know another.
		var records []Record
		if registry, hash := n.known(); last.View != hash {
			records = registry.Records()
		}
		p, err := n.exchange(ctx, address, records...)
		if err != nil && ctx.Err() == nil {
			n.metrics.exchangeFails.Inc()
			if !failing {
				n.logger.Info("A listed peer does not answer; it is asked every second.", "peer", address, "err", err)
			}
		}
		last, failing = p, err != nil
		n.expire()
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
