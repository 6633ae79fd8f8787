// Package archtest holds the shape of the source tree as rules that a test
// checks: who may import whom, where a library may be used, how long files and
// functions may grow. It reads the sources with go/parser and neither type
// checks nor builds anything, so it stays fast however large the tree becomes.
// Rules about single expressions belong in .golangci.yml instead.
package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// File is what the rules need to know of one Go file.
type File struct {
	Path      string // relative to the module's root, with slashes
	Dir       string // the folder of Path; "." is the root
	Package   string // the name in the package clause
	Test      bool   // it is named *_test.go
	Generated bool   // it carries the "Code generated ... DO NOT EDIT." line
	Doc       bool   // it has a package comment
	Lines     int
	Imports   []string
	Functions []Function
	// GRPC are what it uses of google.golang.org/grpc itself, as NewClient.
	GRPC []string
}

// Function is a function or method declaration.
type Function struct {
	Name  string
	Line  int
	Lines int // from the line of "func" to the closing brace
}

// Tree is a parsed module.
type Tree struct {
	Module string
	Files  []File
}

// Load parses every Go file of the module at root, whatever its build tags.
// Folders that the go command ignores and nested modules are left out.
func Load(module, root string) (*Tree, error) {
	tree := &Tree{Module: module}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != root && ignored(name, d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(d.Name(), ".go") {
			return nil
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		file, err := Parse(filepath.ToSlash(rel), source)
		if err != nil {
			return err
		}
		tree.Files = append(tree.Files, file)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load the module at %s: %w", root, err)
	}
	return tree, nil
}

func ignored(dir, base string) bool {
	if strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || base == "testdata" {
		return true
	}
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// Parse reads one Go file; name is its path relative to the module's root.
func Parse(name string, source []byte) (File, error) {
	fset := token.NewFileSet()
	parsed, err := parser.ParseFile(fset, name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return File{}, fmt.Errorf("parse %s: %w", name, err)
	}
	file := File{
		Path:      name,
		Dir:       path.Dir(name),
		Package:   parsed.Name.Name,
		Test:      strings.HasSuffix(name, "_test.go"),
		Generated: ast.IsGenerated(parsed),
		Doc:       parsed.Doc != nil && strings.TrimSpace(parsed.Doc.Text()) != "",
		Lines:     bytes.Count(source, []byte{'\n'}),
	}
	for _, spec := range parsed.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return File{}, fmt.Errorf("parse an import of %s: %w", name, err)
		}
		file.Imports = append(file.Imports, imported)
		if imported == grpcLibrary {
			file.GRPC = selected(parsed, localName(spec, "grpc"))
		}
	}
	for _, decl := range parsed.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		first, last := fset.Position(fn.Pos()).Line, fset.Position(fn.End()).Line
		file.Functions = append(file.Functions, Function{Name: fn.Name.Name, Line: first, Lines: last - first + 1})
	}
	return file, nil
}

// localName is what the file calls the package that spec imports; its own name is base.
func localName(spec *ast.ImportSpec, base string) string {
	if spec.Name != nil {
		return spec.Name.Name
	}
	return base
}

// selected returns the names that the file uses of the package it calls pkg.
func selected(parsed *ast.File, pkg string) []string {
	var names []string
	ast.Inspect(parsed, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == pkg {
				names = append(names, s.Sel.Name)
			}
		}
		return true
	})
	return names
}
