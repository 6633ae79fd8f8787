package ingester

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
)

// unreadError says that it can't be told whether local blocks have a sample.
type unreadError struct {
	cause   error // names the block and its folder
	passing bool  // trying again later may help without anybody mending a file
}

// Error implements error.
func (e *unreadError) Error() string { return e.cause.Error() }

// Unwrap returns the cause.
func (e *unreadError) Unwrap() error { return e.cause }

// mayPass reports whether a block that met err may be readable later: what the operating
// system refuses, such as one more open file or map. What a file has in it does not change
// by itself, nor does one come back that is missing.
func mayPass(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	ofTheFile := []syscall.Errno{syscall.ENOENT, syscall.ENOTDIR, syscall.EISDIR, syscall.EINVAL} // The last is what an empty file gets that is mapped.
	return !slices.Contains(ofTheFile, errno)
}

// storedInBlocks returns the sample at time t that a local block has of the series at
// hand. The error is an *unreadError if those that can be read lack it and others can't.
func (p *pusher) storedInBlocks(t int64) (point, bool, error) {
	var unread *unreadError
	for _, b := range p.t.blocks.get() {
		if !b.overlaps(t, t) {
			continue
		}
		pt, ok, err := p.storedInBlock(b, t)
		switch {
		case ok:
			return pt, true, nil
		case err == nil:
		case errors.Is(err, errGone):
			return p.storedInBlocks(t) // The list lacks it, and has what was written in its place.
		case unread == nil:
			unread = &unreadError{cause: err, passing: mayPass(err)}
		default:
			unread = &unreadError{cause: errors.Join(unread.cause, err), passing: unread.passing || mayPass(err)}
		}
	}
	if err := p.t.blocks.lacking(t, t); err != nil && unread == nil {
		unread = &unreadError{cause: err}
	}
	if unread != nil {
		return point{}, false, unread
	}
	return point{}, false, nil
}

// storedInBlock does so for one block. One that can't be opened is tried once in a push.
func (p *pusher) storedInBlock(b *localBlock, t int64) (point, bool, error) {
	if err := p.unopened[b]; err != nil {
		return point{}, false, err
	}
	block, release, err := b.acquire()
	if err != nil {
		if p.unopened == nil {
			p.unopened = map[*localBlock]error{}
		}
		p.unopened[b] = err
		return point{}, false, err
	}
	defer release()
	q, err := tsdb.NewBlockQuerier(block, t, t)
	if err != nil {
		return point{}, false, fmt.Errorf("read local block %s of tenant %s (in %s): %w", b.meta.ULID, b.tenant, b.dir, err)
	}
	pt, ok, err := p.sampleIn(q, t)
	if err != nil {
		err = fmt.Errorf("read local block %s of tenant %s (in %s): %w", b.meta.ULID, b.tenant, b.dir, err)
	}
	return pt, ok, err
}

// sampleIn returns the sample at time t that a querier has of the series at hand, and
// closes the querier.
func (p *pusher) sampleIn(q storage.Querier, t int64) (point, bool, error) {
	defer func() { _ = q.Close() }()
	ms := make([]*labels.Matcher, 0, p.ls.Len())
	p.ls.Range(func(l labels.Label) {
		ms = append(ms, labels.MustNewMatcher(labels.MatchEqual, l.Name, l.Value))
	})
	set := q.Select(context.Background(), false, nil, ms...)
	for set.Next() {
		s := set.At()
		if !labels.Equal(s.Labels(), p.ls) {
			continue // It has more labels than those asked for.
		}
		it := s.Iterator(nil)
		if pt, ok := seek(it, t); ok || it.Err() != nil {
			return pt, ok, it.Err()
		}
	}
	return point{}, false, set.Err()
}
