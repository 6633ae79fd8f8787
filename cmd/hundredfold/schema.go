package main

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// checkSchema compares node with the keys and types that t allows. yaml's own
// strictness knows no keys in its messages, stops at the first bad value that
// has a type of its own, and is lost on sections that are decoded by hand.
func checkSchema(file string, node *yaml.Node, t reflect.Type) error {
	s := schema{file: file}
	s.check(node, t, "")
	return errors.Join(s.faults...)
}

type schema struct {
	file   string
	faults []error
}

func (s *schema) fault(node *yaml.Node, format string, args ...any) {
	s.faults = append(s.faults, fmt.Errorf("%s:%d: "+format, append([]any{s.file, node.Line}, args...)...))
}

func (s *schema) check(node *yaml.Node, t reflect.Type, key string) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem() // a section that may be absent
	}
	switch {
	case isLeaf(t):
		if err := node.Decode(reflect.New(t).Interface()); err != nil {
			s.fault(node, "%s: %s", key, plainYAML(err))
		}
	case node.Kind == yaml.ScalarNode && node.Tag == "!!null":
		// A section without keys.
	case node.Kind != yaml.MappingNode && key == "":
		s.fault(node, "the file is not a mapping of keys to values")
	case node.Kind != yaml.MappingNode:
		s.fault(node, "%s: it is a section; its keys go below it", key)
	default:
		s.checkMapping(node, t, key)
	}
}

func (s *schema) checkMapping(node *yaml.Node, t reflect.Type, section string) {
	seen := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i], node.Content[i+1]
		if name.Tag == "!!merge" {
			s.fault(name, "%s: merge keys are not supported", join(section, name.Value))
			continue
		}
		if line, twice := seen[name.Value]; twice {
			s.fault(name, "%s: it stands in line %d already", join(section, name.Value), line)
			continue
		}
		seen[name.Value] = name.Line
		if t.Kind() == reflect.Map {
			s.check(value, t.Elem(), join(section, name.Value))
			continue
		}
		field, ok := fieldOf(t, name.Value)
		if !ok {
			s.fault(name, "unknown key %s; known here: %s", join(section, name.Value), strings.Join(keysOf(t), ", "))
			continue
		}
		s.check(value, field.Type, join(section, name.Value))
	}
}

// isLeaf reports whether t is a value rather than a section.
func isLeaf(t reflect.Type) bool {
	pointer := reflect.PointerTo(t)
	if pointer.Implements(reflect.TypeFor[yaml.Unmarshaler]()) || pointer.Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
		return true
	}
	return t.Kind() != reflect.Struct && t.Kind() != reflect.Map
}

// keyOf returns the key that field has in the file, or nothing.
func keyOf(field reflect.StructField) string {
	name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
	if name == "-" {
		return ""
	}
	return name
}

func fieldOf(t reflect.Type, key string) (reflect.StructField, bool) {
	for _, field := range reflect.VisibleFields(t) {
		if keyOf(field) == key && key != "" {
			return field, true
		}
	}
	return reflect.StructField{}, false
}

func keysOf(t reflect.Type) []string {
	var keys []string
	for _, field := range reflect.VisibleFields(t) {
		if key := keyOf(field); key != "" {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func join(section, key string) string {
	if section == "" {
		return key
	}
	return section + "." + key
}

// plainYAML takes yaml's frame off an error about one value.
func plainYAML(err error) string {
	var typeError *yaml.TypeError
	if errors.As(err, &typeError) && len(typeError.Errors) > 0 {
		text := typeError.Errors[0]
		if _, after, ok := strings.Cut(text, ": "); ok && strings.HasPrefix(text, "line ") {
			text = after
		}
		return text
	}
	return err.Error()
}

// setting is one key with its value.
type setting struct {
	key   string
	value any
}

// settings returns all keys of a section with their values, in the order of the
// struct. Maps are one setting.
func settings(section string, value reflect.Value) []setting {
	if isLeaf(value.Type()) || value.Kind() == reflect.Map {
		return []setting{{section, value.Interface()}}
	}
	var all []setting
	for _, field := range reflect.VisibleFields(value.Type()) {
		if key := keyOf(field); key != "" {
			all = append(all, settings(join(section, key), value.FieldByIndex(field.Index))...)
		}
	}
	return all
}

// changed returns the keys whose values differ.
func changed(a, b config) []string {
	before, after := settings("", reflect.ValueOf(a)), settings("", reflect.ValueOf(b))
	var keys []string
	for i := range before {
		if !reflect.DeepEqual(before[i].value, after[i].value) {
			keys = append(keys, before[i].key)
		}
	}
	return keys
}
