package rollout

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/cluster"
)

var update = flag.Bool("update", false, "write what the plans in testdata are")

// Each file in testdata is a cluster, in the words that story reads, then a line of
// dashes, then the plan for it.
func TestPlans(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			story, want, _ := strings.Cut(string(text), "----\n")
			status, journal, cfg := readStory(t, story)
			got := plan(status, journal, cfg)
			if *update {
				require.NoError(t, os.WriteFile(path, []byte(story+"----\n"+got), 0o600))
				return
			}
			require.Equal(t, want, got)
		})
	}
}

// plan says what a rollout would do, or why it would not.
func plan(status cluster.Status, journal Journal, cfg Config) string {
	r := New(cfg, Deps{Status: answers(status)})
	p, _, err := r.Plan(nil, journal) //nolint:staticcheck // the answer is there already
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	return p.String()
}

// readStory reads a cluster, a line for each thing:
//
//	rf 3
//	parallel 2
//	allow-outage
//	lacking 4                        replica sets that lack a replica
//	began a-0=5 b-0=7                the journal of a rollout that was broken off
//	ID ZONE RANK STATE EPOCH [dead|displaced]
func readStory(t testing.TB, story string) (cluster.Status, Journal, Config) {
	t.Helper()
	status := cluster.Status{Cluster: "test", Agree: true, Sets: cluster.SetsStatus{Total: 9}}
	journal, cfg := Journal{}, Config{}
	number := func(s string) int {
		n, err := strconv.Atoi(s)
		require.NoError(t, err)
		return n
	}
	for line := range strings.Lines(story) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		switch words[0] {
		case "rf":
			status.ReplicationFactor = number(words[1])
		case "parallel":
			cfg.Parallel = number(words[1])
		case "allow-outage":
			cfg.AllowOutage = true
		case "lacking":
			status.Sets.AtRisk = number(words[1])
		case "began":
			journal = Journal{Version: journalVersion, Cluster: "test", Began: time.Unix(0, 0), Epochs: map[string]uint64{}}
			for _, word := range words[1:] {
				id, epoch, _ := strings.Cut(word, "=")
				journal.Epochs[id] = uint64(number(epoch))
			}
		default:
			require.GreaterOrEqual(t, len(words), 5, line)
			zone := strings.Trim(words[1], "-")
			m := member(words[0], zone, number(words[2]), words[3], uint64(number(words[4])))
			m.Alive = words[len(words)-1] != "dead"
			m.Displaced = words[len(words)-1] == "displaced"
			status.Members = append(status.Members, m)
		}
	}
	return status, journal, cfg
}

func member(id, zone string, rank int, state string, epoch uint64) cluster.MemberStatus {
	return cluster.MemberStatus{
		ID: id, Zone: zone, Rank: rank, State: state, Epoch: epoch, Address: fmt.Sprintf("10.0.0.%d:9095", rank), Alive: true,
	}
}

// Names come from other processes, and go into a shell.
func TestNamesThatAShellMayMistakeAreRefused(t *testing.T) {
	for _, id := range []string{"a;reboot", "$(reboot)", "a b", "`a`", "a'b", "a|b", "a\nb", "a>b"} {
		status := cluster.Status{
			Cluster: "test", ReplicationFactor: 3, Agree: true,
			Members: []cluster.MemberStatus{member(id, "a", 0, "ACTIVE", 1)},
		}
		require.Contains(t, plan(status, Journal{}, Config{}), errName.Error(), id)
	}
}
