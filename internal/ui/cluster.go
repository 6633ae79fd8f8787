package ui

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hundredfold/hundredfold/internal/cluster"
)

// Cluster serves "/cluster": a page for browsers, and JSON for those who accept that
// or ask for ?format=json. A process that is no node of a cluster has neither.
func (u *UI) Cluster() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u.deps.Cluster == nil {
			http.Error(w, "this process is no node of a cluster", http.StatusNotFound)
			return
		}
		status := u.deps.Cluster()
		w.Header().Set("Vary", "Accept")
		if !wantsPage(r) {
			u.writeJSON(w, status)
			return
		}
		u.render(w, "cluster.html", clusterPage{Config: u.cfg, Status: status})
	})
}

// wantsPage reports whether the client is somebody who reads HTML. Scripts say
// nothing, or that they take all.
func wantsPage(r *http.Request) bool {
	switch r.URL.Query().Get("format") {
	case "json":
		return false
	case "html":
		return true
	}
	return strings.Contains(r.Header.Get("Accept"), "text/html")
}

func (u *UI) writeJSON(w http.ResponseWriter, value any) {
	body, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		u.deps.Logger.Error("A state cannot be written as JSON.", "err", err)
		http.Error(w, "it cannot be written as JSON; the log of the server has the details", http.StatusInternalServerError)
		return
	}
	setHeaders(w)
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n'))
}

// clusterPage is what cluster.html shows.
type clusterPage struct {
	Config
	cluster.Status
}

// Verdict says in a word how the cluster is.
func (p clusterPage) Verdict() string {
	switch {
	case p.Sets.LostQuorum > 0:
		return "lost"
	case p.Sets.AtRisk > 0:
		return "risk"
	case !p.Agree:
		return "differ"
	default:
		return "whole"
	}
}

// Alive counts the members that are.
func (p clusterPage) Alive() int {
	n := 0
	for _, m := range p.Members {
		if m.Alive {
			n++
		}
	}
	return n
}

// Share is how much of all slots a member holds.
func (clusterPage) Share(slots int) string {
	const all = 1 << 16
	return strconv.FormatFloat(100*float64(slots)/all, 'f', 1, 64) + "%"
}

// Age is how long ago something was.
func (clusterPage) Age(seconds float64) string {
	if seconds < 0 {
		return "not yet"
	}
	return duration(time.Duration(seconds*float64(time.Second))) + " ago"
}

// For is how long something lasts already.
func (clusterPage) For(seconds float64) string {
	return duration(time.Duration(seconds * float64(time.Second)))
}
