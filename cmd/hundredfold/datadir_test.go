package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDataDirectoryBelongsToOneProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	first, err := openDataDir(dir, "")
	require.NoError(t, err)

	_, err = openDataDir(dir, "")
	require.ErrorIs(t, err, errInUse)
	require.ErrorContains(t, err, fmt.Sprintf("data directory %s is in use by another process (pid %d)", dir, os.Getpid()))

	require.NoError(t, first.Close())
	second, err := openDataDir(dir, "")
	require.NoError(t, err)
	require.NoError(t, second.Close())
}

func TestInstanceKeepsItsIdentity(t *testing.T) {
	dir := t.TempDir()
	first, err := openDataDir(dir, "")
	require.NoError(t, err)
	require.Len(t, first.ID, 26)
	require.NoError(t, first.Close())
	second, err := openDataDir(dir, "")
	require.NoError(t, err)
	require.NoError(t, second.Close())
	require.Equal(t, first.ID, second.ID)

	other, err := openDataDir(t.TempDir(), "")
	require.NoError(t, err)
	require.NoError(t, other.Close())
	require.NotEqual(t, first.ID, other.ID)
}

func TestDamagedIdentityIsNotReplacedInSilence(t *testing.T) {
	for name, text := range map[string]string{
		"not JSON":        "{",
		"no id":           `{"version": 1}`,
		"a later version": `{"version": 2, "id": "x"}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "instance.json")
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
			_, err := openDataDir(dir, "")
			require.ErrorContains(t, err, path)

			require.NoError(t, os.Remove(path))
			d, err := openDataDir(dir, "")
			require.NoError(t, err, "the lock was released")
			require.NoError(t, d.Close())
		})
	}
}

func TestDataDirectoryThatCannotBeMadeIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err := openDataDir(filepath.Join(path, "data"), "")
	require.ErrorContains(t, err, "create the data directory")
}

// Directories of the release before the cluster have an id and no generation.
func TestADataDirectoryOfAnEarlierReleaseKeepsItsIdentity(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "instance.json")
	require.NoError(t, os.WriteFile(path, []byte(`{"version":1,"id":"01M81S1NHS5CFRVA8XG6WRVAT6"}`+"\n"), 0o600))
	first, err := openDataDir(dir, "")
	require.NoError(t, err)
	require.Equal(t, "01M81S1NHS5CFRVA8XG6WRVAT6", first.ID)
	require.NotZero(t, first.Generation)
	require.NoError(t, first.Close())
	again, err := openDataDir(dir, "01M81S1NHS5CFRVA8XG6WRVAT6")
	require.NoError(t, err)
	require.Equal(t, first.Generation, again.Generation)
	require.NoError(t, again.Close())
	_, err = openDataDir(dir, "another")
	require.ErrorContains(t, err, `belongs to instance "01M81S1NHS5CFRVA8XG6WRVAT6", not to "another"`)
}
