package ingester

import (
	"errors"
	"io/fs"
	"os"
)

// namesIn returns the names in dir that match, sorted; none if dir is not there. It stands in
// for filepath.Glob, which takes what it is given as a folder for a pattern, too: tenants may
// be called "*", and a pattern under the folder of that one reaches into those of all others.
func namesIn(dir string, match func(name string) bool) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if match(entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}
