package blockstore_test

import (
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

func TestWhatAMarkedBlockSupersedesIsRefusedUntilThatIsGone(t *testing.T) {
	for reason, refused := range map[blockstore.DeletionReason]bool{
		blockstore.DeletionQuota: true, blockstore.DeletionEmpty: true, blockstore.DeletionRetention: false,
	} {
		t.Run(string(reason), func(t *testing.T) {
			store, _ := filesystemStore(t)
			dir, made, _ := writeBlock(t)
			require.NoError(t, store.Upload(t.Context(), "acme", dir))
			marked := time.Unix(1_700_000_000, 0)
			require.NoError(t, store.MarkForDeletion(t.Context(), "acme", made, blockstore.DeletionMark{Time: marked, Reason: reason}))
			source := blockstore.Block{Meta: tsdb.BlockMeta{
				ULID: ulid.Make(), MinTime: 0, MaxTime: 1,
				Compaction: tsdb.BlockMetaCompaction{Level: 0, Sources: []ulid.ULID{made}},
			}}
			has, err := store.Holdings(t.Context(), "acme")
			require.NoError(t, err)
			there, refusal := has.Of(source)
			require.False(t, there)
			if !refused {
				require.Empty(t, refusal)
				return
			}
			require.Contains(t, refusal, "block "+made.String())
			require.Contains(t, refusal, "("+string(reason)+") at 2023-11-14T22:13:20Z")

			require.NoError(t, store.Delete(t.Context(), "acme", made))
			has, err = store.Holdings(t.Context(), "acme")
			require.NoError(t, err)
			_, refusal = has.Of(source)
			require.Empty(t, refusal)
		})
	}
}
