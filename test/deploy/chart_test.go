package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestChartIsCleanForHelm(t *testing.T) {
	for name, path := range valuesFiles(t) {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, err := helm(t, "lint", "--strict", "--kube-version="+oldest, "--values="+path, chart)
			require.NoErrorf(t, err, "%s%s", stdout, stderr)
		})
	}
}

// kubeconform validates manifests against the schemas of Kubernetes, unknown fields being
// errors.
func kubeconform(t testing.TB, manifests string) (output string, err error) {
	t.Helper()
	schemas := tool(t, "kubernetes-schemas") + "/{{.Group}}/{{.ResourceKind}}_{{.ResourceAPIVersion}}.json"
	cmd := exec.CommandContext(t.Context(), tool(t, "kubeconform"), "-strict", "-summary", "-schema-location="+schemas, "-")
	cmd.Stdin = strings.NewReader(manifests)
	text, err := cmd.CombinedOutput()
	return string(text), err
}

func TestManifestsFitTheSchemas(t *testing.T) {
	for name, path := range valuesFiles(t) {
		t.Run(name, func(t *testing.T) {
			output, err := kubeconform(t, template(t, "--values="+path))
			require.NoErrorf(t, err, "%s", output)
			require.Contains(t, output, "Invalid: 0, Errors: 0, Skipped: 0")
		})
	}
}

// The schemas themselves could be so lax that everything fits.
func TestSchemasFindFaults(t *testing.T) {
	rendered := template(t, "--values=testdata/values/minimal.yaml", "--set=serviceMonitor.enabled=true")
	for _, fault := range []struct{ is, was string }{
		{"updateStrategi: {type: OnDelete}", "updateStrategy: {type: OnDelete}"}, // an unknown field
		{"replicas: one", "replicas: 1"},                                         // a wrong type
		{"kind: StatefulSett", "kind: StatefulSet"},                              // an unknown kind
		{"readinessProb:", "readinessProbe:"},                                    // deep inside
		{"endpoint:", "endpoints:"},                                              // in the operator's
		{"containers: []\n      contain:", "containers:"},
	} {
		require.Contains(t, rendered, fault.was)
		output, err := kubeconform(t, strings.Replace(rendered, fault.was, fault.is, 1))
		require.Errorf(t, err, "%s: %s", fault.is, output)
	}
}

func TestMinimalValuesRenderAsReviewed(t *testing.T) {
	rendered := template(t, "--values=testdata/values/minimal.yaml")
	secret := regexp.MustCompile(`(?m)^  secret: \S+$`)
	require.Regexp(t, secret, rendered)
	rendered = secret.ReplaceAllString(rendered, "  secret: GENERATED")
	const golden = "testdata/minimal.golden.yaml"
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(rendered), 0o600))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), rendered, "run go test ./test/deploy -run Minimal -update and review the difference")
}

func TestIngestersKeepTheirPlaceThroughRestarts(t *testing.T) {
	for name, path := range valuesFiles(t) {
		t.Run(name, func(t *testing.T) {
			all := parse(t, template(t, "--values="+path))
			zones := map[string]bool{}
			for _, set := range where(t, all, ingesters) {
				zone := set.Metadata.Labels["hundredfold-zone"]
				require.Falsef(t, zones[zone], "zone %s has two StatefulSets", zone)
				zones[zone] = true

				require.Equal(t, "OnDelete", set.Spec.UpdateStrategy.Type, "Kubernetes would restart all zones at once")
				require.Equal(t, "Parallel", set.Spec.PodManagementPolicy, "the first of a zone may be what the second waits for")
				require.Equal(t, "Retain", set.Spec.Retention.WhenScaled, "what is not drained is on the disk only")
				require.Equal(t, "Retain", set.Spec.Retention.WhenDeleted)
				require.Equal(t, "data", set.Spec.Claims[0].Metadata.Name)

				pod := set.Spec.Template.Spec
				main := pod.Containers[0]
				require.GreaterOrEqual(t, pod.GracePeriodSeconds, 300)
				require.Equal(t, []string{"/usr/local/bin/hundredfold", "rollout", "--announce"}, main.Lifecycle.PreStop.Exec.Command)
				require.Contains(t, main.Args, "--zone="+zone)
				require.Contains(t, main.Args, "--instance-id=$(POD_NAME)", "who comes back without its disk has to have the same name")
			}
			require.GreaterOrEqual(t, len(zones), 2)
		})
	}
}

// An eviction that two budgets have a say in is refused for good.
func TestEachPodHasOneBudgetAtMost(t *testing.T) {
	for name, path := range valuesFiles(t) {
		t.Run(name, func(t *testing.T) {
			all := parse(t, template(t, "--values="+path))
			budgets := where(t, all, ofKind("PodDisruptionBudget"))
			for _, m := range where(t, all, manifest.runs) {
				found := 0
				for _, budget := range budgets {
					if selects(budget.labels(t), m.Spec.Template.Metadata.Labels) {
						require.Equal(t, 1, budget.Spec.MaxUnavailable)
						found++
					}
				}
				want := 1
				if m.component() == "compactor" {
					want = 0 // nobody waits for it
				}
				require.Equalf(t, want, found, "budgets of %s", m.Metadata.Name)
			}
		})
	}
}

func TestEvictionsNeverTouchTwoZonesUnlessToldTo(t *testing.T) {
	budgets := func(args ...string) []manifest {
		return where(t, parse(t, template(t, append(args, "--values=testdata/values/minimal.yaml")...)), func(m manifest) bool {
			return m.Kind == "PodDisruptionBudget" && m.component() == "ingester"
		})
	}
	one := budgets()
	require.Len(t, one, 1)
	require.NotContains(t, one[0].labels(t), "hundredfold-zone")
	require.Len(t, budgets("--set=ingester.podDisruptionBudget.scope=zone"), 3)
}

func TestNoNodeHasIngestersOfTwoZones(t *testing.T) {
	all := parse(t, template(t, "--values=testdata/values/production.yaml"))
	for _, set := range where(t, all, ingesters) {
		required := set.Spec.Template.Spec.Affinity.PodAntiAffinity.Required
		require.Len(t, required, 1)
		require.Equal(t, "kubernetes.io/hostname", required[0].TopologyKey)
		require.Equal(t, "ingester", required[0].LabelSelector.MatchLabels["app.kubernetes.io/component"])
		others := required[0].LabelSelector.MatchExpressions
		require.Len(t, others, 1)
		require.Equal(t, "hundredfold-zone", others[0].Key)
		require.Equal(t, "NotIn", others[0].Operator)
		require.Equal(t, []string{set.Metadata.Labels["hundredfold-zone"]}, others[0].Values)
	}
}

func TestZonesHavePlacesAndSizesOfTheirOwn(t *testing.T) {
	all := parse(t, template(t, "--values=testdata/values/production.yaml"))
	sets := where(t, all, ingesters)
	for i, want := range []struct {
		replicas int
		zone     string
	}{{3, "eu-central-1a"}, {2, "eu-central-1b"}, {2, "eu-central-1c"}} {
		require.Equal(t, want.replicas, *sets[i].Spec.Replicas)
		require.Equal(t, map[string]string{"topology.kubernetes.io/zone": want.zone, "pool": "metrics"}, sets[i].Spec.Template.Spec.NodeSelector)
	}
}

func TestPodsMayDoNothingBeyondTheirWork(t *testing.T) {
	for name, path := range valuesFiles(t) {
		t.Run(name, func(t *testing.T) {
			all := parse(t, template(t, "--values="+path))
			for _, m := range where(t, all, func(m manifest) bool { return m.runs() || m.Kind == "Job" }) {
				pod := m.Spec.Template.Spec
				require.NotNil(t, pod.Automount, m.Metadata.Name)
				require.False(t, *pod.Automount, m.Metadata.Name)
				require.True(t, pod.SecurityContext.RunAsNonRoot, m.Metadata.Name)
				require.NotZero(t, pod.SecurityContext.RunAsUser, m.Metadata.Name)
				for _, c := range append(pod.InitContainers, pod.Containers...) {
					require.True(t, c.Security.ReadOnlyRoot, m.Metadata.Name)
					require.NotNil(t, c.Security.Escalation, m.Metadata.Name)
					require.False(t, *c.Security.Escalation, m.Metadata.Name)
					require.Equal(t, []string{"ALL"}, c.Security.Capabilities.Drop, m.Metadata.Name)
					// The process takes its limits from the cgroup.
					require.NotEmpty(t, c.Resources.Limits["memory"], m.Metadata.Name)
					for _, env := range c.Env {
						require.NotContains(t, []string{"GOMEMLIMIT", "GOMAXPROCS"}, env.Name)
					}
				}
			}
		})
	}
}

// What one manifest says of another has to be true.
func TestManifestsFitTogether(t *testing.T) {
	for name, path := range valuesFiles(t) {
		t.Run(name, func(t *testing.T) {
			all := parse(t, template(t, "--values="+path))
			running := where(t, all, manifest.runs)
			for _, m := range all {
				switch m.Kind {
				case "Service", "PodDisruptionBudget":
					require.True(t, slices.ContainsFunc(running, func(r manifest) bool {
						return selects(m.labels(t), r.Spec.Template.Metadata.Labels)
					}), "%s selects no pod", m.Metadata.Name)
				case "HorizontalPodAutoscaler":
					at := slices.IndexFunc(running, func(r manifest) bool { return r.Metadata.Name == m.Spec.ScaleTargetRef.Name })
					require.GreaterOrEqual(t, at, 0, "%s scales nothing", m.Metadata.Name)
					require.Nil(t, running[at].Spec.Replicas, "each upgrade would undo what %s has done", m.Metadata.Name)
				case "StatefulSet", "Deployment":
					require.True(t, selects(m.labels(t), m.Spec.Template.Metadata.Labels))
					checkPod(t, m, all)
				}
			}
		})
	}
}

func checkPod(t *testing.T, m manifest, all []manifest) {
	t.Helper()
	has := func(kind, name string) bool {
		return slices.ContainsFunc(all, func(o manifest) bool { return o.Kind == kind && o.Metadata.Name == name })
	}
	if m.Kind == "StatefulSet" {
		require.True(t, has("Service", m.Spec.ServiceName))
	}
	volumes := map[string]bool{}
	for _, claim := range m.Spec.Claims {
		volumes[claim.Metadata.Name] = true
	}
	for _, volume := range m.Spec.Template.Spec.Volumes {
		volumes[volume.Name] = true
		if config := volume.ConfigMap.Name; config != "" {
			require.True(t, has("ConfigMap", config))
		}
		if secret := volume.Secret.SecretName; strings.HasPrefix(secret, release+"-") {
			require.True(t, has("Secret", secret))
		}
	}
	for _, mount := range m.Spec.Template.Spec.Containers[0].Mounts {
		require.Truef(t, volumes[mount.Name], "%s mounts %s, which is not there", m.Metadata.Name, mount.Name)
	}
}

// Gossip comes before a process is ready, so its name must lead to pods that are not.
func TestPodsFindEachOtherBeforeTheyAreReady(t *testing.T) {
	all := parse(t, template(t, "--values=testdata/values/minimal.yaml"))
	peers := where(t, all, func(m manifest) bool { return m.Metadata.Name == "hf-hundredfold-peers" })[0]
	require.Equal(t, "None", peers.Spec.ClusterIP)
	require.True(t, peers.Spec.PublishNotReadyAddresses)
	for _, m := range where(t, all, manifest.runs) {
		require.True(t, selects(peers.labels(t), m.Spec.Template.Metadata.Labels), m.Metadata.Name)
		for _, p := range peers.Spec.Ports {
			require.True(t, slices.ContainsFunc(m.Spec.Template.Spec.Containers[0].Ports, func(c port) bool {
				return c.Name == p.TargetPort && c.ContainerPort == p.Port && c.Protocol == p.Protocol
			}), "%s has no port %s", m.Metadata.Name, p.TargetPort)
		}
	}
	config := where(t, all, ofKind("ConfigMap"))[0].Data["hundredfold.yml"]
	require.Contains(t, config, "- hf-hundredfold-peers:7946")
}

func TestSecretsAreNotInTheConfiguration(t *testing.T) {
	all := parse(t, template(t, "--values=testdata/values/production.yaml"))
	for _, m := range all {
		require.NotEqual(t, "Secret", m.Kind, "an existing secret is used")
	}
	require.NotContains(t, where(t, all, ofKind("ConfigMap"))[0].Data["hundredfold.yml"], "key")
}

func TestChartRefusesWhatCannotWork(t *testing.T) {
	for _, c := range []struct {
		name, want string
		set        []string
	}{
		{"no bucket", "config.bucket.s3: set endpoint and bucket", []string{"config.bucket.s3.endpoint="}},
		{"a bucket on a disk", "config.bucket.type", []string{"config.bucket.type=filesystem"}},
		{"keys in the ConfigMap", "bucketCredentials.existingSecret", []string{"config.bucket.s3.secret_key=s3cr3t"}},
		{"open without saying so", "auth.webConfigSecret", []string{"auth.mode=required"}},
		{"passwords that probes do not know", "auth.credentialsSecret", []string{"auth.mode=required", "auth.webConfigSecret=web"}},
		{"too few ingesters", "cannot hold 3 replicas", []string{"ingester.zones[0].name=a", "ingester.zones[1].name=b", "ingester.zones[2].name=c", "ingester.zones[2].replicas=0"}},
		{"a zone twice", "a stands there twice", []string{"ingester.zones[0].name=a", "ingester.zones[1].name=a"}},
		{"what the chart decides", "config.cluster: the chart decides it", []string{"config.cluster.name=other"}},
		{"an unknown value", "ingestor", []string{"ingestor.replicas=3"}},
		{"an unknown value inside", "replica", []string{"ingester.replica=3"}},
		{"a drain in no zone", `there is no zone "d"`, []string{"drain.zone=d", "drain.ordinals={0}"}},
		{"a drain of nobody", "drain.ordinals", []string{"drain.zone=a"}},
		{"a drain from below", "replicas shrink from above", []string{"ingester.replicas=3", "drain.zone=a", "drain.ordinals={0,2}"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := []string{"template", release, chart, "--kube-version=" + oldest, "--values=testdata/values/minimal.yaml"}
			for _, set := range c.set {
				args = append(args, "--set="+set)
			}
			_, stderr, err := helm(t, args...)
			require.Error(t, err)
			require.Contains(t, stderr, c.want)
		})
	}
}

func TestChartNeedsTheOldestKubernetesThatIsTested(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chart, "Chart.yaml"))
	require.NoError(t, err)
	require.Contains(t, string(text), `kubeVersion: ">=`+oldest+`-0"`)
}
