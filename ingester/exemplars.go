package ingester

import (
	"context"
	"errors"

	"github.com/prometheus/prometheus/storage"

	"github.com/hundredfold/hundredfold/internal/write"
)

// exemplars stores the exemplars of the batch. They go through the older
// Appender, since senders also send them alone and AppenderV2 takes them only
// along with a sample.
func (p *pusher) exemplars() error {
	if p.limits.MaxExemplars == 0 {
		p.result.Written.Exemplars += len(p.b.Exemplars) // Dropped by policy: accepted.
		for _, i := range p.result.Unknown {
			p.result.Written.Exemplars -= int(p.b.Series[i].Exemplars.Len) // They come again.
		}
		return nil
	}
	if err := p.t.ring.room(p.db, len(p.b.Exemplars), p.limits.MaxExemplars); err != nil {
		return err
	}
	app := p.db.Head().Appender(context.Background())
	for i := range p.b.Series {
		if p.b.Series[i].Exemplars.Len > 0 && !p.unknownSeries[i] {
			if err := p.seriesExemplars(app, i); err != nil {
				return errors.Join(err, app.Rollback())
			}
		}
	}
	return app.Commit()
}

// seriesExemplars appends the exemplars of series i. The error is errNoLateLog.
func (p *pusher) seriesExemplars(app storage.Appender, i int) error {
	span := p.b.Series[i].Exemplars
	err := p.find(i)
	if errors.Is(err, write.ErrNoLabels) {
		p.unknown(i)
		return nil
	}
	for k := span.Off; k < span.End(); k++ {
		x := write.Item{Kind: write.KindExemplar, Index: k}
		if err != nil || p.at().ref() == 0 {
			p.rejectExemplar(i, x, "its series is not stored")
			continue
		}
		_, err := app.AppendExemplar(p.at().ref(), p.ls, p.b.Exemplars[k])
		switch {
		case err == nil, errors.Is(err, storage.ErrDuplicateExemplar):
			p.result.Written.Exemplars++
		case p.lateLogLacks(err):
			return errNoLateLog
		case p.gone(i):
			p.unknown(i)
			return nil
		default:
			p.rejectExemplar(i, x, err.Error())
		}
	}
	return nil
}

// gone reports whether the head has dropped series i, the one at hand, and its
// labels, which would bring it back, were not sent.
func (p *pusher) gone(i int) bool {
	_, err := p.labelsOf(i)
	return errors.Is(err, write.ErrNoLabels)
}

func (p *pusher) rejectExemplar(i int, x write.Item, why string) {
	p.reject(i, x, write.ReasonInvalidExemplar, func() string { return "exemplar: " + why })
}
