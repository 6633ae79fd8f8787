package deploy

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const compose = "../../deploy/compose"

// composeModel is the compose file as the reference implementation of its
// specification understands it. Unknown keys are errors to it.
type composeModel struct {
	Services map[string]struct {
		Command   []string
		DependsOn map[string]any `json:"depends_on"`
		Profiles  []string
		Ports     []struct {
			HostIP string `json:"host_ip"`
			Target int
		}
		Volumes  []struct{ Type, Source, Target string }
		Configs  []struct{ Source, Target string }
		Secrets  []struct{ Source string }
		ReadOnly bool `json:"read_only"`
		MemLimit any  `json:"mem_limit"`
		User     string
	}
	Configs, Secrets map[string]struct{ File string }
	Volumes          map[string]any
}

func loadCompose(t testing.TB) composeModel {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool(t, "compose-spec"), "--format=json", "docker-compose.yml")
	cmd.Dir = compose
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	require.NoError(t, err)
	var model composeModel
	require.NoError(t, json.Unmarshal(text, &model))
	return model
}

func TestComposeRunsAllRolesInThreeZones(t *testing.T) {
	model := loadCompose(t)
	roles, zones, volumes := map[string]int{}, map[string]bool{}, map[string]bool{}
	for name, service := range model.Services {
		for _, arg := range service.Command {
			if role, ok := strings.CutPrefix(arg, "--role="); ok {
				roles[role]++
				require.True(t, service.ReadOnly, name)
				require.NotEmpty(t, service.MemLimit, name)
			}
			if zone, ok := strings.CutPrefix(arg, "--zone="); ok {
				require.Falsef(t, zones[zone], "zone %s stands there twice", zone)
				zones[zone] = true
				// `docker compose restart {id}` restarts an ingester.
				require.Contains(t, service.Command, "--instance-id="+name)
			}
		}
		for _, volume := range service.Volumes {
			if volume.Type == "volume" {
				require.Falsef(t, volumes[volume.Source], "two services share the volume %s", volume.Source)
				volumes[volume.Source] = true
			}
		}
	}
	require.Equal(t, map[string]int{"distributor": 2, "ingester": 3, "querier": 2, "compactor": 1}, roles)
	require.Len(t, zones, 3)
}

func TestComposeRefersToFilesThatExist(t *testing.T) {
	model := loadCompose(t)
	for name, file := range model.Configs {
		require.FileExists(t, file.File, name)
	}
	for name, file := range model.Secrets {
		require.FileExists(t, file.File, name)
	}
	for name, service := range model.Services {
		for _, volume := range service.Volumes {
			if volume.Type == "bind" {
				require.DirExists(t, volume.Source, name)
			}
		}
	}
}

func TestComposePublishesOnlyOnLoopback(t *testing.T) {
	model := loadCompose(t)
	published := 0
	for name, service := range model.Services {
		for _, port := range service.Ports {
			require.Equal(t, "127.0.0.1", port.HostIP, name)
			published++
		}
	}
	require.Equal(t, 2, published, "the load balancer and Grafana")
}

// The load balancer must know every distributor and querier, and nobody else.
func TestLoadBalancerKnowsTheServices(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(compose, "nginx.conf"))
	require.NoError(t, err)
	var known, wanted []string
	for _, server := range regexp.MustCompile(`server ([a-z0-9-]+):9009 resolve;`).FindAllStringSubmatch(string(text), -1) {
		known = append(known, server[1])
	}
	for name, service := range loadCompose(t).Services {
		if slices.Contains(service.Command, "--role=distributor") || slices.Contains(service.Command, "--role=querier") {
			wanted = append(wanted, name)
		}
	}
	require.ElementsMatch(t, wanted, known)
	// Every path that is written to goes to the distributors.
	writes := regexp.MustCompile(`location ~ (\S+) \{`).FindStringSubmatch(string(text))
	require.NotNil(t, writes)
	for path, isWrite := range map[string]bool{
		"/api/v1/write": true, "/api/v1/push": true, "/api/v1/otlp/v1/metrics": true, "/prometheus/api/v1/write": true,
		"/api/v1/query": false, "/api/v1/writer": false, "/": false,
	} {
		require.Equal(t, isWrite, regexp.MustCompile(writes[1]).MatchString(path), path)
	}
}

// What an image is built of is listed, so that a build takes neither data nor secrets
// along; what the program is built of must be on the list.
func TestImageIsBuiltOfWhatTheProgramNeeds(t *testing.T) {
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if .Module}}{{if .Module.Main}}{{.ImportPath}}{{end}}{{end}}", "./cmd/hundredfold")
	list.Dir = "../.."
	output, err := list.Output()
	require.NoError(t, err)
	text, err := os.ReadFile("../../deploy/docker/Dockerfile.dockerignore")
	require.NoError(t, err)
	for path := range strings.FieldsSeq(string(output)) {
		folder, _, _ := strings.Cut(strings.TrimPrefix(path, "github.com/hundredfold/hundredfold/"), "/")
		require.Contains(t, string(text), "\n!"+folder+"\n")
	}
}
