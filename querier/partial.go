package querier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/wire"
)

const (
	// partialParameter asks for an answer even if something is missing in it. The name is
	// Thanos's; here it is off unless asked for.
	partialParameter = "partial_response"
	// partialRuns bounds how often a query is run because in each run another block fails.
	partialRuns = 10
)

// partial is one request that takes an answer in which something is missing, if the
// answer says what. Without one, which is a nil *partial, what is missing is an error. It
// is safe for concurrent use.
type partial struct {
	mu sync.Mutex
	// blocks are those that cannot be read, and why.
	blocks map[ulid.ULID]error
	failed bool // a block has failed in the midst of this run
}

type partialKey struct{}

// partialOf returns the partial of a context, or nil.
func partialOf(ctx context.Context) *partial {
	p, _ := ctx.Value(partialKey{}).(*partial)
	return p
}

// wantsPartial reports whether a request takes an answer in which something is missing.
func wantsPartial(r *http.Request) (bool, error) {
	text := r.URL.Query().Get(partialParameter)
	if text == "" {
		return false, nil
	}
	wants, err := strconv.ParseBool(text)
	if err != nil {
		return false, fmt.Errorf("the parameter %s is %q instead of true or false", partialParameter, text)
	}
	return wants, nil
}

// servePartial serves a request that takes an answer in which something is missing. A
// block that fails while it is read spoils the run; the next one does without. The first
// run is charged to the account, and each further one to one that follows it; servePartial
// returns that of the last run.
func servePartial(serve http.HandlerFunc, w http.ResponseWriter, r *http.Request, account *account) *account {
	p := &partial{blocks: map[ulid.ULID]error{}}
	ctx := context.WithValue(r.Context(), partialKey{}, p)
	for run := 1; ; run++ {
		p.begin()
		answer := &heldAnswer{header: http.Header{}, status: http.StatusOK}
		serve(answer, r.WithContext(withAccount(ctx, account)))
		if run < partialRuns && ctx.Err() == nil && p.spoilt() {
			account = account.again()
			continue
		}
		maps.Copy(w.Header(), answer.header)
		w.WriteHeader(answer.status)
		_, _ = w.Write(answer.body.Bytes()) // the client has gone: nobody is left to tell
		return account
	}
}

// heldAnswer is an answer that is not sent yet.
type heldAnswer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *heldAnswer) Header() http.Header         { return a.header }
func (a *heldAnswer) Write(b []byte) (int, error) { return a.body.Write(b) }
func (a *heldAnswer) WriteHeader(status int)      { a.status = status }

func (p *partial) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = false
}

func (p *partial) spoilt() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// spoil notes that a block cannot be read.
func (p *partial) spoil(block ulid.ULID, err error) {
	var limit *limitError
	if p == nil || errors.As(err, &limit) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = true
	if _, ok := p.blocks[block]; !ok {
		p.blocks[block] = err
	}
}

// without takes those blocks out that cannot be read, and notes them.
func (p *partial) without(blocks []blockstore.Block, notes *annotations.Annotations) []blockstore.Block {
	if p == nil {
		return blocks
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(blocks, func(b blockstore.Block) bool {
		err, missing := p.blocks[b.Meta.ULID]
		if missing {
			notes.Add(&missingBlockError{meta: timeRange{b.Meta.MinTime, b.Meta.MaxTime}, block: b.Meta.ULID, err: err})
		}
		return missing
	})
}

// missingBlockError is the warning that a block is missing in an answer.
type missingBlockError struct {
	block ulid.ULID
	meta  timeRange // the end is exclusive
	err   error
}

func (m *missingBlockError) Error() string {
	const layout = time.RFC3339
	return fmt.Sprintf("partial response: samples from %s to %s are missing, since block %s cannot be read: %s",
		time.UnixMilli(m.meta.mint).UTC().Format(layout), time.UnixMilli(m.meta.maxt).UTC().Format(layout), m.block, m.err)
}

// passable reports whether an answer can be given although err says that recent samples,
// or what the bucket has, are not known. What is not allowed is not.
func passable(ctx context.Context, err error) bool {
	var (
		later *wire.UnavailableError
		limit *limitError
	)
	return ctx.Err() == nil && !errors.As(err, &limit) && (errors.As(err, &later) || errors.Is(err, errNotLoaded))
}

// withoutRecent returns what stands in for recent samples that are missing, if the request
// takes an answer without them, and a note that they are.
func withoutRecent[R reader](ctx context.Context, err error) (none R, notes annotations.Annotations, _ error) {
	none, ok := any(storage.NoopQuerier()).(R)
	if !ok || partialOf(ctx) == nil || !passable(ctx, err) {
		return none, nil, err
	}
	return none, notes.Add(fmt.Errorf("partial response: %w", err)), nil
}
