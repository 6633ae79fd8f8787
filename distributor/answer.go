package distributor

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hundredfold/hundredfold/internal/wire"
)

// maxAnswerBytes bounds what an answer says: senders log it verbatim.
const maxAnswerBytes = 1024

// defaultDelay is what a sender is told to wait if the error does not say.
const defaultDelay = 5 * time.Second

// requestError says that a request is not one of the protocol. Unlike the errors
// of the domain it is known by its HTTP status.
type requestError struct {
	status int
	text   string
}

func (e *requestError) Error() string { return e.text }

func refuse(status int, format string, args ...any) error {
	return &requestError{status: status, text: fmt.Sprintf(format, args...)}
}

// statusOf returns the HTTP status that answers err.
func statusOf(err error) int {
	var e *requestError
	if errors.As(err, &e) {
		return e.status
	}
	return wire.HTTPStatus(err)
}

// setErrorHeaders sets the headers that go with err and its status.
func setErrorHeaders(h http.Header, err error, status int) {
	h.Set("X-Content-Type-Options", "nosniff")
	switch status {
	case http.StatusMethodNotAllowed:
		h.Set("Allow", http.MethodPost)
	case http.StatusServiceUnavailable:
		delay, ok := wire.RetryAfter(err)
		if !ok {
			delay = defaultDelay
		}
		h.Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(delay.Seconds())))))
	}
}

// clipLine makes one short line of s.
func clipLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) <= maxAnswerBytes {
		return s
	}
	const ellipsis = "…"
	cut := maxAnswerBytes - len(ellipsis)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + ellipsis
}

// logFailure logs err if it is the fault of this process.
func (d *Distributor) logFailure(protocol string, r *http.Request, err error, status int) {
	if status < http.StatusInternalServerError || r.Context().Err() != nil {
		return
	}
	if status == http.StatusServiceUnavailable {
		d.logger.Debug("A write request was put off; its sender tries again", "protocol", protocol, "err", err)
		return
	}
	d.logger.Error("A write request met an internal error; its sender tries again", "protocol", protocol, "err", err)
}
