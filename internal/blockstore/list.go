package blockstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	// metaReads bounds the objects of one tenant that are read at once while listing.
	metaReads = 16
	// maxSmallObject bounds what is read into memory of a meta.json or a mark, in
	// bytes. A source in a meta.json takes about 30 bytes.
	maxSmallObject = 16 << 20
	// metaVersion is the only version of meta.json there is.
	metaVersion = 1
)

// Block is what is known of a whole block in the bucket. It is immutable.
type Block struct {
	Meta      tsdb.BlockMeta
	Extension Extension
	Deletion  *DeletionMark  // nil: the block is to stay
	NoCompact *NoCompactMark // nil: the block may be compacted
	// Files are those that hold the data, in order of name, as far as is known: nil asks
	// for Store.Files.
	Files []File
	// HasSidecar says that SidecarFile is beside the block. Only a listing tells, no index.
	HasSidecar bool
	// Previous says that the block is in the previous bucket only: it can be read, but
	// neither marked nor deleted.
	Previous bool
}

// Partial is what is known of a block that cannot be used.
type Partial struct {
	// LastModified is when the newest of its objects was written.
	LastModified time.Time
	// Whole says that the block is whole by now: its upload was completed since it
	// was listed.
	Whole bool
	// DamagedMeta says that there is a meta.json, which cannot be understood; the data
	// may well be whole. Otherwise it is an upload or a deletion not yet, or never, completed.
	DamagedMeta bool
	// Marked says that there is a deletion mark: a deletion was begun.
	Marked bool
}

// Tenants lists the tenants that have objects in the bucket, or in the previous one,
// in order of name.
func (s *Store) Tenants(ctx context.Context) ([]tenant.ID, error) {
	var ids []tenant.ID
	if s.previous != nil {
		var err error
		if ids, err = s.previous.Tenants(ctx); err != nil {
			return nil, fmt.Errorf("the previous bucket: %w", err)
		}
	}
	err := s.bucket.Iter(ctx, "", func(name string) error {
		dir, isDir := strings.CutSuffix(name, objstore.DirDelim)
		if id, err := tenant.Parse(dir); isDir && err == nil {
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list tenants in the bucket: %w", err)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// Blocks lists the blocks of a tenant. partial are those that cannot be used: without
// meta.json, or with one that cannot be understood; see Partial. Metas and marks
// are read once and remembered. An error means that the list would have gaps.
//
// Blocks that are in the previous bucket only are among blocks. One that is being
// copied is there and in partial.
func (s *Store) Blocks(ctx context.Context, id tenant.ID) (blocks map[ulid.ULID]Block, partial []ulid.ULID, err error) {
	if s.previous == nil {
		return s.list(ctx, id, nil)
	}
	both, err := s.survey(ctx, id, nil)
	if err != nil {
		return nil, nil, err
	}
	return both.union(), both.partial, nil
}

// Refresh lists the blocks of a tenant like Blocks, for readers: what trusted says of
// blocks, by an index, is taken from there, so that a listing is all that is read. Whoever
// merges or deletes blocks trusts their meta.json alone, and so Blocks.
func (s *Store) Refresh(ctx context.Context, id tenant.ID, trusted map[ulid.ULID]Block) (map[ulid.ULID]Block, error) {
	if s.previous == nil {
		blocks, _, err := s.list(ctx, id, trusted)
		return blocks, err
	}
	both, err := s.survey(ctx, id, trusted)
	if err != nil {
		return nil, err
	}
	return both.union(), nil
}

// Follows reports whether there is a previous bucket, whose blocks no index lists.
func (s *Store) Follows() bool { return s.previous != nil }

// list lists the blocks of a tenant in this bucket alone. What trusted says of a block
// is as good as its meta.json and marks.
func (s *Store) list(ctx context.Context, id tenant.ID, trusted map[ulid.ULID]Block) (blocks map[ulid.ULID]Block, partial []ulid.ULID, err error) {
	found := make(map[ulid.ULID]files)
	err = s.bucket.Iter(ctx, string(id), func(name string) error {
		if _, block, file, ok := parseKey(name); ok {
			found[block] = found[block].with(file)
		}
		return nil
	}, objstore.WithRecursiveIter())
	if err != nil {
		return nil, nil, fmt.Errorf("list blocks of tenant %s: %w", id, err)
	}

	s.mu.Lock()
	known := s.mu.known[id]
	s.mu.Unlock()

	order := make([]ulid.ULID, 0, len(found))
	for block := range found {
		order = append(order, block)
	}
	slices.SortFunc(order, ulid.ULID.Compare)
	read := make([]*Block, len(order))    // nil: partial
	fromTrust := make([]bool, len(order)) // its meta.json was not read
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(metaReads)
	for i, block := range order {
		present := found[block]
		if !present.meta {
			continue
		}
		if old, ok := known[block]; ok && present.same(old) {
			read[i] = &old
			continue
		}
		if old, ok := trusted[block]; ok && present.same(old) {
			old.Previous = false
			read[i], fromTrust[i] = &old, true
			continue
		}
		group.Go(func() (err error) {
			read[i], err = s.readBlock(groupCtx, id, block, present)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, nil, fmt.Errorf("list blocks of tenant %s: %w", id, err)
	}

	blocks = make(map[ulid.ULID]Block, len(order))
	remembered := make(map[ulid.ULID]Block, len(order))
	for i, block := range order {
		if read[i] == nil {
			partial = append(partial, block)
			continue
		}
		listed := *read[i]
		listed.HasSidecar = found[block].sidecar
		if listed.Files == nil {
			listed.Files = trusted[block].Files
		}
		blocks[block] = listed
		if !fromTrust[i] {
			remembered[block] = *read[i]
		}
	}
	s.mu.Lock()
	if len(remembered) == 0 {
		delete(s.mu.known, id) // Anybody may ask for any name of a tenant.
	} else {
		s.mu.known[id] = remembered
	}
	s.mu.Unlock()
	return blocks, partial, nil
}

// Partial says what there is of a block that Blocks listed as partial.
func (s *Store) Partial(ctx context.Context, id tenant.ID, block ulid.ULID) (Partial, error) {
	var p Partial
	err := s.bucket.Iter(ctx, blockPrefix(id, block), func(name string) error {
		attrs, err := s.bucket.Attributes(ctx, name)
		if s.bucket.IsObjNotFoundErr(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if attrs.LastModified.After(p.LastModified) {
			p.LastModified = attrs.LastModified
		}
		_, _, file, _ := parseKey(name)
		p.DamagedMeta = p.DamagedMeta || file == metaFile
		p.Marked = p.Marked || file == deletionMarkFile
		return nil
	}, objstore.WithRecursiveIter())
	if err == nil && p.DamagedMeta {
		_, _, err = s.readMeta(ctx, id, block)
		p.Whole, p.DamagedMeta = err == nil, errors.Is(err, errCorruptMeta)
		if p.DamagedMeta || errors.Is(err, ErrBlockNotFound) {
			err = nil
		}
	}
	if err != nil {
		return Partial{}, fmt.Errorf("look at partial block %s of tenant %s: %w", block, id, err)
	}
	return p, nil
}

// files says which of the small files of a block exist.
type files struct{ meta, deletion, noCompact, sidecar bool }

func (f files) with(file string) files {
	switch file {
	case metaFile:
		f.meta = true
	case deletionMarkFile:
		f.deletion = true
	case noCompactMarkFile:
		f.noCompact = true
	case SidecarFile:
		f.sidecar = true
	}
	return f
}

// same reports whether a block that was read before has these files still.
func (f files) same(old Block) bool {
	return f.deletion == (old.Deletion != nil) && f.noCompact == (old.NoCompact != nil)
}

// readBlock reads meta and marks of a block. The result is nil if the meta cannot
// be understood, or is gone by now.
func (s *Store) readBlock(ctx context.Context, id tenant.ID, block ulid.ULID, present files) (*Block, error) {
	meta, extension, err := s.readMeta(ctx, id, block)
	if errors.Is(err, errCorruptMeta) || errors.Is(err, ErrBlockNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	result := &Block{Meta: *meta, Extension: extension}
	if present.deletion {
		var mark DeletionMark
		found, err := s.readMark(ctx, id, block, deletionMarkFile, &mark)
		switch {
		case errors.Is(err, errCorruptMark):
			// Without a reason and a time the block is neither hidden nor deleted;
			// the compactor will mark it again if it must go.
		case err != nil:
			return nil, err
		case found:
			result.Deletion = &mark
		}
	}
	if present.noCompact {
		var mark NoCompactMark
		found, err := s.readMark(ctx, id, block, noCompactMarkFile, &mark)
		switch {
		case errors.Is(err, errCorruptMark):
			// Somebody wanted the block left alone; that much is known.
			result.NoCompact = &NoCompactMark{Version: markVersion, Reason: NoCompactUnreadableMark, Details: err.Error()}
		case err != nil:
			return nil, err
		case found:
			result.NoCompact = &mark
		}
	}
	return result, nil
}

// readMeta reads and checks the meta of a block.
func (s *Store) readMeta(ctx context.Context, id tenant.ID, block ulid.ULID) (*tsdb.BlockMeta, Extension, error) {
	text, found, err := s.readSmall(ctx, blockKey(id, block, metaFile))
	if err != nil {
		return nil, Extension{}, err
	}
	if !found {
		return nil, Extension{}, ErrBlockNotFound
	}
	return parseMeta(block, text)
}

// parseMeta decodes the meta.json of the block of that name.
func parseMeta(block ulid.ULID, text []byte) (*tsdb.BlockMeta, Extension, error) {
	var meta tsdb.BlockMeta
	err := json.Unmarshal(text, &meta)
	var extension Extension
	if err == nil {
		extension, err = parseExtension(text)
	}
	if err != nil {
		return nil, Extension{}, fmt.Errorf("%w of block %s: %w", errCorruptMeta, block, err)
	}
	if meta.ULID != block {
		return nil, Extension{}, fmt.Errorf("%w of block %s: it is that of block %s", errCorruptMeta, block, meta.ULID)
	}
	if err := checkMeta(&meta); err != nil {
		return nil, Extension{}, fmt.Errorf("%w of block %s: %w", errCorruptMeta, block, err)
	}
	if len(extension.Sources) > 0 {
		meta.Compaction.Sources = extension.Sources
	}
	return &meta, extension, nil
}

func checkMeta(meta *tsdb.BlockMeta) error {
	if meta.Version != metaVersion {
		return fmt.Errorf("it has version %d, this build reads %d", meta.Version, metaVersion)
	}
	if meta.MinTime > meta.MaxTime {
		return fmt.Errorf("minTime %d is after maxTime %d", meta.MinTime, meta.MaxTime)
	}
	return nil
}

// readSmall reads a whole object of limited size; found is false if there is none.
func (s *Store) readSmall(ctx context.Context, name string) (text []byte, found bool, err error) {
	return s.readObject(ctx, name, maxSmallObject)
}

// readObject reads a whole object, or as many bytes of it as limit says; found is false if
// there is none.
func (s *Store) readObject(ctx context.Context, name string, limit int) (text []byte, found bool, err error) {
	r, err := s.bucket.Get(ctx, name)
	if err != nil {
		if s.bucket.IsObjNotFoundErr(err) {
			return nil, false, nil
		}
		return nil, false, fmt.Errorf("read %s: %w", name, err)
	}
	text, err = io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, false, fmt.Errorf("read %s: %w", name, err)
	}
	if len(text) > limit {
		// Nothing that we understand is that large; the decoder will say so.
		text = text[:limit]
	}
	return text, true, nil
}
