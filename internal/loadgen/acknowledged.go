package loadgen

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"time"
)

// Acknowledged says which samples a receiver has acknowledged: everything before
// each sender's cursor, except what it has refused. Together with the
// configuration of the run, which it holds, that names every single sample.
type Acknowledged struct {
	Version   int                  `json:"version"`
	World     World                `json:"world"`
	Senders   int                  `json:"senders"`
	Live      bool                 `json:"live"`
	FirstTick int64                `json:"first_tick"`
	LastTick  int64                `json:"last_tick"` // exclusive
	Sent      []SenderAcknowledged `json:"sent"`      // by sender
}

// SenderAcknowledged is one sender's part.
type SenderAcknowledged struct {
	Before  Cursor  `json:"before"`
	Refused []Range `json:"refused,omitempty"` // in order, apart from each other
}

const acknowledgedVersion = 1

// nothing returns the state before the first request.
func (p *plan) nothing(cfg Config) Acknowledged {
	a := Acknowledged{
		Version:   acknowledgedVersion,
		World:     cfg.World,
		Senders:   cfg.Senders,
		Live:      cfg.Span == 0,
		FirstTick: p.ticks.from,
		LastTick:  p.ticks.to,
		Sent:      make([]SenderAcknowledged, len(p.senders)),
	}
	for i := range a.Sent {
		a.Sent[i].Before.Tick = p.ticks.from
	}
	return a
}

// everything returns the state after a run without any refusal.
func (p *plan) everything(cfg Config) Acknowledged {
	a := p.nothing(cfg)
	for i := range a.Sent {
		a.Sent[i].Before.Tick = p.ticks.to
	}
	return a
}

func (a Acknowledged) clone() Acknowledged {
	a.Sent = slices.Clone(a.Sent)
	for i := range a.Sent {
		a.Sent[i].Refused = slices.Clone(a.Sent[i].Refused)
	}
	return a
}

// advance adds the answer to a request.
func (s *SenderAcknowledged) advance(r Range, accepted bool) {
	s.Before = r.To
	if accepted {
		return
	}
	if last := len(s.Refused) - 1; last >= 0 && s.Refused[last].To == r.From {
		s.Refused[last].To = r.To
		return
	}
	s.Refused = append(s.Refused, r)
}

// has reports whether the sample at c was acknowledged.
func (s *SenderAcknowledged) has(c Cursor) bool {
	if !c.before(s.Before) {
		return false
	}
	i := sort.Search(len(s.Refused), func(i int) bool { return c.before(s.Refused[i].To) })
	return i == len(s.Refused) || c.before(s.Refused[i].From)
}

// WriteFile replaces the file with a, so that at any time it is whole.
func (a Acknowledged) WriteFile(name string) error {
	encoded, err := json.MarshalIndent(a, "", " ")
	if err != nil {
		return fmt.Errorf("encode what was acknowledged: %w", err)
	}
	temporary, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return fmt.Errorf("create a journal: %w", err)
	}
	_, err = temporary.Write(append(encoded, '\n'))
	err = errors.Join(err, temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("write the journal %s: %w", name, errors.Join(err, os.Remove(temporary.Name())))
	}
	return nil
}

// ReadAcknowledged reads what WriteFile wrote.
func ReadAcknowledged(name string) (Acknowledged, error) {
	var a Acknowledged
	encoded, err := os.ReadFile(name)
	if err != nil {
		return a, fmt.Errorf("read a journal: %w", err)
	}
	if err := json.Unmarshal(encoded, &a); err != nil {
		return a, fmt.Errorf("decode the journal %s: %w", name, err)
	}
	if a.Version != acknowledgedVersion {
		return a, fmt.Errorf("the journal %s has version %d, this program reads version %d", name, a.Version, acknowledgedVersion)
	}
	return a, nil
}

// Resume returns a Generator that verifies the run that a tells of. The world
// and the plan come from a, the addresses from cfg.
func Resume(cfg Config, a Acknowledged) (*Generator, error) {
	cfg.World, cfg.Senders = a.World, a.Senders
	ticks := tickRange{from: a.FirstTick, to: a.LastTick}
	interval := cfg.Interval.Milliseconds()
	cfg.Span, cfg.Rate = 0, 0
	if !a.Live {
		cfg.Span = time.Duration(ticks.to-ticks.from) * cfg.Interval
	}
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("the journal: %w", err)
	}
	if ticks.from > ticks.to || ticks.to > math.MaxInt64/interval {
		return nil, fmt.Errorf("the journal: the ticks %d to %d are no range", ticks.from, ticks.to)
	}
	g := newGenerator(cfg, nil, ticks)
	if len(a.Sent) != len(g.plan.senders) {
		return nil, fmt.Errorf("the journal tells of %d senders, the run had %d", len(a.Sent), len(g.plan.senders))
	}
	g.mu.acked = a.clone()
	return g, nil
}

// AssumeAll makes Verify expect everything that a run over a span sends.
func (g *Generator) AssumeAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.acked = g.plan.everything(g.cfg)
}
