package frame

import (
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/write"
)

// encode returns a frame of series from to to of b. Those for which bare says so go
// without labels.
func encode(w *PushWriter, b *write.Batch, from, to int, bare func(i int) bool) []byte {
	w.Reset()
	source, _ := b.Source.(write.Labels)
	for i := from; i < to; i++ {
		ls := labels.EmptyLabels()
		if !bare(i) {
			ls = source[i]
		}
		w.Add(b, i, b.Series[i].ID, ls)
	}
	return w.Bytes()
}

func none(int) bool { return false }

func TestWhatIsPushedArrivesBitByBit(t *testing.T) {
	var (
		w   PushWriter
		d   PushDecoder
		got write.Batch
	)
	for seed := range uint64(300) {
		r := newRandom(seed)
		want := r.batch(r.IntN(20), 200)
		bare := func(i int) bool { return i%3 == 0 }

		split := r.IntN(len(want.Series) + 1)
		first := append([]byte(nil), encode(&w, want, 0, split, bare)...)
		require.Equal(t, split, w.Series())
		encode(&w, want, split, len(want.Series), bare)
		w.AddMetadata(want.Metadata)
		second := w.Bytes()
		var frames [][]byte
		for _, frame := range [][]byte{first, second} {
			if len(frame) > 0 { // nothing to send is no frame
				frames = append(frames, frame)
			}
		}

		require.NoError(t, d.Decode(&got, frames...))
		requireEqual(t, want, &got)
		for i := range want.Series {
			if want := want.Source.(write.Labels)[i]; bare(i) || want.IsEmpty() {
				require.ErrorIs(t, got.Source.AppendLabels(i, new(labels.ScratchBuilder)), write.ErrNoLabels)
			} else {
				require.Equal(t, want, labelsOf(t, &got, i))
			}
		}
	}
}
