package ingester

import (
	"math"

	"github.com/oklog/ulid/v2"
)

// lateCuts are the cuts of late samples since a TSDB was opened. The chunks of what was cut
// may stay in the files of the head, since the same files have others. Who opens the TSDB
// next finds them, and gives them to their series, if that has the reference still which
// they were written under. That does no harm: they are in a block, too, and are cut once
// more. But if they were deleted from it, they come back. So a deletion has the head drop
// the series, whatever is left of them there, with tombstones in the log; and since some had
// left it before, it has whoever replays the log do without the files (chunksVoid). One goroutine.
type lateCuts struct {
	n          int   // how many blocks
	mint, maxt int64 // of all of them; maxt is exclusive
	// dropped says for a deletion how many there were when the head dropped its series.
	dropped map[ulid.ULID]int
}

func newLateCuts() lateCuts {
	return lateCuts{mint: math.MaxInt64, maxt: math.MinInt64, dropped: map[ulid.ULID]int{}}
}

func (l *lateCuts) add(mint, maxt int64) {
	l.n++
	l.mint, l.maxt = min(l.mint, mint), max(l.maxt, maxt)
}

// concern reports whether the head may have chunks of late samples in its files that a
// deletion of a time is about. An attempt that follows one which dropped the series is not to
// cut what came since.
func (l *lateCuts) concern(deletion ulid.ULID, mint, maxt int64) bool {
	return l.mint <= maxt && mint < l.maxt && l.dropped[deletion] < l.n
}
