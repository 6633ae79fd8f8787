package blockstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

const visitVersion = 1

// Visit says which compactor works on a tenant's blocks, so that others leave them to
// it. It holds no time: clocks differ. Whoever reads it twice, some time apart by a
// clock of its own, sees by Count whether the visitor is still at it.
//
// It is a courtesy that spares work, not a lock: an object store gives none. Jobs must
// be such that two compactors that do the same one at once do no harm.
type Visit struct {
	Version int `json:"version"`
	// Instance is the ID of the process; Incarnation tells its starts apart.
	Instance    string `json:"instance"`
	Incarnation string `json:"incarnation"`
	// Count rises while the visitor works.
	Count uint64 `json:"count"`
	// Job says what it does, for people.
	Job string `json:"job,omitempty"`
}

// Visit returns who works on a tenant's blocks; found is false if nobody does, or if
// it cannot be understood who.
func (s *Store) Visit(ctx context.Context, id tenant.ID) (visit Visit, found bool, err error) {
	text, found, err := s.readSmall(ctx, visitKey(id))
	if err != nil {
		return Visit{}, false, fmt.Errorf("see who compacts tenant %s: %w", id, err)
	}
	if !found {
		return Visit{}, false, nil
	}
	visit, err = parseVisit(text)
	return visit, err == nil, nil
}

func parseVisit(text []byte) (Visit, error) {
	var visit Visit
	if err := json.Unmarshal(text, &visit); err != nil {
		return Visit{}, err
	}
	if visit.Instance == "" {
		return Visit{}, errors.New("it names no instance")
	}
	return visit, nil
}

// PutVisit says that visit.Instance works on the tenant's blocks, whoever did before.
func (s *Store) PutVisit(ctx context.Context, id tenant.ID, visit Visit) error {
	visit.Version = visitVersion
	text, err := json.Marshal(visit)
	if err == nil {
		err = s.bucket.Upload(ctx, visitKey(id), bytes.NewReader(text))
	}
	if err != nil {
		return fmt.Errorf("say who compacts tenant %s: %w", id, err)
	}
	return nil
}

// RemoveVisit says that nobody works on the tenant's blocks any more.
func (s *Store) RemoveVisit(ctx context.Context, id tenant.ID) error {
	if err := s.remove(ctx, visitKey(id)); err != nil {
		return fmt.Errorf("say that nobody compacts tenant %s: %w", id, err)
	}
	return nil
}
