package ingester

import (
	"context"
	"log/slog"
)

// quiet passes on warnings and errors only: a TSDB tells a dozen things about
// each opening and cut, and there may be thousands of TSDBs. It tells heard the
// messages of errors, and replayed which segment of the write-ahead log has been
// replayed, and which is the last.
type quiet struct {
	slog.Handler
	heard    func(message string)
	replayed func(segment, last int64)
}

// Enabled implements slog.Handler.
func (q quiet) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// Handle implements slog.Handler.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	switch {
	case r.Level >= slog.LevelError:
		q.heard(r.Message)
	case r.Message == segmentReplayed:
		q.replayed(integer(r, "segment"), integer(r, "maxSegment"))
	}
	if r.Level < slog.LevelWarn || !q.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return q.Handler.Handle(ctx, r)
}

// segmentReplayed is what the TSDB logs after each segment of its write-ahead log.
// Nothing else tells how far it is.
const segmentReplayed = "WAL segment loaded"

// integer returns what r has under key, or 0.
func integer(r slog.Record, key string) (n int64) {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key != key {
			return true
		}
		if a.Value.Kind() == slog.KindInt64 {
			n = a.Value.Int64()
		}
		return false
	})
	return n
}

// WithAttrs implements slog.Handler.
func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quiet{q.Handler.WithAttrs(attrs), q.heard, q.replayed}
}

// WithGroup implements slog.Handler.
func (q quiet) WithGroup(name string) slog.Handler {
	return quiet{q.Handler.WithGroup(name), q.heard, q.replayed}
}
