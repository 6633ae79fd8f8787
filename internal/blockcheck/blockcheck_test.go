package blockcheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/tsdb/index"
	"github.com/prometheus/prometheus/tsdb/tsdbutil"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

const (
	hour = int64(time.Hour / time.Millisecond)
	step = int64(15 * time.Second / time.Millisecond)
)

// block writes a block of two hours with floats and histograms.
func block(t *testing.T) string {
	t.Helper()
	series := []blocktest.Series{
		blocktest.Floats("a", 0, 2*hour, step),
		blocktest.Floats("bb", hour, 2*hour, step),
		{Labels: labels.FromStrings("__name__", "h", "job", "test")},
		{Labels: labels.FromStrings("__name__", "fh", "job", "other")},
	}
	for at := int64(0); at < hour; at += step {
		series[2].Samples = append(series[2].Samples, blocktest.Sample{T: at, H: tsdbutil.GenerateTestHistogram(at / step)})
		series[3].Samples = append(series[3].Samples, blocktest.Sample{T: at, FH: tsdbutil.GenerateTestFloatHistogram(at / step)})
	}
	return blocktest.Write(t, t.TempDir(), 0, 2*hour, series...)
}

func rewrite(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, change(text), 0o600))
}

func TestAWholeBlockHasNoFaultAndIsWhatItsMetaStates(t *testing.T) {
	dir := block(t)
	for _, depth := range []Depth{Quick, Full} {
		found, err := Faults(t.Context(), dir, depth, func(err error) { t.Error(err) })
		require.NoError(t, err)
		require.Equal(t, 4, found.Series)
		b, err := tsdb.OpenBlock(nil, dir, nil, nil)
		require.NoError(t, err)
		require.NoError(t, CheckStats(b.Meta().Stats, found, depth))
		of, err := Reader(t.Context(), b, depth)
		require.NoError(t, err)
		require.Equal(t, found, of)
		require.NoError(t, b.Close())
	}
}

func TestAMetaThatLiesAboutWhatIsThereIsFound(t *testing.T) {
	found, err := Dir(t.Context(), block(t), Full)
	require.NoError(t, err)
	honest := tsdb.BlockStats{NumSeries: uint64(found.Series), NumChunks: uint64(found.Chunks), NumSamples: found.Samples}
	require.NoError(t, CheckStats(honest, found, Full))
	require.NoError(t, CheckStats(tsdb.BlockStats{}, found, Full), "it states nothing")
	for _, lie := range []func(*tsdb.BlockStats){
		func(s *tsdb.BlockStats) { s.NumSeries++ },
		func(s *tsdb.BlockStats) { s.NumChunks-- },
		func(s *tsdb.BlockStats) { s.NumSamples++ },
	} {
		stats := honest
		lie(&stats)
		require.ErrorIs(t, CheckStats(stats, found, Full), ErrDamaged)
	}
}

func TestEveryFaultIsReportedAndNotOnlyTheFirst(t *testing.T) {
	dir := block(t)
	b, err := tsdb.OpenBlock(nil, dir, nil, nil)
	require.NoError(t, err)
	require.NoError(t, b.Close())
	// One byte in the middle of the data of every 300 hits several chunks.
	rewrite(t, filepath.Join(dir, "chunks", "000001"), func(text []byte) []byte {
		for at := 20; at < len(text)-20; at += 300 {
			text[at] ^= 0xff
		}
		return text
	})
	var faults []string
	_, err = Faults(t.Context(), dir, Full, func(err error) {
		require.ErrorIs(t, err, ErrDamaged)
		faults = append(faults, err.Error())
	})
	require.NoError(t, err)
	require.Greater(t, len(faults), 1)
	require.Contains(t, strings.Join(faults, "\n"), `series {__name__="a", job="test"}`)
	_, err = Dir(t.Context(), dir, Full)
	require.ErrorIs(t, err, ErrDamaged)
}

// crossed gives the postings of one label of a block to another.
type crossed struct {
	tsdb.BlockReader
	postings func(ctx context.Context, next tsdb.IndexReader, name string, values []string) (index.Postings, error)
}

type crossedIndex struct {
	tsdb.IndexReader
	crossed
}

func (c crossed) Index() (tsdb.IndexReader, error) {
	next, err := c.BlockReader.Index()
	return crossedIndex{next, c}, err
}

func (c crossedIndex) Postings(ctx context.Context, name string, values ...string) (index.Postings, error) {
	return c.postings(ctx, c.IndexReader, name, values)
}

func TestPostingsThatDoNotBelongToTheirSeriesAreFound(t *testing.T) {
	b, err := tsdb.OpenBlock(nil, block(t), nil, nil)
	require.NoError(t, err)
	defer b.Close()
	for name, lie := range map[string]func(refs []storage.SeriesRef) []storage.SeriesRef{
		"one is missing":  func(refs []storage.SeriesRef) []storage.SeriesRef { return refs[1:] },
		"one is too many": func(refs []storage.SeriesRef) []storage.SeriesRef { return append(refs, refs[len(refs)-1]+1) },
		"one is another":  func(refs []storage.SeriesRef) []storage.SeriesRef { refs[0]--; return refs },
		"out of order":    func(refs []storage.SeriesRef) []storage.SeriesRef { refs[0], refs[1] = refs[1], refs[0]; return refs },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Reader(t.Context(), crossed{b, func(ctx context.Context, next tsdb.IndexReader, name string, values []string) (index.Postings, error) {
				p, err := next.Postings(ctx, name, values...)
				if err != nil || name != "job" || values[0] != "test" {
					return p, err
				}
				refs, err := index.ExpandPostings(p)
				return index.NewListPostings(lie(refs)), err
			}}, Full)
			require.ErrorIs(t, err, ErrDamaged)
			require.ErrorContains(t, err, `label "job"`)
		})
	}
}

func TestNoFlippedBitEndsTheProcessOrChangesASample(t *testing.T) {
	whole := block(t)
	want := blocktest.Samples(t, whole)
	for _, file := range []string{"index", "chunks/000001", "tombstones"} {
		text, err := os.ReadFile(filepath.Join(whole, file))
		require.NoError(t, err)
		for at := 0; at < len(text); at += max(1, len(text)/300) {
			dir := filepath.Join(t.TempDir(), filepath.Base(whole))
			require.NoError(t, os.CopyFS(dir, os.DirFS(whole)))
			rewrite(t, filepath.Join(dir, file), func(text []byte) []byte { text[at] ^= 0x10; return text })
			if _, err := Dir(t.Context(), dir, Full); err != nil {
				require.ErrorIs(t, err, ErrDamaged)
				continue
			}
			// What no checksum covers must not matter either.
			require.Equal(t, want, blocktest.Samples(t, dir), "bit in byte %d of %s", at, file)
		}
	}
}

func TestABlockIsNotTakenForWholeIfTheEndOfASegmentIsMissing(t *testing.T) {
	dir := block(t)
	_, err := Dir(t.Context(), dir, Quick)
	require.NoError(t, err)
	rewrite(t, filepath.Join(dir, "chunks", "000001"), func(text []byte) []byte { return text[:len(text)-1] })
	_, err = Dir(t.Context(), dir, Quick)
	require.ErrorIs(t, err, ErrDamaged)
}

func TestErrorsOfTheMachineAreNotTheFaultOfABlock(t *testing.T) {
	for _, err := range []error{
		&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC},
		fmt.Errorf("open: %w", &os.PathError{Op: "open", Path: "x", Err: syscall.EMFILE}),
		context.Canceled,
	} {
		require.NotErrorIs(t, damaged(err), ErrDamaged, "%v", err)
	}
	require.ErrorIs(t, damaged(errors.New("invalid checksum")), ErrDamaged)
}

// greedy gives a block whose chunks all are one histogram with a span of 2^32-1 buckets.
type greedy struct{ tsdb.BlockReader }

type greedyChunks struct{ tsdb.ChunkReader }

func (g greedy) Chunks() (tsdb.ChunkReader, error) {
	next, err := g.BlockReader.Chunks()
	return greedyChunks{next}, err
}

func (greedyChunks) ChunkOrIterable(chunks.Meta) (chunkenc.Chunk, chunkenc.Iterable, error) {
	chunk, err := chunkenc.FromData(chunkenc.EncHistogram, []byte("\x00\x01\x00\x00\x47\xf8\x00\x00\x03\xff\xff\xff\xfc"+strings.Repeat("\x00", 17)))
	return chunk, nil, err
}

func TestAHistogramThatAsksForMoreMemoryThanThereIsIsAFault(t *testing.T) {
	b, err := tsdb.OpenBlock(nil, block(t), nil, nil)
	require.NoError(t, err)
	defer b.Close()
	_, err = Reader(t.Context(), greedy{b}, Full)
	require.ErrorIs(t, err, ErrDamaged)
	require.ErrorContains(t, err, "4294967295 buckets")
}
