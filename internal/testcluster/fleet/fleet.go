// Package fleet runs a Hundredfold cluster on one machine: for `make cluster`, and for
// the tests that kill parts of it. It starts every role in processes of its own,
// gives each its ports and its data directory, which it keeps when it is started
// again, and stands before them with one URL.
package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	pollInterval = 20 * time.Millisecond
	askTimeout   = 5 * time.Second
)

// Host is where a member runs.
type Host struct {
	// IP is its address.
	IP string
	// Wrapper is a command that the member's own is appended to.
	Wrapper []string
	// Fixed says that the IP is the member's alone, so that it has the default ports.
	Fixed bool
}

// Config describes a cluster.
type Config struct {
	// Dir takes data directories, logs and the configuration.
	Dir string
	// Binary is the hundredfold program.
	Binary string
	// YAML is the configuration of all members, bucket and replication factor included.
	YAML string
	// Args are more flags for all members.
	Args []string
	// Zones are where ingesters are, one in each to begin with.
	Zones []string
	// Distributors, Queriers and Compactors say how many there are.
	Distributors, Queriers, Compactors int
	// Host places a member; nil: on loopback.
	Host func(name, zone string) Host
	// Output takes the logs of all members, each line after the member's name; nil: no
	// one. Each member's log is in a file of its own too.
	Output io.Writer
}

// Member is a process of the cluster. It is safe for concurrent use.
type Member struct {
	Program

	// Name is also its instance id.
	Name, Role, Zone string
	// URL is where it serves HTTP, without a slash at the end.
	URL string
	// DataDir is where it keeps its data, and LogFile what it has logged.
	DataDir, LogFile string

	http, grpc, gossip string
	client             *http.Client
	join               func(except *Member) []string
}

// Fleet is a cluster. It is safe for concurrent use.
type Fleet struct {
	cfg    Config
	config string // the file
	client *http.Client
	output *sync.Mutex

	mu      sync.Mutex
	members []*Member
	next    map[string]int // the next number of a role and zone
}

// New prepares a cluster and starts nothing.
func New(cfg Config) (*Fleet, error) {
	f := &Fleet{
		cfg:    cfg,
		config: filepath.Join(cfg.Dir, "hundredfold.yml"),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
		output: &sync.Mutex{},
		next:   map[string]int{},
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "logs"), 0o750); err != nil {
		return nil, err
	}
	if err := os.WriteFile(f.config, []byte(cfg.YAML), 0o600); err != nil {
		return nil, err
	}
	for _, zone := range cfg.Zones {
		if _, err := f.Prepare("ingester", zone); err != nil {
			return nil, err
		}
	}
	for _, r := range []struct {
		role  string
		count int
	}{{"distributor", cfg.Distributors}, {"querier", cfg.Queriers}, {"compactor", cfg.Compactors}} {
		for range r.count {
			if _, err := f.Prepare(r.role, ""); err != nil {
				return nil, err
			}
		}
	}
	return f, nil
}

// Prepare adds a member and does not start it.
func (f *Fleet) Prepare(role, zone string) (*Member, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	place := role
	if zone != "" {
		place += "-" + zone
	}
	f.next[place]++
	m := &Member{Name: fmt.Sprintf("%s-%d", place, f.next[place]), Role: role, Zone: zone, client: f.client}
	host := Host{IP: "127.0.0.1"}
	if f.cfg.Host != nil {
		host = f.cfg.Host(m.Name, zone)
	}
	var err error
	if m.http, m.grpc, m.gossip, err = addresses(host); err != nil {
		return nil, err
	}
	m.URL = "http://" + m.http
	m.DataDir = filepath.Join(f.cfg.Dir, m.Name)
	m.LogFile = filepath.Join(f.cfg.Dir, "logs", m.Name+".log")
	f.members = append(f.members, m)
	log, err := os.OpenFile(m.LogFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	m.output = log // for the life of the program that runs the fleet
	if f.cfg.Output != nil {
		m.output = io.MultiWriter(log, &prefixed{name: m.Name, to: f.cfg.Output, mu: f.output})
	}
	m.command = append(append(append([]string{}, host.Wrapper...), f.cfg.Binary,
		"--role="+role, "--config.file="+f.config, "--data.dir="+m.DataDir, "--instance-id="+m.Name, "--zone="+zone,
		"--http.listen-address="+m.http, "--grpc.listen-address="+m.grpc, "--gossip.listen-address="+m.gossip),
		f.cfg.Args...)
	m.join = f.gossips
	return m, nil
}

// Gossip returns where the member gossips, as host:port.
func (m *Member) Gossip() string { return m.gossip }

// gossips returns where the ingesters gossip, for others to join.
func (f *Fleet) gossips(except *Member) []string {
	var found []string
	for _, m := range f.Members("ingester") {
		if m != except {
			found = append(found, m.gossip)
		}
	}
	return found
}

// Start starts the member, which must not be running, and does not wait. It joins the
// ingesters that there are now.
func (m *Member) Start() error {
	var flags []string
	for _, address := range m.join(m) {
		flags = append(flags, "--gossip.join="+address)
	}
	return m.start(flags...)
}

// addresses returns where a member listens: free ports of a shared address, or the
// default ones of its own.
func addresses(h Host) (http, grpc, gossip string, err error) {
	if h.Fixed {
		return net.JoinHostPort(h.IP, "9009"), net.JoinHostPort(h.IP, "9095"), net.JoinHostPort(h.IP, "7946"), nil
	}
	// All are held until the last is found, so that they differ.
	var found [3]string
	for i := range found {
		listener, err := listenForGood(h.IP)
		if err != nil {
			return "", "", "", err
		}
		defer func() { err = errors.Join(err, listener.Close()) }()
		found[i] = listener.Addr().String()
	}
	return found[0], found[1], found[2], nil
}

// FreeAddress returns an address on which nobody listens at the moment, and whose port
// stays free while the process that is given it does not run.
func FreeAddress(ip string) (string, error) {
	listener, err := listenForGood(ip)
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// ports counts the ports that were tried, so that none is given out twice: those of a
// fleet that is not started yet are free.
var ports atomic.Uint32 //nolint:gochecknoglobals // one process has one set of ports

// listenForGood listens on a free port below those that systems give to outgoing
// connections: one of these could have the port when its owner is started again. Each
// process begins elsewhere.
func listenForGood(ip string) (net.Listener, error) {
	const first, count, apart, tries = 10_000, 20_000, 997, 100
	var errs []error
	for range tries {
		port := first + (os.Getpid()*apart+int(ports.Add(1)))%count
		listener, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(port)))
		if err == nil {
			return listener, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// Start starts all members that do not run and waits until they are ready.
func (f *Fleet) Start(ctx context.Context) error {
	for _, m := range f.Members("") {
		if m.PID() != 0 {
			continue
		}
		if err := m.Start(); err != nil {
			return fmt.Errorf("start %s: %w", m.Name, err)
		}
	}
	return f.AwaitReady(ctx)
}

// AwaitReady waits until all members that run are ready.
func (f *Fleet) AwaitReady(ctx context.Context) error {
	var group errgroup.Group
	for _, m := range f.Members("") {
		if m.PID() != 0 {
			group.Go(func() error { return m.AwaitReady(ctx) })
		}
	}
	return group.Wait()
}

// Add starts one more member and waits until it is ready.
func (f *Fleet) Add(ctx context.Context, role, zone string) (*Member, error) {
	m, err := f.Prepare(role, zone)
	if err != nil {
		return nil, err
	}
	if err := m.Start(); err != nil {
		return nil, err
	}
	return m, m.AwaitReady(ctx)
}

// Remove forgets a member that was stopped for good.
func (f *Fleet) Remove(m *Member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.members = slices.DeleteFunc(f.members, func(other *Member) bool { return other == m })
}

// Members returns the members with a role, or all if it is "".
func (f *Fleet) Members(role string) []*Member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.members), func(m *Member) bool { return role != "" && m.Role != role })
}

var errNoMember = errors.New("there is no such member")

// Member returns the member with a name.
func (f *Fleet) Member(name string) (*Member, error) {
	for _, m := range f.Members("") {
		if m.Name == name {
			return m, nil
		}
	}
	return nil, fmt.Errorf("%w: %s", errNoMember, name)
}

// Close stops all members: those first whom nobody needs.
func (f *Fleet) Close() error {
	var errs []error
	for _, role := range []string{"compactor", "distributor", "querier", "ingester"} {
		var group errgroup.Group
		for _, m := range f.Members(role) {
			if m.PID() == 0 {
				continue
			}
			group.Go(func() error {
				if err := m.Stop(); err != nil {
					return fmt.Errorf("stop %s: %w", m.Name, err)
				}
				return nil
			})
		}
		errs = append(errs, group.Wait())
	}
	f.client.CloseIdleConnections()
	return errors.Join(errs...)
}

// AwaitReady waits until the member is ready, has ended, or ctx ends.
func (m *Member) AwaitReady(ctx context.Context) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		if err := m.Alive(); err != nil {
			return fmt.Errorf("%s: %w; its log is %s", m.Name, err, m.LogFile)
		}
		_, err := m.Get(ctx, "/ready")
		if err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; its log is %s", m.Name, err, m.LogFile)
		}
	}
}

// Get returns the body of a page. Any status but 200 is an error.
func (m *Member) Get(ctx context.Context, path string) (string, error) {
	return m.do(ctx, http.MethodGet, path)
}

// Metric returns the sum of the samples of a metric on the member's /metrics page.
func (m *Member) Metric(ctx context.Context, name string) (float64, error) {
	page, err := m.Get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	return SumMetric(page, name)
}

var errNoMetric = errors.New("there is no such metric")

// SumMetric returns the sum of the samples of a metric on a page in Prometheus's text
// format.
func SumMetric(page, name string) (float64, error) {
	sum, found := 0.0, false
	for line := range strings.Lines(page) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		var value float64
		if _, err := fmt.Sscan(rest[strings.LastIndexByte(rest, ' '):], &value); err != nil {
			return 0, fmt.Errorf("read the metric %s: %w", name, err)
		}
		sum, found = sum+value, true
	}
	if !found {
		return 0, fmt.Errorf("%w: %s", errNoMetric, name)
	}
	return sum, nil
}

// Post posts nothing to a path. Any status but one that says yes is an error.
func (m *Member) Post(ctx context.Context, path string) error {
	_, err := m.do(ctx, http.MethodPost, path)
	return err
}

func (m *Member) do(ctx context.Context, method, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, m.URL+path, http.NoBody)
	if err != nil {
		return "", err
	}
	resp, err := m.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode/100 != 2 {
		return "", fmt.Errorf("%s %s of %s: %s: %s", method, path, m.Name, resp.Status, strings.TrimSpace(string(body)))
	}
	return string(body), nil
}

// prefixed writes whole lines, each after a name.
type prefixed struct {
	name string
	to   io.Writer
	mu   *sync.Mutex // of all that write to the same
	rest []byte
}

// Write implements io.Writer.
func (p *prefixed) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rest = append(p.rest, text...)
	for {
		line, rest, found := strings.Cut(string(p.rest), "\n")
		if !found {
			return len(text), nil
		}
		p.rest = []byte(rest)
		if _, err := fmt.Fprintf(p.to, "%-16s %s\n", p.name, line); err != nil {
			return 0, err
		}
	}
}

var errDrain = errors.New("the drain failed")

// Drain empties an ingester and waits until it has left the cluster.
func (m *Member) Drain(ctx context.Context) error {
	if err := m.Post(ctx, "/ingester/drain"); err != nil {
		return err
	}
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		text, err := m.Get(ctx, "/ingester/drain")
		if err != nil {
			return err
		}
		var status struct{ State, Error string }
		if err := json.Unmarshal([]byte(text), &status); err != nil {
			return err
		}
		switch {
		case status.Error != "":
			return fmt.Errorf("%w: %s", errDrain, status.Error)
		case status.State == "LEFT":
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%s is not drained yet: %s", m.Name, text)
		}
	}
}
