package server

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"github.com/hundredfold/hundredfold/internal/audit"
)

// admit returns the library's handler, which asks for passwords, with a count and a line in
// the log of what it turns away: that comes to none of our handlers.
func (s *Server) admit(library http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w}
		library.ServeHTTP(rec, r)
		if rec.admitted {
			return
		}
		switch _, _, sent := r.BasicAuth(); {
		case rec.status == http.StatusTooManyRequests:
			s.refuse("rate", slog.LevelDebug, "by", audit.Who(r))
		case rec.status != http.StatusUnauthorized:
			s.refuse("configuration", slog.LevelDebug, "by", audit.Who(r)) // The library says why.
		case sent:
			s.refuse("wrong_password", slog.LevelWarn, "by", audit.Who(r), "act", actOf(r))
		default: // as each browser does first
			s.refuse("no_password", slog.LevelDebug, "by", audit.Who(r), "act", actOf(r))
		}
	})
}

// actOf says what a request was to do.
func actOf(r *http.Request) string {
	act := r.Method + " " + r.URL.Path
	return act[:min(len(act), 200)]
}

// refuse counts what was turned away and logs some of it.
func (s *Server) refuse(reason string, level slog.Level, args ...any) {
	s.metrics.refused.WithLabelValues(reason).Inc()
	if level < slog.LevelWarn {
		s.logger.Log(context.Background(), level, "A request was refused.", append(args, "reason", reason)...)
		return
	}
	if unsaid, ok := s.refused.Allow(); ok {
		s.logger.Log(context.Background(), level, "A request was refused: who sent it could not prove who they are.", append(args, "reason", reason, "not_logged", unsaid)...)
	}
}

// handshakeFailed counts and logs a connection that came to nothing for what the two sides
// said to each other. cause is the words of net/http.
func (s *Server) handshakeFailed(by, cause string) {
	if aboutTheirCertificate(cause) {
		s.refuse("handshake", slog.LevelWarn, "by", by, "cause", cause)
		return
	}
	s.metrics.refused.WithLabelValues("protocol").Inc()
	if unsaid, ok := s.misspoken.Allow(); ok {
		s.logger.Warn("A connection was refused: the two sides could not agree on TLS. The cause says what the other side sent, or what it has against our certificate.",
			"by", by, "cause", cause, "reason", "protocol", "not_logged", unsaid)
	}
}

// connectionTroubles are what the cause begins with when a connection ended, or brought
// nothing, in its handshake. Who connects and leaves without a word, as probes of ports do,
// tries nothing.
var connectionTroubles = []string{"EOF", "unexpected EOF", "read ", "write ", "set ", "context ", "use of closed ", "io: "} //nolint:gochecknoglobals // a table

// connectionTrouble tells whether a handshake ended for the network's sake.
func connectionTrouble(cause string) bool {
	return slices.ContainsFunc(connectionTroubles, func(begin string) bool { return strings.HasPrefix(cause, begin) })
}

// aboutTheirCertificate tells whether the other side has no certificate, or none that is
// accepted here. What the other side says ("remote error") is of ours.
func aboutTheirCertificate(cause string) bool {
	return strings.HasPrefix(cause, "tls: failed to verify certificate") ||
		!strings.HasPrefix(cause, "remote error") && strings.Contains(cause, "client") && strings.Contains(cause, "cert")
}

// errorLog is a slog.Handler that takes what net/http logs of single connections.
type errorLog struct{ s *Server }

// handshakeError is how net/http begins to say that a connection came to nothing.
const handshakeError = "http: TLS handshake error from "

// Enabled implements slog.Handler.
func (e errorLog) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (e errorLog) Handle(ctx context.Context, record slog.Record) error {
	if failure, ok := strings.CutPrefix(record.Message, handshakeError); ok {
		if by, cause, _ := strings.Cut(failure, ": "); !connectionTrouble(cause) {
			e.s.handshakeFailed(by, cause)
			return nil
		}
	}
	if h := e.s.logger.Handler(); h.Enabled(ctx, record.Level) {
		return h.Handle(ctx, record)
	}
	return nil
}

// WithAttrs implements slog.Handler. net/http has no attributes.
func (e errorLog) WithAttrs([]slog.Attr) slog.Handler { return e }

// WithGroup implements slog.Handler.
func (e errorLog) WithGroup(string) slog.Handler { return e }
