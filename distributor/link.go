package distributor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	ingestv1 "github.com/hundredfold/hundredfold/proto/ingest/v1"
)

// Conns yields connections to other processes. Conn MUST NOT block; calls on what it
// returns SHOULD fail fast while nobody answers at the address.
type Conns interface {
	Conn(address string) (grpc.ClientConnInterface, error)
}

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
	// maxDefinitions bounds the placements that a stream remembers to have defined.
	maxDefinitions = 64
)

var (
	errConnecting = errors.New("there is no stream to it yet")
	errStopping   = errors.New("this process stops")
	errGone       = errors.New("it has left or was replaced")
	errSilent     = errors.New("it does not answer")
	errEnded      = errors.New("it ended the stream")
)

// queueFullError says that an ingester does not take deliveries as fast as they come.
type queueFullError struct{ limit int64 }

func (e queueFullError) Error() string {
	return fmt.Sprintf("the queue to it is full: %d bytes wait for an answer", e.limit)
}

// link is the way to one ingester as it was started: a stream that is made again
// whenever it breaks, and a bounded queue before it. Deliveries that are unanswered when
// the stream breaks fail; nobody knows whether they were stored. It is safe for
// concurrent use.
type link struct {
	id, address string
	incarnation uint64
	conns       Conns
	logger      *slog.Logger
	metrics     *linkMetrics
	limit       int64         // of the bytes of unanswered deliveries
	lessonMost  int64         // of the bytes of lessons
	patience    time.Duration // how long the ingester may be silent
	cancel      context.CancelFunc

	// learning is set as long as the ingester, which was started not long ago, keeps
	// saying that it does not know series.
	learning atomic.Bool
	wake     chan struct{} // has an element if there may be something in the queue

	mu struct {
		sync.Mutex
		up      bool
		closing bool   // nothing more is taken
		retired bool   // another link may have taken over the metrics
		why     error  // why it is not up
		stop    func() // ends the stream that is up
		queue   []*delivery
		pending map[uint64]*delivery // unanswered, those in the queue included
		bytes   int64                // of the pending
		lessons int64                // bytes of lessons that are under way
		pupils  []chan struct{}      // get an element when there is room for more of them
		late    lateLessons
		lastID  uint64
		heard   time.Time     // when there was an answer, or nothing to answer
		idle    chan struct{} // if not nil, closed when nothing is pending
	}
}

func newLink(id, address string, incarnation uint64, r *Replicator, cancel context.CancelFunc) *link {
	l := &link{
		id: id, address: address, incarnation: incarnation,
		conns: r.conns, logger: r.logger, metrics: r.metrics.link(id),
		limit: r.cfg.QueueBytes, lessonMost: r.lessonMost, patience: r.patience, cancel: cancel,
		wake: make(chan struct{}, 1),
	}
	l.learning.Store(true)
	l.mu.why = errConnecting
	l.mu.pending = map[uint64]*delivery{}
	return l
}

// send queues d, whose answer comes by d.answered. The error says why that cannot
// be done now, at once.
func (l *link) send(d *delivery) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.mu.closing:
		return errStopping
	case !l.mu.up:
		return l.mu.why
	case l.mu.bytes > 0 && l.mu.bytes+d.bytes > l.limit:
		return queueFullError{l.limit}
	}
	l.mu.lastID++
	d.id, d.since = l.mu.lastID, time.Now()
	if len(l.mu.pending) == 0 {
		l.mu.heard = d.since
	}
	l.mu.queue = append(l.mu.queue, d)
	l.mu.pending[d.id] = d
	l.mu.bytes += d.bytes
	l.gaugeLocked()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

// ready returns nil if deliveries can be sent.
func (l *link) ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.mu.up {
		return l.mu.why
	}
	return nil
}

// run keeps a stream until ctx ends. No delivery is pending when it returns.
func (l *link) run(ctx context.Context) {
	pause := minBackoff
	for ctx.Err() == nil {
		served, err := l.serve(ctx)
		if ctx.Err() != nil {
			err = errGone
		}
		l.fail(err)
		if served {
			pause = minBackoff
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-ctx.Done():
			timer.Stop()
		case <-timer.C:
			pause = min(2*pause, maxBackoff)
		}
	}
}

// serve opens a stream and works with it until it breaks, which its error explains.
// served reports whether any delivery was answered.
func (l *link) serve(ctx context.Context) (served bool, err error) {
	conn, err := l.conns.Conn(l.address)
	if err != nil {
		return false, fmt.Errorf("connect to %s: %w", l.address, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := ingestv1.NewIngestServiceClient(conn).Push(ctx)
	if err != nil {
		return false, fmt.Errorf("open a stream to %s: %s", l.address, status.Convert(err).Message())
	}
	l.opened(func() { cancel(errSilent) })
	sender := make(chan struct{})
	go func() {
		defer close(sender)
		if err := l.sendQueue(ctx, stream); err != nil && !errors.Is(err, io.EOF) {
			cancel(err) // io.EOF says that Recv knows better.
		}
	}()
	for {
		var resp *ingestv1.PushResponse
		if resp, err = stream.Recv(); err != nil {
			break
		}
		served = true
		if d := l.take(resp.GetId()); d != nil {
			d.answered(resp, nil)
		}
	}
	// The sender may be using a delivery that is about to fail.
	cancelled := context.Cause(ctx)
	cancel(nil)
	<-sender
	switch {
	case cancelled != nil && !errors.Is(cancelled, context.Canceled):
		return served, cancelled
	case errors.Is(err, io.EOF):
		return served, errEnded
	default:
		return served, errors.New("the stream to it broke: " + status.Convert(err).Message())
	}
}

// sendQueue sends what is in the queue, as it comes, until ctx or the stream ends.
func (l *link) sendQueue(ctx context.Context, stream grpc.BidiStreamingClient[ingestv1.PushRequest, ingestv1.PushResponse]) error {
	defined := map[uint64]bool{}
	var batch []*delivery
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.wake:
		}
		l.mu.Lock()
		batch, l.mu.queue = l.mu.queue, batch[:0]
		l.mu.Unlock()
		var err error
		for _, d := range batch {
			if err == nil {
				err = stream.Send(d.message(defined))
			}
			d.sent()
		}
		clear(batch)
		if err != nil {
			return err
		}
	}
}

// opened notes that deliveries can be sent; stop ends the stream.
func (l *link) opened(stop func()) {
	l.mu.Lock()
	l.mu.up, l.mu.why, l.mu.stop = true, nil, stop
	l.gaugeLocked()
	l.mu.Unlock()
	l.logger.Info("Writes go to an ingester", "ingester", l.id, "address", l.address)
}

// take removes the pending delivery with an id, or returns nil.
func (l *link) take(id uint64) *delivery {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, ok := l.mu.pending[id]
	if !ok {
		return nil
	}
	delete(l.mu.pending, id)
	l.mu.heard = time.Now()
	l.mu.bytes -= d.bytes
	l.gaugeLocked()
	if l.mu.idle != nil && len(l.mu.pending) == 0 {
		close(l.mu.idle)
		l.mu.idle = nil
	}
	return d
}

// fail notes that there is no stream any more because of err, and fails all pending
// deliveries. Nobody sends at that time.
func (l *link) fail(err error) {
	l.mu.Lock()
	news := l.mu.up || errors.Is(l.mu.why, errConnecting)
	l.mu.up, l.mu.why, l.mu.stop = false, err, nil
	queue, pending := l.mu.queue, l.mu.pending
	l.mu.queue, l.mu.pending, l.mu.bytes = nil, map[uint64]*delivery{}, 0
	if l.mu.idle != nil {
		close(l.mu.idle)
		l.mu.idle = nil
	}
	l.gaugeLocked()
	l.mu.Unlock()
	if news && !errors.Is(err, errGone) {
		l.logger.Warn("There is no stream to an ingester; writes go on with its replicas, and it is tried again and again", "ingester", l.id, "address", l.address, "unanswered", len(pending), "err", err)
	}
	for _, d := range queue {
		d.sent() // It never will be.
	}
	for _, d := range pending {
		d.answered(nil, err)
	}
}

// gaugeLocked brings the gauges up to date.
func (l *link) gaugeLocked() {
	if l.mu.retired {
		return
	}
	up := 0.0
	if l.mu.up {
		up = 1
	}
	l.metrics.up.Set(up)
	l.metrics.bytes.Set(float64(l.mu.bytes))
	l.metrics.lessons.Set(float64(l.mu.lessons))
}

// retire ends the link without waiting for answers.
func (l *link) retire() {
	l.mu.Lock()
	l.mu.up, l.mu.why = false, errGone
	l.gaugeLocked()
	l.mu.retired = true
	l.mu.Unlock()
	l.cancel()
}

// check ends the stream if the ingester has been silent for too long. Whatever keeps it
// from answering, it must not hold what it was sent for ever.
func (l *link) check(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.stop != nil && len(l.mu.pending) > 0 && now.Sub(l.mu.heard) > l.patience {
		l.mu.stop()
	}
}

// close makes the link take nothing more, and waits until nothing is pending or ctx ends.
func (l *link) close(ctx context.Context) {
	l.mu.Lock()
	l.mu.closing = true
	var idle chan struct{}
	if len(l.mu.pending) > 0 {
		idle = make(chan struct{})
		l.mu.idle = idle
	}
	l.mu.Unlock()
	if idle == nil {
		return
	}
	select {
	case <-ctx.Done():
	case <-idle:
	}
}
