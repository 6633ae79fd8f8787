// Package deploy tests what deploy/ holds, with the programs that its users use: the
// chart as helm renders it against the schemas of Kubernetes, the compose file, the
// systemd units, and the configuration in them against the program itself.
package deploy

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/hundredfold/hundredfold/internal/testcluster"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { os.Exit(testcluster.Main(m)) }

// tool returns the path of a program that `make tools` builds.
func tool(t testing.TB, name string) string {
	t.Helper()
	if testing.Short() {
		t.Skipf("%s is not run with -short", name)
	}
	return testcluster.Tool(t, name)
}

const (
	chart     = "../../deploy/helm/hundredfold"
	release   = "hf"
	namespace = "metrics"
	// oldest is the oldest Kubernetes that the chart supports; .bin/kubernetes-schemas
	// has its schemas.
	oldest = "1.30.0"
)

// valuesFiles are what the chart is tested with, by name.
func valuesFiles(t testing.TB) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("testdata/values/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	files := map[string]string{}
	for _, path := range paths {
		files[strings.TrimSuffix(filepath.Base(path), ".yaml")] = path
	}
	return files
}

// helm runs helm and returns what it wrote.
func helm(t testing.TB, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool(t, "helm"), args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// template returns the chart's manifests.
func template(t testing.TB, args ...string) string {
	t.Helper()
	stdout, stderr, err := helm(t, append([]string{
		"template", release, chart, "--namespace=" + namespace, "--kube-version=" + oldest,
	}, args...)...)
	require.NoErrorf(t, err, "%s", stderr)
	return stdout
}

// manifest is what tests look at of a manifest of any kind.
type manifest struct {
	Kind       string
	APIVersion string `yaml:"apiVersion"`
	Metadata   struct {
		Name                string
		Labels, Annotations map[string]string
	}
	Data map[string]string
	Spec struct {
		Replicas            *int
		Selector            yaml.Node // labels, of a Service without matchLabels
		Template            pod
		ServiceName         string                `yaml:"serviceName"`
		UpdateStrategy      struct{ Type string } `yaml:"updateStrategy"`
		PodManagementPolicy string                `yaml:"podManagementPolicy"`
		Retention           struct {
			WhenDeleted string `yaml:"whenDeleted"`
			WhenScaled  string `yaml:"whenScaled"`
		} `yaml:"persistentVolumeClaimRetentionPolicy"`
		Claims                   []struct{ Metadata struct{ Name string } } `yaml:"volumeClaimTemplates"`
		MaxUnavailable           any                                        `yaml:"maxUnavailable"`
		ClusterIP                string                                     `yaml:"clusterIP"`
		PublishNotReadyAddresses bool                                       `yaml:"publishNotReadyAddresses"`
		Ports                    []port
		ScaleTargetRef           struct{ Kind, Name string } `yaml:"scaleTargetRef"`
	}
}

type port struct {
	Name, Protocol string
	Port           int
	ContainerPort  int    `yaml:"containerPort"`
	TargetPort     string `yaml:"targetPort"`
}

type pod struct {
	Metadata struct{ Labels map[string]string }
	Spec     struct {
		Automount          *bool `yaml:"automountServiceAccountToken"`
		GracePeriodSeconds int   `yaml:"terminationGracePeriodSeconds"`
		SecurityContext    struct {
			RunAsNonRoot bool `yaml:"runAsNonRoot"`
			RunAsUser    int  `yaml:"runAsUser"`
		} `yaml:"securityContext"`
		NodeSelector map[string]string `yaml:"nodeSelector"`
		Affinity     struct {
			PodAntiAffinity antiAffinity `yaml:"podAntiAffinity"`
		}
		InitContainers []container `yaml:"initContainers"`
		Containers     []container
		Volumes        []struct {
			Name      string
			ConfigMap struct{ Name string } `yaml:"configMap"`
			Secret    struct {
				SecretName string `yaml:"secretName"`
			}
		}
	}
}

type antiAffinity struct {
	Required []struct {
		TopologyKey   string `yaml:"topologyKey"`
		LabelSelector struct {
			MatchLabels      map[string]string `yaml:"matchLabels"`
			MatchExpressions []struct {
				Key, Operator string
				Values        []string
			} `yaml:"matchExpressions"`
		} `yaml:"labelSelector"`
	} `yaml:"requiredDuringSchedulingIgnoredDuringExecution"`
}

type container struct {
	Name string
	Args []string
	Env  []struct {
		Name, Value string
	}
	Ports     []port
	Lifecycle struct {
		PreStop struct {
			Exec  struct{ Command []string }
			Sleep struct{ Seconds int }
		} `yaml:"preStop"`
	}
	Resources struct{ Limits, Requests map[string]string }
	Security  struct {
		Escalation   *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRoot bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities struct{ Drop []string }
	} `yaml:"securityContext"`
	Mounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

// labels returns the labels that a Service, a budget or a workload selects pods by.
func (m manifest) labels(t testing.TB) map[string]string {
	t.Helper()
	var plain map[string]string
	if m.Spec.Selector.Decode(&plain) == nil {
		return plain
	}
	var selector struct {
		MatchLabels map[string]string `yaml:"matchLabels"`
	}
	require.NoError(t, m.Spec.Selector.Decode(&selector))
	return selector.MatchLabels
}

// runs reports whether m runs Hundredfold for good.
func (m manifest) runs() bool { return m.Kind == "StatefulSet" || m.Kind == "Deployment" }

// component is the role of a manifest.
func (m manifest) component() string { return m.Metadata.Labels["app.kubernetes.io/component"] }

// parse returns the manifests of a rendered chart.
func parse(t testing.TB, rendered string) []manifest {
	t.Helper()
	var all []manifest
	for _, document := range regexp.MustCompile(`(?m)^---$`).Split(rendered, -1) {
		var m manifest
		require.NoErrorf(t, yaml.Unmarshal([]byte(document), &m), "%s", document)
		if m.Kind != "" {
			all = append(all, m)
		}
	}
	require.NotEmpty(t, all)
	return all
}

// selects reports whether a selector takes something with labels.
func selects(selector, labels map[string]string) bool {
	for key, value := range selector {
		if labels[key] != value {
			return false
		}
	}
	return len(selector) > 0
}

// where returns the manifests for which keep is true; there must be some.
func where(t testing.TB, all []manifest, keep func(manifest) bool) []manifest {
	t.Helper()
	var kept []manifest
	for _, m := range all {
		if keep(m) {
			kept = append(kept, m)
		}
	}
	require.NotEmpty(t, kept)
	return kept
}

func ofKind(kind string) func(manifest) bool {
	return func(m manifest) bool { return m.Kind == kind }
}

func ingesters(m manifest) bool { return m.Kind == "StatefulSet" && m.component() == "ingester" }
