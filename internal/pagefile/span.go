package pagefile

import (
	"cmp"
	"slices"
)

// span is pages [first, end) of a file.
type span struct{ first, end int64 }

func (s span) pages() int64 { return s.end - s.first }

// appendSpan appends s, which does not begin before the last of spans, and joins the two
// if they touch.
func appendSpan(spans []span, s span) []span {
	if n := len(spans); n > 0 && spans[n-1].end >= s.first {
		spans[n-1].end = max(spans[n-1].end, s.end)
		return spans
	}
	return append(spans, s)
}

// union sorts spans and joins those that touch. It changes spans.
func union(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	joined := spans[:0]
	for _, s := range spans {
		joined = appendSpan(joined, s)
	}
	return joined
}

// subtract returns what is in spans and not in taken. Both are sorted, and disjoint in
// themselves.
func subtract(spans, taken []span) []span {
	var rest []span
	for _, s := range spans {
		for len(taken) > 0 && taken[0].end <= s.first {
			taken = taken[1:]
		}
		for _, t := range taken {
			if t.first >= s.end {
				break
			}
			if s.first < t.first {
				rest = append(rest, span{first: s.first, end: t.first})
			}
			s.first = t.end
		}
		if s.first < s.end {
			rest = append(rest, s)
		}
	}
	return rest
}

// coalesce makes requests of spans: neighbours that are at most maxGap pages apart become
// one, unless a page of taken lies between them, and none is longer than maxPages. spans
// and taken are sorted and disjoint.
func coalesce(spans, taken []span, maxGap, maxPages int64) []span {
	var requests []span
	for _, s := range spans {
		if n := len(requests); n > 0 {
			last := &requests[n-1]
			gap := span{first: last.end, end: s.first}
			if gap.pages() <= maxGap && s.end-last.first <= maxPages && !overlap(taken, gap) {
				last.end = s.end
				continue
			}
		}
		requests = append(requests, split(s, maxPages)...)
	}
	return requests
}

// split cuts s into parts of about the same length, of at most maxPages.
func split(s span, maxPages int64) []span {
	n := (s.pages() + maxPages - 1) / maxPages
	parts := make([]span, 0, n)
	for i := range n {
		parts = append(parts, span{first: s.first + s.pages()*i/n, end: s.first + s.pages()*(i+1)/n})
	}
	return parts
}

// overlap reports whether s shares a page with any of spans.
func overlap(spans []span, s span) bool {
	for _, other := range spans {
		if other.first < s.end && s.first < other.end {
			return true
		}
	}
	return false
}
