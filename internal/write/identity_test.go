package write

import (
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	"github.com/stretchr/testify/require"
)

// around returns lengths at which varints grow.
func around() []int {
	return []int{0, 1, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129, 16_370, 16_377, 16_383, 16_384, 16_385, 2_097_151, 2_097_152}
}

func TestCanonicalFormIsTheEncodingOfTheLabelsField(t *testing.T) {
	for _, n := range around() {
		for _, m := range around()[:12] {
			name, value := strings.Repeat("n", n), strings.Repeat("v", m)
			want, err := (&prompb.Labels{Labels: []prompb.Label{{Name: name, Value: value}}}).Marshal()
			require.NoError(t, err)
			if n == 0 || m == 0 {
				// proto3 leaves out empty strings; labels with them are not canonical.
				continue
			}
			require.Equal(t, string(want), string(AppendCanonical(nil, name, value)), "%d and %d bytes", n, m)
		}
	}
}

func TestUvarintLen(t *testing.T) {
	for n, want := range map[int]int{0: 1, 0x7f: 1, 0x80: 2, 1<<14 - 1: 2, 1 << 14: 3, 1<<21 - 1: 3, 1 << 21: 4, 1<<28 - 1: 4, 1 << 28: 5} {
		require.Equal(t, want, uvarintLen(n), "%d", n)
	}
}

func TestIdentityIsThatOfTheCanonicalForm(t *testing.T) {
	ls := labels.FromStrings("__name__", "up", "instance", "a:1", "job", strings.Repeat("x", 500))
	raw, err := (&prompb.Labels{Labels: prompb.FromLabels(ls, nil)}).Marshal()
	require.NoError(t, err)
	h := NewHasher()
	require.Equal(t, h.Canonical(raw), h.Labels(ls))
	require.Equal(t, h.Labels(ls), NewHasher().Labels(ls), "all hashers of a process agree")
	require.False(t, h.Labels(labels.EmptyLabels()).IsZero())
}

func FuzzDifferentLabelsHaveDifferentCanonicalForms(f *testing.F) {
	f.Add("a", "b", "c", "d")
	f.Add("a", "b\x12\x01c", "a", "b")
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string) {
		if n1 == n2 && v1 == v2 {
			return
		}
		one := AppendCanonical(nil, n1, v1)
		require.NotEqual(t, one, AppendCanonical(nil, n2, v2))
		require.NotEqual(t, one, AppendCanonical(AppendCanonical(nil, n1, v1), n2, v2))
		var m prompb.Labels
		require.NoError(t, m.Unmarshal(one))
		require.Equal(t, []prompb.Label{{Name: n1, Value: v1}}, m.Labels)
	})
}
