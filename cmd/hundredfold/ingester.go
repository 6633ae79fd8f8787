package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/ingester"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/querier"
)

// openIngester wires the ingester and replays what it has on disk.
func (p *process) openIngester(ctx context.Context, c *coverage) (*ingester.Ingester, error) {
	tenants, err := countFolders(p.cfg.Ingester.Dir)
	if err != nil {
		return nil, fmt.Errorf("look for tenants in the data directory: %w", err)
	}
	p.readiness.Wait("ingester", fmt.Sprintf("replaying the write-ahead logs of %d tenants", tenants))
	cfg := p.cfg.Ingester
	cfg.InstanceID = p.data.instanceID
	ing, err := ingester.Open(ctx, cfg, ingester.Deps{
		Store:      p.store,
		Limits:     p.reloader.limits.of,
		Visible:    c.visible,
		Uploaded:   c.uploaded,
		Logger:     p.logger,
		Registerer: p.registry,
	})
	if err != nil {
		return nil, fmt.Errorf("open the ingester: %w", err)
	}
	return ing, nil
}

func countFolders(dir string) (int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	n := 0
	for _, e := range entries {
		if e.IsDir() {
			n++
		}
	}
	return n, err
}

// coverage is what the ingester asks and tells the querier. The querier is made
// of the ingester, so it comes later; until then no block is visible, and so
// none is dropped. Safe for concurrent use.
type coverage struct {
	querier atomic.Pointer[querier.Querier]
}

func (c *coverage) set(q *querier.Querier) { c.querier.Store(q) }

func (c *coverage) visible(id tenant.ID, block ulid.ULID) bool {
	q := c.querier.Load()
	return q != nil && q.Visible(id, block)
}

func (c *coverage) uploaded(id tenant.ID) {
	if q := c.querier.Load(); q != nil {
		q.BlocksUploaded(id)
	}
}
