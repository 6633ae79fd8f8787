// Package retention says which samples of a tenant are too old to be kept: whole blocks,
// and within a block those of the series that a rule keeps for less long. Queriers hide
// them by it and the compactor takes them out, so both mean the same.
//
// It is pure: it decides from limits, a time and the range of a block, and touches none.
package retention

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"

	"github.com/hundredfold/hundredfold/internal/mask"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Policy is what the limits of a tenant say on the age of samples. It is immutable.
type Policy struct {
	classes []class
	// longest is the longest time that any series is kept; 0: for ever.
	longest time.Duration
}

// class is the series that one rule decides on: those that it is the first to match.
type class struct {
	matchers []*labels.Matcher
	keep     time.Duration // 0: for ever
	key      string
}

// New returns the policy of l. An error means that nothing may be hidden or deleted.
func New(l tenant.Limits) (Policy, error) {
	var p Policy
	digest := sha256.New()
	add := func(selector string, matchers []*labels.Matcher, keep time.Duration) {
		_, _ = fmt.Fprintf(digest, "%d:%s", len(selector), selector) // it never fails
		key := hex.EncodeToString(digest.Sum(nil)[:8])
		p.classes = append(p.classes, class{matchers: matchers, keep: keep, key: key})
	}
	for _, rule := range l.RetentionRules {
		matchers, err := rule.Matchers()
		if err != nil {
			return Policy{}, fmt.Errorf("retention rule: %w", err)
		}
		add(rule.Selector, matchers, time.Duration(rule.Retention))
	}
	add("", nil, time.Duration(l.Retention))
	for _, c := range p.classes {
		if c.keep == 0 {
			p.longest = 0
			break
		}
		p.longest = max(p.longest, c.keep)
	}
	return p, nil
}

// Longest returns the longest time that any series is kept; 0: for ever.
func (p Policy) Longest() time.Duration { return p.longest }

// Expired reports whether all samples of a block that ends at maxTime (in ms, exclusive)
// are too old, of whatever series.
func (p Policy) Expired(maxTime int64, now time.Time) bool {
	return p.longest > 0 && maxTime <= now.Add(-p.longest).UnixMilli()
}

// Filter returns what hides the samples that are too old in a block that begins at
// minTime (in ms). It is nil if there can be none, or if the whole block expires at once.
func (p Policy) Filter(minTime int64, now time.Time) mask.Filter {
	if !p.varied() {
		return nil
	}
	age := make(mask.Age, len(p.classes))
	hides := false
	for i, c := range p.classes {
		age[i] = mask.Class{Matchers: c.matchers, Before: math.MinInt64}
		if p.early(c) {
			age[i].Before = now.Add(-c.keep).UnixMilli()
			hides = hides || age[i].Before > minTime
		}
	}
	if !hides {
		return nil
	}
	return age
}

// Gone returns the keys of the classes of series of which a block that ends at maxTime
// (in ms, exclusive) need hold no sample any more, though it stays for the sake of others.
// A key names a class for as long as its rule and those before it have the same selectors.
func (p Policy) Gone(maxTime int64, now time.Time) []string {
	var keys []string
	if !p.varied() {
		return nil
	}
	for _, c := range p.classes {
		if p.early(c) && maxTime <= now.Add(-c.keep).UnixMilli() {
			keys = append(keys, c.key)
		}
	}
	return keys
}

// Key is the same for policies that hide the same at the same time.
func (p Policy) Key() string {
	var b strings.Builder
	for _, c := range p.classes {
		_, _ = fmt.Fprintf(&b, "%s %s\n", c.key, c.keep) // it never fails
	}
	return b.String()
}

// varied reports whether some series are kept for less long than others.
func (p Policy) varied() bool { return len(p.classes) > 1 }

// early reports whether a class expires before the block does.
func (p Policy) early(c class) bool { return c.keep > 0 && c.keep != p.longest }
