package blockstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	indexVersion = 1
	// maxIndexObject and maxIndexText bound an index in the bucket and unpacked, in bytes.
	// A block of a day takes about 200 bytes there and 700 unpacked.
	maxIndexObject = 64 << 20
	maxIndexText   = 256 << 20
	// maxIndexFiles bounds the files of one block in an index.
	maxIndexFiles = 1 << 16
)

// ErrCorruptIndex says that a block index cannot be understood, or is not of the tenant
// whose name it bears.
var ErrCorruptIndex = errors.New("corrupt block index")

// Index is what one object says of all blocks of a tenant, so that readers need neither
// list the bucket nor read the meta.json of every block. It is a copy of what the bucket
// says, of the moment when it was listed: blocks that came later are not in it, and others
// may be gone. It is immutable.
type Index struct {
	// Generation rises with each index of the tenant. Two writers at once may give the
	// same one to two indexes.
	Generation uint64
	// Writer is the ID of the process that wrote it.
	Writer string
	// Listed is when the listing began that it was made of, by the writer's clock. It is for
	// people: nothing may depend on two clocks being alike.
	Listed time.Time
	// Blocks are the whole blocks of the bucket, those of a previous one excepted. Their
	// metas name no parents.
	Blocks map[ulid.ULID]Block
}

// Covered returns the blocks whose samples the index lists, in themselves or in others
// that were made of them.
func (i Index) Covered() map[ulid.ULID]struct{} {
	covered := make(map[ulid.ULID]struct{}, 4*len(i.Blocks))
	for id, block := range i.Blocks {
		covered[id] = struct{}{}
		for _, source := range Sources(block.Meta) {
			covered[source] = struct{}{}
		}
	}
	return covered
}

// indexDisk is the format of an index, in gzip.
type indexDisk struct {
	Version    int          `json:"version"`
	Tenant     tenant.ID    `json:"tenant"`
	Generation uint64       `json:"generation"`
	Writer     string       `json:"writer"`
	Listed     time.Time    `json:"listed"`
	Blocks     []indexBlock `json:"blocks"`
}

type indexBlock struct {
	Meta      tsdb.BlockMeta `json:"meta"`
	Extension *Extension     `json:"hundredfold,omitempty"`
	Deletion  *DeletionMark  `json:"deletion,omitempty"`
	NoCompact *NoCompactMark `json:"no_compact,omitempty"`
	Files     []File         `json:"files,omitempty"`
}

// encodeIndex returns the object of an index. Blocks of a previous bucket are left out.
func encodeIndex(id tenant.ID, index Index) ([]byte, error) {
	disk := indexDisk{
		Version: indexVersion, Tenant: id, Generation: index.Generation, Writer: index.Writer, Listed: index.Listed.UTC(),
		Blocks: make([]indexBlock, 0, len(index.Blocks)),
	}
	for _, block := range index.Blocks {
		if block.Previous {
			continue
		}
		encoded := indexBlock{Meta: block.Meta, Deletion: block.Deletion, NoCompact: block.NoCompact, Files: block.Files}
		encoded.Meta.Compaction.Parents = nil
		if e := block.Extension; !e.isEmpty() {
			e.Version = extensionVersion
			encoded.Extension = &e
			if len(e.Sources) > 0 {
				encoded.Meta.Compaction.Sources = nil // said once
			}
		}
		disk.Blocks = append(disk.Blocks, encoded)
	}
	slices.SortFunc(disk.Blocks, func(a, b indexBlock) int { return a.Meta.ULID.Compare(b.Meta.ULID) })
	text, err := json.Marshal(disk)
	if err != nil {
		return nil, err
	}
	if len(text) > maxIndexText {
		return nil, fmt.Errorf("the index of %d blocks takes %d bytes, more than the %d that are read", len(disk.Blocks), len(text), maxIndexText)
	}
	var object bytes.Buffer
	w := gzip.NewWriter(&object)
	_, err = w.Write(text)
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	if object.Len() > maxIndexObject {
		return nil, fmt.Errorf("the index of %d blocks takes %d bytes, more than the %d that are read", len(disk.Blocks), object.Len(), maxIndexObject)
	}
	return object.Bytes(), nil
}

// decodeIndex decodes the object of a tenant's index. All that can be checked is: gzip's
// checksum tells of bytes that are damaged or missing.
func decodeIndex(id tenant.ID, object []byte) (Index, error) {
	r, err := gzip.NewReader(bytes.NewReader(object))
	if err != nil {
		return Index{}, err
	}
	r.Multistream(false)
	text, err := io.ReadAll(io.LimitReader(r, maxIndexText+1))
	if err != nil {
		return Index{}, err
	}
	if len(text) > maxIndexText {
		return Index{}, fmt.Errorf("it unpacks to more than %d bytes", maxIndexText)
	}
	return parseIndex(id, text)
}

// parseIndex decodes the text of an index.
func parseIndex(id tenant.ID, text []byte) (Index, error) {
	var disk indexDisk
	if err := json.Unmarshal(text, &disk); err != nil {
		return Index{}, err
	}
	switch {
	case disk.Version != indexVersion:
		return Index{}, fmt.Errorf("version %d is not %d", disk.Version, indexVersion)
	case disk.Tenant != id:
		return Index{}, fmt.Errorf("it is that of tenant %q", disk.Tenant)
	case disk.Generation == 0:
		return Index{}, errors.New("it has no generation")
	}
	index := Index{
		Generation: disk.Generation, Writer: disk.Writer, Listed: disk.Listed,
		Blocks: make(map[ulid.ULID]Block, len(disk.Blocks)),
	}
	for i := range disk.Blocks {
		block, err := disk.Blocks[i].block()
		if err != nil {
			return Index{}, fmt.Errorf("block %s: %w", disk.Blocks[i].Meta.ULID, err)
		}
		if _, twice := index.Blocks[block.Meta.ULID]; twice {
			return Index{}, fmt.Errorf("block %s stands twice", block.Meta.ULID)
		}
		index.Blocks[block.Meta.ULID] = block
	}
	return index, nil
}

func (b *indexBlock) block() (Block, error) {
	if b.Meta.ULID == (ulid.ULID{}) {
		return Block{}, errors.New("it has no name")
	}
	if err := checkMeta(&b.Meta); err != nil {
		return Block{}, err
	}
	block := Block{Meta: b.Meta, Extension: Extension{Version: extensionVersion}, Deletion: b.Deletion, NoCompact: b.NoCompact}
	if b.Extension != nil {
		if err := b.Extension.check(); err != nil {
			return Block{}, err
		}
		block.Extension = *b.Extension
		if len(b.Extension.Sources) > 0 {
			block.Meta.Compaction.Sources = b.Extension.Sources
		}
	}
	if b.Deletion != nil && b.Deletion.Reason == "" {
		return Block{}, errors.New("its deletion mark has no reason")
	}
	if len(b.Files) > maxIndexFiles {
		return Block{}, fmt.Errorf("it has %d files, more than %d", len(b.Files), maxIndexFiles)
	}
	for i, file := range b.Files {
		if !isBlockFile(file.Name) || file.Name == metaFile || file.Size < 0 || i > 0 && file.Name <= b.Files[i-1].Name {
			return Block{}, fmt.Errorf("its file %q of %d bytes is none, or out of order", file.Name, file.Size)
		}
	}
	block.Files = b.Files
	return block, nil
}

// WriteIndex replaces the index of a tenant.
func (s *Store) WriteIndex(ctx context.Context, id tenant.ID, index Index) error {
	object, err := encodeIndex(id, index)
	if err == nil {
		err = s.bucket.Upload(ctx, indexKey(id), bytes.NewReader(object))
	}
	if err != nil {
		return fmt.Errorf("write the block index of tenant %s: %w", id, err)
	}
	return nil
}

// ReadIndex reads the index of a tenant; found is false if there is none. One that cannot
// be understood is ErrCorruptIndex.
func (s *Store) ReadIndex(ctx context.Context, id tenant.ID) (index Index, found bool, err error) {
	object, found, err := s.readObject(ctx, indexKey(id), maxIndexObject)
	if err != nil {
		return Index{}, false, fmt.Errorf("read the block index of tenant %s: %w", id, err)
	}
	if !found {
		return Index{}, false, nil
	}
	if index, err = decodeIndex(id, object); err != nil {
		return Index{}, true, fmt.Errorf("%w %s: %w", ErrCorruptIndex, indexKey(id), err)
	}
	return index, true, nil
}

// DeleteIndex deletes the index of a tenant, if there is one.
func (s *Store) DeleteIndex(ctx context.Context, id tenant.ID) error {
	if err := s.remove(ctx, indexKey(id)); err != nil {
		return fmt.Errorf("delete the block index of tenant %s: %w", id, err)
	}
	return nil
}

// Indexes lists the tenants that have an index, and when each was written, by the clock
// of the bucket, which may count in whole seconds; the zero time says that the bucket
// does not tell.
func (s *Store) Indexes(ctx context.Context) (map[tenant.ID]time.Time, error) {
	var options []objstore.IterOption
	if slices.Contains(s.bucket.SupportedIterOptions(), objstore.UpdatedAt) {
		options = append(options, objstore.WithUpdatedAt())
	}
	indexes := make(map[tenant.ID]time.Time)
	err := s.bucket.IterWithAttributes(ctx, indexPrefix, func(attrs objstore.IterObjectAttributes) error {
		name, isIndex := strings.CutSuffix(strings.TrimPrefix(attrs.Name, indexPrefix+"/"), indexSuffix)
		if id, err := tenant.Parse(name); isIndex && err == nil {
			indexes[id], _ = attrs.LastModified()
		}
		return nil
	}, options...)
	if err != nil {
		return nil, fmt.Errorf("list the block indexes: %w", err)
	}
	return indexes, nil
}

// IndexSighting is what one reader has seen of when an index was written, so that it reads
// an index again only if it may have changed. One goroutine.
type IndexSighting struct {
	modified time.Time // by the clock of the bucket
	first    time.Time // when that was seen first, by this one's
	settled  bool      // it was read when it could not change unnoticed any more
}

// settleIndex is how long after an index was first seen to be of some second it has surely
// got all changes of that second: buckets may count in whole ones.
const settleIndex = 2 * time.Second

// Changed reports whether an index that Indexes says was modified then has to be read.
// Call Read after it was.
func (s *IndexSighting) Changed(modified, now time.Time) bool {
	if modified.IsZero() {
		return true
	}
	if s.first.IsZero() || !modified.Equal(s.modified) {
		*s = IndexSighting{modified: modified, first: now}
	}
	return !s.settled
}

// Read notes that the index was read, and that this began at begun, after Changed.
func (s *IndexSighting) Read(begun time.Time) {
	s.settled = s.modified.Nanosecond() != 0 || begun.Sub(s.first) >= settleIndex
}

// Block reads what there is to know of a block that was uploaded a moment ago: its
// meta.json, and no marks. It fails with ErrBlockNotFound if the block is not whole.
func (s *Store) Block(ctx context.Context, id tenant.ID, block ulid.ULID) (Block, error) {
	meta, extension, err := s.readMeta(ctx, id, block)
	if err != nil {
		return Block{}, fmt.Errorf("look at block %s of tenant %s: %w", block, id, err)
	}
	return Block{Meta: *meta, Extension: extension}, nil
}

// Dropped returns the blocks of before that are missing in after though nothing says that
// they may be: no other block of either holds their samples, and they had no mark that says
// that they go for good. Of two looks at a bucket the one that drops blocks is not the
// later one, or somebody has deleted blocks that should be there.
func Dropped(before, after map[ulid.ULID]Block) []ulid.ULID {
	var missing []ulid.ULID
	for id, block := range before {
		if _, ok := after[id]; !ok && (block.Deletion == nil || block.Deletion.Reason == DeletionCompacted) {
			missing = append(missing, id)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	// If another missing block holds the samples of one, it is enough to look at that one.
	// Retention hides blocks together with what was made of them.
	all := make(map[ulid.ULID]Block, len(before)+len(after))
	for _, blocks := range []map[ulid.ULID]Block{before, after} {
		for id, block := range blocks {
			block.Deletion = nil
			all[id] = block
		}
	}
	superseded := Superseded(all)
	dropped := slices.DeleteFunc(missing, func(id ulid.ULID) bool {
		_, ok := superseded[id]
		return ok
	})
	slices.SortFunc(dropped, ulid.ULID.Compare)
	return dropped
}
