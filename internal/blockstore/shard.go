package blockstore

// Shard names the series whose labels.StableHash is Index modulo Count.
type Shard struct {
	Index uint64 `json:"index"`
	// Count is a power of two.
	Count uint64 `json:"count"`
}

const (
	// MaxShards bounds the shards of a tenant.
	MaxShards = 1 << 16
	// MaxSeries is how many series a block should have at most. A day of so many takes
	// about 1 GB of index, of which a reader brings the parts that it needs, and merging
	// it takes about 1 GB of memory. It is a bound on what is planned, not on what can be.
	MaxSeries = 2 << 20
	// maxPlanned bounds the shards that a number of series leads to, which may be a lie.
	maxPlanned = 64
)

// ShardsFor returns into how many shards so many series belong, if a block should have no
// more than most of them.
func ShardsFor(series, most uint64) uint64 {
	count := uint64(1)
	for ; series > most && count < maxPlanned; series /= 2 {
		count *= 2
	}
	return count
}

// All is the shard of all series.
func All() Shard { return Shard{Index: 0, Count: 1} }

// Contains tells whether all series of other are series of s.
func (s Shard) Contains(other Shard) bool {
	return other.Count%s.Count == 0 && other.Index%s.Count == s.Index
}

// Overlaps tells whether there are series that are of both shards.
func (s Shard) Overlaps(other Shard) bool { return s.Contains(other) || other.Contains(s) }

// Halves returns the two shards that the series of s are of when there are twice as many.
func (s Shard) Halves() [2]Shard {
	return [2]Shard{{Index: s.Index, Count: 2 * s.Count}, {Index: s.Index + s.Count, Count: 2 * s.Count}}
}

// Shard returns the series that the block may hold.
func (b Block) Shard() Shard {
	if b.Extension.Shard == nil {
		return All()
	}
	return *b.Extension.Shard
}
