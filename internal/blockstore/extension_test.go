package blockstore

import (
	"encoding/json"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
)

func TestAnExtensionTakesThePlaceOfTheOneBefore(t *testing.T) {
	block := ulid.MustParse("01BX5ZZKBKACTAV9WEVGEMMVRZ")
	for _, key := range []string{"hundredfold", "Hundredfold", "HUNDREDFOLD"} {
		text := []byte(`{"version":1,"ulid":"01BX5ZZKBKACTAV9WEVGEMMVRZ","minTime":0,"maxTime":7,"thanos":{"labels":{"a":"b"}},` +
			`"` + key + `":{"version":1,"shard":{"index":1,"count":2},"external_labels":{"a":"b"}}}`)
		_, before, err := parseMeta(block, text)
		require.NoError(t, err)
		require.NotNil(t, before.Shard)
		text, err = AddExtension(text, Extension{ExternalLabels: map[string]string{"c": "d"}})
		require.NoError(t, err)
		_, after, err := parseMeta(block, text)
		require.NoError(t, err)
		require.Equal(t, Extension{Version: extensionVersion, ExternalLabels: map[string]string{"c": "d"}}, after)
		require.Contains(t, string(text), "thanos")
	}
}

func FuzzExtension(f *testing.F) {
	block := ulid.MustParse("01BX5ZZKBKACTAV9WEVGEMMVRZ")
	const head = `{"version":1,"ulid":"01BX5ZZKBKACTAV9WEVGEMMVRZ","minTime":0,"maxTime":7200000,`
	for _, rest := range []string{
		`"hundredfold":null}`,
		`"hundredfold":{"version":2}}`,
		`"hundredfold":{"version":1,"shard":{"index":1,"count":2}}}`,
		`"hundredfold":{"version":1,"shard":{"index":1,"count":0}}}`,
		`"hundredfold":{"version":1,"external_labels":{"a":"b","":""},"deletions":["01BX5ZZKBKACTAV9WEVGEMMVRZ","00000000000000000000000000"]}}`,
		`"hundredfold":{"version":1,"sources":["01BX5ZZKBKACTAV9WEVGEMMVRZ"]},"thanos":{"labels":{}},"HundredFold":{"version":1}}`,
	} {
		f.Add([]byte(head + rest))
	}
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		_, _ = AddExtension(text, Extension{})
		meta, extension, err := DecodeMeta(block, text)
		if err != nil {
			return
		}
		requireSame := func(text []byte, want Extension) {
			again, got, err := DecodeMeta(block, text)
			require.NoError(t, err)
			require.Equal(t, Sources(*meta), Sources(*again))
			require.Equal(t, meta.Stats, again.Stats)
			wantText, err := AddExtension([]byte(`{}`), want)
			require.NoError(t, err)
			gotText, err := AddExtension([]byte(`{}`), got)
			require.NoError(t, err)
			require.JSONEq(t, string(wantText), string(gotText))
		}
		added, err := AddExtension(text, extension)
		require.NoError(t, err)
		requireSame(added, extension)
		if other, err := AddExtension(text, Extension{Sources: extension.Sources}); err == nil {
			requireSame(other, Extension{Sources: extension.Sources})
		}
		encoded, err := EncodeMeta(*meta, extension)
		require.NoError(t, err)
		requireSame(encoded, extension)
		require.True(t, json.Valid(encoded))
	})
}
