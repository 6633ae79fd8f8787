package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hundredfold/hundredfold/internal/testcluster/fleet"
)

// system is a program that answers PromQL.
type system struct {
	program *fleet.Program
	url     string
	ready   time.Duration // from its start until it was ready

	// fleet is the cluster that program is a querier of, and owners are the other queriers;
	// nil: it is alone.
	fleet  *fleet.Fleet
	owners []*fleet.Member
}

// configuration returns that of all processes. Their own metrics are not what is measured, and the
// history is older than what is kept by default.
func configuration(store *objectStore) string {
	return store.yaml() + "self_monitoring: {enabled: false}\nlimits: {retention: 0s}\n"
}

// startQueriers starts what is asked: a process that has all roles or, for several
// queriers, a cluster on the store, all with empty data directories in work.
func startQueriers(ctx context.Context, o options, store *objectStore, work string) (_ *system, err error) {
	if o.queriers < 2 {
		return startHundredfold(ctx, o, store, work)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	dir, err := os.MkdirTemp(work, "cluster-")
	if err != nil {
		return nil, err
	}
	f, err := fleet.New(fleet.Config{
		Dir: dir, Binary: filepath.Join(o.bin, "hundredfold"), YAML: configuration(store) + "cluster: {replication_factor: 1}\n",
		Zones: []string{"a"}, Queriers: o.queriers,
	})
	if err != nil {
		return nil, err
	}
	queriers := f.Members("querier")
	s := &system{program: &queriers[0].Program, url: queriers[0].URL, fleet: f, owners: queriers[1:]}
	started := time.Now()
	err = f.Start(ctx)
	s.ready = time.Since(started)
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for err == nil { // until it knows the others, it reads all blocks itself
		var peers float64
		if peers, err = queriers[0].Metric(ctx, "hundredfold_cluster_peers"); int(peers) == len(f.Members("")) {
			return s, nil
		}
		if err == nil {
			select {
			case <-ticker.C:
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
	}
	return nil, errors.Join(fmt.Errorf("start %d queriers in %s: %w", o.queriers, dir, err), f.Close())
}

// startHundredfold starts a process on the store with an empty data directory in work.
func startHundredfold(ctx context.Context, o options, store *objectStore, work string) (*system, error) {
	path := filepath.Join(work, "hundredfold.yml")
	if err := os.WriteFile(path, []byte(configuration(store)), 0o600); err != nil {
		return nil, err
	}
	return startSystem(ctx, work, "hundredfold", func(address, data string) []string {
		return []string{
			filepath.Join(o.bin, "hundredfold"), "--config.file=" + path, "--data.dir=" + data, "--http.listen-address=" + address,
		}
	})
}

// startPrometheus starts a Prometheus on hard links to the blocks of the folder.
func startPrometheus(ctx context.Context, o options, blocks, work string) (*system, error) {
	path := filepath.Join(work, "prometheus.yml")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, err
	}
	return startSystem(ctx, work, "prometheus", func(address, data string) []string {
		if err := linkTree(blocks, data); err != nil {
			return []string{"false", err.Error()} // it cannot start without
		}
		return []string{
			filepath.Join(o.bin, "prometheus"), "--config.file=" + path, "--storage.tsdb.path=" + data, "--web.listen-address=" + address,
			// It would compact the blocks for minutes.
			"--storage.tsdb.retention.time=100y", "--storage.tsdb.min-block-duration=24h", "--storage.tsdb.max-block-duration=24h",
		}
	})
}

func startSystem(ctx context.Context, work, name string, command func(address, data string) []string) (*system, error) {
	address, err := fleet.FreeAddress("127.0.0.1")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(work, name+"-")
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(work, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	s := &system{url: "http://" + address}
	s.program = fleet.NewProgram(log, nil, command(address, filepath.Join(dir, "data"))...)
	started := time.Now()
	if err := s.program.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), log.Close())
	}
	err = await(ctx, startTimeout, s.url+"/-/ready", s.program)
	s.ready = time.Since(started)
	if err := errors.Join(err, log.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s, whose log is %s: %w", name, log.Name(), err), s.stop())
	}
	return s, nil
}

// stop ends the program. Its data stay until all has been measured: for half a minute after
// many files were deleted, ext4 takes up to ten times as long to create one, since it
// passes over each inode that was freed lately.
func (s *system) stop() error {
	if s.fleet != nil {
		return s.fleet.Close()
	}
	return s.program.Stop()
}

// rest waits until the compactor has looked at the whole bucket once, which it does as soon
// as it starts: what that takes is not what a query takes. A querier has no compactor.
func (s *system) rest(ctx context.Context) error {
	if s.fleet != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/metrics", http.NoBody)
		if err != nil {
			return err
		}
		response, err := (&http.Client{Timeout: startTimeout}).Do(request)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil {
			return err
		}
		_, passes, found := strings.Cut(string(text), "\nhundredfold_compactor_passes_total ")
		if !found {
			return fmt.Errorf("%s/metrics does not say how many passes the compactor has made", s.url)
		}
		if !strings.HasPrefix(passes, "0") {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("the first pass of the compactor: %w", ctx.Err())
		}
	}
}

// usage is what a process has taken.
type usage struct {
	peak int64         // bytes of resident memory at its highest
	cpu  time.Duration // user and system
}

// usage reads what the program has taken so far.
func (s *system) usage() (usage, error) { return usageOf(s.program) }

// ownersUsage reads what the other queriers have taken so far: the highest peak, and all CPU.
func (s *system) ownersUsage() (all usage, err error) {
	for _, m := range s.owners {
		u, err := usageOf(&m.Program)
		if err != nil {
			return all, err
		}
		all.peak, all.cpu = max(all.peak, u.peak), all.cpu+u.cpu
	}
	return all, nil
}

// requests returns how many the first querier has made to owners.
func (s *system) requests(ctx context.Context) (int, error) {
	if s.fleet == nil {
		return 0, nil
	}
	n, err := s.fleet.Members("querier")[0].Metric(ctx, "hundredfold_querier_owner_requests_total")
	return int(n), err
}

func usageOf(program *fleet.Program) (usage, error) {
	pid := program.PID()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return usage{}, err
	}
	var u usage
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return usage{}, fmt.Errorf("/proc/%d/status: %w", pid, err)
			}
			u.peak = kib << 10
		}
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, err
	}
	// The name of the program, in brackets, may hold blanks; utime and stime are the 12th
	// and 13th field behind it, in hundredths of a second.
	_, rest, _ := strings.Cut(string(text), ") ")
	for _, field := range strings.Fields(rest)[11:13] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return usage{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		u.cpu += time.Duration(ticks) * 10 * time.Millisecond
	}
	return u, nil
}

// linkTree makes target a copy of the folder of which all files are hard links.
func linkTree(source, target string) error {
	return filepath.WalkDir(source, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(target, strings.TrimPrefix(path, source))
		if entry.IsDir() {
			return os.MkdirAll(to, 0o750)
		}
		err = os.Link(path, to)
		if errors.Is(err, syscall.EXDEV) {
			return fmt.Errorf("%w; choose directories on one file system", err)
		}
		return err
	})
}
