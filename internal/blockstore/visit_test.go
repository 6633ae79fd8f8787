package blockstore

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"
)

func TestAVisitIsSeenUntilItIsRemoved(t *testing.T) {
	store := New(objstore.NewInMemBucket(), nil)
	_, found, err := store.Visit(t.Context(), "acme")
	require.NoError(t, err)
	require.False(t, found)

	require.NoError(t, store.PutVisit(t.Context(), "acme", Visit{Instance: "a", Incarnation: "x", Count: 7, Job: "j"}))
	visit, found, err := store.Visit(t.Context(), "acme")
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, Visit{Version: 1, Instance: "a", Incarnation: "x", Count: 7, Job: "j"}, visit)
	_, found, err = store.Visit(t.Context(), "acme-2")
	require.NoError(t, err)
	require.False(t, found)

	require.NoError(t, store.RemoveVisit(t.Context(), "acme"))
	require.NoError(t, store.RemoveVisit(t.Context(), "acme"))
	_, found, err = store.Visit(t.Context(), "acme")
	require.NoError(t, err)
	require.False(t, found)
}

func TestAVisitThatCannotBeUnderstoodKeepsNobodyAway(t *testing.T) {
	for _, text := range []string{"", "{", `{"version":1}`, "[]"} {
		store := New(objstore.NewInMemBucket(), nil)
		require.NoError(t, store.bucket.Upload(t.Context(), visitKey("acme"), strings.NewReader(text)))
		_, found, err := store.Visit(t.Context(), "acme")
		require.NoError(t, err)
		require.False(t, found)
	}
}

func FuzzVisit(f *testing.F) {
	f.Add(`{"version":1,"instance":"a","incarnation":"b","count":1}`)
	f.Add(`{}`)
	f.Fuzz(func(t *testing.T, text string) {
		if visit, err := parseVisit([]byte(text)); err == nil {
			require.NotEmpty(t, visit.Instance)
		}
	})
}

func FuzzCopied(f *testing.F) {
	f.Add(`{"version":1,"blocks":["01K8ZQ4W0N8S5J2H7D6M3V9XTB"]}`)
	f.Add(`{"version":2}`)
	f.Fuzz(func(t *testing.T, text string) {
		if blocks, err := parseCopied([]byte(text)); err == nil {
			require.NotNil(t, blocks)
		}
	})
}
