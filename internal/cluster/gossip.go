package cluster

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// joinTimeout bounds one attempt to reach a node that may be gone, and with it
	// how long a stop can take.
	joinTimeout = 3 * time.Second
	// leaveTimeout bounds the wait until enough others were told that this node leaves.
	leaveTimeout = 2 * time.Second
	// rejoinEvery is how often nodes are tried that are not heard of: memberlist
	// gives up the dead after a while, so it would not notice that a partition
	// has healed.
	rejoinEvery = 10 * time.Second
	// rejoinFor is how long nodes are tried that are gone.
	rejoinFor = 24 * time.Hour
	// pushPullEvery is how often memberlist compares everything with one peer.
	pushPullEvery = 15 * time.Second
	// retransmit is memberlist's RetransmitMult for LANs.
	retransmit = 4
)

// gossip is memberlist as the cluster uses it: it tells who is alive and carries
// records. Safe for concurrent use.
type gossip struct {
	node *Node
	list *memberlist.Memberlist
	// queue holds the records to be gossiped.
	queue *memberlist.TransmitLimitedQueue
	live  atomic.Int64 // processes, for the queue

	mu struct {
		sync.Mutex
		// lost are the gossip addresses of processes that are gone, since when.
		lost map[string]time.Time
		// addresses are those of the processes that are alive.
		addresses map[processKey]string
	}
}

// openGossip listens. It joins nobody.
func (n *Node) openGossip() error {
	g := &gossip{node: n}
	g.mu.lost, g.mu.addresses = map[string]time.Time{}, map[processKey]string{}
	g.queue = &memberlist.TransmitLimitedQueue{
		NumNodes:       func() int { return int(g.live.Load()) },
		RetransmitMult: retransmit,
	}
	c, err := g.config()
	if err != nil {
		return err
	}
	// Others may be heard before Create returns.
	n.gossip = g
	if g.list, err = memberlist.Create(c); err != nil {
		return fmt.Errorf("gossip on %s: %w", n.cfg.Gossip.ListenAddress, err)
	}
	return nil
}

func (g *gossip) config() (*memberlist.Config, error) {
	n := g.node
	c := memberlist.DefaultLANConfig()
	// Only the incarnation makes the name one that nobody else ever had: memberlist
	// refuses a name that crashed at another address.
	c.Name = n.self.ID + "/" + strconv.FormatUint(n.self.Incarnation, 16)
	c.Label = n.cfg.Name
	c.Delegate, c.Events, c.Ping = g, g, g
	c.LogOutput = newGossipLog(n.logger, n.metrics.bad.WithLabelValues(badForeign).Inc)
	c.TCPTimeout = joinTimeout
	c.PushPullInterval = pushPullEvery
	c.RetransmitMult = retransmit
	// Records and metadata are small, and compressing costs more than it saves.
	c.EnableCompression = false
	if len(n.deps.Secret) > 0 {
		key, err := hkdf.Key(sha256.New, n.deps.Secret, nil, "hundredfold gossip", 32)
		if err != nil {
			return nil, fmt.Errorf("derive the key of the gossip: %w", err)
		}
		c.SecretKey = key
	}
	if n.tuning.transport != nil {
		c.Transport = n.tuning.transport
		return c, nil
	}
	listen, err := net.ResolveTCPAddr("tcp", n.cfg.Gossip.ListenAddress)
	if err != nil {
		return nil, fmt.Errorf("resolve cluster.gossip.listen_address %s: %w", n.cfg.Gossip.ListenAddress, err)
	}
	if err := n.cfg.permit(listen, len(n.deps.Secret) > 0); err != nil {
		return nil, err
	}
	c.BindPort, c.AdvertisePort = listen.Port, listen.Port
	// Without an address memberlist listens on all and advertises a private one.
	if c.BindAddr = "0.0.0.0"; listen.IP != nil {
		c.BindAddr = listen.IP.String()
	}
	if n.cfg.Gossip.AdvertiseAddress != "" {
		advertise, err := net.ResolveTCPAddr("tcp", n.cfg.Gossip.AdvertiseAddress)
		if err != nil {
			return nil, fmt.Errorf("resolve cluster.gossip.advertise_address %s: %w", n.cfg.Gossip.AdvertiseAddress, err)
		}
		c.AdvertiseAddr, c.AdvertisePort = advertise.IP.String(), advertise.Port
	} else if c.BindAddr == "::" {
		return nil, errors.New("cluster.gossip.advertise_address: it is needed if cluster.gossip.listen_address is [::]")
	}
	return c, nil
}

// address is where others reach this node's gossip.
func (g *gossip) address() string { return g.list.LocalNode().Address() }

// broadcast gossips records. A newer version of a record takes the place of those
// that are still queued.
func (g *gossip) broadcast(records ...Record) {
	for _, rec := range records {
		g.queue.QueueBroadcast(recordBroadcast{id: rec.ID, message: Encode(nil, rec)})
	}
}

// recordBroadcast is a memberlist.NamedBroadcast: by its name it takes the place of an
// older version of the record.
type recordBroadcast struct {
	id      string
	message []byte
}

func (b recordBroadcast) Name() string                          { return b.id }
func (b recordBroadcast) Message() []byte                       { return b.message }
func (b recordBroadcast) Finished()                             {}
func (b recordBroadcast) Invalidates(memberlist.Broadcast) bool { return false }

// NodeMeta implements memberlist.Delegate.
func (g *gossip) NodeMeta(int) []byte { return g.node.describe(0).encode(nil) }

// NotifyMsg implements memberlist.Delegate. It keeps nothing of message.
func (g *gossip) NotifyMsg(message []byte) { g.node.take(message) }

// GetBroadcasts implements memberlist.Delegate.
func (g *gossip) GetBroadcasts(overhead, limit int) [][]byte {
	return g.queue.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate.
func (g *gossip) LocalState(bool) []byte { return Encode(nil, g.node.registry().Records()...) }

// MergeRemoteState implements memberlist.Delegate.
func (g *gossip) MergeRemoteState(message []byte, _ bool) { g.node.take(message) }

// The registry's hash rides on the answers to pings, which cost nothing more: as
// metadata each change would have all nodes tell all others.

// AckPayload implements memberlist.PingDelegate.
func (g *gossip) AckPayload() []byte { return binary.BigEndian.AppendUint64(nil, g.node.hash()) }

// NotifyPingComplete implements memberlist.PingDelegate.
func (g *gossip) NotifyPingComplete(other *memberlist.Node, _ time.Duration, payload []byte) {
	p, err := decodeProcess(other.Meta)
	if err != nil {
		return // reported when it joined
	}
	if len(payload) == 8 {
		p.View = binary.BigEndian.Uint64(payload)
	}
	g.node.heard(p)
}

// NotifyJoin implements memberlist.EventDelegate.
func (g *gossip) NotifyJoin(other *memberlist.Node) { g.alive(other) }

// NotifyUpdate implements memberlist.EventDelegate.
func (g *gossip) NotifyUpdate(other *memberlist.Node) { g.alive(other) }

func (g *gossip) alive(other *memberlist.Node) {
	p, err := decodeProcess(other.Meta)
	if err != nil {
		g.node.metrics.bad.WithLabelValues(badUndecodable).Inc()
		g.node.logger.Warn("A node describes itself in a way that this release does not understand; it counts as absent.", "node", other.Name, "address", other.Address(), "err", err)
		return
	}
	g.mu.Lock()
	g.mu.addresses[p.key()] = other.Address()
	delete(g.mu.lost, other.Address())
	g.mu.Unlock()
	g.node.came(p)
	g.live.Store(int64(g.node.processes()))
}

// NotifyLeave implements memberlist.EventDelegate.
func (g *gossip) NotifyLeave(other *memberlist.Node) {
	p, err := decodeProcess(other.Meta)
	if err != nil {
		return
	}
	g.mu.Lock()
	delete(g.mu.addresses, p.key())
	// Those that left are tried as well: memberlist does not tell them apart here.
	g.mu.lost[other.Address()] = time.Now()
	g.mu.Unlock()
	g.node.went(p.key())
	g.live.Store(int64(g.node.processes()))
}

// join synchronises with the nodes at targets, and reports how many it reached.
func (g *gossip) join(ctx context.Context, targets []string) (int, error) {
	var (
		reached int
		faults  []error
	)
	for _, target := range targets {
		if ctx.Err() != nil {
			break
		}
		n, err := g.list.Join([]string{target})
		reached += n
		if err != nil {
			faults = append(faults, err)
		}
	}
	return reached, errors.Join(faults...)
}

// resolve returns the addresses of targets, as ip:port, other than our own.
func (g *gossip) resolve(ctx context.Context, targets []string) ([]string, error) {
	var (
		addresses []string
		faults    []error
	)
	own := g.address()
	for _, target := range targets {
		host, port, err := net.SplitHostPort(target)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		ips := []string{host}
		if net.ParseIP(host) == nil {
			if ips, err = net.DefaultResolver.LookupHost(ctx, host); err != nil {
				faults = append(faults, err)
			}
		}
		for _, ip := range ips {
			if address := net.JoinHostPort(ip, port); address != own {
				addresses = append(addresses, address)
			}
		}
	}
	return addresses, errors.Join(faults...)
}

// run rejoins nodes that are not heard of, until ctx ends.
func (g *gossip) run(ctx context.Context) error {
	// The metadata says from now on that this process is running. Whoever does not
	// hear it in time hears it later.
	_ = g.list.UpdateNode(leaveTimeout)
	ticker := time.NewTicker(rejoinEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			g.rejoin(ctx)
		}
	}
}

func (g *gossip) rejoin(ctx context.Context) {
	// Names that do not resolve belong to nodes that are down.
	candidates, _ := g.resolve(ctx, g.node.cfg.Gossip.Join)
	g.mu.Lock()
	for address, since := range g.mu.lost {
		if time.Since(since) > rejoinFor {
			delete(g.mu.lost, address)
			continue
		}
		candidates = append(candidates, address)
	}
	for _, address := range g.mu.addresses {
		candidates = slices.DeleteFunc(candidates, func(c string) bool { return c == address })
	}
	g.mu.Unlock()
	const atOnce = 3
	rand.Shuffle(len(candidates), func(i, j int) { candidates[i], candidates[j] = candidates[j], candidates[i] })
	candidates = candidates[:min(atOnce, len(candidates))]
	// It is tried again; while nobody is reached there is nothing else to say.
	_, _ = g.join(ctx, candidates)
}

// answers reports whether the process p answers a ping by its full name, so that it
// lives, also if it does not serve yet.
func (g *gossip) answers(p process) bool {
	g.mu.Lock()
	address, ok := g.mu.addresses[p.key()]
	g.mu.Unlock()
	if !ok {
		return false
	}
	udp, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return false
	}
	_, err = g.list.Ping(p.ID+"/"+strconv.FormatUint(p.Incarnation, 16), udp)
	return err == nil
}

// leave tells the others that this process goes away. Those that it does not reach in
// time hear it from others, or notice.
func (g *gossip) leave() {
	if err := g.list.Leave(leaveTimeout); err != nil {
		g.node.logger.Info("Not all others were told that this node leaves; they will notice.", "err", err)
	}
}

func (g *gossip) close() error {
	if err := g.list.Shutdown(); err != nil {
		return fmt.Errorf("stop the gossip: %w", err)
	}
	return nil
}
