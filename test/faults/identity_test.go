package faults

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/testcluster"
)

// Whoever does not belong to a cluster stays outside, says why, and does no harm.
func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte(rand.Text()), 0o600))
	b := newBed(t, options{zones: []string{"a", "b", "c"}, yaml: fmt.Sprintf("cluster: {secret_file: %q}\n", secret)})
	b.awaitWhole(t)
	first := b.Members("ingester")[0]

	t.Run("a second process with an id that is in use ends", func(t *testing.T) {
		code, _, errs := testcluster.Run(t, append(b.likeMember(t, secret, "hundredfold"), "--instance-id="+first.Name, "--gossip.join="+first.Gossip())...)
		require.Equal(t, 1, code)
		require.Contains(t, errs, first.Name)
		require.Contains(t, errs, "another process runs under this instance")
	})
	other := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(other, []byte(rand.Text()), 0o600))
	for name, args := range map[string][]string{
		"another cluster's name": b.likeMember(t, secret, "another"),
		"another secret":         b.likeMember(t, other, "hundredfold"),
	} {
		t.Run("one with "+name+" is not let in", func(t *testing.T) {
			before := refusals(t, b)
			p := testcluster.NewProcess(t, append(args, "--instance-id=stranger", "--gossip.join="+first.Gossip())...)
			p.Launch()
			testcluster.Eventually(t, readyTimeout, func(context.Context) error {
				if refusals(t, b) == before {
					return fmt.Errorf("%w: a refusal", errNotYet)
				}
				return nil
			})
			p.Kill()
			status, err := statusOf(t.Context(), first)
			require.NoError(t, err)
			require.NoError(t, whole(status))
			for _, m := range status.Members {
				require.NotEqual(t, "stranger", m.ID)
			}
		})
	}
}

// likeMember returns the flags of one more ingester.
func (b *bed) likeMember(t testing.TB, secret, name string) []string {
	t.Helper()
	config := filepath.Join(t.TempDir(), "hundredfold.yml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `bucket: {filesystem: {directory: %q}}
cluster: {name: %s, secret_file: %q}
`, t.TempDir(), name, secret), 0o600))
	return []string{
		"--role=ingester", "--config.file=" + config, "--data.dir=" + t.TempDir(),
		"--http.listen-address=127.0.0.1:0", "--grpc.listen-address=127.0.0.1:0", "--gossip.listen-address=127.0.0.1:0",
	}
}

// refusals returns how often members have refused what a stranger said.
func refusals(t testing.TB, b *bed) float64 {
	t.Helper()
	sum := 0.0
	for _, m := range b.Members("") {
		n, err := m.Metric(t.Context(), "hundredfold_cluster_bad_messages_total")
		require.NoError(t, err)
		sum += n
	}
	return sum
}
