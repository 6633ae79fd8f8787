package cluster

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheRegistrySurvivesOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "if need be")
	s := newStore(dir)
	empty, err := s.load()
	require.NoError(t, err)
	require.Empty(t, empty.Records())
	r := merged(t, active("a", "z", 0), active("b", "z", 1))
	require.NoError(t, s.save(r))
	got, err := newStore(dir).load()
	require.NoError(t, err)
	require.Equal(t, r, got)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1, "no temporary file is left")
}

func TestTheOwnRecordOnDiskNeverGetsOlder(t *testing.T) {
	s := newStore(t.TempDir())
	old := merged(t, active("a", "z", 0))
	next, err := active("a", "z", 0).Next(Draining)
	require.NoError(t, err)
	require.NoError(t, s.save(old, next))
	require.NoError(t, s.save(old), "somebody saves what it knew before")
	got, err := s.load()
	require.NoError(t, err)
	require.Equal(t, []Record{next}, got.Records())
}

func TestADamagedRegistryStopsTheStart(t *testing.T) {
	s := newStore(t.TempDir())
	require.NoError(t, os.WriteFile(s.path, []byte{codecVersion, 200, 1}, 0o600))
	_, err := s.load()
	require.ErrorContains(t, err, s.path)
	require.ErrorIs(t, err, errCodec)
}

func TestWithoutADirectoryNothingIsKept(t *testing.T) {
	s := newStore("")
	require.NoError(t, s.save(merged(t, active("a", "z", 0))))
	got, err := s.load()
	require.NoError(t, err)
	require.Empty(t, got.Records())
}
