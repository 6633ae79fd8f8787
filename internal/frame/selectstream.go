package frame

import (
	"context"
	"fmt"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// selectBytes is the size from which a frame of series is sent. One series is never
// split, so a frame may be larger.
const selectBytes = 1 << 20

// SelectStream puts series into select frames and sends each frame once it is large
// enough. One goroutine, one set.
type SelectStream struct {
	// Send sends a frame, whose bytes are overwritten after it has returned.
	Send func(frame []byte) error
	// MinTime and MaxTime are the range that chunks have to overlap, inclusive, in ms.
	MinTime, MaxTime int64
	// Limit bounds the series; 0 does not.
	Limit int

	writer SelectWriter
	series int
	chunks []chunks.Meta
	iter   chunks.Iterator
}

// Labels sends the series of set without chunks. It returns the frame that was not sent,
// which may be empty, and the warnings of set.
func (s *SelectStream) Labels(ctx context.Context, set storage.SeriesSet) (rest []byte, warnings []string, err error) {
	return s.all(ctx, set, func() error { return s.add(set.At().Labels(), nil) })
}

// Chunks sends the series of set that have chunks in the range, with these. What it
// returns is as with Labels. Chunks are sent encoded: what is stored so that it has to be
// encoded first, as out-of-order samples in memory, the TSDB encodes, and it copies the
// chunk that is appended to.
func (s *SelectStream) Chunks(ctx context.Context, set storage.ChunkSeriesSet) (rest []byte, warnings []string, err error) {
	return s.all(ctx, set, func() error { return s.chunkSeries(set.At()) })
}

// seriesSet is what sets of series and of chunk series have in common.
type seriesSet interface {
	Next() bool
	Err() error
	Warnings() annotations.Annotations
}

// all calls add for each series of set, up to the limit.
func (s *SelectStream) all(ctx context.Context, set seriesSet, add func() error) (rest []byte, warnings []string, err error) {
	for (s.Limit <= 0 || s.series < s.Limit) && set.Next() {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		if err := add(); err != nil {
			return nil, nil, err
		}
	}
	if err := set.Err(); err != nil {
		return nil, nil, err
	}
	for _, warning := range set.Warnings().AsErrors() {
		warnings = append(warnings, warning.Error())
	}
	return s.writer.Bytes(), warnings, nil
}

func (s *SelectStream) chunkSeries(series storage.ChunkSeries) error {
	s.chunks = s.chunks[:0]
	s.iter = series.Iterator(s.iter)
	for s.iter.Next() {
		meta := s.iter.At()
		if !meta.OverlapsClosedInterval(s.MinTime, s.MaxTime) || meta.Chunk.NumSamples() == 0 {
			continue // Chunks that are encoded for the occasion are not chosen by time.
		}
		s.chunks = append(s.chunks, meta)
	}
	if err := s.iter.Err(); err != nil {
		return fmt.Errorf("chunks of series %s: %w", series.Labels(), err)
	}
	if len(s.chunks) == 0 {
		return nil
	}
	return s.add(series.Labels(), s.chunks)
}

// add adds a series to the frame, which is sent once it is large enough.
func (s *SelectStream) add(ls labels.Labels, metas []chunks.Meta) error {
	s.series++
	if err := s.writer.Add(ls, metas); err != nil {
		return err
	}
	if s.writer.Len() < selectBytes {
		return nil
	}
	if err := s.Send(s.writer.Bytes()); err != nil {
		return err
	}
	s.writer.Reset()
	return nil
}
