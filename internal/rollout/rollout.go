// Package rollout is `hundredfold rollout`: it restarts the ingesters of a cluster zone
// by zone, for a new release or a new configuration, and goes on to the next only when
// all replica sets are whole again. What it knows of the cluster it learns from the
// page /cluster of any process; how an ingester is restarted it is told.
//
// It moves no data and changes no state: whoever breaks it off leaves a cluster that
// works, and the same command goes on where it was.
package rollout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/cluster"
)

const (
	// confirmations is how often in a row the cluster must be found whole: the node
	// that is asked hears of a restart a moment later than it happens.
	confirmations = 3
	// patience is how long a whole cluster may take to agree on who belongs to it. Views
	// of different releases may never look the same, and do no harm.
	patience = time.Minute
	// reportEvery is how often a wait says what it is for, if that stays the same.
	reportEvery = 30 * time.Second
)

var (
	errNotWhole = errors.New("the cluster is not whole")
	errTimeout  = errors.New("the cluster did not become whole in time")
	errRestart  = errors.New("a restart failed")
)

// Config says how carefully a rollout proceeds.
type Config struct {
	// Parallel is how many ingesters of a zone restart at once; 0: all of them.
	Parallel int
	// AllowOutage permits restarts that leave series without enough replicas for a
	// while, as all do with a replication factor of 1.
	AllowOutage bool
	// Timeout bounds each wait for the cluster to become whole.
	Timeout time.Duration
	// Interval is the time between two questions.
	Interval time.Duration
}

// Deps are what a Rollout works with.
type Deps struct {
	// Status asks the cluster how it is. It may fail for a while, when the process
	// that it asks is the one that restarts.
	Status func(context.Context) (cluster.Status, error)
	// Restart restarts one ingester. It is called for several at once, and may return
	// before the ingester is back.
	Restart func(context.Context, Member) error
	// Save keeps the journal, so that a rollout can go on after this process has died.
	Save func(Journal) error
	// Out takes progress, for people.
	Out io.Writer
}

// Rollout restarts the ingesters of a cluster. One goroutine.
type Rollout struct {
	cfg  Config
	deps Deps
}

// New returns a Rollout.
func New(cfg Config, deps Deps) *Rollout { return &Rollout{cfg: cfg, deps: deps} }

// Plan asks the cluster how it is and returns what is to be done. With a journal, which
// is empty if a rollout begins, it leaves out what was restarted already.
func (r *Rollout) Plan(ctx context.Context, journal Journal) (Plan, Journal, error) {
	status, err := r.deps.Status(ctx)
	if err != nil {
		return Plan{}, Journal{}, fmt.Errorf("ask the cluster how it is: %w", err)
	}
	if journal.Empty() {
		// Whoever begins sees first what is wrong already.
		if faults := faults(status); len(faults) > 0 {
			return Plan{}, Journal{}, fmt.Errorf("%w, and restarts would make it worse:%s", errNotWhole, list(faults))
		}
		journal = begin(status)
	}
	plan, err := makePlan(status, journal, r.cfg)
	return plan, journal, err
}

// Run restarts what journal, which Plan returned, leaves to be restarted. Where another
// rollout was broken off it first waits until what that one had restarted is back.
func (r *Rollout) Run(ctx context.Context, journal Journal) error {
	if err := r.deps.Save(journal); err != nil {
		return err
	}
	if err := r.await(ctx, journal, nil); err != nil {
		return err
	}
	plan, journal, err := r.Plan(ctx, journal)
	if err != nil {
		return err
	}
	r.say("%s", strings.TrimSuffix(plan.String(), "\n"))
	for i, step := range plan.Steps {
		r.say("step %d of %d: restarting %s", i+1, len(plan.Steps), step)
		began := time.Now()
		if err := r.restart(ctx, step); err != nil {
			return err
		}
		if err := r.await(ctx, journal, step.Members); err != nil {
			return err
		}
		r.say("step %d of %d: done after %s, all replica sets are whole", i+1, len(plan.Steps), time.Since(began).Round(time.Second))
	}
	return nil
}

// restart restarts all members of a step at once. If that fails for one, those that
// were begun are brought to their end all the same.
func (r *Rollout) restart(ctx context.Context, step Step) error {
	var group errgroup.Group
	for _, m := range step.Members {
		group.Go(func() error {
			if err := r.deps.Restart(ctx, m); err != nil {
				return fmt.Errorf("%w, and the rollout stops here: %s: %w", errRestart, m.ID, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// await waits until the members, which were just restarted, are back and the cluster is
// whole.
func (r *Rollout) await(ctx context.Context, journal Journal, members []Member) error {
	waiting, cancel := context.WithTimeoutCause(ctx, r.cfg.Timeout, errTimeout)
	defer cancel()
	ticker := time.NewTicker(r.cfg.Interval)
	defer ticker.Stop()

	last, reported := "", time.Time{}
	var wholeSince time.Time // but for agreement
	for whole := 0; ; {
		missing, others := r.look(waiting, journal, members)
		switch {
		case len(missing) > 0:
			wholeSince = time.Time{}
		case wholeSince.IsZero():
			wholeSince = time.Now()
		}
		if len(missing) == 0 && others > 0 && time.Since(wholeSince) < patience {
			missing = []string{fmt.Sprintf("processes that know the cluster otherwise yet: %d", others)}
		}
		if len(missing) > 0 {
			whole = 0
			if text := list(missing); text != last || time.Since(reported) >= reportEvery {
				r.say("waiting:%s", text)
				last, reported = text, time.Now()
			}
		} else if whole++; whole == confirmations {
			if others > 0 {
				r.say("going on; processes that know the cluster otherwise: %d, see /cluster", others)
			}
			return nil
		}
		select {
		case <-ticker.C:
		case <-waiting.Done():
			if errors.Is(context.Cause(waiting), errTimeout) {
				return fmt.Errorf("%w (%s), and the rollout stops here:%s", errTimeout, r.cfg.Timeout, last)
			}
			return context.Cause(waiting)
		}
	}
}

// look returns what stands between the cluster and the next step, and how many processes
// know another registry than the one that is asked.
func (r *Rollout) look(ctx context.Context, journal Journal, members []Member) (missing []string, others int) {
	status, err := r.deps.Status(ctx)
	if err != nil {
		return []string{"no answer: " + err.Error()}, 0
	}
	for _, m := range members {
		if !journal.restarted(status, m.ID) {
			missing = append(missing, m.ID+" is not back yet")
		}
	}
	for _, peer := range status.Peers {
		if peer.Registry != "" && peer.Registry != status.Registry {
			others++
		}
	}
	return append(missing, faults(status)...), others
}

func (r *Rollout) say(format string, args ...any) {
	_, _ = fmt.Fprintf(r.deps.Out, format+"\n", args...)
}
