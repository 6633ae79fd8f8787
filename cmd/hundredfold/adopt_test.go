package main

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

// over returns a process, not started, over a data directory.
func over(dir string) *process {
	p := &process{logger: slog.New(slog.DiscardHandler)}
	p.cfg.DataDir = dir
	p.cfg.Ingester.Dir = filepath.Join(dir, "ingester")
	return p
}

func TestWhatIsNoDirectoryOfAPrometheusIsNotAdopted(t *testing.T) {
	for name, folders := range map[string][]string{
		"an empty one":         nil,
		"one of ours":          {"ingester/default/chunks_head", "bucket", "compactor"},
		"that of an agent":     {"wal"},
		"a block without meta": {"01ARZ3NDEKTSV4RRFFQ69G5FAV"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, folder := range folders {
				require.NoError(t, os.MkdirAll(filepath.Join(dir, folder), 0o750))
			}
			adopted, err := over(dir).adopt()
			require.NoError(t, err)
			require.Nil(t, adopted)
			require.NoFileExists(t, filepath.Join(dir, adoptedFile))
		})
	}
}

func TestAnAdoptionIsRememberedWithTheBlocksThatStay(t *testing.T) {
	dir := t.TempDir()
	block := ulid.MustParse(filepath.Base(blocktest.Write(t, dir, 0, 1000, blocktest.Floats("a", 0, 1000, 10))))
	adopted, err := over(dir).adopt()
	require.NoError(t, err)
	require.Equal(t, tenant.Default, adopted.Tenant)
	require.Equal(t, []ulid.ULID{block}, adopted.Keep)

	// One that we cut goes its way; one that a Prometheus has merged since stays.
	blocktest.Write(t, dir, 1000, 2000, blocktest.Floats("a", 1000, 2000, 10))
	merged := blocktest.Write(t, dir, 2000, 3000, blocktest.Floats("a", 2000, 3000, 10))
	meta := filepath.Join(merged, "meta.json")
	require.NoError(t, os.WriteFile(meta, []byte(`{"version": 1, "compaction": {"level": 2}}`), 0o600))
	again, err := over(dir).adopt()
	require.NoError(t, err)
	require.ElementsMatch(t, []ulid.ULID{block, ulid.MustParse(filepath.Base(merged))}, again.Keep)

	a, err := readAdoption(filepath.Join(dir, adoptedFile))
	require.NoError(t, err)
	a.Keep = false
	require.NoError(t, a.save(filepath.Join(dir, adoptedFile)))
	again, err = over(dir).adopt()
	require.NoError(t, err)
	require.Empty(t, again.Keep)
	require.Equal(t, dir, again.Dir)
}

func TestNothingIsAdoptedThatWouldHideOtherData(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "chunks_head"), 0o750))
	p := over(dir)
	p.member = &membership{}
	_, err := p.adopt()
	require.ErrorContains(t, err, "import")

	require.NoError(t, os.MkdirAll(filepath.Join(dir, "ingester", "default"), 0o750))
	_, err = over(dir).adopt()
	require.ErrorContains(t, err, "beside that of tenant default")
	require.NoFileExists(t, filepath.Join(dir, adoptedFile))
}

func FuzzAdoption(f *testing.F) {
	for _, text := range []string{
		`{"version":1,"tenant":"default","since":"2026-01-02T03:04:05Z","keep_blocks":true,"blocks":["01BX5ZZKBKACTAV9WEVGEMMVRZ"]}`,
		`{"version":1,"tenant":"../x","blocks":null}`,
		`{"version":2,"tenant":"default"}`,
		`{"version":1,"tenant":"default","blocks":[""]}`,
		`{}`, `null`, ``,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := parseAdoption(text)
		if err != nil {
			return
		}
		_, err = tenant.Parse(string(a.Tenant))
		require.NoError(t, err, "it names a folder")
		encoded, err := json.Marshal(a)
		if err != nil {
			return // a time that JSON has no form for
		}
		again, err := parseAdoption(encoded)
		require.NoError(t, err)
		require.True(t, a.Since.Equal(again.Since))
		again.Since = a.Since
		require.Equal(t, a, again)
	})
}
