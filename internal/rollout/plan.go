package rollout

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/hundredfold/hundredfold/internal/cluster"
)

var (
	errOutage = errors.New("the replication factor is 1, so that each restart makes some series unavailable until it is over; if that may be, add --allow-outage")
	errName   = errors.New("it has characters that a shell may take for something else")
	errNone   = errors.New("there are no ingesters")
)

// Member is an ingester to be restarted.
type Member struct {
	ID, Zone string
	// Host is where it runs, as the others reach it.
	Host string
}

// Step is what restarts at once: ingesters of one zone.
type Step struct {
	Zone    string
	Members []Member
}

// String names the step's ingesters.
func (s Step) String() string {
	names := make([]string, len(s.Members))
	for i, m := range s.Members {
		names[i] = m.ID
	}
	text := strings.Join(names, ", ")
	if s.Zone != "" {
		text += " (zone " + s.Zone + ")"
	}
	return text
}

// Plan is what a rollout does, step by step.
type Plan struct {
	Steps []Step
	// Done are the ingesters that were restarted already.
	Done []string
}

// String says what the plan does, a line for each step.
func (p Plan) String() string {
	var w strings.Builder
	if len(p.Done) > 0 {
		_, _ = fmt.Fprintf(&w, "restarted already: %s\n", strings.Join(p.Done, ", "))
	}
	for i, step := range p.Steps {
		_, _ = fmt.Fprintf(&w, "step %d of %d: restart %s\n", i+1, len(p.Steps), step)
	}
	if len(p.Steps) == 0 {
		w.WriteString("nothing is left to be restarted\n")
	}
	return w.String()
}

// shellSafe matches what means nothing to a shell. Names come from other processes.
var shellSafe = regexp.MustCompile(`^[A-Za-z0-9._:@%+-]*$`)

// makePlan returns the steps for the ingesters of journal that are still to be
// restarted: zone by zone, and in a zone by rank. Ingesters of a zone restart together
// as long as no replica set has two of them, that is if there are as many zones as
// replicas.
func makePlan(status cluster.Status, journal Journal, cfg Config) (Plan, error) {
	if status.ReplicationFactor < 2 && !cfg.AllowOutage {
		return Plan{}, errOutage
	}
	var plan Plan
	zones := map[string][]cluster.MemberStatus{}
	apart := true // no two members of a replica set share a zone
	for _, m := range status.Members {
		if !takesPart(m) {
			continue
		}
		apart = apart && m.Zone != ""
		zones[m.Zone] = append(zones[m.Zone], m)
	}
	if len(zones) == 0 {
		return Plan{}, errNone
	}
	size := cfg.Parallel
	if !apart || len(zones) < status.ReplicationFactor {
		size = 1
	}
	for _, zone := range slices.Sorted(maps.Keys(zones)) {
		members := zones[zone]
		slices.SortFunc(members, func(a, b cluster.MemberStatus) int {
			return cmp.Or(cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.ID, b.ID))
		})
		var left []Member
		for _, m := range members {
			if _, meant := journal.Epochs[m.ID]; !meant {
				continue // it came while the rollout ran
			}
			if journal.restarted(status, m.ID) {
				plan.Done = append(plan.Done, m.ID)
				continue
			}
			member, err := toMember(m)
			if err != nil {
				return Plan{}, err
			}
			left = append(left, member)
		}
		if len(left) == 0 {
			continue
		}
		atOnce := size
		if atOnce <= 0 {
			atOnce = len(left)
		}
		for chunk := range slices.Chunk(left, atOnce) {
			plan.Steps = append(plan.Steps, Step{Zone: zone, Members: chunk})
		}
	}
	return plan, nil
}

func toMember(m cluster.MemberStatus) (Member, error) {
	host, _, err := net.SplitHostPort(m.Address)
	if err != nil {
		return Member{}, fmt.Errorf("the address of %q: %w", m.ID, err)
	}
	for _, text := range []string{m.ID, m.Zone, host} {
		if !shellSafe.MatchString(text) {
			return Member{}, fmt.Errorf("%q of %q: %w", text, m.ID, errName)
		}
	}
	return Member{ID: m.ID, Zone: m.Zone, Host: host}, nil
}

// takesPart reports whether m is an ingester of the cluster: not one that has left.
func takesPart(m cluster.MemberStatus) bool { return m.State != cluster.Left.String() }

// faults says what is wrong with a cluster; nothing, if it is whole.
func faults(status cluster.Status) []string {
	var found []string
	for _, m := range status.Members {
		switch {
		case !takesPart(m):
		case !m.Alive:
			found = append(found, fmt.Sprintf("%s (%s) is not alive", m.ID, m.State))
		case m.State != cluster.Active.String():
			found = append(found, m.ID+" is "+m.State)
		case m.Displaced:
			found = append(found, m.ID+" has no place yet")
		}
	}
	if n := status.Sets.AtRisk; n > 0 {
		found = append(found, fmt.Sprintf("%d of %d replica sets lack a replica", n, status.Sets.Total))
	}
	if n := status.Sets.LostQuorum; n > 0 {
		found = append(found, fmt.Sprintf("%d of %d replica sets cannot take writes", n, status.Sets.Total))
	}
	return found
}

// list shows reasons, each on a line of its own. A large cluster has many.
func list(reasons []string) string {
	const most = 10
	var w strings.Builder
	for i, reason := range reasons {
		if i == most {
			_, _ = fmt.Fprintf(&w, "\n  and %d more", len(reasons)-most)
			break
		}
		w.WriteString("\n  " + reason)
	}
	return w.String()
}
