// Schemas writes the JSON schemas with which kubeconform validates Kubernetes
// manifests into a directory. They come out of Go modules, so that their versions are
// pinned and nothing is fetched from anywhere but the module proxy: those of
// Kubernetes out of kubectl-validate, that of ServiceMonitors out of the operator.
//
//	go run . DIRECTORY
//
// The files are named as kubeconform expects them with
// --schema-location 'DIRECTORY/{{.Group}}/{{.ResourceKind}}_{{.ResourceAPIVersion}}.json'.
// Unknown fields are errors in all of them.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	// kubernetes is the release whose schemas are written: the oldest that the chart
	// supports (kubeVersion in Chart.yaml), so that it uses nothing newer.
	kubernetes = "pkg/openapiclient/builtins/1.30"
	validator  = "sigs.k8s.io/kubectl-validate"

	operator       = "github.com/prometheus-operator/prometheus-operator"
	serviceMonitor = "jsonnet/prometheus-operator/servicemonitors-crd.json"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "schemas:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("give it the directory to write to")
	}
	out := args[0]
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	return errors.Join(writeKubernetes(out), writeServiceMonitor(out))
}

// module returns the directory of a module's files, which go.mod requires.
func module(path string) (string, error) {
	cmd := exec.Command("go", "mod", "download", "-json", path)
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("download %s: %w", path, err)
	}
	var downloaded struct{ Dir string }
	if err := json.Unmarshal(output, &downloaded); err != nil {
		return "", fmt.Errorf("download %s: %w", path, err)
	}
	return downloaded.Dir, nil
}

// object is a JSON object.
type object = map[string]any

func read(path string, into any) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(content, into); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}

// kind is what a manifest names its schema by. The group of core resources is "", for
// which kubeconform puts their version.
type kind struct {
	Group   string `json:"group"`
	Version string `json:"version"`
	Kind    string `json:"kind"`
}

func write(out string, k kind, schema object) error {
	path := filepath.Join(out, cmp.Or(k.Group, k.Version), strings.ToLower(k.Kind)+"_"+k.Version+".json")
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	text, err := json.Marshal(schema)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return os.WriteFile(path, text, 0o600)
}

// writeKubernetes writes a schema for each kind that an API group of Kubernetes has,
// with the definitions that it may refer to.
func writeKubernetes(out string) error {
	dir, err := module(validator)
	if err != nil {
		return err
	}
	return filepath.WalkDir(filepath.Join(dir, kubernetes), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		var spec struct {
			Components struct {
				Schemas map[string]object `json:"schemas"`
			} `json:"components"`
		}
		if err := read(path, &spec); err != nil {
			return err
		}
		definitions := object{}
		for name, schema := range spec.Components.Schemas {
			definitions[name] = strict(schema)
		}
		for name := range spec.Components.Schemas {
			for _, k := range kinds(definitions[name].(object)) {
				schema := object{"$ref": "#/definitions/" + name, "definitions": definitions}
				if err := write(out, k, schema); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// kinds returns the kinds that a definition describes: none, for a part of others.
// DeleteOptions, for one, belongs to all groups, and is no manifest.
func kinds(definition object) []kind {
	described, ok := definition["x-kubernetes-group-version-kind"].([]any)
	if !ok || len(described) != 1 {
		return nil
	}
	first, ok := described[0].(object)
	if !ok {
		return nil
	}
	text := func(key string) string { s, _ := first[key].(string); return s }
	return []kind{{Group: text("group"), Version: text("version"), Kind: text("kind")}}
}

func writeServiceMonitor(out string) error {
	dir, err := module(operator)
	if err != nil {
		return err
	}
	var definition struct {
		Spec struct {
			Group    string `json:"group"`
			Names    kind   `json:"names"`
			Versions []struct {
				Name   string `json:"name"`
				Schema struct {
					OpenAPI object `json:"openAPIV3Schema"`
				} `json:"schema"`
			} `json:"versions"`
		} `json:"spec"`
	}
	if err := read(filepath.Join(dir, serviceMonitor), &definition); err != nil {
		return err
	}
	for _, version := range definition.Spec.Versions {
		k := kind{Group: definition.Spec.Group, Version: version.Name, Kind: definition.Spec.Names.Kind}
		schema, _ := strict(version.Schema.OpenAPI).(object)
		// A custom resource's metadata is described by Kubernetes only.
		if properties, ok := schema["properties"].(object); ok {
			properties["metadata"] = object{"type": "object"}
		}
		if err := write(out, k, schema); err != nil {
			return err
		}
	}
	return nil
}

// strict returns a schema of OpenAPI 3 as one of JSON Schema that allows no unknown
// fields. An object with neither properties nor additionalProperties may hold anything.
func strict(schema any) any {
	switch s := schema.(type) {
	case object:
		converted := object{}
		for key, value := range s {
			converted[key] = strict(value)
		}
		if ref, ok := s["$ref"].(string); ok {
			converted["$ref"] = strings.Replace(ref, "#/components/schemas/", "#/definitions/", 1)
		}
		_, open := s["additionalProperties"]
		if _, ok := s["properties"].(object); ok && !open && s["x-kubernetes-preserve-unknown-fields"] != true {
			converted["additionalProperties"] = false
		}
		if s["x-kubernetes-int-or-string"] == true {
			delete(converted, "anyOf")
			converted["type"] = []string{"integer", "string"}
		}
		// Lengths and patterns hold, but formats such as int32 are no JSON Schema.
		delete(converted, "format")
		return converted
	case []any:
		converted := make([]any, len(s))
		for i, value := range s {
			converted[i] = strict(value)
		}
		return converted
	default:
		return s
	}
}
