package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/hundredfold/hundredfold/internal/testcluster/fleet"
)

const drainTimeout = 10 * time.Minute

var errNoIngester = errors.New("no ingester is running")

// controller obeys the commands that change the cluster.
type controller struct{ fleet *fleet.Fleet }

// ServeHTTP implements http.Handler.
func (c *controller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, err := c.obey(r.Context(), strings.TrimPrefix(r.URL.Path, "/"), r.FormValue("member"), r.FormValue("zone"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	_, _ = fmt.Fprintln(w, answer)
}

func (c *controller) obey(ctx context.Context, what, name, zone string) (string, error) {
	if what == "add" {
		return c.add(ctx, zone)
	}
	m, err := c.choose(name)
	if err != nil {
		return "", err
	}
	switch what {
	case "kill":
		return m.Name + " is killed; make cluster-start MEMBER=" + m.Name + " starts it again", m.Kill()
	case "start":
		if err := m.Start(); err != nil {
			return "", err
		}
		return m.Name + " is ready at " + m.URL, m.AwaitReady(ctx)
	case "drain":
		return c.drain(ctx, m)
	default:
		return "", fmt.Errorf("%q is no command", what)
	}
}

func (c *controller) add(ctx context.Context, zone string) (string, error) {
	if zone == "" {
		zone = c.smallestZone()
	}
	m, err := c.fleet.Add(ctx, "ingester", zone)
	if err != nil {
		return "", err
	}
	return m.Name + " is ready at " + m.URL, nil
}

func (c *controller) smallestZone() string {
	zones := map[string]int{"a": 0, "b": 0, "c": 0}
	for _, m := range c.fleet.Members("ingester") {
		zones[m.Zone]++
	}
	best := "a"
	for _, zone := range []string{"b", "c"} {
		if zones[zone] < zones[best] {
			best = zone
		}
	}
	return best
}

// choose returns the named member, or the ingester that was added last.
func (c *controller) choose(name string) (*fleet.Member, error) {
	if name != "" {
		return c.fleet.Member(name)
	}
	ingesters := c.fleet.Members("ingester")
	if len(ingesters) == 0 {
		return nil, errNoIngester
	}
	return ingesters[len(ingesters)-1], nil
}

// drain empties an ingester, stops it and deletes its disk.
func (c *controller) drain(ctx context.Context, m *fleet.Member) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	started := time.Now()
	if err := m.Drain(ctx); err != nil {
		return "", err
	}
	took := time.Since(started).Round(time.Millisecond)
	if err := m.Stop(); err != nil {
		return "", err
	}
	c.fleet.Remove(m)
	return fmt.Sprintf("%s was drained in %s, stopped, and its disk deleted", m.Name, took), os.RemoveAll(m.DataDir)
}
