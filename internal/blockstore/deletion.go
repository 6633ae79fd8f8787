package blockstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// deletionVersion is the version of the objects of a deletion. A reader that took one of
// a later version for one of its own might show what was deleted, so it refuses them.
const deletionVersion = 1

// errCorruptDeletion says that the record of a deletion cannot be understood.
var errCorruptDeletion = errors.New("corrupt record of a deletion")

// Deletion is a request to delete samples: of the series that any of its selectors
// matches, or all of a tenant. It takes away what existed when it was accepted.
type Deletion struct {
	Version int       `json:"version"`
	ID      ulid.ULID `json:"id"`
	// Selectors are in PromQL. A deletion of the tenant has none.
	Selectors []string `json:"selectors,omitempty"`
	// WholeTenant says that all that the tenant had is deleted.
	WholeTenant bool `json:"whole_tenant,omitempty"`
	// MinMs and MaxMs are inclusive. No series is deleted beyond the moment of acceptance.
	MinMs int64 `json:"min_ms"`
	MaxMs int64 `json:"max_ms"`
	// Accepted is when, by the clock of the process that accepted it. By says who asked.
	Accepted time.Time `json:"accepted"`
	By       string    `json:"by,omitempty"`
	// Blocks are the sources of the blocks in the bucket that overlapped the range when
	// the deletion was accepted. nil says that they have not been listed yet.
	Blocks []ulid.ULID `json:"blocks"`
}

// Settlement says that every ingester has carried out a deletion on what it holds.
type Settlement struct {
	Version int `json:"version"`
	// Blocks are those that the ingesters had on their disks then. They may be in the
	// bucket, or get there, as they were before.
	Blocks []ulid.ULID `json:"blocks"`
}

// Rewrite says that samples were taken out of blocks.
type Rewrite struct {
	Blocks []ulid.ULID `json:"blocks"`
	// Into has what is left of them; zero: nothing is.
	Into ulid.ULID `json:"into,omitzero"`
}

// Receipt says what became of a deletion that is complete.
type Receipt struct {
	Deletion
	Completed time.Time `json:"completed"`
	Rewritten []Rewrite `json:"rewritten"`
}

// ActiveDeletion is a deletion that is not complete.
type ActiveDeletion struct {
	Deletion
	// Settlement is nil while there are ingesters that have not carried it out.
	Settlement *Settlement

	sources map[ulid.ULID]struct{} // of both
}

// Touches reports whether a block holds samples that existed when the deletion was
// accepted, of the deletion's time. While that is not settled, every block may.
func (d *ActiveDeletion) Touches(b *Block) bool {
	if d.MaxMs < b.Meta.MinTime || d.MinMs >= b.Meta.MaxTime {
		return false
	}
	return d.Settlement == nil || d.Blocks == nil || d.Includes(b)
}

// Includes reports whether a block, or one that went into it, is surely among those that
// existed when the deletion was accepted.
func (d *ActiveDeletion) Includes(b *Block) bool {
	return slices.ContainsFunc(Sources(b.Meta), func(source ulid.ULID) bool {
		_, ok := d.sources[source]
		return ok
	})
}

// Masks reports whether samples of a block have to be hidden because of the deletion:
// they are in the block still.
func (d *ActiveDeletion) Masks(b *Block) bool {
	return d.Touches(b) && !slices.Contains(b.Extension.Deletions, d.ID)
}

// The objects of an active deletion, in a folder of its own.
const (
	requestFile  = "request.json"
	settledFile  = "settled.json"
	progressFile = "progress.json"
	cleanName    = "clean.json"
)

func activePrefix(id tenant.ID) string { return deletionPrefix + "/active/" + string(id) }

func activeKey(id tenant.ID, deletion ulid.ULID, file string) string {
	return activePrefix(id) + "/" + deletion.String() + "/" + file
}

func donePrefix(id tenant.ID) string { return deletionPrefix + "/done/" + string(id) }

func doneKey(id tenant.ID, deletion ulid.ULID) string {
	return donePrefix(id) + "/" + deletion.String() + ".json"
}

// PutDeletion records a deletion, which begins with it, or replaces its record. Only who
// has it accepted may, and others once its blocks have to be listed in its place.
func (s *Store) PutDeletion(ctx context.Context, id tenant.ID, d Deletion) error {
	d.Version = deletionVersion
	return s.putJSON(ctx, activeKey(id, d.ID, requestFile), d)
}

// SettleDeletion records that every ingester has carried out a deletion. Repeating it
// adds nothing: the first settlement stays.
func (s *Store) SettleDeletion(ctx context.Context, id tenant.ID, deletion ulid.ULID, blocks []ulid.ULID) error {
	name := activeKey(id, deletion, settledFile)
	there, err := s.bucket.Exists(ctx, name)
	if err != nil || there {
		return err
	}
	if blocks == nil {
		blocks = []ulid.ULID{}
	}
	return s.putJSON(ctx, name, Settlement{Version: deletionVersion, Blocks: blocks})
}

// NoteRewrite adds to what was done for a deletion. One process at a time may.
func (s *Store) NoteRewrite(ctx context.Context, id tenant.ID, deletion ulid.ULID, rewrite Rewrite) error {
	rewritten, err := s.Rewritten(ctx, id, deletion)
	if err != nil {
		return err
	}
	same := func(r Rewrite) bool { return r.Into == rewrite.Into && slices.Equal(r.Blocks, rewrite.Blocks) }
	if slices.ContainsFunc(rewritten, same) {
		return nil
	}
	return s.putJSON(ctx, activeKey(id, deletion, progressFile), append(rewritten, rewrite))
}

// Rewritten returns what was done for an active deletion so far.
func (s *Store) Rewritten(ctx context.Context, id tenant.ID, deletion ulid.ULID) ([]Rewrite, error) {
	rewritten := []Rewrite{}
	_, err := s.readJSON(ctx, activeKey(id, deletion, progressFile), &rewritten)
	return rewritten, err
}

// FinishDeletion leaves a receipt of a deletion and ends it: it hides nothing any more.
func (s *Store) FinishDeletion(ctx context.Context, id tenant.ID, receipt Receipt) error {
	receipt.Version = deletionVersion
	if err := s.putJSON(ctx, doneKey(id, receipt.ID), receipt); err != nil {
		return err
	}
	// The request goes first: without it the others count for nothing, and a request
	// without a settlement would hide too much.
	for _, file := range []string{requestFile, settledFile, progressFile} {
		if err := s.remove(ctx, activeKey(id, receipt.ID, file)); err != nil {
			return fmt.Errorf("end deletion %s of tenant %s: %w", receipt.ID, id, err)
		}
	}
	return nil
}

// Receipts returns what became of a tenant's deletions that are complete and were begun
// since, the oldest first.
func (s *Store) Receipts(ctx context.Context, id tenant.ID, since time.Time) ([]Receipt, error) {
	var names []string
	err := s.bucket.Iter(ctx, donePrefix(id), func(name string) error {
		text, ok := strings.CutSuffix(name[strings.LastIndexByte(name, '/')+1:], ".json")
		deletion, err := ulid.ParseStrict(text)
		if ok && err == nil && !ulid.Time(deletion.Time()).Before(since) {
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list receipts of deletions of tenant %s: %w", id, err)
	}
	slices.Sort(names) // by time
	receipts := make([]Receipt, 0, len(names))
	for _, name := range names {
		var receipt Receipt
		found, err := s.readJSON(ctx, name, &receipt)
		if err != nil {
			return nil, err
		}
		if found {
			receipts = append(receipts, receipt)
		}
	}
	return receipts, nil
}

// AskCleaning asks the compactor to carry out a tenant's deletions in the blocks now.
func (s *Store) AskCleaning(ctx context.Context, id tenant.ID) error {
	return s.putJSON(ctx, activePrefix(id)+"/"+cleanName, struct {
		Version int `json:"version"`
	}{deletionVersion})
}

// EndCleaning takes back what AskCleaning asked for.
func (s *Store) EndCleaning(ctx context.Context, id tenant.ID) error {
	return s.remove(ctx, activePrefix(id)+"/"+cleanName)
}

// TenantDeletions are the active deletions of a tenant, the oldest first.
type TenantDeletions struct {
	Active []ActiveDeletion
	// Cleaning says that AskCleaning was called.
	Cleaning bool
	// Fault says that there is a deletion whose record cannot be understood, so that
	// nobody can tell what it hides.
	Fault error
}

// Deletions returns the active deletions of all tenants that have any. An error, or one
// in a tenant's Fault, means that some may be missing. It takes one listing, and two reads for each deletion that
// it has not seen settled before.
func (s *Store) Deletions(ctx context.Context) (map[tenant.ID]TenantDeletions, error) {
	return s.deletions(ctx, deletionPrefix+"/active")
}

// DeletionsOf returns the active deletions of one tenant.
func (s *Store) DeletionsOf(ctx context.Context, id tenant.ID) (TenantDeletions, error) {
	all, err := s.deletions(ctx, activePrefix(id))
	return all[id], err
}

// deletionName names a deletion among those of all tenants.
type deletionName struct {
	tenant tenant.ID
	id     ulid.ULID
}

func (s *Store) deletions(ctx context.Context, prefix string) (map[tenant.ID]TenantDeletions, error) {
	settled := map[deletionName]bool{} // of those with a request
	var withRequest []deletionName
	found := map[tenant.ID]TenantDeletions{}
	err := s.bucket.Iter(ctx, prefix, func(name string) error {
		id, deletion, file, ok := parseActiveKey(name)
		switch {
		case !ok:
		case file == cleanName:
			of := found[id]
			of.Cleaning = true
			found[id] = of
		case file == requestFile:
			withRequest = append(withRequest, deletionName{id, deletion})
		case file == settledFile:
			settled[deletionName{id, deletion}] = true
		}
		return nil
	}, objstore.WithRecursiveIter())
	if err != nil {
		return nil, fmt.Errorf("list deletions: %w", err)
	}
	slices.SortFunc(withRequest, func(a, b deletionName) int { return a.id.Compare(b.id) })
	read, faults := make([]*ActiveDeletion, len(withRequest)), make([]error, len(withRequest))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(metaReads)
	for i, name := range withRequest {
		group.Go(func() (err error) {
			read[i], err = s.readDeletion(groupCtx, name, settled[name])
			if errors.Is(err, errCorruptDeletion) {
				faults[i], err = err, nil
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, name := range withRequest {
		of := found[name.tenant]
		of.Fault = errors.Join(of.Fault, faults[i])
		if read[i] != nil { // or it is complete by now
			of.Active = append(of.Active, *read[i])
		}
		found[name.tenant] = of
	}
	if prefix == deletionPrefix+"/active" {
		s.forgetDeletions(withRequest)
	}
	return found, nil
}

// readDeletion returns nil if the deletion is gone.
func (s *Store) readDeletion(ctx context.Context, name deletionName, isSettled bool) (*ActiveDeletion, error) {
	s.mu.Lock()
	known := s.mu.deletions[name]
	s.mu.Unlock()
	if known != nil {
		return known, nil
	}
	d := &ActiveDeletion{}
	key := activeKey(name.tenant, name.id, requestFile)
	found, err := s.readJSON(ctx, key, &d.Deletion)
	if err != nil || !found {
		return nil, err
	}
	if d.ID != name.id {
		return nil, fmt.Errorf("%w: %s is that of deletion %s", errCorruptDeletion, key, d.ID)
	}
	if isSettled {
		var settlement Settlement
		found, err := s.readJSON(ctx, activeKey(name.tenant, name.id, settledFile), &settlement)
		if err != nil {
			return nil, err
		}
		if found {
			d.Settlement = &settlement
		}
	}
	d.index()
	if d.Settlement != nil && d.Blocks != nil { // It will not change any more.
		s.mu.Lock()
		s.mu.deletions[name] = d
		s.mu.Unlock()
	}
	return d, nil
}

// index prepares d to be asked about blocks.
func (d *ActiveDeletion) index() {
	d.sources = make(map[ulid.ULID]struct{}, len(d.Blocks))
	for _, source := range d.Blocks {
		d.sources[source] = struct{}{}
	}
	if d.Settlement != nil {
		for _, source := range d.Settlement.Blocks {
			d.sources[source] = struct{}{}
		}
	}
}

func (s *Store) forgetDeletions(active []deletionName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.mu.deletions, func(name deletionName, _ *ActiveDeletion) bool { return !slices.Contains(active, name) })
}

// parseActiveKey splits the name of an object of an active deletion.
func parseActiveKey(name string) (id tenant.ID, deletion ulid.ULID, file string, ok bool) {
	rest, ok := strings.CutPrefix(name, deletionPrefix+"/active/")
	if !ok {
		return "", ulid.ULID{}, "", false
	}
	parts := strings.Split(rest, "/")
	id, err := tenant.Parse(parts[0])
	if err != nil {
		return "", ulid.ULID{}, "", false
	}
	if len(parts) == 2 && parts[1] == cleanName {
		return id, ulid.ULID{}, cleanName, true
	}
	if len(parts) != 3 {
		return "", ulid.ULID{}, "", false
	}
	deletion, err = ulid.ParseStrict(parts[1])
	return id, deletion, parts[2], err == nil
}

func (s *Store) putJSON(ctx context.Context, name string, value any) error {
	text, err := json.Marshal(value)
	if err == nil {
		err = s.bucket.Upload(ctx, name, bytes.NewReader(text))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// readJSON reads an object of a deletion; found is false if there is none.
func (s *Store) readJSON(ctx context.Context, name string, value any) (found bool, err error) {
	text, found, err := s.readSmall(ctx, name)
	if err != nil || !found {
		return false, err
	}
	if err := json.Unmarshal(text, value); err != nil {
		return true, fmt.Errorf("%w: %s: %w", errCorruptDeletion, name, err)
	}
	version := deletionVersion
	switch v := value.(type) {
	case *Deletion:
		version = v.Version
	case *Settlement:
		version = v.Version
	case *Receipt:
		version = v.Version
	}
	if version != deletionVersion {
		return true, fmt.Errorf("%w: %s has version %d, this build reads %d", errCorruptDeletion, name, version, deletionVersion)
	}
	return true, nil
}
