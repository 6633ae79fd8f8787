// Package coverage decides whether the answers of some ingesters together hold every
// sample that was acknowledged, and which ingesters to ask so that they do.
//
// A sample counts as written once a quorum of the replica set that its series was
// placed on has accepted it. So whoever hears from so many of a set's members that
// fewer than a quorum are missing hears from one that has the sample. This must hold
// of every set of every placement that samples were written under, and of the
// members as they were: one that came back without its disk is missing.
//
// The package is pure: it knows neither clock nor network, and takes chance as an
// argument.
package coverage

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/hashring"
)

// Replica is an ingester with the data that it had at some time.
type Replica struct {
	ID string
	// Generation is that of its data directory.
	Generation uint64
}

// Set is a replica set: whom some series were written to.
type Set struct {
	Members []Member
	// Spare is how many members may be missing while the rest surely has every
	// sample: a quorum less one.
	Spare int
	// Doubt is how many may be missing while the rest has every sample unless a
	// replica failed to store what another acknowledged: the replication factor less
	// a quorum. It exceeds Spare with two replicas, where one makes a quorum.
	Doubt int
}

// Member is a Replica in its zone.
type Member struct {
	Replica
	Zone string
}

// SetsOf returns the distinct replica sets of a tenant, by its hash and its shard
// size, under a placement.
func SetsOf(p *cluster.Placement, tenant uint64, shard int) ([]Set, error) {
	members := make([]hashring.Member, len(p.Members()))
	generations := make(map[string]uint64, len(members))
	for i, m := range p.Members() {
		members[i] = m.Member
		generations[m.ID] = m.Generation
	}
	owners, err := hashring.ReplicaSets(hashring.Shard(members, tenant, shard), p.RF())
	if err != nil {
		return nil, fmt.Errorf("replica sets of placement %016x: %w", p.Hash(), err)
	}
	quorum := cluster.Quorum(p.RF())
	sets := make([]Set, len(owners))
	for i, set := range owners {
		sets[i] = Set{Spare: quorum - 1, Doubt: p.RF() - quorum, Members: make([]Member, len(set))}
		for j, m := range set {
			sets[i].Members[j] = Member{Replica: Replica{ID: m.ID, Generation: generations[m.ID]}, Zone: m.Zone}
		}
	}
	return sets, nil
}

// Plan is all replica sets that a tenant's samples may be on. It is immutable.
type Plan struct {
	replicas []Member // each once
	sets     []set
	setsOf   [][]int // by replica
}

type set struct {
	members      []int // indexes into replicas
	spare, doubt int
}

// NewPlan returns the plan of the sets of one placement or more.
func NewPlan(placements ...[]Set) *Plan {
	p := &Plan{}
	index := map[Replica]int{}
	seen := map[string]bool{}
	for _, sets := range placements {
		for _, s := range sets {
			next := set{spare: s.Spare, doubt: s.Doubt}
			for _, m := range s.Members {
				at, ok := index[m.Replica]
				if !ok {
					at = len(p.replicas)
					index[m.Replica] = at
					p.replicas = append(p.replicas, m)
					p.setsOf = append(p.setsOf, nil)
				}
				next.members = append(next.members, at)
			}
			slices.Sort(next.members)
			if key := next.key(); !seen[key] {
				seen[key] = true
				for _, at := range next.members {
					p.setsOf[at] = append(p.setsOf[at], len(p.sets))
				}
				p.sets = append(p.sets, next)
			}
		}
	}
	return p
}

func (s set) key() string {
	var b strings.Builder
	for _, n := range append([]int{s.spare, s.doubt}, s.members...) {
		b.WriteString(strconv.Itoa(n))
		b.WriteByte(',')
	}
	return b.String()
}

// Replicas returns all members of all sets. The slice belongs to the Plan.
func (p *Plan) Replicas() []Member { return p.replicas }

// Outcome says how much of what was acknowledged some answers hold.
type Outcome int

// The outcomes, from best to worst.
const (
	// Complete answers hold every sample.
	Complete Outcome = iota
	// Doubtful ones hold every sample unless one of two replicas alone stored it.
	Doubtful
	// Incomplete ones may lack samples.
	Incomplete
)

// Decide says what the answers of those replicas that counts names amount to, and
// which others are missing from the sets that are to blame unless it is Complete.
func (p *Plan) Decide(counts func(Replica) bool) (Outcome, []Replica) {
	answered := make([]bool, len(p.replicas))
	for i, m := range p.replicas {
		answered[i] = counts(m.Replica)
	}
	worst := Complete
	verdicts := make([]Outcome, len(p.sets))
	for i, s := range p.sets {
		missing := 0
		for _, at := range s.members {
			if !answered[at] {
				missing++
			}
		}
		switch {
		case missing <= s.spare:
			verdicts[i] = Complete
		case missing <= s.doubt:
			verdicts[i] = Doubtful
		default:
			verdicts[i] = Incomplete
		}
		worst = max(worst, verdicts[i])
	}
	if worst == Complete {
		return worst, nil
	}
	blamed := make([]bool, len(p.replicas))
	var missing []Replica
	for i, s := range p.sets {
		if verdicts[i] != worst {
			continue
		}
		for _, at := range s.members {
			if !answered[at] && !blamed[at] {
				blamed[at] = true
				missing = append(missing, p.replicas[at].Replica)
			}
		}
	}
	slices.SortFunc(missing, func(a, b Replica) int { return strings.Compare(a.ID, b.ID) })
	return worst, missing
}

// Standing is what is expected of a replica.
type Standing int

// The standings.
const (
	// Absent ones cannot be asked.
	Absent Standing = iota
	// Available ones can be asked and have not been.
	Available
	// Counted ones have answered, will answer soon, or need not.
	Counted
)

// Choose returns which of the available replicas to ask so that, with the counted
// ones, the answers are complete. It spares as many as it can: a whole zone if that is
// possible, any of those for which it is, so that load spreads over all zones and
// one slow zone is felt by few; then single replicas. enough is false if all available
// ones together are too few; then all that could help are returned.
func (p *Plan) Choose(standing func(Replica) Standing, rng *rand.Rand) (ask []Replica, enough bool) {
	c := choice{plan: p, slack: make([]int, len(p.sets)), asked: make([]bool, len(p.replicas))}
	for i, s := range p.sets {
		c.slack[i] = s.spare
	}
	enough = true
	for i, m := range p.replicas {
		switch standing(m.Replica) {
		case Available:
			c.asked[i] = true
		case Absent:
			for _, s := range p.setsOf[i] {
				c.slack[s]--
				enough = enough && c.slack[s] >= 0
			}
		case Counted:
		}
	}
	c.spareZone(rng)
	for _, i := range rng.Perm(len(p.replicas)) {
		if c.asked[i] {
			c.spare(i)
		}
	}
	for i, asked := range c.asked {
		if asked {
			ask = append(ask, p.replicas[i].Replica)
		}
	}
	return ask, enough
}

// choice is a choice in the making.
type choice struct {
	plan  *Plan
	slack []int  // by set: how many more of its members may be spared
	asked []bool // by replica
}

// spare leaves out replica i if all of its sets can do without.
func (c *choice) spare(i int) bool {
	for _, s := range c.plan.setsOf[i] {
		if c.slack[s] <= 0 {
			return false
		}
	}
	c.asked[i] = false
	for _, s := range c.plan.setsOf[i] {
		c.slack[s]--
	}
	return true
}

func (c *choice) spareZone(rng *rand.Rand) {
	byZone := map[string][]int{}
	var zones []string
	for i, asked := range c.asked {
		if !asked {
			continue
		}
		zone := c.plan.replicas[i].Zone
		if byZone[zone] == nil {
			zones = append(zones, zone)
		}
		byZone[zone] = append(byZone[zone], i)
	}
	rng.Shuffle(len(zones), func(i, j int) { zones[i], zones[j] = zones[j], zones[i] })
	for _, zone := range zones {
		if c.spareAll(byZone[zone]) {
			return
		}
	}
}

// spareAll leaves out all of the replicas or none.
func (c *choice) spareAll(replicas []int) bool {
	for n, i := range replicas {
		if c.spare(i) {
			continue
		}
		for _, i := range replicas[:n] {
			c.asked[i] = true
			for _, s := range c.plan.setsOf[i] {
				c.slack[s]++
			}
		}
		return false
	}
	return true
}

// Copies returns how many members of a set have answered, on average over the sets.
func (p *Plan) Copies(answered func(Replica) bool) float64 {
	total := 0
	for i, m := range p.replicas {
		if answered(m.Replica) {
			total += len(p.setsOf[i])
		}
	}
	if len(p.sets) == 0 {
		return 0
	}
	return float64(total) / float64(len(p.sets))
}
