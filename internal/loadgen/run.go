package loadgen

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// grace is how long requests may still be retried after the duration of a run.
const grace = 30 * time.Second

// journalEvery is how often the journal is written.
const journalEvery = time.Second

// Run sends everything that the configuration says. It ends early, without an
// error, when ctx ends: the report tells how far it came. Run it once.
func (g *Generator) Run(ctx context.Context) (Report, error) {
	started := time.Now()
	ownBefore := ownCPU()
	receiverBefore, err := processes(g.cfg.Processes)
	if err != nil {
		return Report{}, fmt.Errorf("--pid: %w", err)
	}
	sendCtx := ctx
	if g.cfg.Duration > 0 {
		var cancel context.CancelFunc
		sendCtx, cancel = context.WithTimeout(ctx, g.cfg.Duration+grace)
		defer cancel()
	}

	watchCtx, stopWatching := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	watchers.Go(func() { g.every(watchCtx, g.cfg.Progress, g.logProgress(started)) })
	if g.cfg.Journal != "" {
		watchers.Go(func() {
			g.every(watchCtx, journalEvery, func() {
				if err := g.Acknowledged().WriteFile(g.cfg.Journal); err != nil {
					g.logger.Error("the journal was not written; a later verification may know less", "err", err)
				}
			})
		})
	}

	var senders errgroup.Group
	pace := newPace(len(g.plan.senders), g.plan.ticks.from)
	for i := range g.plan.senders {
		s := newSender(g, i, started)
		senders.Go(func() error { return s.run(sendCtx, pace) })
	}
	err = senders.Wait()
	stopWatching()
	watchers.Wait()
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = nil // the report says what was not acknowledged
	}
	if g.cfg.Journal != "" {
		err = errors.Join(err, g.Acknowledged().WriteFile(g.cfg.Journal))
	}

	report := g.report(started)
	report.CPU = ownCPU() - ownBefore
	receiver, usageErr := processes(g.cfg.Processes)
	if usageErr != nil {
		return report, errors.Join(err, fmt.Errorf("--pid: %w", usageErr))
	}
	receiver.CPU -= receiverBefore.CPU
	report.Receiver = receiver
	return report, err
}

// every calls f each time d has passed, until ctx ends.
func (g *Generator) every(ctx context.Context, d time.Duration, f func()) {
	if d <= 0 {
		return
	}
	ticker := time.NewTicker(d)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			f()
		case <-ctx.Done():
			return
		}
	}
}

func (g *Generator) logProgress(started time.Time) func() {
	var before int64
	last := started
	return func() {
		now, progress := time.Now(), g.Progress()
		rate := float64(progress.Acknowledged-before) / now.Sub(last).Seconds()
		before, last = progress.Acknowledged, now
		args := []any{
			"samples", progress.Acknowledged, "per_second", int64(rate),
			"until", g.reached().UTC().Format(time.RFC3339), "elapsed", now.Sub(started).Round(time.Second).String(),
		}
		if progress.Refused > 0 {
			args = append(args, "refused", progress.Refused)
		}
		if progress.Retries > 0 {
			args = append(args, "retries", progress.Retries, "last_retry", progress.LastRetry)
		}
		g.logger.Info("sent", args...)
	}
}

// reached returns the time up to which all senders have sent.
func (g *Generator) reached() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	tick := g.mu.acked.Sent[0].Before.Tick
	for _, s := range g.mu.acked.Sent {
		tick = min(tick, s.Before.Tick)
	}
	return time.UnixMilli(tick * g.world.interval)
}

// Progress is what a run has come to so far.
type Progress struct {
	Acknowledged int64 // samples
	Refused      int64 // samples
	Retries      int64 // requests that were answered 5xx or not at all
	LastRetry    string
}

// Progress returns what the run has come to so far.
func (g *Generator) Progress() Progress {
	p := Progress{Acknowledged: g.counters.acknowledged.Load(), Refused: g.counters.refused.Load()}
	g.counters.mu.Lock()
	defer g.counters.mu.Unlock()
	p.Retries, p.LastRetry = g.counters.mu.retries, g.counters.mu.lastRetry
	return p
}

// counters is what senders count. It is safe for concurrent use.
type counters struct {
	acknowledged, refused, bytes atomic.Int64

	mu struct {
		sync.Mutex
		statuses     map[int]int64
		latencies    latencies
		retries      int64
		lastRetry    string
		firstRefusal string
	}
}

func (c *counters) settle(samples int, accepted bool) {
	if accepted {
		c.acknowledged.Add(int64(samples))
		return
	}
	c.refused.Add(int64(samples))
}

func (c *counters) record(a answer, size int) {
	c.bytes.Add(int64(size))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.statuses == nil {
		c.mu.statuses = map[int]int64{}
	}
	c.mu.statuses[a.status]++
	if a.status != 0 {
		c.mu.latencies.add(a.took)
	}
	switch {
	case a.problem == "":
	case a.status == 0 || a.status >= 500:
		c.mu.retries++
		c.mu.lastRetry = a.problem
	case c.mu.firstRefusal == "":
		c.mu.firstRefusal = a.problem
	}
}

func (g *Generator) report(started time.Time) Report {
	c := &g.counters
	r := Report{
		Elapsed:      time.Since(started),
		From:         time.UnixMilli(g.plan.ticks.from * g.world.interval),
		To:           g.reached(),
		Series:       g.world.Series,
		Acknowledged: c.acknowledged.Load(),
		Refused:      c.refused.Load(),
		Bytes:        c.bytes.Load(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r.Statuses = maps.Clone(c.mu.statuses)
	r.Latency = c.mu.latencies.summary()
	r.FirstRefusal, r.LastRetry, r.Retries = c.mu.firstRefusal, c.mu.lastRetry, c.mu.retries
	return r
}
