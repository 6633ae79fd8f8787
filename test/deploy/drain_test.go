package deploy

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// kubernetes serves as much of an API server as charts look up, and returns a kubeconfig
// for it. sets are the ingesters that run: replicas by zone.
func kubernetes(t testing.TB, sets map[string]int, secret string) string {
	t.Helper()
	type object = map[string]any
	labels := func(zone string) object {
		return object{
			"app.kubernetes.io/name": "hundredfold", "app.kubernetes.io/instance": release,
			"app.kubernetes.io/component": "ingester", "hundredfold-zone": zone,
		}
	}
	items := []object{
		// Others in the namespace are none of our business.
		{"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": object{"name": "database"}, "spec": object{"replicas": 5}},
	}
	for _, zone := range slices.Sorted(maps.Keys(sets)) {
		items = append(items, object{
			"apiVersion": "apps/v1", "kind": "StatefulSet",
			"metadata": object{"name": "hf-hundredfold-ingester-" + zone, "labels": labels(zone)},
			"spec":     object{"replicas": sets[zone]},
		})
	}
	resource := func(plural, kind string) object {
		return object{"name": plural, "namespaced": true, "kind": kind, "verbs": []string{"get", "list"}}
	}
	answers := map[string]any{
		"/version": object{"major": "1", "minor": "30", "gitVersion": "v" + oldest},
		"/api":     object{"kind": "APIVersions", "versions": []string{"v1"}},
		"/apis":    object{"kind": "APIGroupList", "apiVersion": "v1", "groups": []object{}},
		"/api/v1":  object{"kind": "APIResourceList", "groupVersion": "v1", "resources": []object{resource("secrets", "Secret")}},
		"/apis/apps/v1": object{
			"kind": "APIResourceList", "groupVersion": "apps/v1", "resources": []object{resource("statefulsets", "StatefulSet")},
		},
		"/apis/apps/v1/namespaces/" + namespace + "/statefulsets": object{"kind": "StatefulSetList", "apiVersion": "apps/v1", "items": items},
	}
	if secret != "" {
		answers["/api/v1/namespaces/"+namespace+"/secrets/hf-hundredfold-cluster"] = object{
			"apiVersion": "v1", "kind": "Secret", "metadata": object{"name": "hf-hundredfold-cluster"}, "data": object{"secret": secret},
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, known := answers[r.URL.Path]
		w.Header().Set("Content-Type", "application/json")
		if !known {
			w.WriteHeader(http.StatusNotFound)
			answer = object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": http.StatusNotFound}
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(server.Close)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: %q}}]
users: [{name: test, user: {}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
`, server.URL), 0o600))
	return path
}

// upgrade returns what `helm upgrade` would apply to the cluster.
func upgrade(t testing.TB, kubeconfig string, args ...string) []manifest {
	t.Helper()
	return parse(t, template(t, append([]string{
		"--dry-run=server", "--is-upgrade", "--kubeconfig=" + kubeconfig, "--values=testdata/values/minimal.yaml",
	}, args...)...))
}

// drained returns the ingesters that a Job drains, in order.
func drained(t testing.TB, job manifest) []string {
	t.Helper()
	var pods []string
	pod := job.Spec.Template.Spec
	for _, c := range append(pod.InitContainers, pod.Containers...) {
		require.Equal(t, "drain", c.Args[0])
		require.Contains(t, c.Args, "--url=$(HUNDREDFOLD_URL)")
		for _, env := range c.Env {
			if env.Name == "HUNDREDFOLD_URL" {
				host := strings.TrimPrefix(env.Value, "http://")
				name, rest, _ := strings.Cut(host[strings.LastIndex(host, "@")+1:], ".")
				require.Equal(t, "hf-hundredfold-peers:9009", rest)
				pods = append(pods, name)
			}
		}
	}
	return pods
}

func jobs(all []manifest) []manifest {
	var found []manifest
	for _, m := range all {
		if m.Kind == "Job" {
			found = append(found, m)
		}
	}
	return found
}

func TestAnUpgradeThatLowersReplicasDrainsFirst(t *testing.T) {
	kubeconfig := kubernetes(t, map[string]int{"a": 3, "b": 2, "c": 2}, "")
	found := jobs(upgrade(t, kubeconfig, "--set=ingester.replicas=1"))
	require.Len(t, found, 1)
	require.Equal(t, "pre-upgrade", found[0].Metadata.Annotations["helm.sh/hook"], "before anything shrinks")
	require.Equal(t, []string{
		"hf-hundredfold-ingester-a-2", "hf-hundredfold-ingester-a-1", "hf-hundredfold-ingester-b-1", "hf-hundredfold-ingester-c-1",
	}, drained(t, found[0]))
}

func TestAnUpgradeThatRemovesAZoneDrainsIt(t *testing.T) {
	kubeconfig := kubernetes(t, map[string]int{"a": 1, "b": 1, "c": 1, "d": 2}, "")
	found := jobs(upgrade(t, kubeconfig))
	require.Len(t, found, 1)
	require.Equal(t, []string{"hf-hundredfold-ingester-d-1", "hf-hundredfold-ingester-d-0"}, drained(t, found[0]))
}

func TestAnUpgradeThatRemovesNobodyDrainsNobody(t *testing.T) {
	kubeconfig := kubernetes(t, map[string]int{"a": 1, "b": 1, "c": 1}, "")
	require.Empty(t, jobs(upgrade(t, kubeconfig)))
	require.Empty(t, jobs(upgrade(t, kubeconfig, "--set=ingester.replicas=4")))
	require.Empty(t, jobs(upgrade(t, kubeconfig, "--set=ingester.zones[0].name=a,ingester.zones[0].replicas=3,drain.onScaleIn=false")))
}

func TestNamedIngestersAreDrainedHighestFirst(t *testing.T) {
	found := jobs(parse(t, template(t, "--values=testdata/values/production.yaml")))
	require.Len(t, found, 1)
	require.Empty(t, found[0].Metadata.Annotations["helm.sh/hook"], "tools that know no hooks apply it too")
	require.Equal(t, []string{"hf-hundredfold-ingester-a-2", "hf-hundredfold-ingester-a-1"}, drained(t, found[0]))
	require.Nil(t, found[0].Spec.Replicas)
}

// A Job cannot be changed, only replaced.
func TestAnotherDrainIsAnotherJob(t *testing.T) {
	name := func(args ...string) string {
		args = append(args, "--values=testdata/values/minimal.yaml", "--set=ingester.replicas=4,drain.zone=a")
		return jobs(parse(t, template(t, args...)))[0].Metadata.Name
	}
	names := map[string]bool{
		name("--set=drain.ordinals={3}"):                       true,
		name("--set=drain.ordinals={2,3}"):                     true,
		name("--set=drain.ordinals={3}", "--set=image.tag=v2"): true,
	}
	require.Len(t, names, 3)
	require.Equal(t, name("--set=drain.ordinals={2,3}"), name("--set=drain.ordinals={3,2}"))
}

func TestTheClusterSecretSurvivesUpgrades(t *testing.T) {
	secret := base64.StdEncoding.EncodeToString([]byte("what the nodes have in common"))
	kubeconfig := kubernetes(t, nil, secret)
	kept := where(t, upgrade(t, kubeconfig), ofKind("Secret"))[0]
	require.Equal(t, secret, kept.Data["secret"])
	require.Equal(t, "keep", kept.Metadata.Annotations["helm.sh/resource-policy"])
}

func TestAnInstallMakesASecretOfItsOwn(t *testing.T) {
	secret := func() string {
		made := where(t, parse(t, template(t, "--values=testdata/values/minimal.yaml")), ofKind("Secret"))[0]
		text, err := base64.StdEncoding.DecodeString(made.Data["secret"])
		require.NoError(t, err)
		require.GreaterOrEqual(t, len(text), 32)
		return string(text)
	}
	first := secret()
	require.NotEqual(t, first, secret())
}
