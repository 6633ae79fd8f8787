package querier

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/audit"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/deletion"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

const (
	adminPrefix      = apiPrefix + "/admin"
	routeDelete      = adminPrefix + "/tsdb/delete_series"
	routeClean       = adminPrefix + "/tsdb/clean_tombstones"
	routeDeletions   = adminPrefix + "/tsdb/deletions"
	routeDropTenant  = adminPrefix + "/delete_tenant"
	deletionIDHeader = "X-Deletion-Id"
	maxSelectors     = 100
)

var (
	errNoSelector = errors.New(`no match[] parameter: name the series to delete, as in match[]=up{job="node"}`)
	errAdminOff   = errors.New("the admin API is off, so nothing can be deleted: set admin_api: {enabled: true} in the configuration of all processes and restart them")
)

// Admin serves the routes that delete what a tenant has. The tenant is in the request's
// context. Whoever may call it may delete all of the tenant's data.
type Admin struct {
	enabled bool
	deleter *Deleter
	mux     *http.ServeMux
}

// NewAdmin returns an Admin; one that is not enabled answers 403 to everything.
func NewAdmin(enabled bool, deleter *Deleter) *Admin {
	a := &Admin{enabled: enabled, deleter: deleter, mux: http.NewServeMux()}
	for _, method := range []string{http.MethodPost, http.MethodPut} {
		a.mux.HandleFunc(method+" "+routeDelete, a.deleteSeries)
		a.mux.HandleFunc(method+" "+routeClean, a.clean)
	}
	a.mux.HandleFunc("POST "+routeDropTenant, a.dropTenant)
	a.mux.HandleFunc("GET "+routeDeletions, a.list)
	return a
}

// ServeHTTP implements http.Handler.
func (a *Admin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !a.enabled {
		writeError(w, http.StatusForbidden, "forbidden", errAdminOff)
		return
	}
	if _, err := tenant.FromContext(r.Context()); err != nil {
		writeError(w, wire.HTTPStatus(err), "unauthorized", err)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
	if err := r.ParseForm(); err != nil {
		writeError(w, http.StatusBadRequest, "bad_data", fmt.Errorf("read the parameters: %w", err))
		return
	}
	a.mux.ServeHTTP(w, r)
}

// deleteSeries is Prometheus's delete_series.
func (a *Admin) deleteSeries(w http.ResponseWriter, r *http.Request) {
	want, err := parseDeletion(r)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	a.accept(w, r, want)
}

func parseDeletion(r *http.Request) (blockstore.Deletion, error) {
	var want blockstore.Deletion
	selectors := r.Form["match[]"]
	switch {
	case len(selectors) == 0:
		return want, errNoSelector
	case len(selectors) > maxSelectors:
		return want, fmt.Errorf("%d match[] parameters are more than %d", len(selectors), maxSelectors)
	}
	for _, selector := range selectors {
		matchers, err := deletion.ParseSelector(selector)
		if err != nil {
			return want, err
		}
		want.Selectors = append(want.Selectors, deletion.FormatSelector(matchers))
	}
	var err error
	if want.MinMs, err = parseTimeParam(r, "start", deletion.MinTime); err != nil {
		return want, err
	}
	if want.MaxMs, err = parseTimeParam(r, "end", deletion.MaxTime); err != nil {
		return want, err
	}
	if want.MinMs > want.MaxMs {
		return want, errors.New("the parameter end is before start")
	}
	return want, nil
}

// parseTimeParam returns a time in ms, as Prometheus writes them: seconds, or RFC 3339.
func parseTimeParam(r *http.Request, name string, otherwise int64) (int64, error) {
	text := r.Form.Get(name)
	if text == "" {
		return otherwise, nil
	}
	if seconds, err := strconv.ParseFloat(text, 64); err == nil && math.Abs(seconds) < math.MaxInt64/1000 {
		return int64(math.Round(seconds * 1000)), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t.UnixMilli(), nil
	}
	return 0, fmt.Errorf("the parameter %s is neither seconds nor RFC 3339: %q", name, text)
}

// dropTenant deletes all that the tenant has.
func (a *Admin) dropTenant(w http.ResponseWriter, r *http.Request) {
	id, _ := tenant.FromContext(r.Context()) // ServeHTTP has checked it
	if confirm := r.Form.Get("confirm"); confirm != string(id) {
		refuse(w, http.StatusBadRequest, fmt.Errorf("this deletes all that tenant %s has; to confirm it, repeat its name: confirm=%s", id, id))
		return
	}
	a.accept(w, r, blockstore.Deletion{WholeTenant: true, MinMs: deletion.MinTime, MaxMs: deletion.MaxTime})
}

// accept accepts a deletion and says who has not acknowledged it.
func (a *Admin) accept(w http.ResponseWriter, r *http.Request, want blockstore.Deletion) {
	id, _ := tenant.FromContext(r.Context())
	want.By = audit.Who(r)
	audit.Note(r.Context(), "selectors", want.Selectors, "min_ms", want.MinMs, "max_ms", want.MaxMs)
	accepted, err := a.deleter.Accept(r.Context(), id, want)
	if err != nil {
		setRetryAfter(w, err)
		refuse(w, wire.HTTPStatus(err), err)
		return
	}
	audit.Note(r.Context(), "deletion", accepted.ID, "missing", accepted.Missing)
	w.Header().Set(deletionIDHeader, accepted.ID.String())
	if len(accepted.Missing) == 0 {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	writeJSON(w, http.StatusAccepted, envelope{Status: "success", Data: struct {
		ID      ulid.ULID `json:"id"`
		Missing []string  `json:"missing"`
	}{accepted.ID, accepted.Missing}})
}

// clean asks the compactor to take out of the blocks what is deleted.
func (a *Admin) clean(w http.ResponseWriter, r *http.Request) {
	id, _ := tenant.FromContext(r.Context())
	if err := a.deleter.store.AskCleaning(r.Context(), id); err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// deletionState is a deletion in an answer.
type deletionState struct {
	ID          ulid.ULID            `json:"id"`
	State       string               `json:"state"` // pending, hidden or complete
	Selectors   []string             `json:"selectors,omitempty"`
	WholeTenant bool                 `json:"whole_tenant,omitempty"`
	MinMs       int64                `json:"min_ms"`
	MaxMs       int64                `json:"max_ms"`
	Accepted    time.Time            `json:"accepted"`
	Completed   *time.Time           `json:"completed,omitempty"`
	By          string               `json:"by,omitempty"`
	Rewritten   []blockstore.Rewrite `json:"rewritten"`
	// Left are the blocks that hold what is deleted still.
	Left []ulid.ULID `json:"left,omitempty"`
}

func stateOf(d *blockstore.Deletion, state string, rewritten []blockstore.Rewrite) deletionState {
	if rewritten == nil {
		rewritten = []blockstore.Rewrite{}
	}
	return deletionState{
		ID: d.ID, State: state, Selectors: d.Selectors, WholeTenant: d.WholeTenant,
		MinMs: d.MinMs, MaxMs: d.MaxMs, Accepted: d.Accepted, By: d.By, Rewritten: rewritten,
	}
}

// list answers with the tenant's deletions, the newest first.
func (a *Admin) list(w http.ResponseWriter, r *http.Request) {
	id, _ := tenant.FromContext(r.Context())
	states, err := a.states(r, id)
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	writeJSON(w, http.StatusOK, envelope{Status: "success", Data: states})
}

func (a *Admin) states(r *http.Request, id tenant.ID) ([]deletionState, error) {
	ctx, store := r.Context(), a.deleter.store
	found, err := store.DeletionsOf(ctx, id)
	if err == nil {
		err = found.Fault
	}
	if err != nil {
		return nil, err
	}
	receipts, err := store.Receipts(ctx, id, time.Time{})
	if err != nil {
		return nil, err
	}
	states := []deletionState{}
	for k := range receipts {
		state := stateOf(&receipts[k].Deletion, "complete", receipts[k].Rewritten)
		state.Completed = &receipts[k].Completed
		states = append(states, state)
	}
	if len(found.Active) > 0 {
		blocks, _, err := store.Blocks(ctx, id)
		if err != nil {
			return nil, err
		}
		for k := range found.Active {
			d := &found.Active[k]
			rewritten, err := store.Rewritten(ctx, id, d.ID)
			if err != nil {
				return nil, err
			}
			state := stateOf(&d.Deletion, "hidden", rewritten)
			if d.Settlement == nil {
				state.State = "pending"
			}
			for name, b := range blocks {
				if d.Masks(&b) {
					state.Left = append(state.Left, name)
				}
			}
			slices.SortFunc(state.Left, ulid.ULID.Compare)
			states = append(states, state)
		}
	}
	slices.SortFunc(states, func(a, b deletionState) int { return b.ID.Compare(a.ID) })
	return states, nil
}

func refuse(w http.ResponseWriter, status int, err error) {
	kind := "bad_data"
	if status != http.StatusBadRequest {
		kind = "unavailable"
	}
	writeError(w, status, kind, err)
}
