package ingester

import (
	"fmt"
	"sync/atomic"

	"github.com/prometheus/prometheus/tsdb"
)

const (
	// mapAfterSamples is how many samples are appended for each series of a head before
	// the complete chunks are written out. Series that are scraped together complete
	// their chunks together, and a round that finds none looks at one number per stripe:
	// so rounds that come often cost next to nothing, and find the chunks soon.
	mapAfterSamples = 1
	// mapAfterLeast is for small heads: their files would take more than their chunks do. A
	// file takes one of the files that a process may have open, a mapped region, and a buffer
	// of 64 KiB; so many samples are some 1,100 chunks of 300 bytes. A tenant with 100 series
	// that are scraped every 15 s has 74,000 samples when its head is cut.
	mapAfterLeast = 128 << 10
)

// headChunks says when the complete chunks of a head are due to be written out. By the
// clock alone they would pile up whenever samples come faster than they were scraped: in
// a backfill, or after an outage. It is safe for concurrent use.
type headChunks struct {
	appended atomic.Int64 // samples since they were written out
	least    int64        // 0: mapAfterLeast
}

// due counts samples that were appended to a head of so many series, and reports
// whether its complete chunks are due.
func (c *headChunks) due(samples int, series uint64) bool {
	least := c.least
	if least == 0 {
		least = mapAfterLeast
	}
	return c.appended.Add(int64(samples)) >= max(least, mapAfterSamples*int64(series))
}

// mapChunksIfDue writes out what pushes have completed, unless somebody does already or
// cuts the head. use is held shared, appending is not.
func (t *tenantDB) mapChunksIfDue(db *tsdb.DB, samples int) {
	if !t.chunks.due(samples, db.Head().NumSeries()) || !t.cutting.tryTake() {
		return
	}
	defer t.cutting.give()
	// The samples are in the log, so the push has succeeded whatever comes of it.
	if err := t.mapChunks(db); err != nil {
		t.log.Warn("Complete chunks were not written out; nothing is lost, they stay in memory until it works", "err", err)
	}
}

// mapChunks writes the complete chunks of the head to its files, which are mapped into
// memory, if the disk has room. use is held shared, and cutting.
//
// The TSDB panics if it can't write a chunk, which leaves the head as nobody has tested
// it: the TSDB is then opened anew from its log, which has all samples.
func (t *tenantDB) mapChunks(db *tsdb.DB) (err error) {
	if err := t.ing.disk.check(0, t.ing.caps.series.Load()); err != nil {
		return err
	}
	t.chunks.appended.Store(0)
	defer func() {
		if cause := recover(); cause != nil {
			t.broken.Store(true)
			err = fmt.Errorf("write out the chunks of the head of tenant %s, which is opened anew from its log: %v", t.id, cause)
		}
	}()
	db.ForceHeadMMap()
	return nil
}
