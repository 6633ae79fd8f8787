package blockstore

import (
	"bytes"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

// FuzzDeletion reads records of a deletion that anybody may have written: each is what it
// says or a fault of its tenant, never one that hides something else.
func FuzzDeletion(f *testing.F) {
	const id = "01BX5ZZKBKACTAV9WEVGEMMVRZ"
	request := []byte(`{"version":1,"id":"` + id + `","selectors":["{a=\"b\"}"],"min_ms":-5,"max_ms":5,"accepted":"2026-01-02T03:04:05Z","by":"x","blocks":["` + id + `"]}`)
	settled := []byte(`{"version":1,"blocks":["00000000000000000000000000"]}`)
	progress := []byte(`[{"blocks":["` + id + `"],"into":"` + id + `"}]`)
	f.Add(request, settled, progress)
	f.Add([]byte(`{"version":1,"id":"`+id+`","whole_tenant":true,"blocks":null}`), []byte(`{"version":1}`), []byte(`[]`))
	f.Add([]byte(`{"version":2,"id":"`+id+`"}`), []byte(`{"version":2}`), []byte(`{}`))
	f.Add([]byte(`{"version":1,"id":"00000000000000000000000000"}`), []byte(`null`), []byte(`null`))
	f.Add([]byte(``), []byte(`[`), []byte(`[{"blocks":[""]}]`))
	f.Fuzz(func(t *testing.T, request, settled, progress []byte) {
		deletion := ulid.MustParse(id)
		bucket := objstore.NewInMemBucket()
		for file, text := range map[string][]byte{requestFile: request, settledFile: settled, progressFile: progress} {
			require.NoError(t, bucket.Upload(t.Context(), activeKey(indexed, deletion, file), bytes.NewReader(text)))
		}
		require.NoError(t, bucket.Upload(t.Context(), doneKey(indexed, deletion), bytes.NewReader(request)))
		store := New(bucket, nil)
		_, _ = store.Rewritten(t.Context(), indexed, deletion)
		_, _ = store.Receipts(t.Context(), indexed, time.Time{})
		found, err := store.DeletionsOf(t.Context(), indexed)
		require.NoError(t, err)
		if found.Fault != nil {
			require.ErrorIs(t, found.Fault, errCorruptDeletion)
			require.Empty(t, found.Active, "what cannot be understood hides nothing by itself")
			return
		}
		require.Len(t, found.Active, 1)
		got := found.Active[0]
		require.Equal(t, deletion, got.ID)
		for _, source := range got.Blocks {
			block := Block{Meta: tsdb.BlockMeta{ULID: source}}
			require.True(t, got.Includes(&block))
		}

		if got.Accepted.Year() < 0 || got.Accepted.Year() > 9999 {
			return // JSON has no form for it
		}
		if err := store.PutDeletion(t.Context(), indexed, got.Deletion); err != nil {
			return // a zone that JSON has no form for
		}
		again, err := New(bucket, nil).DeletionsOf(t.Context(), indexed)
		require.NoError(t, err)
		require.NoError(t, again.Fault)
		require.True(t, got.Accepted.Equal(again.Active[0].Accepted))
		again.Active[0].Accepted = got.Accepted
		require.Equal(t, got, again.Active[0])
	})
}

func FuzzParseActiveKey(f *testing.F) {
	f.Add("~deletions/active/acme/01BX5ZZKBKACTAV9WEVGEMMVRZ/request.json")
	f.Add("~deletions/active/acme/clean.json")
	f.Add("~deletions/active/acme/01bx5zzkbkactav9wevgemmvrz/")
	f.Add("~deletions/active//")
	f.Fuzz(func(t *testing.T, name string) {
		if id, deletion, file, ok := parseActiveKey(name); ok && file != cleanName {
			require.NotEmpty(t, id)
			require.Len(t, name, len(activeKey(id, deletion, file)))
		}
	})
}
