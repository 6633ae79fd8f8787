package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/ingester"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	// restartGrace is how long an announced restart may take to begin. After that the
	// ingester takes writes again: whoever announced it has changed their mind.
	restartGrace = 2 * time.Minute
	// farewell bounds how long the others are told that this ingester restarts.
	farewell = 2 * time.Second
)

// life moves this process's ingester through the states of an ingester in a cluster.
type life struct {
	node    *cluster.Node
	ing     *ingester.Ingester
	confirm func(context.Context, tenant.ID, []ulid.ULID) ([]ulid.ULID, error)
	logger  *slog.Logger

	drain   chan struct{} // holds a token once a drain is asked for
	restart chan struct{} // holds a token once a restart is announced

	mu struct {
		sync.Mutex
		status drainStatus
	}
}

// drainStatus is the answer of /ingester/drain.
type drainStatus struct {
	Instance string `json:"instance"`
	// State is that of the ingester in the cluster; LEFT says that the drain is done.
	State    string                  `json:"state"`
	Progress *ingester.DrainProgress `json:"progress,omitempty"`
	// Error is why the drain has to be asked for again.
	Error string `json:"error,omitempty"`
}

func newLife(node *cluster.Node, ing *ingester.Ingester, announcer *ingester.Announcer, logger *slog.Logger) *life {
	return &life{
		node:    node,
		ing:     ing,
		confirm: announcer.Confirm,
		logger:  logger,
		drain:   make(chan struct{}, 1),
		restart: make(chan struct{}, 1),
	}
}

// begin makes the ingester active, or goes on with the drain that a stop interrupted.
func (l *life) begin(ctx context.Context) error {
	if l.node.Rejoined() { // which the node has logged
		if err := l.ing.Wipe(ctx); err != nil {
			return fmt.Errorf("upload what an ingester holds that had left: %w", err)
		}
	}
	if l.state() == cluster.Draining {
		l.askDrain()
		return nil
	}
	if err := l.node.SetState(ctx, cluster.Active); err != nil {
		return fmt.Errorf("take writes: %w", err)
	}
	return nil
}

// run serves what is asked for until ctx ends, and then tells the others that this
// ingester restarts, so that they do not wait for it.
func (l *life) run(ctx context.Context) error {
	var resume <-chan time.Time
	for {
		select {
		case <-l.drain:
			l.doDrain(ctx)
		case <-l.restart:
			// A drain that was asked for meanwhile goes on after the restart as well.
			if l.state() == cluster.Active {
				l.move(ctx, cluster.Restarting)
				resume = time.After(restartGrace)
			}
		case <-resume:
			if l.state() == cluster.Restarting {
				l.logger.Warn("An announced restart did not come; the ingester takes writes again", "waited", restartGrace)
				l.move(ctx, cluster.Active)
			}
		case <-ctx.Done():
			if l.state() == cluster.Active {
				last, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
				defer cancel()
				l.move(last, cluster.Restarting)
			}
			return nil
		}
	}
}

func (l *life) state() cluster.State { return l.node.State() }

func (l *life) move(ctx context.Context, to cluster.State) {
	if err := l.node.SetState(ctx, to); err != nil {
		l.logger.Error("The ingester's state could not be changed", "to", to, "err", err)
	}
}

func (l *life) askDrain() {
	// Whoever asks again must not take the last attempt's failure for this one's.
	l.note(func(s *drainStatus) { s.Error = "" })
	select {
	case l.drain <- struct{}{}:
	default: // it is asked for already
	}
}

// doDrain empties the ingester. What fails can be asked for again.
func (l *life) doDrain(ctx context.Context) {
	l.note(func(s *drainStatus) { s.Error = "" })
	err := l.drainAll(ctx)
	if err == nil {
		l.logger.Info("The ingester is drained and has left the cluster; the process may be stopped")
		return
	}
	if ctx.Err() == nil {
		l.logger.Error("The drain failed; nothing is lost, ask for it again", "err", err)
		l.note(func(s *drainStatus) { s.Error = err.Error() })
	}
}

func (l *life) drainAll(ctx context.Context) error {
	if l.state() == cluster.Left {
		return nil
	}
	if l.state() != cluster.Draining {
		if err := l.mayDrain(); err != nil {
			return err
		}
		if err := l.node.SetState(ctx, cluster.Draining); err != nil {
			return err
		}
	}
	if err := l.ing.Drain(ctx, l.confirm, func(p ingester.DrainProgress) {
		l.note(func(s *drainStatus) { s.Progress = &p })
	}); err != nil {
		return err
	}
	return l.node.SetState(ctx, cluster.Left)
}

var errTooFew = errors.New("the cluster would have too few ingesters")

// mayDrain refuses a drain that would leave fewer ingesters than replicas.
func (l *life) mayDrain() error {
	placement := l.node.View().Placement
	if left := len(placement.Members()) - 1; left < placement.RF() {
		return fmt.Errorf("%w: %d would be left, and the replication factor is %d; add one first", errTooFew, left, placement.RF())
	}
	return nil
}

func (l *life) note(change func(*drainStatus)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.mu.status)
}

func (l *life) status() drainStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.mu.status
	s.Instance, s.State = l.node.View().Self.ID, l.state().String()
	return s
}

// serveDrain starts a drain (POST) or says how far it is (GET).
func (l *life) serveDrain(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPost:
		if l.state() != cluster.Draining && l.state() != cluster.Left {
			if err := l.mayDrain(); err != nil {
				http.Error(w, err.Error(), http.StatusConflict)
				return
			}
		}
		l.askDrain()
		w.WriteHeader(http.StatusAccepted)
	case http.MethodGet:
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(l.status()); err != nil {
			l.logger.Debug("The answer could not be written", "err", err)
		}
	default:
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "POST starts a drain, GET says how far it is", http.StatusMethodNotAllowed)
	}
}

// serveRestart announces a restart: the ingester gets no more writes and keeps its
// slots. One that drains, or has left, gets none anyway and need not announce it.
func (l *life) serveRestart(w http.ResponseWriter, _ *http.Request) {
	if state := l.state(); state != cluster.Active && state != cluster.Restarting {
		http.Error(w, "the ingester is "+state.String()+" and gets no writes; restart it without announcing it", http.StatusConflict)
		return
	}
	select {
	case l.restart <- struct{}{}:
	default:
	}
	w.WriteHeader(http.StatusAccepted)
}
