package compactor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/blockstore"
	"github.com/hundredfold/hundredfold/internal/retention"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// sizes are those of blocks, in bytes, which never change. It is safe for concurrent use.
type sizes struct {
	mu    sync.Mutex
	known map[blockName]int64
}

// sizeReads bounds the blocks whose files are listed at once.
const sizeReads = 8

// of returns the sizes of all blocks that are there still.
func (s *sizes) of(ctx context.Context, store *blockstore.Store, id tenant.ID, blocks map[ulid.ULID]blockstore.Block) (map[ulid.ULID]int64, error) {
	out := make(map[ulid.ULID]int64, len(blocks))
	var (
		mu    sync.Mutex
		group errgroup.Group
	)
	group.SetLimit(sizeReads)
	for name, block := range blocks {
		group.Go(func() error {
			size, err := s.one(ctx, store, id, block)
			if errors.Is(err, blockstore.ErrBlockNotFound) {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			out[name] = size
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("size of the blocks of tenant %s: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for known := range s.known {
		if _, ok := blocks[known.block]; known.tenant == id && !ok {
			delete(s.known, known)
		}
	}
	return out, nil
}

func (s *sizes) one(ctx context.Context, store *blockstore.Store, id tenant.ID, block blockstore.Block) (int64, error) {
	name := blockName{id, block.Meta.ULID}
	s.mu.Lock()
	size, ok := s.known[name]
	s.mu.Unlock()
	if ok {
		return size, nil
	}
	files := block.Files
	if files == nil {
		var err error
		if files, err = store.Files(ctx, id, block.Meta.ULID); err != nil {
			return 0, err
		}
	}
	for _, file := range files {
		size += file.Size
	}
	s.mu.Lock()
	s.known[name] = size
	s.mu.Unlock()
	return size, nil
}

// Preview is what retention would do to a tenant's blocks under some limits.
type Preview struct {
	Tenant         tenant.ID              `json:"tenant"`
	Now            time.Time              `json:"now"`
	Retention      model.Duration         `json:"retention"`
	RetentionRules []tenant.RetentionRule `json:"retention_rules"`
	MaxBucketBytes int64                  `json:"max_bucket_bytes"`
	Blocks         []PreviewBlock         `json:"blocks"` // those that something happens to, by name
	Kept           PreviewSum             `json:"kept"`
	Deleted        PreviewSum             `json:"deleted"`
	// Pruned are blocks among the kept that lose samples of some series.
	Pruned PreviewSum `json:"pruned"`
}

// PreviewSum counts blocks and their bytes.
type PreviewSum struct {
	Blocks int   `json:"blocks"`
	Bytes  int64 `json:"bytes"`
}

func (s *PreviewSum) add(bytes int64) {
	s.Blocks++
	s.Bytes += bytes
}

// PreviewBlock is a block that something would happen to.
type PreviewBlock struct {
	Block ulid.ULID `json:"block"`
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
	Bytes int64     `json:"bytes"`
	// Action is delete or prune: samples of some series are hidden, and taken out later.
	Action string `json:"action"`
	// Reason is retention or quota.
	Reason string `json:"reason"`
	// Marked says that the block is marked for deletion already.
	Marked bool `json:"marked,omitempty"`
}

// Preview says what retention would do to a tenant's blocks under the limits l. It changes
// nothing and is safe for concurrent use.
func (c *Compactor) Preview(ctx context.Context, id tenant.ID, l tenant.Limits) (Preview, error) {
	policy, err := retention.New(l)
	if err != nil {
		return Preview{}, err
	}
	blocks, _, err := c.store.Blocks(ctx, id)
	if err != nil {
		return Preview{}, err
	}
	bytes, err := c.sizes.of(ctx, c.store, id, blocks)
	if err != nil {
		return Preview{}, err
	}
	now := c.now()
	p := Preview{
		Tenant: id, Now: now, Retention: l.Retention, RetentionRules: l.RetentionRules, MaxBucketBytes: l.MaxBucketBytes,
		Blocks: []PreviewBlock{},
	}
	left := make(map[ulid.ULID]blockstore.Block, len(blocks))
	expired := map[ulid.ULID]bool{}
	for name, block := range blocks {
		if expired[name] = policy.Expired(block.Meta.MaxTime, now) && !block.Previous; !expired[name] {
			if block.Deletion != nil && block.Deletion.Reason == blockstore.DeletionRetention {
				block.Deletion = nil // It would be saved.
			}
			left[name] = block
		}
	}
	over := map[ulid.ULID]struct{}{}
	if l.MaxBucketBytes > 0 {
		over = overQuota(left, bytes, l.MaxBucketBytes)
	}
	superseded := blockstore.Superseded(blocks)
	for _, name := range sorted(blocks) {
		block := blocks[name]
		if _, covered := superseded[name]; covered {
			continue // Its samples are those of another one.
		}
		entry := PreviewBlock{
			Block: name, Start: time.UnixMilli(block.Meta.MinTime).UTC(), End: time.UnixMilli(block.Meta.MaxTime).UTC(),
			Bytes: bytes[name], Marked: block.Deletion != nil, Action: "delete",
		}
		_, beyond := over[name]
		switch {
		case expired[name]:
			entry.Reason = string(blockstore.DeletionRetention)
			p.Deleted.add(entry.Bytes)
		case beyond:
			entry.Reason = string(blockstore.DeletionQuota)
			p.Deleted.add(entry.Bytes)
		default:
			p.Kept.add(entry.Bytes)
			if policy.Filter(block.Meta.MinTime, now) == nil {
				continue
			}
			entry.Action, entry.Reason = "prune", string(blockstore.DeletionRetention)
			p.Pruned.add(entry.Bytes)
		}
		p.Blocks = append(p.Blocks, entry)
	}
	return p, nil
}

// ServePreview answers with a Preview: of ?tenant= under its limits, or under others if
// the parameters retention, retention_rules and max_bucket_bytes say so, which are written
// as in the configuration.
func (c *Compactor) ServePreview(w http.ResponseWriter, r *http.Request) {
	id, l, err := c.previewLimits(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p, err := c.Preview(r.Context(), id, l)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(p); err != nil {
		c.logger.Debug("the answer could not be written", "err", err)
	}
}

func (c *Compactor) previewLimits(r *http.Request) (tenant.ID, tenant.Limits, error) {
	params := r.URL.Query()
	id, err := tenant.Parse(params.Get("tenant"))
	if err != nil {
		return "", tenant.Limits{}, fmt.Errorf("the parameter tenant: %w", err)
	}
	l := c.limits(id)
	var errs []error
	if text := params.Get("retention"); text != "" {
		d, err := model.ParseDuration(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("the parameter retention: %w", err))
		}
		l.Retention = d
	}
	if text := params.Get("max_bucket_bytes"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			errs = append(errs, fmt.Errorf("the parameter max_bucket_bytes: %q is not a number", text))
		}
		l.MaxBucketBytes = n
	}
	if text := params.Get("retention_rules"); text != "" {
		var rules []tenant.RetentionRule
		if err := yaml.Unmarshal([]byte(text), &rules); err != nil {
			errs = append(errs, fmt.Errorf("the parameter retention_rules: %w", err))
		}
		l.RetentionRules = rules
	}
	if err := errors.Join(errs...); err != nil {
		return "", tenant.Limits{}, err
	}
	return id, l, l.Validate()
}
