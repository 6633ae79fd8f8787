package blockupload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

const (
	// maxMeta bounds the meta.json of a start, in bytes.
	maxMeta = 16 << 20
	// maxFile bounds one file, in bytes: what the formats of Prometheus can address.
	maxFile = 64 << 30
	// maxTransfer is how long one file may take to arrive.
	maxTransfer = time.Hour
)

var (
	errOff        = errors.New("the admin API is off, so no blocks are taken: set admin_api: {enabled: true} in the configuration of all processes and restart them")
	errNotStarted = errors.New("no upload of this block was started, or it was given up and cleaned away: begin with start")
	errIsThere    = errors.New("the block is there already, or one that was made of it")
	errRefused    = errors.New("the block cannot be taken now")
	errValidating = errors.New("the block is being validated; ask check until it is complete or failed")
	errNoLength   = errors.New("the request has no Content-Length")
)

// ServeHTTP implements http.Handler. The tenant is in the request's context.
func (u *Uploads) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !u.cfg.Enabled {
		http.Error(w, errOff.Error(), http.StatusForbidden)
		return
	}
	u.mux.ServeHTTP(w, r)
}

// jobOf returns what a request is about; false if it was answered.
func jobOf(w http.ResponseWriter, r *http.Request) (job, bool) {
	id, err := tenant.FromContext(r.Context())
	if err != nil {
		http.Error(w, err.Error(), wire.HTTPStatus(err))
		return job{}, false
	}
	block, err := ulid.ParseStrict(r.PathValue("block"))
	if err != nil || block.String() != r.PathValue("block") {
		http.Error(w, fmt.Sprintf("%q is no ULID", r.PathValue("block")), http.StatusBadRequest)
		return job{}, false
	}
	return job{id, block}, true
}

// open tells whether an upload may go on; otherwise the request was answered. What the
// tenant has else is looked at when an upload begins, and again before the block becomes
// visible.
func (u *Uploads) open(w http.ResponseWriter, r *http.Request, j job, mustBeStarted bool) bool {
	whole, err := u.store.IsWhole(r.Context(), j.tenant, j.block)
	var s state
	if err == nil && !whole {
		s, err = u.stateOf(r.Context(), j)
	}
	if err == nil && (whole || !mustBeStarted) {
		err = u.missing(r.Context(), j, nil)
	}
	switch {
	case errors.Is(err, errIsThere), errors.Is(err, errRefused):
		http.Error(w, err.Error(), http.StatusConflict)
	case err != nil:
		u.fail(w, j, err)
	case s.State == stateValidating:
		http.Error(w, errValidating.Error(), http.StatusConflict)
	case s.State == "" && mustBeStarted:
		http.Error(w, errNotStarted.Error(), http.StatusNotFound)
	default:
		return true
	}
	return false
}

// fail answers for a fault of ours, or of the bucket.
func (u *Uploads) fail(w http.ResponseWriter, j job, err error) {
	u.logger.Warn("A step of an upload failed; the client may repeat it", "tenant", j.tenant, "block", j.block, "err", err)
	w.Header().Set("Retry-After", "10")
	http.Error(w, err.Error(), http.StatusServiceUnavailable)
}

func (u *Uploads) start(w http.ResponseWriter, r *http.Request) {
	j, ok := jobOf(w, r)
	if !ok || !u.open(w, r, j, false) {
		return
	}
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMeta))
	if err == nil {
		text, err = sanitized(j.block, text)
	}
	if err != nil {
		http.Error(w, "meta.json: "+err.Error(), http.StatusBadRequest)
		return
	}
	err = u.store.WriteSideFile(r.Context(), j.tenant, j.block, planFile, text)
	if err == nil {
		err = u.note(r.Context(), j, state{State: stateUploading})
	}
	if err != nil {
		u.fail(w, j, err)
	}
}

func (u *Uploads) file(w http.ResponseWriter, r *http.Request) {
	j, ok := jobOf(w, r)
	if !ok {
		return
	}
	name := r.URL.Query().Get("path")
	switch {
	case r.ContentLength < 0:
		http.Error(w, errNoLength.Error(), http.StatusLengthRequired)
		return
	case r.ContentLength > maxFile:
		http.Error(w, fmt.Sprintf("%s has %d bytes, more than the %d that a file of a block can have", name, r.ContentLength, int64(maxFile)), http.StatusRequestEntityTooLarge)
		return
	}
	if !u.open(w, r, j, true) {
		return
	}
	// A segment of 512 MiB takes longer than other requests may. Without the extension, which
	// a decorator of w may not offer, it has to arrive in the time that all have.
	deadline := http.NewResponseController(w)
	_ = errors.Join(deadline.SetReadDeadline(time.Now().Add(maxTransfer)), deadline.SetWriteDeadline(time.Now().Add(maxTransfer)))
	err := u.store.Stage(r.Context(), j.tenant, j.block, name, r.ContentLength, r.Body)
	switch {
	case errors.Is(err, blockstore.ErrBlockFile), errors.Is(err, io.ErrUnexpectedEOF):
		http.Error(w, err.Error(), http.StatusBadRequest)
	case err != nil:
		u.fail(w, j, err)
	}
}

func (u *Uploads) finish(w http.ResponseWriter, r *http.Request) {
	j, ok := jobOf(w, r)
	if !ok || !u.open(w, r, j, true) {
		return
	}
	if err := u.note(r.Context(), j, state{State: stateValidating}); err != nil {
		u.fail(w, j, err)
		return
	}
	select {
	case u.queue <- j:
	default:
		err := u.note(r.Context(), j, state{State: stateUploading})
		u.fail(w, j, errors.Join(fmt.Errorf("%d blocks wait for their validation: finish this one later", waiting), err))
	}
}

// check answers with the state, as Mimir does. A block that is there is complete only if
// it is to stay.
func (u *Uploads) check(w http.ResponseWriter, r *http.Request) {
	j, ok := jobOf(w, r)
	if !ok {
		return
	}
	answer, err := u.answer(r.Context(), j)
	switch {
	case errors.Is(err, errNotStarted):
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	case err != nil:
		u.fail(w, j, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		u.logger.Debug("An answer was not written", "err", err)
	}
}

// checked is the answer of check.
type checked struct {
	Result string `json:"result"`
	Error  string `json:"error,omitempty"`
}

func (u *Uploads) answer(ctx context.Context, j job) (checked, error) {
	whole, err := u.store.IsWhole(ctx, j.tenant, j.block)
	if err != nil {
		return checked{}, err
	}
	if !whole {
		if s, err := u.stateOf(ctx, j); err != nil || s.State != "" {
			return checked{s.State, s.Error}, err
		}
	}
	switch err := u.missing(ctx, j, nil); {
	case errors.Is(err, errIsThere):
		return checked{Result: stateComplete}, nil
	case errors.Is(err, errRefused):
		return checked{stateFailed, err.Error()}, nil
	case err != nil:
		return checked{}, err
	}
	return checked{}, errNotStarted
}
