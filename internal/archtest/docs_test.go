package archtest

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const root = "../.."

func TestEveryReasonForARejectionIsExplained(t *testing.T) {
	operating := read(t, "docs/operating.md")
	reasons := regexp.MustCompile(`Reason\w+\s+Reason = "(\w+)"`).FindAllStringSubmatch(read(t, "internal/write/result.go"), -1)
	require.NotEmpty(t, reasons)
	for _, reason := range reasons {
		require.Contains(t, operating, "`"+reason[1]+"`", "docs/operating.md must say what to do about it")
	}
}

func TestTheTableOfPackagesHasThemAll(t *testing.T) {
	var listed []string
	for _, line := range regexp.MustCompile("(?m)^\\| `internal/.*? \\|").FindAllString(read(t, "docs/architecture.md"), -1) {
		for _, found := range regexp.MustCompile("`internal/(\\w+)`").FindAllStringSubmatch(line, -1) {
			listed = append(listed, found[1])
		}
	}
	entries, err := os.ReadDir(filepath.Join(root, "internal"))
	require.NoError(t, err)
	var packages []string
	for _, entry := range entries {
		packages = append(packages, entry.Name())
	}
	require.ElementsMatch(t, packages, listed, "internal/ and the table in docs/architecture.md")
}

func TestEveryAlertIsExplained(t *testing.T) {
	operating := read(t, "docs/operating.md")
	alerts := regexp.MustCompile(`(?m)^\s*- alert: (\w+)$`).FindAllStringSubmatch(read(t, "deploy/prometheus/alerts.yml"), -1)
	require.NotEmpty(t, alerts)
	for _, alert := range alerts {
		require.Contains(t, operating, "\n### "+alert[1]+"\n", "docs/operating.md must say what to do when it fires")
	}
}

// Alerts and dashboards on metrics that do not exist are silent for ever.
func TestMetricsThatAreSpokenOfExist(t *testing.T) {
	registered := metricsInCode(t)
	metric := regexp.MustCompile(`\bhundredfold_[a-z0-9_]*[a-z0-9]\b`)
	suffix := regexp.MustCompile(`_(bucket|sum|count)$`)
	for _, name := range append(files(t, "deploy", ".yml", ".json"), files(t, "docs", ".md")...) {
		for _, found := range metric.FindAllString(read(t, name), -1) {
			if strings.HasPrefix(found, "hundredfold_objstore_") {
				continue // objstore's own, under our prefix
			}
			if !registered(found) && !registered(suffix.ReplaceAllString(found, "")) {
				t.Errorf("%s speaks of %s, which no code registers", name, found)
			}
		}
	}
}

// metricsInCode returns a function that says whether a name stands in the code,
// as one literal or as that of a prefix and that of the rest.
func metricsInCode(t testing.TB) func(name string) bool {
	t.Helper()
	tree, err := Load(module, root)
	require.NoError(t, err)
	literals := map[string]bool{}
	var prefixes []string
	literal := regexp.MustCompile(`"([a-z0-9_]+)"`)
	for _, file := range tree.Files {
		if file.Test {
			continue
		}
		for _, found := range literal.FindAllStringSubmatch(read(t, file.Path), -1) {
			literals[found[1]] = true
			if strings.HasPrefix(found[1], "hundredfold_") && strings.HasSuffix(found[1], "_") {
				prefixes = append(prefixes, found[1])
			}
		}
	}
	return func(name string) bool {
		return literals[name] || slices.ContainsFunc(prefixes, func(prefix string) bool {
			rest, ok := strings.CutPrefix(name, prefix)
			return ok && literals[rest]
		})
	}
}

func TestDashboardsAreJSON(t *testing.T) {
	dashboards := files(t, "deploy/grafana", ".json")
	require.NotEmpty(t, dashboards)
	for _, name := range dashboards {
		var dashboard struct {
			UID, Title string
			Panels     []json.RawMessage
		}
		require.NoError(t, json.Unmarshal([]byte(read(t, name)), &dashboard), name)
		require.NotEmpty(t, dashboard.UID, name)
		require.NotEmpty(t, dashboard.Panels, name)
	}
}

func TestLinksBetweenDocumentsLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	documents := append(files(t, "docs", ".md"), "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "proto/README.md")
	for _, name := range documents {
		for _, found := range link.FindAllStringSubmatch(read(t, name), -1) {
			target, anchor, _ := strings.Cut(found[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			file := name
			if target != "" {
				file = filepath.Join(filepath.Dir(name), target)
			}
			info, err := os.Stat(filepath.Join(root, file))
			require.NoError(t, err, "%s links to %s", name, found[1])
			if anchor != "" && !info.IsDir() {
				require.Contains(t, anchors(read(t, file)), anchor, "%s links to %s", name, found[1])
			}
		}
	}
}

// anchors returns the anchors that the headings of a document get.
func anchors(document string) []string {
	var out []string
	drop := regexp.MustCompile(`[^a-z0-9 _-]`)
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(document, -1) {
		out = append(out, strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(heading[1]), ""), " ", "-"))
	}
	return out
}

func read(t testing.TB, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root, name))
	require.NoError(t, err)
	return string(content)
}

// files returns the files below dir with one of the suffixes, relative to the root.
func files(t testing.TB, dir string, suffixes ...string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(filepath.Join(root, dir), func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		for _, suffix := range suffixes {
			if strings.HasSuffix(name, suffix) {
				rel, err := filepath.Rel(root, name)
				if err != nil {
					return err
				}
				out = append(out, rel)
			}
		}
		return nil
	})
	require.NoError(t, err)
	return out
}
