package ui

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hundredfold/hundredfold/internal/backlog"
)

// Compactor serves "/compactor": what the compactor of this process has to do, how far it
// is and what is wrong; a page for browsers and JSON for scripts, as Cluster.
func (u *UI) Compactor() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u.deps.Compactor == nil {
			http.Error(w, "this process does not run the compactor", http.StatusNotFound)
			return
		}
		status, ok := u.deps.Compactor()
		if !ok {
			http.Error(w, "the compactor of this process has not started yet", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Vary", "Accept")
		if !wantsPage(r) {
			u.writeJSON(w, status)
			return
		}
		u.render(w, "compactor.html", compactorPage{Config: u.cfg, Clustered: u.deps.Cluster != nil, Status: status, now: time.Now()})
	})
}

// compactorPage is what compactor.html shows.
type compactorPage struct {
	Config
	backlog.Status
	Clustered bool
	now       time.Time
}

// Verdict says in a word how it fares.
func (p compactorPage) Verdict() string {
	switch {
	case p.Backlog.Quarantined > 0:
		return "damaged"
	case p.Pass != nil && p.Pass.Error != "":
		return "failing"
	case p.Running != nil || p.Backlog.Compactions > 0:
		return "busy"
	default:
		return "idle"
	}
}

// ETA says when all that is planned will be done.
func (p compactorPage) ETA() string {
	switch seconds := p.Backlog.Seconds; {
	case seconds < 0:
		return "not known yet"
	case seconds == 0:
		return "nothing to do"
	default:
		return "in " + duration(time.Duration(seconds*float64(time.Second)))
	}
}

// Remaining says how long the running job will go on, if that is known.
func (p compactorPage) Remaining() string {
	if p.Running == nil || p.Backlog.Rate == 0 {
		return "not known yet"
	}
	left := p.Running.Job.Samples - min(p.Running.Done, p.Running.Job.Samples)
	return duration(time.Duration(float64(left) / p.Backlog.Rate * float64(time.Second)))
}

// Percent is a fraction for people.
func (compactorPage) Percent(fraction float64) string { return fmt.Sprintf("%.0f%%", 100*fraction) }

// Ago is how long ago something was.
func (p compactorPage) Ago(t time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	if t.After(p.now) {
		return "in " + duration(t.Sub(p.now))
	}
	return duration(p.now.Sub(t)) + " ago"
}

// Time is a time for people, in UTC.
func (compactorPage) Time(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") }

// Job says what a job does.
func (p compactorPage) Job(job backlog.Job) string {
	blocks := plural(job.Blocks, "block")
	what := "merge " + blocks
	switch {
	case job.Blocks == 1:
		what = "split a block into " + plural(job.Results, "shard")
	case job.Results > 1:
		what += " into " + plural(job.Results, "shard")
	}
	return fmt.Sprintf("%s of %s to %s, %s samples", what, p.Time(job.Start), p.Time(job.End), count(job.Samples))
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Next says what happens next to a tenant's blocks.
func (p compactorPage) Next(t backlog.TenantStatus) string {
	var next []string
	if t.Planned > 0 {
		next = append(next, p.Job(t.Next[0]))
	}
	if t.Planned > 1 {
		next = append(next, fmt.Sprintf("and %d more", t.Planned-1))
	}
	if t.Marked > 0 {
		next = append(next, fmt.Sprintf("delete %s, the first %s", plural(t.Marked, "block"), p.Ago(t.NextDeletion)))
	}
	if len(next) == 0 {
		return "wait for blocks"
	}
	return strings.Join(next, "; ")
}
