// Package distributor is the role that receives samples: remote write 1.0 and
// 2.0 and OTLP over HTTP. It decides what a request may cost before memory is
// taken for it, decodes it into a write.Batch, hands that to the ingester, and
// answers in the words of the protocol. It judges no sample itself: whether a
// timestamp or a value can be stored is for the ingester to say, in one place.
package distributor

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hundredfold/hundredfold/internal/remotewrite"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/write"
)

// Ingester stores batches. Push MUST NOT keep anything of the batch, whose
// memory is reused, but its histograms. Pushing a batch again MUST NOT store its
// samples twice. An error says that nothing is known of what was stored, so the
// sender has to send all of it again; samples that are at fault themselves are
// reported in the Result instead.
type Ingester interface {
	Push(ctx context.Context, id tenant.ID, b *write.Batch) (write.Result, error)
}

// Distributor receives samples. It is safe for concurrent use.
type Distributor struct {
	cfg      Config
	ingester Ingester
	logger   *slog.Logger
	metrics  *metrics
	budget   *budget
	spaces   sync.Pool // of *workspace
	otlp     translator
}

// New returns a Distributor that pushes to ing.
func New(cfg Config, ing Ingester, logger *slog.Logger, reg prometheus.Registerer) (*Distributor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("distributor: %w", err)
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	b := newBudget(cfg.MaxInflightBytes)
	return &Distributor{
		cfg:      cfg,
		ingester: ing,
		logger:   logger,
		metrics:  newMetrics(reg, b),
		budget:   b,
		spaces:   sync.Pool{New: func() any { return &workspace{decoder: remotewrite.NewDecoder(), hasher: write.NewHasher()} }},
		otlp:     newTranslator(),
	}, nil
}

// Push stores b for tenant id and counts what became of it. It is the way in for
// samples of this process itself.
func (d *Distributor) Push(ctx context.Context, id tenant.ID, b *write.Batch) (write.Result, error) {
	return d.push(ctx, id, b, write.Result{})
}

// push stores b; refused is what was rejected before samples got into b.
func (d *Distributor) push(ctx context.Context, id tenant.ID, b *write.Batch, refused write.Result) (write.Result, error) {
	d.metrics.received(id, b.Counts(), refused)
	if len(b.Series) == 0 && len(b.Metadata) == 0 {
		d.metrics.stored(id, refused)
		return refused, nil
	}
	result, err := d.ingester.Push(ctx, id, b)
	if err != nil {
		return result, err
	}
	result.Merge(refused)
	d.metrics.stored(id, result)
	if err := result.Err(); err != nil {
		d.logger.Debug("Samples were rejected; their sender was told why", "tenant", string(id), "reasons", clipLine(err.Error()))
	}
	return result, nil
}

// WriteHandler returns the handler of remote write 1.0 and 2.0. The tenant must
// be in the request's context.
func (d *Distributor) WriteHandler() http.Handler { return http.HandlerFunc(d.serveWrite) }

// OTLPHandler returns the handler of OTLP metrics. The tenant must be in the
// request's context.
func (d *Distributor) OTLPHandler() http.Handler { return http.HandlerFunc(d.serveOTLP) }
