package blockstore

import (
	"context"
	"fmt"
	"slices"

	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

// Delete deletes a block, whole or partial: meta.json first, so that nobody sees
// it any more, and the deletion mark last, so that a deletion which was broken off
// is recognised and completed. Deleting what is not there is no error.
func (s *Store) Delete(ctx context.Context, id tenant.ID, block ulid.ULID) error {
	if err := s.delete(ctx, id, block); err != nil {
		return fmt.Errorf("delete block %s of tenant %s: %w", block, id, err)
	}
	return nil
}

func (s *Store) delete(ctx context.Context, id tenant.ID, block ulid.ULID) error {
	var names []string
	err := s.bucket.Iter(ctx, blockPrefix(id, block), func(name string) error {
		names = append(names, name)
		return nil
	}, objstore.WithRecursiveIter())
	if err != nil {
		return err
	}
	rank := func(name string) int {
		switch name {
		case blockKey(id, block, metaFile):
			return 0
		case blockKey(id, block, deletionMarkFile):
			return 2
		default:
			return 1
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { return rank(a) - rank(b) })
	for _, name := range names {
		if err := s.remove(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// remove deletes an object that may be gone already.
func (s *Store) remove(ctx context.Context, name string) error {
	if err := s.bucket.Delete(ctx, name); err != nil && !s.bucket.IsObjNotFoundErr(err) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}
