package remoteblock

import (
	"context"
	"slices"
	"sync"

	"github.com/prometheus/prometheus/tsdb/chunks"
)

const (
	// aheadBytes is how far chunks are loaded before they are asked for.
	aheadBytes = 16 << 20
	// loadBytes is how many bytes of chunks are loaded at once.
	loadBytes = 4 << 20
	// maxSpan is the largest part of a segment that becomes resident as one.
	maxSpan = 1 << 20
	// chunkGap is up to how many bytes between two chunks are loaded along with them.
	chunkGap = 4 << 10
)

// plan is the chunks that will be asked for, in this order, and loads them ahead. It is
// safe for concurrent use.
type plan struct {
	guess int64 // how long the last chunk of a series likely is at most

	mu struct {
		sync.Mutex
		spans   []chunkSpan // in the order of the segments and their offsets
		used    int         // the span that was asked for last
		loaded  int         // the spans before it are resident
		claimed int         // the spans before it are resident, or being loaded
		running bool        // a goroutine loads spans
		err     error       // of loading
		changed chan struct{}
	}
}

// chunkSpan is a part of a segment that has chunks which will be asked for.
type chunkSpan struct {
	segment int
	Range
}

func newPlan(guess int64) *plan {
	p := &plan{guess: guess}
	p.mu.changed = make(chan struct{})
	return p
}

// add plans for the chunks of one series that are in the time range of the selection.
func (p *plan) add(sel *Selection, metas []chunks.Meta) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, m := range metas {
		if m.MaxTime < sel.mint || m.MinTime > sel.maxt {
			continue
		}
		segment, start := chunks.BlockChunkRef(m.Ref).Unpack()
		if segment < 0 || segment >= len(sel.r.header.segments) {
			continue // to be reported when the chunk is asked for
		}
		end := int64(start) + p.guess
		if i+1 < len(metas) {
			if s, next := chunks.BlockChunkRef(metas[i+1].Ref).Unpack(); s == segment && next > start {
				end = int64(next)
			}
		}
		p.addLocked(segment, part(int64(start), min(end, sel.r.header.segments[segment].Size)))
	}
}

func (p *plan) addLocked(segment int, r Range) {
	if n := len(p.mu.spans); n > p.mu.claimed { // nobody loads the last one yet: it may grow
		last := &p.mu.spans[n-1]
		if last.segment == segment && r.Start >= last.Start && r.Start <= last.End+chunkGap && r.End-last.Start <= maxSpan {
			last.End = max(last.End, r.End)
			return
		}
	}
	p.mu.spans = append(p.mu.spans, chunkSpan{segment, r})
}

// start lets a goroutine load what is planned, unless one does.
func (p *plan) start(sel *Selection) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.startLocked(sel)
}

func (p *plan) startLocked(sel *Selection) {
	if p.mu.running || p.mu.err != nil || len(p.nextLocked()) == 0 {
		return
	}
	p.mu.running = sel.r.spawn(func() { p.run(sel) })
}

// nextLocked returns the spans that are to be loaded next.
func (p *plan) nextLocked() []chunkSpan {
	ahead := int64(0)
	for _, s := range p.mu.spans[min(p.mu.used, p.mu.loaded):p.mu.loaded] {
		ahead += s.End - s.Start
	}
	var (
		bytes int64
		end   = p.mu.loaded
	)
	for end < len(p.mu.spans) && bytes < loadBytes && (ahead+bytes < aheadBytes || end <= p.mu.used) {
		bytes += p.mu.spans[end].End - p.mu.spans[end].Start
		end++
	}
	return p.mu.spans[p.mu.loaded:end]
}

// run loads spans until enough are ahead.
func (p *plan) run(sel *Selection) {
	for {
		p.mu.Lock()
		next := slices.Clone(p.nextLocked())
		if len(next) == 0 || p.mu.err != nil {
			p.mu.running = false
			p.mu.Unlock()
			return
		}
		p.mu.claimed = p.mu.loaded + len(next)
		p.mu.Unlock()

		err := sel.loadSpans(next)

		p.mu.Lock()
		if p.mu.err = err; err == nil {
			p.mu.loaded = p.mu.claimed
		}
		close(p.mu.changed)
		p.mu.changed = make(chan struct{})
		p.mu.Unlock()
	}
}

// loadSpans makes parts of segments resident.
func (sel *Selection) loadSpans(spans []chunkSpan) error {
	for len(spans) > 0 {
		segment, n := spans[0].segment, 1
		for n < len(spans) && spans[n].segment == segment {
			n++
		}
		f, err := sel.r.segment(segment)
		if err != nil {
			return err
		}
		ranges := make([]Range, n)
		for i := range ranges {
			ranges[i] = spans[i].Range
		}
		if err := sel.r.load(sel.ctx, f, ranges...); err != nil {
			return sel.r.failed(sel.r.header.segments[segment].Name, err)
		}
		spans = spans[n:]
	}
	return nil
}

// await waits until the chunk at offset is resident, as far as it was planned, and
// returns how far it and what follows are. ok is false if it was not planned.
func (p *plan) await(ctx context.Context, sel *Selection, segment int, offset int64) (end int64, ok bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i, ok := p.findLocked(segment, offset)
	if !ok {
		return 0, false, nil
	}
	p.mu.used = max(p.mu.used, i)
	for i >= p.mu.loaded {
		if p.mu.err != nil {
			return 0, true, p.mu.err
		}
		p.startLocked(sel)
		if !p.mu.running {
			return 0, true, errClosed
		}
		changed := p.mu.changed
		p.mu.Unlock()
		select {
		case <-changed:
			p.mu.Lock()
		case <-ctx.Done():
			p.mu.Lock()
			return 0, true, context.Cause(ctx)
		}
	}
	p.startLocked(sel)
	end = p.mu.spans[i].End
	for i++; i < p.mu.loaded && p.mu.spans[i].segment == segment && p.mu.spans[i].Start <= end; i++ {
		end = max(end, p.mu.spans[i].End)
	}
	return end, true, nil
}

// findLocked returns the span that has a chunk; mostly it is the one of last time, or
// the next.
func (p *plan) findLocked(segment int, offset int64) (int, bool) {
	has := func(i int) bool {
		s := &p.mu.spans[i]
		return s.segment == segment && s.Start <= offset && offset < s.End
	}
	for i := p.mu.used; i < min(p.mu.used+2, len(p.mu.spans)); i++ {
		if has(i) {
			return i, true
		}
	}
	i, found := slices.BinarySearchFunc(p.mu.spans, chunkSpan{segment, part(offset, offset)}, func(s, want chunkSpan) int {
		switch {
		case s.segment != want.segment:
			return s.segment - want.segment
		case s.Start > want.Start:
			return 1
		case want.Start >= s.End:
			return -1
		}
		return 0
	})
	return i, found
}
