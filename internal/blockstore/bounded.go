package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/thanos-io/objstore"
)

const (
	// maxSilence is how long the bucket may show no sign of life in the midst of a request
	// before the request is given up: one that hangs would hold up its caller, a pass of the
	// compactor or a query, for ever. It is longer than the S3 client waits for an answer to
	// begin before it asks again, which is 2 min.
	maxSilence = 3 * time.Minute
	// An upload may send so many bytes without asking for more, as parts of that size or in
	// the buffers of this machine, and need not be faster than so many bytes per second.
	uploadAhead   = 128 << 20
	slowestUpload = 1 << 20
)

// errSilent says that a request was given up since the bucket has not gone on with it.
var errSilent = errors.New("the bucket gave no sign of life")

// bounded is a bucket whose requests do not hang. How long they take as a whole, and what
// their callers do between two parts of an answer, is not bounded.
type bounded struct{ objstore.Bucket }

// watch ends a request when the bucket is silent for too long.
type watch struct {
	cause  func() error // why the request ended
	cancel context.CancelCauseFunc
	timer  *time.Timer
	bound  time.Duration
}

// watching begins to watch a request, which is to be made with the context that it returns.
func watching(ctx context.Context, bound time.Duration) (context.Context, *watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &watch{
		cause:  func() error { return context.Cause(ctx) },
		cancel: cancel,
		timer:  time.AfterFunc(bound, func() { cancel(errSilent) }),
		bound:  bound,
	}
}

// pause says that the bucket is not waited for, until resume.
func (w *watch) pause() { w.timer.Stop() }

func (w *watch) resume() { w.timer.Reset(w.bound) }

// end ends the request. It returns the error that it has ended with, err, or why it was
// given up: that is not the same as a caller that has gone.
func (w *watch) end(err error) error {
	w.timer.Stop()
	w.cancel(nil)
	return w.explain(err)
}

func (w *watch) explain(err error) error {
	if err != nil && errors.Is(w.cause(), errSilent) {
		return fmt.Errorf("%w for %s", errSilent, w.bound)
	}
	return err
}

// Iter implements objstore.Bucket.
func (b bounded) Iter(ctx context.Context, dir string, f func(name string) error, options ...objstore.IterOption) error {
	ctx, w := watching(ctx, maxSilence)
	return w.end(b.Bucket.Iter(ctx, dir, func(name string) error {
		w.pause()
		defer w.resume()
		return f(name)
	}, options...))
}

// IterWithAttributes implements objstore.Bucket.
func (b bounded) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, options ...objstore.IterOption) error {
	ctx, w := watching(ctx, maxSilence)
	return w.end(b.Bucket.IterWithAttributes(ctx, dir, func(attrs objstore.IterObjectAttributes) error {
		w.pause()
		defer w.resume()
		return f(attrs)
	}, options...))
}

// Get implements objstore.Bucket.
func (b bounded) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	return read(ctx, func(ctx context.Context) (io.ReadCloser, error) { return b.Bucket.Get(ctx, name) })
}

// GetRange implements objstore.Bucket.
func (b bounded) GetRange(ctx context.Context, name string, off, length int64) (io.ReadCloser, error) {
	return read(ctx, func(ctx context.Context) (io.ReadCloser, error) { return b.Bucket.GetRange(ctx, name, off, length) })
}

func read(ctx context.Context, get func(context.Context) (io.ReadCloser, error)) (io.ReadCloser, error) {
	ctx, w := watching(ctx, maxSilence)
	r, err := get(ctx)
	if err != nil {
		return nil, w.end(err)
	}
	w.pause()
	return &watchedReader{r: r, watch: w}, nil
}

// watchedReader is an object that is being read.
type watchedReader struct {
	r     io.ReadCloser
	watch *watch
}

// Read implements io.Reader.
func (r *watchedReader) Read(p []byte) (int, error) {
	r.watch.resume()
	n, err := r.r.Read(p)
	r.watch.pause()
	if err != nil && !errors.Is(err, io.EOF) {
		err = r.watch.explain(err)
	}
	return n, err //nolint:wrapcheck // io.EOF is compared
}

// Close implements io.Closer.
func (r *watchedReader) Close() error { return r.watch.end(r.r.Close()) }

// ObjectSize is what whoever copies the object asks for.
func (r *watchedReader) ObjectSize() (int64, error) { return objstore.TryToGetSize(r.r) }

// Exists implements objstore.Bucket.
func (b bounded) Exists(ctx context.Context, name string) (bool, error) {
	ctx, w := watching(ctx, maxSilence)
	found, err := b.Bucket.Exists(ctx, name)
	return found, w.end(err)
}

// Attributes implements objstore.Bucket.
func (b bounded) Attributes(ctx context.Context, name string) (objstore.ObjectAttributes, error) {
	ctx, w := watching(ctx, maxSilence)
	attrs, err := b.Bucket.Attributes(ctx, name)
	return attrs, w.end(err)
}

// Upload implements objstore.Bucket.
func (b bounded) Upload(ctx context.Context, name string, r io.Reader, options ...objstore.ObjectUploadOption) error {
	bound := maxSilence
	size, err := objstore.TryToGetSize(r)
	if err == nil {
		bound += time.Duration(min(size, uploadAhead)/slowestUpload) * time.Second
	}
	ctx, w := watching(ctx, bound)
	source := r
	if _, inMemory := r.(*bytes.Reader); !inMemory { // which can be read again, if the request is
		r = objstore.ObjectSizerReadCloser{
			ReadCloser: io.NopCloser(readerFunc(func(p []byte) (int, error) {
				w.pause()
				defer w.resume()
				return source.Read(p)
			})),
			Size: func() (int64, error) { return size, err },
		}
	}
	return w.end(b.Bucket.Upload(ctx, name, r, options...))
}

// Delete implements objstore.Bucket.
func (b bounded) Delete(ctx context.Context, name string) error {
	ctx, w := watching(ctx, maxSilence)
	return w.end(b.Bucket.Delete(ctx, name))
}
