// Package deletion says which samples the deletions of a tenant hide, in a block and among
// the recent samples. Queriers hide them by it and the compactor takes them out.
//
// What hides is a deletion that is not complete. The record of it, and which blocks it
// concerns, is blockstore's business; how samples are left out is mask's.
package deletion

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/tsdb/tombstones"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/mask"
)

// errNothing says that a selector would select everything.
var errNothing = errors.New("it matches series without any of its labels; name a label that has to be there, or delete the tenant")

// ParseSelector returns the matchers of a selector that a deletion may have.
func ParseSelector(selector string) ([]*labels.Matcher, error) {
	matchers, err := parser.NewParser(parser.Options{}).ParseMetricSelector(selector)
	if err != nil {
		return nil, fmt.Errorf("selector %q: %w", selector, err)
	}
	for _, m := range matchers {
		if !m.Matches("") {
			return matchers, nil
		}
	}
	return nil, fmt.Errorf("selector %q: %w", selector, errNothing)
}

// FormatSelector returns a selector with these matchers.
func FormatSelector(matchers []*labels.Matcher) string {
	parts := make([]string, len(matchers))
	for i, m := range matchers {
		parts[i] = m.String()
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// Set are the active deletions of a tenant. It is immutable; the zero Set hides nothing.
type Set struct {
	all []compiled
}

type compiled struct {
	blockstore.ActiveDeletion
	matchers [][]*labels.Matcher
}

// NewSet returns the Set of active deletions. An error means that one of them cannot be
// understood, so that nobody can tell what it hides.
func NewSet(active []blockstore.ActiveDeletion) (Set, error) {
	var s Set
	for _, d := range active {
		c := compiled{ActiveDeletion: d}
		for _, selector := range d.Selectors {
			matchers, err := parser.NewParser(parser.Options{}).ParseMetricSelector(selector)
			if err != nil {
				return Set{}, fmt.Errorf("deletion %s: selector %q: %w", d.ID, selector, err)
			}
			c.matchers = append(c.matchers, matchers)
		}
		if d.WholeTenant {
			c.matchers = append(c.matchers, nil) // which matches everything
		}
		s.all = append(s.all, c)
	}
	return s, nil
}

// Empty reports whether nothing is being deleted.
func (s Set) Empty() bool { return len(s.all) == 0 }

// Of returns what hides samples of a block, and the deletions that do.
func (s Set) Of(b *blockstore.Block) (filters []mask.Filter, ids []ulid.ULID) {
	for i := range s.all {
		d := &s.all[i]
		if !d.Masks(b) {
			continue
		}
		ids = append(ids, d.ID)
		filters = d.appendFilters(filters, d.maxIn(b), b)
	}
	return filters, ids
}

// Recent returns what hides samples in the answers of ingesters: as long as one of them
// may not have carried out a deletion.
func (s Set) Recent() []mask.Filter {
	var filters []mask.Filter
	for i := range s.all {
		if d := &s.all[i]; d.Settlement == nil {
			filters = d.appendFilters(filters, d.recentMax(), &blockstore.Block{})
		}
	}
	return filters
}

// recentMax returns the newest time at which samples existed when d was accepted.
func (c *compiled) recentMax() int64 { return min(c.MaxMs, c.Accepted.UnixMilli()) }

func (c *compiled) appendFilters(filters []mask.Filter, maxMs int64, b *blockstore.Block) []mask.Filter {
	for _, matchers := range c.matchers {
		filters = append(filters, ForBlock(mask.Selection{Matchers: matchers, Mint: c.MinMs, Maxt: maxMs}, b))
	}
	return filters
}

// maxIn returns up to which time, in ms and inclusive, d hides samples of a block that it
// masks: of one that may have been there, only what existed when d was accepted.
func (c *compiled) maxIn(b *blockstore.Block) int64 {
	if c.WholeTenant && !c.Includes(b) {
		return c.recentMax()
	}
	return c.MaxMs
}

// Fingerprint writes which deletions hide what between mint and maxt, in ms and inclusive,
// in the blocks that a query reads. That of an active deletion changes: before it is
// settled it hides samples of blocks that turn out to be younger.
func (s Set) Fingerprint(write func([]byte), mint, maxt int64, blocks []blockstore.Block) {
	for i := range s.all {
		d := &s.all[i]
		for k := range blocks {
			b := &blocks[k]
			if !d.Masks(b) {
				continue
			}
			hiddenMax := d.maxIn(b)
			if hiddenMax < mint || d.MinMs > maxt {
				continue
			}
			write(d.ID[:])
			write(b.Meta.ULID[:])
			write(binary.BigEndian.AppendUint64(nil, uint64(hiddenMax))) //nolint:gosec // any bits will do
		}
	}
}

// ForBlock returns a filter for the series of a block as they are read: with the external
// labels of the block. nil stays nil.
func ForBlock(filter mask.Filter, b *blockstore.Block) mask.Filter {
	if filter == nil || len(b.Extension.ExternalLabels) == 0 {
		return filter
	}
	return withExternal{filter, b.Extension.ExternalLabels}
}

// withExternal is a filter for series that are given more labels when they are read.
type withExternal struct {
	filter mask.Filter
	labels map[string]string
}

// Hidden implements mask.Filter.
func (w withExternal) Hidden(series labels.Labels) tombstones.Intervals {
	builder := labels.NewBuilder(series)
	for name, value := range w.labels {
		if series.Get(name) == "" {
			builder.Set(name, value)
		}
	}
	return w.filter.Hidden(builder.Labels())
}

// MinTime and MaxTime are the range of all times, in ms.
const (
	MinTime = math.MinInt64
	MaxTime = math.MaxInt64
)
