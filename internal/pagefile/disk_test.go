package pagefile

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNamesOfLocalFiles(t *testing.T) {
	for _, c := range []struct{ key, want string }{
		{"acme/01K8ZQ4W0N8S5J2H7D6M3V9XTB/chunks/000001", "acme/01K8ZQ4W0N8S5J2H7D6M3V9XTB,chunks,000001.10.pages"},
		{"index", "index.10.pages"},
		{"../../etc/passwd", "%../%..,etc,passwd.10.pages"},
		{"/a//b/", "%/a,%,b,%.10.pages"},
		{"a\x00b/ü\\", "a%00b/%C3%BC%5C.10.pages"},
	} {
		require.Equal(t, filepath.FromSlash(c.want), localName(c.key, 36), "%q", c.key)
	}
	long := localName(strings.Repeat("x", 1000)+"/a", 36)
	require.Less(t, len(filepath.Dir(long)), 256)
	require.NotEqual(t, long, localName(strings.Repeat("x", 999)+"y/a", 36))
	serial, ok := serialOf("acme/a.b.10.pages")
	require.True(t, ok)
	require.EqualValues(t, 36, serial)
	for _, bad := range []string{"a", "a.pages", "a.?.pages", ".pages"} {
		_, ok := serialOf(bad)
		require.False(t, ok, bad)
	}
}

func FuzzDecodeHeader(f *testing.F) {
	whole := appendHeader(nil, header{key: "acme/index", size: 12345})
	f.Add(whole)
	f.Add(whole[:10])
	f.Add(appendHeader(nil, header{key: strings.Repeat("k", maxKeyLength), size: maxFileSize}))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHeader(b)
		if err != nil {
			require.ErrorIs(t, err, errNotOurs)
			return
		}
		require.NotEmpty(t, h.key)
		require.LessOrEqual(t, h.size, int64(maxFileSize))
		encoded := appendHeader(nil, h)
		require.Equal(t, encoded, b[:len(encoded)])
	})
}

func FuzzDecodeJournal(f *testing.F) {
	entries := appendEntry(appendEntry(nil, 0, 17), 3, 18)
	f.Add(entries, int64(4))
	f.Add(append(make([]byte, entrySize), entries...), int64(1))
	f.Add(appendEntry(entries, 3, 19)[:30], int64(100))
	f.Fuzz(func(t *testing.T, b []byte, pages int64) {
		sums := decodeJournal(b, pages)
		require.LessOrEqual(t, len(sums), len(b)/entrySize)
		for page, sum := range sums {
			require.Less(t, int64(page), pages)
			require.Contains(t, string(b), string(appendEntry(nil, page, sum)))
		}
	})
}

func TestDamagedEntriesOfTheJournalCountForNothing(t *testing.T) {
	entries := appendEntry(appendEntry(appendEntry(nil, 0, 17), 3, 18), 3, 19)
	require.Equal(t, map[uint32]uint32{0: 17, 3: 19}, decodeJournal(entries, 4))
	require.Equal(t, map[uint32]uint32{0: 17, 3: 18}, decodeJournal(entries[:len(entries)-1], 4))
	for i := range entries {
		damaged := append([]byte(nil), entries...)
		damaged[i] ^= 0x40
		got := decodeJournal(damaged, 4)
		for page, sum := range got {
			require.Contains(t, []map[uint32]uint32{{0: 17}, {3: 18}, {3: 19}}, map[uint32]uint32{page: sum})
		}
	}
}
