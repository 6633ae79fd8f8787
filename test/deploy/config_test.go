package deploy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/testcluster"
)

// check runs `hundredfold --config.check` with a configuration and flags, in which the
// paths of a deployment are replaced by those of files of the test's own.
func check(t testing.TB, config string, flags []string) {
	t.Helper()
	if testing.Short() {
		t.Skip("the program is not built with -short")
	}
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	secret := write("secret", "a secret for this test only")
	web := write("web.yml", "basic_auth_users: {operator: $2y$10$L3xdEhO0GhYfDPNOSEAzaugHVPi2W5Kr9H9pN4H3D1yiF5Ib7Q4Wi}\n")
	replace := strings.NewReplacer(
		"/etc/hundredfold/cluster/secret", secret, "/etc/hundredfold/cluster.secret", secret, "/run/secrets/cluster", secret,
		"/etc/hundredfold/web/web.yml", web, "/etc/hundredfold/web.yml", web,
	)
	file := write("hundredfold.yml", replace.Replace(config))
	args := []string{"--config.check"}
	for _, arg := range flags {
		switch {
		case strings.HasPrefix(arg, "--config.file="):
			arg = "--config.file=" + file
		case strings.HasPrefix(arg, "--data.dir="):
			arg = "--data.dir=" + dir
		}
		args = append(args, arg)
	}
	code, stdout, stderr := testcluster.Run(t, args...)
	require.Zerof(t, code, "%v\n%s\n%s%s", args, config, stdout, stderr)
}

func TestConfigurationOfTheChartIsValidForEachRole(t *testing.T) {
	for name, path := range valuesFiles(t) {
		all := parse(t, template(t, "--values="+path))
		config := where(t, all, ofKind("ConfigMap"))[0].Data["hundredfold.yml"]
		for _, m := range where(t, all, manifest.runs) {
			t.Run(name+" "+m.Metadata.Name, func(t *testing.T) {
				ip := "10.0.0.7"
				if strings.Contains(config, "[::]") {
					ip = "fd00::7"
				}
				pod := strings.NewReplacer("$(POD_NAME)", m.Metadata.Name+"-0", "$(POD_IP)", ip)
				var flags []string
				for _, arg := range m.Spec.Template.Spec.Containers[0].Args {
					flags = append(flags, pod.Replace(arg))
				}
				check(t, config, flags)
			})
		}
	}
}

func TestConfigurationOfComposeIsValid(t *testing.T) {
	config, err := os.ReadFile(filepath.Join(compose, "hundredfold.yml"))
	require.NoError(t, err)
	checked := 0
	for name, service := range loadCompose(t).Services {
		if len(service.Command) > 0 && strings.HasPrefix(service.Command[0], "--role=") {
			t.Run(name, func(t *testing.T) { check(t, string(config), service.Command) })
			checked++
		}
	}
	require.Equal(t, 8, checked)
}

func TestConfigurationOfSystemdIsValidForEachRole(t *testing.T) {
	config, err := os.ReadFile(filepath.Join(systemd, "cluster.yml"))
	require.NoError(t, err)
	environment, err := os.ReadFile(filepath.Join(systemd, "ingester.env"))
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(environment), "\nHUNDREDFOLD_FLAGS=")
	require.True(t, ok)
	own, _, _ := strings.Cut(rest, "\n")
	command := strings.ReplaceAll(value(unit(t, "hundredfold@.service"), "ExecStart"), "$HUNDREDFOLD_FLAGS", own)
	for _, role := range []string{"distributor", "ingester", "querier", "compactor"} {
		t.Run(role, func(t *testing.T) {
			check(t, string(config), strings.Fields(strings.ReplaceAll(command, "%i", role))[1:])
		})
	}
}

// The chart's hooks, probes and Jobs call subcommands with flags.
func TestCommandsOfTheChartExist(t *testing.T) {
	if testing.Short() {
		t.Skip("the program is not built with -short")
	}
	for subcommand, flags := range map[string][]string{
		"rollout": {"announce", "ready", "url", "exec"},
		"drain":   {"url", "timeout"},
	} {
		code, stdout, stderr := testcluster.Run(t, subcommand, "--help")
		require.Zero(t, code, stderr)
		for _, flag := range flags {
			require.Regexp(t, `(?m)^\s*--?`+flag+`\b`, stdout+stderr)
		}
	}
}
