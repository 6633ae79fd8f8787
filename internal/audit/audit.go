// Package audit leaves one line in the log for each act of an administrator: who asked, for
// which tenant, for what, and what came of it. It stands before everything that may refuse
// a request, so that an attempt leaves a line as well, and no handler has to remember to
// write one.
//
// It does not see requests with a wrong password, which the HTTP server turns away, counts
// and logs before.
package audit

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// maxText bounds what is logged of a text that a client has sent or caused, in bytes.
const maxText = 500

// maxTexts bounds how many texts are logged of a list.
const maxTexts = 20

// Handler returns next, with a line in log for each request to it that is made to change
// something; what GET and HEAD ask for is not. tenantOf says for which tenant a request
// asks, be it a valid one or not; nil: for none.
func Handler(log *slog.Logger, tenantOf func(*http.Request) string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		// Taken before anybody changes r.
		args := []any{"by", Who(r), "act", clip(r.Method + " " + r.URL.Path)}
		if tenantOf != nil {
			args = append(args, "tenant", clip(tenantOf(r)))
		}
		e, a := &entry{}, &answer{ResponseWriter: w}
		ended := false
		defer func() {
			log.InfoContext(r.Context(), "Administrative request", slices.Concat(args, a.args(ended), e.noted())...)
		}()
		next.ServeHTTP(a, r.WithContext(context.WithValue(r.Context(), entryKey{}, e)))
		ended = true
	})
}

// Note adds to the line of the request that ctx belongs to: pairs of keys and values. Of a
// text, and of texts together, the beginning is logged. Where nobody audits, it does nothing.
func Note(ctx context.Context, args ...any) {
	if e, ok := ctx.Value(entryKey{}).(*entry); ok {
		e.mu.Lock()
		defer e.mu.Unlock()
		for _, arg := range args {
			e.args = append(e.args, clipped(arg))
		}
	}
}

// Who names who sent a request: from where, by password, by certificate; of what is long, the
// beginning. A user is proven only where the HTTP server asks for passwords.
func Who(r *http.Request) string {
	parts := []string{r.RemoteAddr}
	if user, _, ok := r.BasicAuth(); ok {
		parts = append(parts, "user "+user)
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		parts = append(parts, "certificate "+r.TLS.PeerCertificates[0].Subject.String())
	}
	return clip(strings.Join(parts, ", "))
}

type entryKey struct{}

// entry is what is noted of a request.
type entry struct {
	mu   sync.Mutex
	args []any
}

func (e *entry) noted() []any {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.args
}

// answer remembers the status of an answer, and the beginning of one that refuses.
type answer struct {
	http.ResponseWriter
	status int
	reason []byte
}

// args says what came of a request: whether its handler ended, or panicked.
func (a *answer) args(ended bool) []any {
	if ended && a.status == 0 {
		a.status = http.StatusOK // as net/http does when nothing is written
	}
	outcome := "accepted"
	switch {
	case !ended || a.status >= http.StatusInternalServerError:
		outcome = "failed" // it may have been done in part
	case a.status >= http.StatusBadRequest:
		outcome = "refused"
	}
	args := []any{"outcome", outcome, "status", a.status}
	if len(a.reason) > 0 {
		args = append(args, "reason", strings.TrimSpace(string(a.reason)))
	}
	return args
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= http.StatusOK {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	if a.status >= http.StatusBadRequest {
		a.reason = append(a.reason, p[:min(len(p), maxText-len(a.reason))]...)
	}
	return a.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// clipped returns what is logged of a value.
func clipped(value any) any {
	switch v := value.(type) {
	case string:
		return clip(v)
	case []string:
		left, logged := maxText, make([]string, 0, min(len(v), maxTexts))
		for i, text := range v {
			if i == maxTexts || len(text) > left {
				return append(logged, clip(text[:min(len(text), left)])+" ...")
			}
			left -= len(text)
			logged = append(logged, text)
		}
		return logged
	default:
		return value
	}
}

func clip(text string) string {
	if len(text) > maxText {
		return text[:maxText]
	}
	return text
}
