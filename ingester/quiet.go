package ingester

import (
	"context"
	"log/slog"
)

// quiet passes on warnings and errors only: a TSDB tells a dozen things about
// each opening and cut, and there may be thousands of TSDBs. It tells heard the
// messages of errors.
type quiet struct {
	slog.Handler
	heard func(message string)
}

// Enabled implements slog.Handler.
func (q quiet) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

// Handle implements slog.Handler.
func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		q.heard(r.Message)
	}
	if !q.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return q.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quiet{q.Handler.WithAttrs(attrs), q.heard}
}

// WithGroup implements slog.Handler.
func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.Handler.WithGroup(name), q.heard} }
