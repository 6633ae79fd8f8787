package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const systemd = "../../deploy/systemd"

// directive is a line of a unit: key and value, in a section.
type directive struct{ section, key, value string }

// unit reads a unit file as strictly as it can be read without knowing all keys.
func unit(t testing.TB, name string) []directive {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(systemd, name))
	require.NoError(t, err)
	var all []directive
	section := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "["):
			section = strings.Trim(line, "[]")
			require.Contains(t, []string{"Unit", "Service", "Install"}, section)
		default:
			key, value, ok := strings.Cut(line, "=")
			require.Truef(t, ok && section != "" && !strings.ContainsAny(key, " \t"), "%s: %s", name, line)
			all = append(all, directive{section, key, value})
		}
	}
	return all
}

func value(all []directive, key string) string {
	for _, d := range all {
		if d.key == key {
			return d.value
		}
	}
	return ""
}

func units(t testing.TB) []string {
	t.Helper()
	paths, err := filepath.Glob(systemd + "/*.service")
	require.NoError(t, err)
	require.Len(t, paths, 2)
	for i := range paths {
		paths[i] = filepath.Base(paths[i])
	}
	return paths
}

func TestUnitsGiveTheProgramTimeAndNoRights(t *testing.T) {
	for _, name := range units(t) {
		t.Run(name, func(t *testing.T) {
			all := unit(t, name)
			for key, want := range map[string]string{
				"Type": "exec", "Restart": "on-failure", "TimeoutStopSec": "5min", "ExecReload": "/bin/kill -HUP $MAINPID",
				"NoNewPrivileges": "yes", "CapabilityBoundingSet": "", "ProtectSystem": "strict", "WantedBy": "multi-user.target",
				"StateDirectoryMode": "0750", "LimitNOFILE": "1048576",
			} {
				require.Equal(t, want, value(all, key), key)
			}
			command := value(all, "ExecStart")
			require.True(t, strings.HasPrefix(command, "/usr/local/bin/hundredfold "))
			require.Contains(t, command, "--data.dir=/var/lib/"+value(all, "StateDirectory"))
			// Nobody but root runs as root.
			require.True(t, value(all, "DynamicUser") == "yes" || value(all, "User") == "hundredfold")
		})
	}
}

func TestRolesOnOneHostShareNothing(t *testing.T) {
	all := unit(t, "hundredfold@.service")
	command := value(all, "ExecStart")
	require.Contains(t, command, "--role=%i")
	require.Contains(t, command, "--data.dir=/var/lib/hundredfold-%i")
	require.Contains(t, command, "$HUNDREDFOLD_FLAGS")
	require.Equal(t, "-/etc/hundredfold/%i.env", value(all, "EnvironmentFile"))
	// Gossip asks the kernel which addresses there are.
	require.Contains(t, value(all, "RestrictAddressFamilies"), "AF_NETLINK")
}

// systemd itself knows all keys. It wants the program to be there.
func TestUnitsAreCleanForSystemd(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd-analyze here")
	}
	program, err := exec.LookPath("true")
	require.NoError(t, err)
	for _, name := range units(t) {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(systemd, name))
			require.NoError(t, err)
			path := filepath.Join(t.TempDir(), strings.Replace(name, "@.", "@ingester.", 1))
			text = []byte(strings.ReplaceAll(string(text), "/usr/local/bin/hundredfold ", program+" "))
			require.NoError(t, os.WriteFile(path, text, 0o600))
			output, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", path).CombinedOutput()
			require.NoErrorf(t, err, "%s", output)
			for line := range strings.Lines(string(output)) {
				// What it has to say of other units of this machine is not ours to mend.
				require.NotContains(t, line, filepath.Base(path))
			}
		})
	}
}
