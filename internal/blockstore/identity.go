package blockstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

const (
	identityVersion = 1
	// identitySettle is how long a new seed must stand before it is believed: longer
	// than those who saw none take from looking to having written one.
	identitySettle = time.Second
)

var (
	// ErrOtherCluster says that the bucket is another cluster's.
	ErrOtherCluster = errors.New("the bucket belongs to another cluster")
	// ErrCorruptIdentity says that the bucket does not say whose it is.
	ErrCorruptIdentity = errors.New("the identity of the cluster in the bucket cannot be understood")
)

// identity is what ~cluster.json says.
type identity struct {
	Version int    `json:"version"`
	Seed    string `json:"seed"` // 16 digits, hexadecimal
	Cluster string `json:"cluster"`
	// Settled says that the seed has stood for identitySettle.
	Settled bool `json:"settled,omitempty"`
}

// IdentitySeed returns the seed of the identities that the members of the cluster
// exchange. The bucket keeps it: whoever asks first draws one, and the bucket is that
// cluster's from then on. A bucket of a cluster of another name is ErrOtherCluster.
//
// Object stores cannot put an object on condition that there is none. So whoever finds
// none writes one, and everybody believes a seed only after it has stood for a while;
// of several that are written at once, the last one stays. Two members get different
// seeds only if, when nobody had ever started before, one of them needed longer than
// that from having looked to having written. That loses nothing: seeds are compared by
// their fingerprints wherever identities are exchanged, so these two do not understand
// each other and say so, and agree once the member whose seed is not the bucket's is
// started again.
func (s *Store) IdentitySeed(ctx context.Context, cluster string) (uint64, error) {
	seed, err := s.identitySeed(ctx, cluster)
	if err != nil {
		return 0, fmt.Errorf("learn the seed of identities from %s in the bucket: %w", identityKey, err)
	}
	return seed, nil
}

func (s *Store) identitySeed(ctx context.Context, cluster string) (uint64, error) {
	var before identity
	for {
		now, err := s.readIdentity(ctx, cluster)
		if err != nil {
			return 0, err
		}
		switch {
		case now.Settled:
			return now.seed()
		case now.Seed == "":
			if now, err = s.newIdentity(ctx, cluster); err != nil {
				return 0, err
			}
			if err := s.writeIdentity(ctx, now); err != nil {
				return 0, err
			}
		case now == before:
			now.Settled = true
			if err := s.writeIdentity(ctx, now); err != nil {
				return 0, err
			}
			return now.seed()
		}
		before = now
		settled := time.NewTimer(identitySettle)
		select {
		case <-settled.C:
		case <-ctx.Done():
			settled.Stop()
			return 0, ctx.Err()
		}
	}
}

// newIdentity returns the identity of the previous bucket, which nodes that were not
// restarted yet go on using, or else a new one.
func (s *Store) newIdentity(ctx context.Context, cluster string) (identity, error) {
	if s.previous != nil {
		i, err := s.previous.readIdentity(ctx, cluster)
		if err != nil {
			return identity{}, fmt.Errorf("the previous bucket: %w", err)
		}
		if i.Seed != "" {
			return i, nil
		}
	}
	var seed [8]byte
	rand.Read(seed[:])
	return identity{Version: identityVersion, Seed: hex.EncodeToString(seed[:]), Cluster: cluster}, nil
}

func (s *Store) writeIdentity(ctx context.Context, i identity) error {
	text, err := json.Marshal(i)
	if err != nil {
		return err
	}
	return s.bucket.Upload(ctx, identityKey, bytes.NewReader(text))
}

// readIdentity returns whose the bucket is, or nothing if it is nobody's.
func (s *Store) readIdentity(ctx context.Context, cluster string) (identity, error) {
	text, found, err := s.readSmall(ctx, identityKey)
	if err != nil || !found {
		return identity{}, err
	}
	i, err := parseIdentity(text)
	if err != nil {
		return identity{}, err
	}
	if i.Cluster != cluster {
		return identity{}, fmt.Errorf("%w: its cluster is %q and this one is %q. Give this cluster a bucket of its own, or correct cluster.name", ErrOtherCluster, i.Cluster, cluster)
	}
	return i, nil
}

func parseIdentity(text []byte) (identity, error) {
	var i identity
	if err := json.Unmarshal(text, &i); err != nil {
		return identity{}, fmt.Errorf("%w: %w", ErrCorruptIdentity, err)
	}
	_, err := i.seed()
	switch {
	case i.Version != identityVersion:
		return identity{}, fmt.Errorf("%w: version %d is not %d", ErrCorruptIdentity, i.Version, identityVersion)
	case err != nil:
		return identity{}, err
	case i.Cluster == "":
		return identity{}, fmt.Errorf("%w: it names no cluster", ErrCorruptIdentity)
	}
	return i, nil
}

func (i identity) seed() (uint64, error) {
	seed, err := hex.DecodeString(i.Seed)
	if err != nil || len(seed) != 8 {
		return 0, fmt.Errorf("%w: the seed is not of 16 hexadecimal digits", ErrCorruptIdentity)
	}
	return binary.BigEndian.Uint64(seed), nil
}

// Retryable reports whether a call that returned err may succeed later without
// somebody's help: it does not if the bucket answered and holds what it must not.
func (s *Store) Retryable(err error) bool {
	return err != nil && !errors.Is(err, ErrOtherCluster) && !errors.Is(err, ErrCorruptIdentity)
}
