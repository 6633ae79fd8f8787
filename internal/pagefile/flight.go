package pagefile

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"syscall"
)

// flight is a request to the store that is under way or waits for its turn, and those who
// wait for its pages.
type flight struct {
	span   span
	cancel context.CancelFunc
	done   chan struct{} // closed at the end
	err    error         // set before done is closed

	// Guarded by file.mu.
	waiters int
	// landing says that the bytes are there and are being written: nobody gives up a
	// flight any more, so that no other writes the same pages at the same time.
	landing bool
	// abandoned says that nobody waits any more, and that the bytes must not be written,
	// since another flight may have the same pages.
	abandoned bool
}

// planLocked returns the flights that bring pages of spans, and the requests for the rest.
func (f *file) planLocked(spans []span) (flights []*flight, requests []span) {
	var taken []span
	for _, flight := range f.mu.flights {
		taken = append(taken, flight.span)
		if overlap(spans, flight.span) {
			flights = append(flights, flight)
		}
	}
	taken = union(taken)
	requests = coalesce(subtract(spans, taken), taken, f.cache.tuning.maxGap/pageSize, f.cache.tuning.maxRequest/pageSize)
	return flights, requests
}

// join returns the flights that bring the pages of spans, after it has started those that
// are missing. The caller waits for or leaves each of them, once.
func (f *file) join(ctx context.Context, spans []span, read ReadFunc) (flights []*flight, fetched int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// A flight may have landed since spans was made; whoever sets bits takes f.mu to do so.
	flights, requests := f.planLocked(f.stillAbsent(spans))
	for _, flight := range flights {
		flight.waiters++
	}
	for _, s := range requests {
		// The flight outlives this caller if others come to wait for it.
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		flight := &flight{span: s, cancel: cancel, done: make(chan struct{}), waiters: 1}
		if err := f.cache.begin(f); err != nil {
			flight.err = err
			close(flight.done)
		} else {
			f.mu.flights = append(f.mu.flights, flight)
			go f.fly(ctx, flight, read)
		}
		flights = append(flights, flight)
	}
	return flights, f.bytes(requests)
}

// wait returns when the flight has landed, or leaves it when ctx ends.
func (f *file) wait(ctx context.Context, flight *flight) error {
	select {
	case <-flight.done:
		return flight.err
	case <-ctx.Done():
		f.leave(flight)
		return context.Cause(ctx)
	}
}

// leave says that one caller does not wait for the flight any more.
func (f *file) leave(flight *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	flight.waiters--
	if flight.waiters == 0 && !flight.landing {
		flight.abandoned = true
		f.removeLocked(flight)
		flight.cancel()
	}
}

func (f *file) removeLocked(flight *flight) {
	if i := slices.Index(f.mu.flights, flight); i >= 0 {
		f.mu.flights = slices.Delete(f.mu.flights, i, i+1)
	}
}

// fly brings the pages of a flight and tells those who wait. It holds f.
func (f *file) fly(ctx context.Context, flight *flight, read ReadFunc) {
	defer f.cache.end(f)
	defer flight.cancel()
	err := f.bring(ctx, flight, read)

	f.mu.Lock()
	f.removeLocked(flight)
	f.mu.Unlock()
	flight.err = err
	close(flight.done)
}

func (f *file) bring(ctx context.Context, flight *flight, read ReadFunc) error {
	offset := flight.span.first * pageSize
	got, err := f.cache.fetch(ctx, read, offset, f.bytes([]span{flight.span}))
	if err != nil {
		return err
	}
	defer got.release()
	return f.land(flight, got.bytes())
}

// land writes the pages of a flight to disk and makes them resident. Pages that are
// resident already are left alone: somebody may have verified them.
func (f *file) land(flight *flight, p []byte) error {
	disk, err := f.open(true)
	if err != nil {
		return err
	}
	f.mu.Lock()
	if flight.abandoned {
		f.mu.Unlock()
		return context.Canceled
	}
	flight.landing = true
	missing := f.resident.absent(nil, flight.span)
	growth := f.bytes(f.unknownLocked(missing))
	for _, s := range missing {
		for page := s.first; page < s.end && len(f.mu.restored) > 0; page++ {
			delete(f.mu.restored, uint32(page))
		}
	}
	journal := f.mu.journalEnd
	for _, s := range missing {
		f.mu.journalEnd += s.pages() * entrySize
	}
	growth += f.mu.journalEnd - journal
	f.mu.Unlock()

	f.cache.grow(f, growth)
	for i, s := range missing {
		part := p[(s.first-flight.span.first)*pageSize:]
		part = part[:f.bytes([]span{s})]
		if err := f.store(disk, s, part, journal); err != nil {
			f.cache.shrink(f, f.bytes(missing[i:]))
			return err
		}
		journal += s.pages() * entrySize
	}
	return nil
}

// store writes p, the pages of s, and then their checksums, and makes the pages resident.
func (f *file) store(disk *os.File, s span, p []byte, journal int64) error {
	_, err := f.cache.writeAt(disk, p, dataStart+s.first*pageSize)
	if isFull(err) && f.cache.reclaim(int64(len(p))) {
		_, err = f.cache.writeAt(disk, p, dataStart+s.first*pageSize)
	}
	if isFull(err) {
		return fmt.Errorf("the disk of the page cache is full, though its budget is not: free space in %s, or give the cache less: %w", f.cache.cfg.Dir, err)
	}
	if err != nil {
		return fmt.Errorf("write the page cache's file of %s: %w", f.key, err)
	}
	entries := make([]byte, 0, s.pages()*entrySize)
	for page := s.first; page < s.end; page++ {
		n := min(pageSize, len(p))
		entries = appendEntry(entries, uint32(page), crc32.Checksum(p[:n], castagnoli()))
		p = p[n:]
	}
	// Without its checksum a page serves this process, and is absent for the next one.
	if _, err := f.cache.writeAt(disk, entries, journal); err != nil {
		f.cache.metrics.unrecorded.Add(float64(s.pages()))
	}
	f.mu.Lock()
	f.resident.add(s)
	f.mu.Unlock()
	return nil
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// believe makes those pages of spans resident that an earlier process left and whose
// bytes have the checksum that it wrote down, and forgets those whose bytes have not.
func (f *file) believe(spans []span) {
	type claim struct{ page, sum uint32 }
	var claims []claim
	f.mu.Lock()
	for _, s := range spans {
		for page := s.first; page < s.end && len(f.mu.restored) > 0; page++ {
			if sum, ok := f.mu.restored[uint32(page)]; ok {
				claims = append(claims, claim{uint32(page), sum})
			}
		}
	}
	f.mu.Unlock()
	if len(claims) == 0 {
		return
	}
	disk, openErr := f.open(false)
	buf := make([]byte, pageSize)
	for _, c := range claims {
		s := span{first: int64(c.page), end: int64(c.page) + 1}
		p := buf[:f.bytes([]span{s})]
		good := false
		if openErr == nil {
			_, err := disk.ReadAt(p, dataStart+s.first*pageSize)
			good = err == nil && crc32.Checksum(p, castagnoli()) == c.sum
		}
		f.settle(s, c.sum, good)
	}
}

// settle ends the doubt about a restored page, unless somebody else has.
func (f *file) settle(s span, sum uint32, good bool) {
	f.mu.Lock()
	claimed, ok := f.mu.restored[uint32(s.first)]
	if !ok || claimed != sum {
		f.mu.Unlock()
		return
	}
	delete(f.mu.restored, uint32(s.first))
	if good {
		f.resident.add(s)
	}
	f.mu.Unlock()
	if !good {
		f.cache.metrics.disbelieved.Inc()
		f.cache.shrink(f, f.bytes([]span{s}))
	}
}
