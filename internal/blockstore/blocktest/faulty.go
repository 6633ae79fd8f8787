package blocktest

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"github.com/thanos-io/objstore"
)

// ErrBucketDown is what a Faulty bucket answers when it fails.
var ErrBucketDown = errors.New("the bucket does not answer")

// Faulty is a bucket that counts calls and fails some of them. It is safe for
// concurrent use.
type Faulty struct {
	objstore.Bucket
	from, to       atomic.Int64 // calls that fail, both inclusive; 0: none
	calls, uploads atomic.Int64
}

// NewFaulty returns a bucket that works like bucket until it is told to fail.
func NewFaulty(bucket objstore.Bucket) *Faulty { return &Faulty{Bucket: bucket} }

// FailFrom lets the n-th call from now on and all after it fail, as if the process
// had crashed. The first call is 1.
func (b *Faulty) FailFrom(n int64) { b.fail(n, 1<<62) }

// FailOnly lets the n-th call from now on fail, and no other.
func (b *Faulty) FailOnly(n int64) { b.fail(n, n) }

// Heal lets nothing fail any more.
func (b *Faulty) Heal() { b.fail(0, 0) }

func (b *Faulty) fail(from, to int64) {
	b.from.Store(0)
	b.calls.Store(0)
	b.to.Store(to)
	b.from.Store(from)
}

// Calls returns the number of calls since the last change of what fails.
func (b *Faulty) Calls() int64 { return b.calls.Load() }

// Uploads returns the number of uploads that the bucket got.
func (b *Faulty) Uploads() int64 { return b.uploads.Load() }

func (b *Faulty) call() error {
	n := b.calls.Add(1)
	if from := b.from.Load(); from != 0 && n >= from && n <= b.to.Load() {
		return ErrBucketDown
	}
	return nil
}

// Upload implements objstore.Bucket.
func (b *Faulty) Upload(ctx context.Context, name string, r io.Reader, options ...objstore.ObjectUploadOption) error {
	if err := b.call(); err != nil {
		return err
	}
	b.uploads.Add(1)
	return b.Bucket.Upload(ctx, name, r, options...)
}

// Delete implements objstore.Bucket.
func (b *Faulty) Delete(ctx context.Context, name string) error {
	if err := b.call(); err != nil {
		return err
	}
	return b.Bucket.Delete(ctx, name)
}

// Iter implements objstore.Bucket.
func (b *Faulty) Iter(ctx context.Context, dir string, f func(string) error, options ...objstore.IterOption) error {
	if err := b.call(); err != nil {
		return err
	}
	return b.Bucket.Iter(ctx, dir, f, options...)
}

// IterWithAttributes implements objstore.Bucket.
func (b *Faulty) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, options ...objstore.IterOption) error {
	if err := b.call(); err != nil {
		return err
	}
	return b.Bucket.IterWithAttributes(ctx, dir, f, options...)
}

// Get implements objstore.Bucket.
func (b *Faulty) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := b.call(); err != nil {
		return nil, err
	}
	return b.Bucket.Get(ctx, name)
}

// Exists implements objstore.Bucket.
func (b *Faulty) Exists(ctx context.Context, name string) (bool, error) {
	if err := b.call(); err != nil {
		return false, err
	}
	return b.Bucket.Exists(ctx, name)
}

// Attributes implements objstore.Bucket.
func (b *Faulty) Attributes(ctx context.Context, name string) (objstore.ObjectAttributes, error) {
	if err := b.call(); err != nil {
		return objstore.ObjectAttributes{}, err
	}
	return b.Bucket.Attributes(ctx, name)
}

// GetRange implements objstore.Bucket.
func (b *Faulty) GetRange(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := b.call(); err != nil {
		return nil, err
	}
	return b.Bucket.GetRange(ctx, name, offset, length)
}
