package blockstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// markVersion is the version of both marks. Fields are only ever added, so a
// reader takes what it knows from a mark of any version.
const markVersion = 1

// DeletionReason says why a block is to be deleted.
type DeletionReason string

const (
	// DeletionCompacted: the samples are in another block by now. Readers go on
	// reading the block until they see that other one.
	DeletionCompacted DeletionReason = "compacted"
	// DeletionRetention: the samples are older than the tenant's retention.
	// Readers ignore the block at once.
	DeletionRetention DeletionReason = "retention"
	// DeletionQuota: the tenant has more bytes in the bucket than it may. Readers ignore
	// the block at once.
	DeletionQuota DeletionReason = "quota"
	// DeletionTenant: the tenant was deleted. Readers ignore the block at once.
	DeletionTenant DeletionReason = "tenant"
	// DeletionEmpty: a compaction found that no sample of the block is left.
	DeletionEmpty DeletionReason = "empty"
)

// DeletionMark says that a block will be deleted.
type DeletionMark struct {
	Version int            `json:"version"`
	Time    time.Time      `json:"time"`
	Reason  DeletionReason `json:"reason"`
}

// Hides reports whether readers ignore a block that is marked for this reason, without
// looking for another one in its place.
func (r DeletionReason) Hides() bool {
	return r == DeletionRetention || r == DeletionQuota || r == DeletionTenant
}

// Hidden reports whether readers ignore the block.
func (b Block) Hidden() bool { return b.Deletion != nil && b.Deletion.Reason.Hides() }

// NoCompactReason says why a block is left alone by the compactor.
type NoCompactReason string

const (
	// NoCompactDamaged: the block cannot be read in full. Details say what is wrong.
	NoCompactDamaged NoCompactReason = "damaged"
	// NoCompactUnreadableMark: there is a mark, but it cannot be read. It is never
	// written, only reported.
	NoCompactUnreadableMark NoCompactReason = "unreadable-mark"
)

// NoCompactMark says that the compactor must leave a block alone. An operator may
// put one by hand, with a reason of his own, and removes one to have it tried again.
type NoCompactMark struct {
	Version int             `json:"version"`
	Time    time.Time       `json:"time"`
	Reason  NoCompactReason `json:"reason"`
	Details string          `json:"details,omitempty"`
}

// MarkForDeletion puts a deletion mark on a block. A mark that is there already
// stays as it is, so that repeating the call does not put the deletion off.
func (s *Store) MarkForDeletion(ctx context.Context, id tenant.ID, block ulid.ULID, mark DeletionMark) error {
	mark.Version = markVersion
	if err := putMark(ctx, s, id, block, deletionMarkFile, mark); err != nil {
		return fmt.Errorf("mark block %s of tenant %s for deletion: %w", block, id, err)
	}
	return nil
}

// MarkNoCompact puts a mark on a block that keeps the compactor away from it. A
// mark that is there already stays as it is.
func (s *Store) MarkNoCompact(ctx context.Context, id tenant.ID, block ulid.ULID, mark NoCompactMark) error {
	mark.Version = markVersion
	if err := putMark(ctx, s, id, block, noCompactMarkFile, mark); err != nil {
		return fmt.Errorf("mark block %s of tenant %s as not to be compacted: %w", block, id, err)
	}
	return nil
}

// PreMarkNoCompact puts a mark on a block that is brought to the bucket next, so that no
// compactor takes the block as soon as it can be seen.
func (s *Store) PreMarkNoCompact(ctx context.Context, id tenant.ID, block ulid.ULID, mark NoCompactMark) error {
	mark.Version = markVersion
	text, err := json.Marshal(mark)
	if err == nil {
		err = s.bucket.Upload(ctx, blockKey(id, block, noCompactMarkFile), bytes.NewReader(text))
	}
	if err != nil {
		return fmt.Errorf("mark block %s of tenant %s as not to be compacted: %w", block, id, err)
	}
	return nil
}

// UnmarkForDeletion takes the deletion mark off a block, if it has one.
func (s *Store) UnmarkForDeletion(ctx context.Context, id tenant.ID, block ulid.ULID) error {
	if err := s.remove(ctx, blockKey(id, block, deletionMarkFile)); err != nil {
		return fmt.Errorf("take the deletion mark off block %s of tenant %s: %w", block, id, err)
	}
	return nil
}

// putMark writes a mark unless there is a readable one.
func putMark[M any](ctx context.Context, s *Store, id tenant.ID, block ulid.ULID, file string, mark M) error {
	whole, err := s.bucket.Exists(ctx, blockKey(id, block, metaFile))
	if err != nil {
		return err
	}
	if !whole {
		return ErrBlockNotFound
	}
	var present M
	switch found, err := s.readMark(ctx, id, block, file, &present); {
	case err != nil && !errors.Is(err, errCorruptMark):
		return err
	case err == nil && found:
		return nil
	}
	text, err := json.Marshal(mark)
	if err != nil {
		return err
	}
	return s.bucket.Upload(ctx, blockKey(id, block, file), bytes.NewReader(text))
}

// readMark reads a mark into mark; found is false if there is none.
func (s *Store) readMark(ctx context.Context, id tenant.ID, block ulid.ULID, file string, mark any) (found bool, err error) {
	text, found, err := s.readSmall(ctx, blockKey(id, block, file))
	if err != nil || !found {
		return false, err
	}
	if err := json.Unmarshal(text, mark); err != nil {
		return true, fmt.Errorf("%w: %s of block %s: %w", errCorruptMark, file, block, err)
	}
	// Other programs call their marks the same and name the fields otherwise. A
	// zero time would delete the block at once.
	if deletion, ok := mark.(*DeletionMark); ok && (deletion.Time.IsZero() || deletion.Reason == "") {
		return true, fmt.Errorf("%w: %s of block %s has no time or no reason", errCorruptMark, file, block)
	}
	return true, nil
}
