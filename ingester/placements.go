package ingester

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/prometheus/tsdb"

	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/hashring"
	"github.com/hundredfold/hundredfold/internal/wire"
)

const (
	placementsFile    = "placements.json"
	placementsVersion = 1

	// placementUnused is how long a placement is remembered after its last use. The
	// other members, who took the same samples, have uploaded theirs by then, or are
	// missed by reads because the placement still names them.
	placementUnused = 6 * time.Hour
	// placementSaved is how often the last use of a placement is written down.
	placementSaved = 30 * time.Minute
)

// errNoMember says that an ingester that was opened outside of a cluster is used in one.
var errNoMember = errors.New("BUG: the ingester takes samples of a cluster and was opened without Deps.Cluster")

// Member is this ingester in a cluster.
type Member struct {
	// Instance is the id of its data directory, and Generation that of its contents.
	Instance   string
	Generation uint64
	// Current returns the placement of new samples as far as this node knows, never nil.
	// Queriers are told of it. Nil: they are not.
	Current func() *cluster.Placement
}

// alone returns the placement of everything on m, which is how samples were placed
// that were taken before there was a cluster.
func (m Member) alone() Placed {
	return Placed{Placement: cluster.NewPlacement(1, []cluster.Placed{{
		Member:     hashring.Member{ID: m.Instance},
		Generation: m.Generation,
	}})}
}

// Placed says by which placement, and with which shard size of the tenant, this
// ingester was chosen for a batch.
type Placed struct {
	Placement *cluster.Placement
	Shard     int
}

func (p Placed) ref() wire.PlacementRef {
	return wire.PlacementRef{Hash: p.Placement.Hash(), Shard: p.Shard}
}

// placements remembers the placements under which a tenant's samples were taken that
// may not be in the bucket yet: reads ask all of their members. It is safe for
// concurrent use.
type placements struct {
	path string

	mu sync.Mutex
	// used are the placements by reference. A new one is in the file before it is here.
	used map[wire.PlacementRef]*placementUse
}

type placementUse struct {
	Placed
	last  time.Time // of use
	saved time.Time // as last is in the file
	// touched says that samples were taken since newest was looked up.
	touched bool
	// newest is not before any sample taken under the placement, in ms.
	newest int64
}

// placementsDisk is the format of placementsFile.
type placementsDisk struct {
	Version    int             `json:"version"`
	Placements []placementDisk `json:"placements"`
	// Alone says that samples were also taken by a process that is no member of a
	// cluster, after the file was written.
	Alone bool `json:"alone,omitempty"`
}

type placementDisk struct {
	// Definition is the placement as internal/cluster encodes it.
	Definition []byte `json:"definition"`
	Shard      int    `json:"shard"`
	// Used is when it was used last, or up to placementSaved before.
	Used time.Time `json:"used"`
}

// openPlacements reads the file in dir. Samples that are there already and that no
// placement accounts for were placed as alone says.
func openPlacements(dir string, now time.Time, alone Placed) (*placements, error) {
	p := &placements{path: filepath.Join(dir, placementsFile), used: map[wire.PlacementRef]*placementUse{}}
	d, err := readPlacements(p.path)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return nil, err
	}
	for _, pd := range d.Placements {
		placement, err := cluster.DecodePlacement(pd.Definition)
		if err != nil {
			return nil, fmt.Errorf("decode %s: %w", p.path, err)
		}
		p.addLocked(Placed{placement, pd.Shard}, earlier(now, pd.Used.Add(placementSaved)))
	}
	if !missing && !d.Alone {
		return p, nil
	}
	// A folder that a TSDB was never opened in holds nothing.
	if _, err := os.Stat(filepath.Join(dir, "wal")); err == nil {
		p.addLocked(alone, now)
	}
	return p, p.saveLocked()
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func readPlacements(path string) (placementsDisk, error) {
	var d placementsDisk
	data, err := os.ReadFile(path)
	if err != nil {
		return d, fmt.Errorf("read the placements of a tenant: %w", err)
	}
	if d, err = decodePlacements(data); err != nil {
		return d, fmt.Errorf("decode %s: %w", path, err)
	}
	return d, nil
}

func decodePlacements(data []byte) (placementsDisk, error) {
	var d placementsDisk
	if err := json.Unmarshal(data, &d); err != nil {
		return d, err
	}
	if d.Version != placementsVersion {
		return d, fmt.Errorf("it has version %d, this build reads %d", d.Version, placementsVersion)
	}
	for _, pd := range d.Placements {
		if pd.Shard < 0 {
			return d, fmt.Errorf("the shard size %d is below 0", pd.Shard)
		}
	}
	return d, nil
}

// noteAlone has the next member of a cluster that opens dir know that a process which
// was none took samples there.
func noteAlone(dir string) error {
	path := filepath.Join(dir, placementsFile)
	d, err := readPlacements(path)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && d.Alone) {
		return nil // A member takes a missing file as the same.
	}
	if err != nil {
		return err
	}
	d.Alone = true
	data, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return writeFile(path, data)
}

func (p *placements) addLocked(placed Placed, last time.Time) {
	p.used[placed.ref()] = &placementUse{Placed: placed, last: last, touched: true, newest: math.MinInt64}
}

// use notes that samples are taken under placed. When it returns, the file says so.
func (p *placements) use(placed Placed, now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if u, ok := p.used[placed.ref()]; ok {
		u.last, u.touched = now, true
		return nil
	}
	p.addLocked(placed, now)
	if err := p.saveLocked(); err != nil {
		delete(p.used, placed.ref())
		return err
	}
	return nil
}

// touch notes that samples were taken under a placement that is in use.
func (p *placements) touch(ref wire.PlacementRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if u, ok := p.used[ref]; ok {
		u.touched = true
	}
}

// saveLocked writes the file. It is done under the lock: who takes the first samples
// under a new placement has to wait for it in any case.
func (p *placements) saveLocked() error {
	d := placementsDisk{Version: placementsVersion, Placements: []placementDisk{}}
	for _, ref := range p.refsLocked() {
		u := p.used[ref]
		d.Placements = append(d.Placements, placementDisk{Definition: u.Placement.Encode(nil), Shard: u.Shard, Used: u.last.UTC()})
	}
	data, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if err := writeFile(p.path, data); err != nil {
		return fmt.Errorf("record the placements of a tenant: %w", err)
	}
	for _, u := range p.used {
		u.saved = u.last
	}
	return nil
}

// refs returns the placements in a fixed order.
func (p *placements) refs() []wire.PlacementRef {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refsLocked()
}

func (p *placements) refsLocked() []wire.PlacementRef {
	return slices.SortedFunc(maps.Keys(p.used), func(a, b wire.PlacementRef) int {
		return cmp.Or(cmp.Compare(a.Hash, b.Hash), cmp.Compare(a.Shard, b.Shard))
	})
}

// find returns the placement with the hash, or nil.
func (p *placements) find(hash uint64) *cluster.Placement {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ref, u := range p.used {
		if ref.Hash == hash {
			return u.Placement
		}
	}
	return nil
}

// tidy looks up the newest sample of placements that were used, forgets those that
// are not used any more and whose samples have all been uploaded, and writes down
// what changed. newest is the time of the newest sample held; uploaded says whether
// all samples held up to a time are in the bucket.
func (p *placements) tidy(now time.Time, newest int64, uploaded func(upTo int64) bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := false
	for ref, u := range p.used {
		if u.touched {
			// A push that is under way touches it once more when it is done.
			u.touched, u.newest = false, max(u.newest, newest)
		}
		if now.Sub(u.last) > placementUnused && uploaded(u.newest) {
			delete(p.used, ref)
			changed = true
			continue
		}
		changed = changed || u.last.Sub(u.saved) >= placementSaved
	}
	if !changed {
		return nil
	}
	return p.saveLocked()
}

// empty reports whether no placement is remembered.
func (p *placements) empty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.used) == 0
}

// tidyPlacements is called with use held shared.
func (t *tenantDB) tidyPlacements(db *tsdb.DB) error {
	if t.placements == nil {
		return nil
	}
	head, newest := db.Head(), db.Head().MaxTime()
	if maxTime := t.blocks.maxTime(); maxTime > newest {
		newest = maxTime - 1
	}
	return t.placements.tidy(t.ing.now(), newest, func(upTo int64) bool {
		if head.NumSeries() > 0 && min(head.MinTime(), head.MinOOOTime()) <= upTo {
			return false
		}
		return t.blocks.notUploaded(upTo+1) == nil && !slices.ContainsFunc(t.blocks.get(), func(b *localBlock) bool {
			return b.meta.MinTime <= upTo && !t.shipped.has(b.meta.ULID)
		})
	})
}
