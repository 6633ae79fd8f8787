package ingester

import (
	"errors"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// due reports whether the labels of series i, which was found by its identity, are to be
// compared with those of the entry. Where most series come without labels, whoever sends
// them along says when it is time.
func (p *pusher) due(i int) bool {
	if p.some != nil {
		return p.some.Labelled(i)
	}
	return p.t.app.turn.Next()
}

// holds reports whether p.entry is of series i by its labels, as it is by its identity. If
// it is not, the table forgets it, so that the series is found by its labels.
func (p *pusher) holds(i int) bool {
	// The series was taken under the limits of its time.
	ls, id, err := p.b.Resolve(i, tenant.Limits{}, &p.t.app.scratch, p.t.app.hasher)
	if errors.Is(err, write.ErrNoLabels) {
		return true
	}
	known, gone := p.headLabels(p.entry.ref())
	if err == nil && id == p.entry.id && (gone != nil || labels.Equal(ls, known)) {
		p.t.ing.checks.Passed()
		return true
	}
	sent, found := ls.String(), known.String()
	if err != nil {
		sent = err.Error()
	}
	if gone != nil {
		found = gone.Error()
	}
	p.t.ing.checks.Failed(p.t.id, sent, found)
	p.t.app.table.dropRefs([]storage.SeriesRef{p.entry.ref()})
	return false
}
