// Package blockupload takes blocks over HTTP, for backfills: a client starts an upload with
// the meta.json, sends the files, and finishes; the block is then read in full, and
// becomes visible only if it is whole. The routes and answers are those of Mimir, so that
// its mimirtool backfill works.
//
// What is uploaded lies in the bucket in a folder beside the files of the block, and these are
// only ever written from the copy that was read in full, so nobody sees anything else; any process can go on with it, and what is given up is cleaned away like every
// partial block. Two small files beside it say how far the upload is.
package blockupload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/blockcheck"
	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/remoteblock"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	// Prefix is what the paths of all routes begin with.
	Prefix = "/api/v1/upload/block/"

	planFile  = "upload-meta.json"
	stateFile = "upload-state.json"

	// waiting bounds the blocks that wait for their validation in one process.
	waiting = 16
	// patience is how long a validation may take before it is taken for interrupted.
	patience = time.Hour
)

// The states of an upload, as Mimir calls them.
const (
	stateUploading  = "uploading"
	stateValidating = "validating"
	stateComplete   = "complete"
	stateFailed     = "failed"
)

// Config says how uploads are taken.
type Config struct {
	// Enabled: otherwise every request is answered 403.
	Enabled bool
	// Scratch is a directory for the block that is validated.
	Scratch string
}

// Uploads takes blocks. It is an http.Handler, and safe for concurrent use.
type Uploads struct {
	cfg      Config
	store    *blockstore.Store
	uploaded func(tenant.ID, ulid.ULID)
	logger   *slog.Logger
	mux      *http.ServeMux
	queue    chan job
}

// job is a block to validate.
type job struct {
	tenant tenant.ID
	block  ulid.ULID
}

// state is what stateFile says.
type state struct {
	State string    `json:"state"`
	Error string    `json:"error,omitempty"`
	Time  time.Time `json:"time"`
}

// New returns Uploads to store. uploaded is told of each block that has become visible, and
// must not block.
func New(cfg Config, store *blockstore.Store, uploaded func(tenant.ID, ulid.ULID), logger *slog.Logger) *Uploads {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	u := &Uploads{cfg: cfg, store: store, uploaded: uploaded, logger: logger, mux: http.NewServeMux(), queue: make(chan job, waiting)}
	u.mux.HandleFunc("POST "+Prefix+"{block}/start", u.start)
	u.mux.HandleFunc("POST "+Prefix+"{block}/files", u.file)
	u.mux.HandleFunc("POST "+Prefix+"{block}/finish", u.finish)
	u.mux.HandleFunc("GET "+Prefix+"{block}/check", u.check)
	return u
}

// Run validates blocks, one at a time, until ctx ends. What waits then, or is being
// validated, is to be finished again by its client.
func (u *Uploads) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case j := <-u.queue:
			u.validate(ctx, j)
		}
	}
}

// validate makes a block visible, or notes why not.
func (u *Uploads) validate(ctx context.Context, j job) {
	err := u.publish(ctx, j)
	switch {
	case err == nil:
		u.uploaded(j.tenant, j.block)
		u.logger.Info("A block was uploaded by a client", "tenant", j.tenant, "block", j.block)
		return
	case ctx.Err() != nil:
		// The note is for a client that asks another process, or after the restart.
		err = errors.New("the process ended meanwhile: finish the upload again")
	case errors.Is(err, errRefused):
		u.logger.Info("A block that a client uploaded stays invisible", "tenant", j.tenant, "block", j.block, "err", err)
	case errors.Is(err, blockcheck.ErrDamaged):
		u.logger.Info("A block that a client uploaded is damaged, and stays invisible", "tenant", j.tenant, "block", j.block, "err", err)
	default:
		u.logger.Error("A block that a client uploaded could not be validated; the client may finish the upload again", "tenant", j.tenant, "block", j.block, "err", err)
	}
	if err := u.note(context.WithoutCancel(ctx), j, state{State: stateFailed, Error: err.Error()}); err != nil {
		u.logger.Error("The state of an upload could not be written; the client waits for an hour", "tenant", j.tenant, "block", j.block, "err", err)
	}
}

func (u *Uploads) publish(ctx context.Context, j job) (err error) {
	plan, text, err := u.plan(ctx, j)
	if err != nil {
		return err
	}
	dir := filepath.Join(u.cfg.Scratch, string(j.tenant), j.block.String())
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	files, err := u.store.Staged(ctx, j.tenant, j.block)
	if err != nil {
		return err
	}
	if err := u.store.FetchStaged(ctx, j.tenant, j.block, files, dir); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "meta.json"), text, 0o600); err != nil {
		return err
	}
	found, err := blockcheck.Dir(ctx, dir, blockcheck.Full)
	if err == nil {
		err = blockcheck.CheckStats(plan.Stats, found, blockcheck.Full)
	}
	if err != nil {
		return err
	}
	// One that is there already is completed as it is.
	if err := u.missing(ctx, j, plan); err != nil && !errors.Is(err, errIsThere) {
		return err
	}
	if err := remoteblock.WriteSidecar(ctx, u.store, j.tenant, dir); err != nil {
		u.logger.Warn("An uploaded block becomes visible without its sidecar; a compactor adds it", "tenant", j.tenant, "block", j.block, "err", err)
	}
	return u.store.PublishStaged(ctx, j.tenant, dir, text)
}

// missing returns nil if the tenant lacks the block and may have it. Otherwise the error
// wraps errIsThere, errRefused if the block would be deleted with what is there, or is one of
// the bucket. plan is the meta.json that the block is to have, nil if that is not known yet.
func (u *Uploads) missing(ctx context.Context, j job, plan *tsdb.BlockMeta) error {
	if plan == nil {
		plan = &tsdb.BlockMeta{ULID: j.block}
	}
	has, err := u.store.Holdings(ctx, j.tenant)
	if err != nil {
		return err
	}
	switch there, refusal := has.Of(blockstore.Block{Meta: *plan}); {
	case refusal != "":
		return fmt.Errorf("%w: %s", errRefused, refusal)
	case there:
		return errIsThere
	}
	return nil
}

// note writes the state of an upload.
func (u *Uploads) note(ctx context.Context, j job, s state) error {
	s.Time = time.Now().UTC()
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return u.store.WriteSideFile(ctx, j.tenant, j.block, stateFile, text)
}

// stateOf returns the state of an upload that is not complete; "" is none.
func (u *Uploads) stateOf(ctx context.Context, j job) (state, error) {
	if _, found, err := u.store.ReadSideFile(ctx, j.tenant, j.block, planFile); err != nil || !found {
		return state{}, err
	}
	text, found, err := u.store.ReadSideFile(ctx, j.tenant, j.block, stateFile)
	if err != nil {
		return state{}, err
	}
	s := state{State: stateUploading}
	if found {
		s = parseState(text)
	}
	if s.State == stateValidating && time.Since(s.Time) > patience {
		s = state{State: stateFailed, Error: "the validation was interrupted: finish the upload again"}
	}
	return s, nil
}

// parseState decodes a stateFile. What cannot be understood is a failure that the client
// may get over: otherwise nothing could be done about the upload.
func parseState(text []byte) state {
	var s state
	err := json.Unmarshal(text, &s)
	switch s.State {
	case stateUploading, stateValidating, stateComplete, stateFailed:
	case "":
		s.State = stateUploading
	default:
		err = errors.Join(err, fmt.Errorf("%q is no state", s.State))
	}
	if err != nil {
		return state{State: stateFailed, Error: fmt.Sprintf("the state of the upload cannot be read (%s): start it again", err)}
	}
	return s
}

// plan returns the meta.json that the block is to have.
func (u *Uploads) plan(ctx context.Context, j job) (*tsdb.BlockMeta, []byte, error) {
	text, found, err := u.store.ReadSideFile(ctx, j.tenant, j.block, planFile)
	if err != nil {
		return nil, nil, err
	}
	if !found {
		return nil, nil, errNotStarted
	}
	meta, _, err := blockstore.DecodeMeta(j.block, text)
	return meta, text, err
}

// sanitized returns the meta.json that a block is given. It has no lineage: an upload must
// not make readers ignore other blocks.
func sanitized(block ulid.ULID, text []byte) ([]byte, error) {
	meta, _, err := blockstore.DecodeMeta(block, text)
	if err != nil {
		return nil, err
	}
	var foreign struct {
		Thanos struct {
			Labels     map[string]string `json:"labels"`
			Downsample struct {
				Resolution int64 `json:"resolution"`
			} `json:"downsample"`
		} `json:"thanos"`
	}
	if err := json.Unmarshal(text, &foreign); err != nil {
		return nil, err
	}
	switch {
	case foreign.Thanos.Downsample.Resolution > 0:
		return nil, errors.New("the block is downsampled, and its samples are no samples of Prometheus's")
	case meta.MinTime > time.Now().UnixMilli():
		return nil, fmt.Errorf("the block begins at %s, in the future", time.UnixMilli(meta.MinTime).UTC().Format(time.RFC3339))
	}
	external := make(map[string]string)
	for name, value := range foreign.Thanos.Labels {
		if !strings.HasPrefix(name, "__") && value != "" {
			external[name] = value
		}
	}
	meta.Compaction = tsdb.BlockMetaCompaction{Level: 1, Sources: []ulid.ULID{block}}
	return blockstore.EncodeMeta(*meta, blockstore.Extension{ExternalLabels: external})
}
