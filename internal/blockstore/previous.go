package blockstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

const copiedVersion = 1

// NewFollowing returns a Store like New that reads the blocks of a previous bucket
// beside those of bucket.
func NewFollowing(bucket, previous objstore.Bucket, logger *slog.Logger, reg prometheus.Registerer) *Store {
	s := New(bucket, logger)
	s.follow(New(previous, logger), reg)
	return s
}

func (s *Store) follow(previous *Store, reg prometheus.Registerer) {
	s.previous = previous
	s.remaining = sync.OnceValue(func() prometheus.Gauge {
		return promauto.With(reg).NewGauge(prometheus.GaugeOpts{
			Name: "hundredfold_bucket_previous_blocks",
			Help: "Blocks in bucket.previous that this process has yet to copy. At 0 on all nodes that show it, bucket.previous can be taken out of the configuration.",
		})
	})
}

// survey is what there is of a tenant in both buckets.
type survey struct {
	blocks, previous map[ulid.ULID]Block
	partial          []ulid.ULID // of the bucket
	copied           copied
}

// survey looks at both buckets. The order matters: a block that the list of copies has
// was whole in the bucket before the bucket is listed, so if it is not in the listing,
// it was compacted or deleted there, and what is left of it in the previous bucket must
// not come back. A block that is copied a moment later is still read where it was.
func (s *Store) survey(ctx context.Context, id tenant.ID, trusted map[ulid.ULID]Block) (survey, error) {
	var (
		found survey
		err   error
	)
	if found.copied, err = s.readCopied(ctx, id); err != nil {
		return survey{}, err
	}
	if found.blocks, found.partial, err = s.list(ctx, id, trusted); err != nil {
		return survey{}, err
	}
	if found.previous, _, err = s.previous.list(ctx, id, trusted); err != nil {
		return survey{}, fmt.Errorf("the previous bucket: %w", err)
	}
	return found, nil
}

// union returns the blocks that readers read. The bucket goes before the previous one,
// with its marks.
func (f survey) union() map[ulid.ULID]Block {
	all := maps.Clone(f.blocks)
	for id, block := range f.previous {
		if _, ok := all[id]; ok || f.copied.has(id) {
			continue
		}
		block.Previous = true
		all[id] = block
	}
	return all
}

// toCopy returns the blocks that are yet to be copied, the newest first, since they are
// read most; and the list of copies as it should be by now. A block that retention
// has hidden, that is empty, or whose samples are all in another block stays behind.
func (f survey) toCopy() (blocks []ulid.ULID, settled copied) {
	all := f.union()
	superseded := Superseded(all)
	settled = f.copied.clone()
	for id, block := range f.previous {
		by, isSuperseded := superseded[id]
		_, isHere := f.blocks[id]
		switch {
		case f.copied.has(id):
		case isHere, isSuperseded && !all[by].Previous:
			settled.add(id)
		case isSuperseded:
		case block.Deletion != nil && block.Deletion.Reason != DeletionCompacted:
		default:
			blocks = append(blocks, id)
		}
	}
	slices.SortFunc(blocks, func(a, b ulid.ULID) int {
		if newer := f.previous[b].Meta.MaxTime - f.previous[a].Meta.MaxTime; newer != 0 {
			return int(max(-1, min(1, newer)))
		}
		return a.Compare(b)
	})
	return blocks, settled
}

// copied names the blocks of a tenant that came from the previous bucket. They are the
// bucket's own now: if one is not there any more, it is gone for good.
type copied map[ulid.ULID]struct{}

func (c copied) has(block ulid.ULID) bool {
	_, ok := c[block]
	return ok
}

func (c copied) add(block ulid.ULID) { c[block] = struct{}{} }

func (c copied) clone() copied {
	clone := make(copied, len(c))
	maps.Copy(clone, c)
	return clone
}

// copiedList is what ~copied/<tenant>.json says.
type copiedList struct {
	Version int         `json:"version"`
	Blocks  []ulid.ULID `json:"blocks"`
}

func (s *Store) readCopied(ctx context.Context, id tenant.ID) (copied, error) {
	text, found, err := s.readSmall(ctx, copiedKey(id))
	if err != nil {
		return nil, err
	}
	if !found {
		return copied{}, nil
	}
	blocks, err := parseCopied(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w; delete it, and all blocks of the previous bucket that are not here are copied again", copiedKey(id), err)
	}
	return blocks, nil
}

func parseCopied(text []byte) (copied, error) {
	var list copiedList
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	if list.Version != copiedVersion {
		return nil, fmt.Errorf("version %d is not %d", list.Version, copiedVersion)
	}
	blocks := make(copied, len(list.Blocks))
	for _, block := range list.Blocks {
		blocks.add(block)
	}
	return blocks, nil
}

// addCopied adds blocks to the list of copies. Two processes at once may lose one
// another's: what is missing is added, or copied, by the next pass.
func (s *Store) addCopied(ctx context.Context, id tenant.ID, blocks copied) error {
	known, err := s.readCopied(ctx, id)
	if err != nil {
		return err
	}
	before := len(known)
	maps.Copy(known, blocks)
	if len(known) == before {
		return nil
	}
	list := copiedList{Version: copiedVersion, Blocks: slices.SortedFunc(maps.Keys(known), ulid.ULID.Compare)}
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if err := s.bucket.Upload(ctx, copiedKey(id), bytes.NewReader(text)); err != nil {
		return fmt.Errorf("write %s: %w", copiedKey(id), err)
	}
	return nil
}

// contents returns the files of a block in this bucket, for another one to copy.
func (s *Store) contents(ctx context.Context, id tenant.ID, block ulid.ULID) ([]sourceFile, error) {
	var names []string
	err := s.bucket.Iter(ctx, blockPrefix(id, block), func(name string) error {
		if _, _, file, ok := parseKey(name); ok && isBlockFile(file) {
			names = append(names, file)
		}
		return nil
	}, objstore.WithRecursiveIter())
	if err != nil {
		return nil, err
	}
	content := make([]sourceFile, 0, len(names))
	for _, name := range names {
		key := blockKey(id, block, name)
		attrs, err := s.bucket.Attributes(ctx, key)
		if s.bucket.IsObjNotFoundErr(err) {
			return nil, ErrBlockNotFound
		}
		if err != nil {
			return nil, err
		}
		file := sourceFile{name: name, size: attrs.Size}
		if s.local != nil {
			file.path = s.local.LocalPath(key)
		}
		file.open = func(ctx context.Context) (r io.ReadCloser, err error) {
			if r, err = s.bucket.Get(ctx, key); err != nil && s.bucket.IsObjNotFoundErr(err) {
				err = errors.Join(ErrBlockNotFound, err)
			}
			return r, err
		}
		content = append(content, file)
	}
	return content, checkComplete(content)
}
