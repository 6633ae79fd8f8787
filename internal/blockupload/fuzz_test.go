package blockupload

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

func FuzzState(f *testing.F) {
	for _, text := range []string{
		`{"state":"validating","time":"2026-01-02T03:04:05Z"}`,
		`{"state":"failed","error":"why"}`,
		`{"state":"of a later release"}`,
		`{"state":7}`, `{}`, `null`, ``, `[`,
	} {
		f.Add([]byte(text))
	}
	known := []string{stateUploading, stateValidating, stateComplete, stateFailed}
	f.Fuzz(func(t *testing.T, text []byte) {
		s := parseState(text)
		require.True(t, slices.Contains(known, s.State), s.State)
		if !json.Valid(text) {
			require.Equal(t, stateFailed, s.State, "the client can begin anew")
			require.NotEmpty(t, s.Error)
		}
		encoded, err := json.Marshal(s)
		if err != nil {
			return // a time that JSON has no form for
		}
		again := parseState(encoded)
		require.True(t, s.Time.Equal(again.Time))
		again.Time = s.Time
		require.Equal(t, s, again)
	})
}

// FuzzSanitized starts uploads with any meta.json: what is accepted names the block alone as
// its source, whatever else it says.
func FuzzSanitized(f *testing.F) {
	block := ulid.MustParse("01BX5ZZKBKACTAV9WEVGEMMVRZ")
	const head = `{"version":1,"ulid":"01BX5ZZKBKACTAV9WEVGEMMVRZ","minTime":0,"maxTime":7200000`
	for _, rest := range []string{
		`}`,
		`,"compaction":{"level":4,"sources":["00000000000000000000000000"],"parents":[{"ulid":"00000000000000000000000000"}]}}`,
		`,"thanos":{"labels":{"a":"b","__org_id__":"x","c":""},"downsample":{"resolution":300000}}}`,
		`,"thanos":{"labels":{"a":"b"}},"hundredfold":{"version":1,"shard":{"index":0,"count":2},"sources":["00000000000000000000000000"],"deletions":["00000000000000000000000000"]}}`,
		`,"thanos":null,"compaction":{"deletable":true,"failed":true}}`,
	} {
		f.Add([]byte(head + rest))
	}
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		out, err := sanitized(block, text)
		if err != nil {
			return
		}
		meta, extension, err := blockstore.DecodeMeta(block, out)
		require.NoError(t, err)
		require.Equal(t, []ulid.ULID{block}, blockstore.Sources(*meta))
		require.Equal(t, 1, meta.Compaction.Level)
		require.Empty(t, meta.Compaction.Parents)
		require.Empty(t, extension.Sources)
		require.Empty(t, extension.Deletions)
		require.Nil(t, extension.Shard)
		for name, value := range extension.ExternalLabels {
			require.NotEmpty(t, value)
			require.NotContains(t, name, "__org_id__")
		}
	})
}
