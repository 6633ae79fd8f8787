package rollout

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hundredfold/hundredfold/internal/cluster"
)

const (
	journalVersion = 1
	// stale is the age at which a rollout that was broken off is not gone on with:
	// ingesters restart for other reasons, too, and would be taken for done.
	stale = 24 * time.Hour
)

var (
	errJournal = errors.New("the journal of an earlier rollout does not fit; delete the file to begin anew")
	errVersion = errors.New("its version is unknown")
)

// Journal says which ingesters a rollout is about. The zero value is that of none.
type Journal struct {
	Version int       `json:"version"`
	Cluster string    `json:"cluster"`
	Began   time.Time `json:"began"`
	// Epochs are those of the ingesters' records before their restarts. Every restart
	// raises the epoch, so they also tell who was restarted.
	Epochs map[string]uint64 `json:"epochs"`
}

// begin returns the journal of a rollout that begins.
func begin(status cluster.Status) Journal {
	j := Journal{Version: journalVersion, Cluster: status.Cluster, Began: time.Now().UTC(), Epochs: map[string]uint64{}}
	for _, m := range status.Members {
		if takesPart(m) {
			j.Epochs[m.ID] = m.Epoch
		}
	}
	return j
}

// Empty reports whether no rollout is under way.
func (j Journal) Empty() bool { return len(j.Epochs) == 0 }

// restarted reports whether the ingester was restarted since the rollout began, and is
// back.
func (j Journal) restarted(status cluster.Status, id string) bool {
	at := slices.IndexFunc(status.Members, func(m cluster.MemberStatus) bool { return m.ID == id })
	if at < 0 {
		return false
	}
	m := status.Members[at]
	return m.Epoch > j.Epochs[id] && m.Alive && m.State == cluster.Active.String()
}

// fits reports whether a rollout of a cluster may go on with j.
func (j Journal) fits(name string, now time.Time) error {
	if j.Cluster != name {
		return fmt.Errorf("%w: it is about the cluster %q, and this is %q", errJournal, j.Cluster, name)
	}
	if age := now.Sub(j.Began); age > stale {
		return fmt.Errorf("%w: it is %s old", errJournal, age.Round(time.Minute))
	}
	return nil
}

// readJournal returns the journal at path, an empty one if there is no file.
func readJournal(path string) (Journal, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return Journal{}, nil
	}
	if err != nil {
		return Journal{}, fmt.Errorf("read the journal: %w", err)
	}
	j, err := decodeJournal(text)
	if err != nil {
		return Journal{}, fmt.Errorf("%w: %s: %w", errJournal, path, err)
	}
	return j, nil
}

func decodeJournal(text []byte) (Journal, error) {
	var j Journal
	if err := json.Unmarshal(text, &j); err != nil {
		return Journal{}, err
	}
	if j.Version != journalVersion {
		return Journal{}, errVersion
	}
	return j, nil
}

// write writes j to path, whole or not at all.
func (j Journal) write(path string) error {
	text, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the journal: %w", err)
	}
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp")
	if err != nil {
		return fmt.Errorf("write the journal: %w", err)
	}
	_, err = file.Write(append(text, '\n'))
	err = errors.Join(err, file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write the journal: %w", errors.Join(err, os.Remove(file.Name())))
	}
	return nil
}
