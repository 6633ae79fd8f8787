package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/remoteblock"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/testcluster/slowstore"
)

const (
	// quiet is how long the store must stay unchanged to be taken as settled, settleTimeout
	// how long that may take.
	quiet         = 10 * time.Second
	settleTimeout = 15 * time.Minute
)

// bench measures the queries of a year.
//
// Each cold run is a process of its own, with an empty data directory. What the operating
// system of the store has in memory stays there: the store's latency and bandwidth are those of the proxy.
func bench(ctx context.Context, o options) (err error) {
	queries, err := yearQueries(o.history)
	if err != nil {
		return err
	}
	store, finish, err := prepare(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = finish(err) }()
	if !o.foreign {
		if err := addSidecars(ctx, bucketDir(o.work)); err != nil {
			return err
		}
	}
	if err := settle(ctx, o, store); err != nil {
		return err
	}
	var results []result
	for _, q := range queries {
		r, err := measureQuery(ctx, o, store, q)
		if err != nil {
			return err
		}
		fmt.Printf("# %s: cold %v, warm %v, cached %v\n", q.name, r.cold, r.warm, r.cached)
		results = append(results, r)
	}
	var peers []result
	if o.peer {
		if peers, err = measurePrometheus(ctx, o, queries); err != nil {
			return err
		}
	}
	err = printResults(results)
	if o.queriers > 1 {
		err = errors.Join(err, printOwners(results))
	}
	return errors.Join(err, printPeers(peers))
}

// addSidecars gives the blocks of the bucket in dir the sidecars that they would have, had
// an ingester, a compactor or an import uploaded them.
func addSidecars(ctx context.Context, dir string) error {
	store, err := blockstore.Open(blockstore.Config{Type: blockstore.TypeFilesystem, Filesystem: blockstore.FilesystemConfig{Directory: dir}}, nil, nil)
	if err != nil {
		return err
	}
	blocks, err := filepath.Glob(filepath.Join(dir, "default", "*"))
	for i := 0; i < len(blocks) && err == nil; i++ {
		err = remoteblock.WriteSidecar(ctx, store, tenant.Default, blocks[i])
	}
	return errors.Join(err, store.Close())
}

// settle starts a process until the bucket is as it wants it: compacted, with its index.
func settle(ctx context.Context, o options, store *objectStore) (err error) {
	s, err := startHundredfold(ctx, o, store, o.work)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	started, last, writes := time.Now(), time.Now(), store.proxy.Counts().Writes
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	index := filepath.Join(bucketDir(o.work), "~index", "default.json.gz")
	for indexed := false; !indexed || time.Since(last) < quiet; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("the bucket is still being changed: %w", ctx.Err())
		}
		if err := s.program.Alive(); err != nil {
			return err
		}
		if now := store.proxy.Counts().Writes; now != writes {
			last, writes = time.Now(), now
		}
		if !indexed { // the write is counted before it is done
			_, err := os.Stat(index)
			indexed = err == nil
		}
	}
	u, err := s.usage()
	if err != nil {
		return err
	}
	fmt.Printf("# the bucket settled in %s: %+v, %.1f CPU s, peak %d MB\n", time.Since(started)-quiet, store.proxy.Counts(), u.cpu.Seconds(), u.peak>>20)
	return nil
}

// result is what a query took, run by run.
type result struct {
	query              query
	cold, warm, cached []time.Duration
	counts             slowstore.Counts // of the last cold run
	ready              time.Duration    // of the last process
	peakCold, peak     int64            // bytes of resident memory: the highest of all processes
	cpuCold, cpuWarm   time.Duration    // of the last runs
	answer             answer

	// Of the other queriers of a cluster: the highest peak and all CPU, and the requests to them.
	ownersPeak                       int64
	ownersCold, ownersWarm           time.Duration
	requestsToOwners, requestsWarmed int // of the last cold run, and of a warm one on average
}

// measureQuery asks a query of new processes, and then again of the last one.
func measureQuery(ctx context.Context, o options, store *objectStore, q query) (result, error) {
	r := result{query: q}
	for round := range o.rounds {
		if err := r.process(ctx, o, store, round == o.rounds-1); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *result) process(ctx context.Context, o options, store *objectStore, last bool) (err error) {
	s, err := startQueriers(ctx, o, store, o.work)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	r.ready = s.ready
	if err := s.rest(ctx); err != nil {
		return err
	}
	idle, err := s.usage()
	if err != nil {
		return err
	}
	ownersIdle, err := s.ownersUsage()
	if err != nil {
		return err
	}
	before := store.proxy.Counts()
	if r.answer, err = s.ask(ctx, r.query, true); err != nil {
		return err
	}
	r.cold = append(r.cold, r.answer.took)
	r.counts = store.proxy.Counts().Minus(before)
	cold, err := s.usage()
	if err != nil {
		return err
	}
	r.peakCold, r.cpuCold = max(r.peakCold, cold.peak), cold.cpu-idle.cpu
	owners, err := s.ownersUsage()
	if err != nil {
		return err
	}
	r.ownersCold = owners.cpu - ownersIdle.cpu
	if r.requestsToOwners, err = s.requests(ctx); err != nil {
		return err
	}
	if last {
		if err := r.again(ctx, o, s, cold); err != nil {
			return err
		}
	}
	u, err := s.usage()
	if err != nil {
		return err
	}
	r.peak = max(r.peak, u.peak)
	owners, err = s.ownersUsage()
	r.ownersPeak = max(r.ownersPeak, owners.peak)
	return err
}

// again asks a process that has the pages, and then one that has the answer.
func (r *result) again(ctx context.Context, o options, s *system, before usage) error {
	ownersBefore, err := s.ownersUsage()
	if err != nil {
		return err
	}
	for range o.rounds {
		a, err := s.ask(ctx, r.query, true)
		if err != nil {
			return err
		}
		r.warm = append(r.warm, a.took)
	}
	after, err := s.usage()
	if err != nil {
		return err
	}
	r.cpuWarm = (after.cpu - before.cpu) / time.Duration(o.rounds)
	ownersAfter, err := s.ownersUsage()
	if err != nil {
		return err
	}
	r.ownersWarm = (ownersAfter.cpu - ownersBefore.cpu) / time.Duration(o.rounds)
	requests, err := s.requests(ctx)
	if err != nil {
		return err
	}
	r.requestsWarmed = (requests - r.requestsToOwners) / o.rounds
	if _, err := s.ask(ctx, r.query, false); err != nil { // fills the cache
		return err
	}
	for range o.rounds {
		a, err := s.ask(ctx, r.query, false)
		if err != nil {
			return err
		}
		r.cached = append(r.cached, a.took)
	}
	return nil
}

// measurePrometheus asks a Prometheus on the same blocks: once, then warm. Each query has
// a process of its own.
func measurePrometheus(ctx context.Context, o options, queries []query) ([]result, error) {
	var results []result
	for _, q := range queries {
		r := result{query: q}
		err := func() (err error) {
			s, err := startPrometheus(ctx, o, o.dir, o.work)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, s.stop()) }()
			for range 1 + o.rounds {
				a, err := s.ask(ctx, q, true)
				if err != nil {
					return err
				}
				r.warm = append(r.warm, a.took)
			}
			r.cold, r.warm = r.warm[:1], r.warm[1:]
			u, err := s.usage()
			r.peak = u.peak
			return err
		}()
		if err != nil {
			return results, fmt.Errorf("prometheus: %w", err)
		}
		results = append(results, r)
	}
	return results, nil
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

// within writes a figure with its goal, and marks what does not reach it.
func within(d, goal time.Duration) string {
	mark := ""
	if d > goal {
		mark = " !"
	}
	return fmt.Sprintf("%s/%s%s", rounded(d), rounded(goal), mark)
}

func rounded(d time.Duration) string {
	if d >= time.Second {
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(100 * time.Microsecond).String()
}

func printResults(results []result) error {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(out, "\nquery\tcold/goal\twarm/goal\tcached/goal\tCPU s cold, warm\tcold requests\tMB fetched\tpeak MB cold, all\tready\tseries, points")
	for _, r := range results {
		_, _ = fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%.2f, %.2f\t%d\t%.1f\t%d, %d\t%s\t%d, %d\n", r.query.name,
			within(median(r.cold), r.query.cold), within(median(r.warm), r.query.warm), within(median(r.cached), r.query.cached),
			r.cpuCold.Seconds(), r.cpuWarm.Seconds(), r.counts.Requests, float64(r.counts.Bytes)/1e6,
			r.peakCold>>20, r.peak>>20, rounded(r.ready), r.answer.series, r.answer.points)
	}
	return out.Flush()
}

// printOwners prints what the other queriers took.
func printOwners(results []result) error {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(out, "\nowners\trequests cold, warm\tCPU s cold, warm\tpeak MB")
	for _, r := range results {
		_, _ = fmt.Fprintf(out, "%s\t%d, %d\t%.2f, %.2f\t%d\n", r.query.name, r.requestsToOwners, r.requestsWarmed,
			r.ownersCold.Seconds(), r.ownersWarm.Seconds(), r.ownersPeak>>20)
	}
	return out.Flush()
}

func printPeers(results []result) error {
	if len(results) == 0 {
		return nil
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(out, "\nPrometheus, local disk\tfirst\twarm\tpeak MB")
	for _, r := range results {
		_, _ = fmt.Fprintf(out, "%s\t%s\t%s\t%d\n", r.query.name, rounded(median(r.cold)), rounded(median(r.warm)), r.peak>>20)
	}
	return out.Flush()
}
