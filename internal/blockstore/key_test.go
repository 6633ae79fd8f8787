package blockstore

import (
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
)

func TestOnlyNamesOfBlockObjectsAreParsed(t *testing.T) {
	const block = "01BX5ZZKBKACTAV9WEVGEMMVRZ"
	for _, c := range []struct {
		name string
		file string // empty: not ours
	}{
		{"acme/" + block + "/meta.json", "meta.json"},
		{"acme/" + block + "/chunks/000001", "chunks/000001"},
		{"acme/" + block + "/", ""},
		{"acme/" + block, ""},
		{"acme/01bx5zzkbkactav9wevgemmvrz/meta.json", ""},
		{"acme/01BX5ZZKBKACTAV9WEVGEMMVR!/meta.json", ""},
		{"../" + block + "/meta.json", ""},
		{"/" + block + "/meta.json", ""},
		{"acme", ""},
		{"", ""},
	} {
		id, parsed, file, ok := parseKey(c.name)
		require.Equal(t, c.file != "", ok, c.name)
		require.Equal(t, c.file, file, c.name)
		if ok {
			require.Equal(t, c.name, blockKey(id, parsed, file))
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("acme/01BX5ZZKBKACTAV9WEVGEMMVRZ/chunks/000001")
	f.Add("a/8ZZZZZZZZZZZZZZZZZZZZZZZZZ/x")
	f.Fuzz(func(t *testing.T, name string) {
		if id, block, file, ok := parseKey(name); ok {
			require.Equal(t, name, blockKey(id, block, file))
		}
	})
}

func FuzzParseMeta(f *testing.F) {
	f.Add([]byte(`{"version":1,"ulid":"01BX5ZZKBKACTAV9WEVGEMMVRZ","minTime":0,"maxTime":7200000}`))
	f.Add([]byte(`null`))
	block := ulid.MustParse("01BX5ZZKBKACTAV9WEVGEMMVRZ")
	f.Fuzz(func(t *testing.T, text []byte) {
		if meta, _, err := parseMeta(block, text); err == nil {
			require.Equal(t, block, meta.ULID)
			require.LessOrEqual(t, meta.MinTime, meta.MaxTime)
		}
	})
}
