package cluster

import "time"

// forgetAfter is how long an instance must have been absent before others may
// declare it Left: longer than any restart, shorter than a night.
const forgetAfter = time.Hour

// Absence says for how long this node has not heard of an instance, by this node's
// monotonic clock. An instance that is alive has none.
type Absence map[string]time.Duration

// Forget returns the one dead instance that may be declared Left now: the one that
// is absent longest, and for an hour at least. No zone may be gone: when a zone is
// away, its ingesters have lost their network rather than their lives, and their
// samples are still needed. For the same reason most instances must be there:
// otherwise it may be this node that is cut off.
func (r Registry) Forget(absent Absence) (Record, bool) { return r.forget(absent, forgetAfter) }

func (r Registry) forget(absent Absence, after time.Duration) (Record, bool) {
	here, total := 0, 0
	alive, all := map[string]int{}, map[string]int{}
	for _, rec := range r.records {
		// One that joins holds nothing that would be missed.
		if rec.State == Left || rec.State == Joining {
			continue
		}
		all[rec.Zone]++
		total++
		if _, gone := absent[rec.ID]; !gone {
			alive[rec.Zone]++
			here++
		}
	}
	if 2*here <= total {
		return Record{}, false
	}
	for zone := range all {
		if alive[zone] == 0 {
			return Record{}, false
		}
	}
	var (
		oldest Record
		since  time.Duration
	)
	for _, rec := range r.records {
		if d := absent[rec.ID]; rec.State != Left && d >= after && d > since {
			oldest, since = rec, d
		}
	}
	return oldest, since > 0
}
