package archtest

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

const (
	maxFileLines     = 700
	maxFunctionLines = 100

	grpcLibrary = "google.golang.org/grpc"
)

// Check returns every violation of the rules, one sentence each, in the order
// of the files.
func (t *Tree) Check() []string {
	var found []string
	for _, file := range t.Files {
		for _, imported := range file.Imports {
			if fault := t.checkImport(file, imported); fault != "" {
				found = append(found, fmt.Sprintf("%s imports %s: %s", file.Path, imported, fault))
			}
		}
		found = append(found, checkSize(file)...)
		found = append(found, checkConnections(file)...)
		if in(file.Dir, "proto") && !file.Generated {
			found = append(found, file.Path+": proto/ holds generated code only")
		}
	}
	return append(found, t.checkPackages()...)
}

// checkImport says what is wrong with file importing the package, or "".
func (t *Tree) checkImport(file File, imported string) string {
	for _, owned := range []struct{ library, owner string }{
		{"github.com/thanos-io/objstore", "internal/blockstore"},
		{"github.com/hashicorp/memberlist", "internal/cluster"},
	} {
		// Tests of other packages may hand in a bucket, say, of their own.
		if in(imported, owned.library) && !in(file.Dir, owned.owner) && !file.Test {
			return "only " + owned.owner + " may"
		}
	}
	target, ours := strings.CutPrefix(imported, t.Module+"/")
	if !ours {
		return ""
	}
	if file.Test && strings.HasSuffix(file.Package, "_test") && in(target, file.Dir) {
		return "" // an external test of the package itself
	}
	return checkDirection(file, target)
}

// checkDirection holds
//
//	cmd -> roles -> internal/* -> internal/{hashring, tenant}
//
// Roles meet only in cmd, in proto and in Prometheus's storage interfaces.
func checkDirection(file File, target string) string {
	fromRole, targetRole := role(file.Dir), role(target)
	switch {
	case in(file.Dir, "internal/testcluster"), in(file.Dir, "test"):
		return "" // they wire what they test
	case testOnly(target) && !file.Test && !testOnly(file.Dir):
		return "it is for tests only"
	case in(target, "cmd") && !in(file.Dir, "cmd"):
		return "nothing imports cmd"
	case fromRole != "" && targetRole != "" && fromRole != targetRole:
		return "roles never import roles"
	case targetRole != "" && fromRole == "" && !in(file.Dir, "cmd"):
		return "only cmd imports roles"
	case in(target, "proto") && !speaks(file):
		return "only roles, internal/wire and internal/cluster know messages"
	case in(file.Dir, "internal/hashring"), in(file.Dir, "internal/tenant"):
		if !in(target, file.Dir) {
			return "this package stands below all others and imports none of them"
		}
	}
	return ""
}

// speaks reports whether file may know the messages between processes. All others know
// the domain's types, whatever travels.
func speaks(file File) bool {
	return role(file.Dir) != "" || file.Test || in(file.Dir, "proto") ||
		in(file.Dir, "internal/wire") || in(file.Dir, "internal/cluster")
}

// checkConnections holds that processes meet in one way, with its encryption, bounds,
// deadlines and metrics.
func checkConnections(file File) []string {
	if file.Test || in(file.Dir, "internal/rpc") {
		return nil
	}
	var found []string
	for _, name := range file.GRPC {
		switch name {
		case "NewServer", "NewClient", "Dial", "DialContext":
			found = append(found, file.Path+" uses grpc."+name+": only internal/rpc listens and connects")
		}
	}
	return found
}

// testOnly reports whether the package in the folder serves tests, by its name.
func testOnly(dir string) bool {
	return in(dir, "internal/testcluster") || in(dir, "test") || strings.HasSuffix(path.Base(dir), "test")
}

// role returns the role that the folder belongs to, or "".
func role(dir string) string {
	first, _, _ := strings.Cut(dir, "/")
	if slices.Contains([]string{"distributor", "ingester", "querier", "compactor"}, first) {
		return first
	}
	return ""
}

// in reports whether p is the path parent or lies below it.
func in(p, parent string) bool {
	return p == parent || strings.HasPrefix(p, parent+"/")
}

func checkSize(file File) []string {
	if file.Test || file.Generated {
		return nil
	}
	var found []string
	if file.Lines > maxFileLines {
		found = append(found, fmt.Sprintf("%s has %d lines, more than %d: would two files tell the story better?",
			file.Path, file.Lines, maxFileLines))
	}
	for _, fn := range file.Functions {
		if fn.Lines > maxFunctionLines {
			found = append(found, fmt.Sprintf("%s:%d: function %s has %d lines, more than %d",
				file.Path, fn.Line, fn.Name, fn.Lines, maxFunctionLines))
		}
	}
	return found
}

// checkPackages looks at packages as a whole: what they are called and whether
// they say what they are for.
func (t *Tree) checkPackages() []string {
	documented := map[string]bool{}
	var dirs []string
	for _, file := range t.Files {
		if _, seen := documented[file.Dir]; !seen {
			dirs = append(dirs, file.Dir)
		}
		documented[file.Dir] = documented[file.Dir] || file.Doc
	}
	var found []string
	for _, dir := range dirs {
		if !documented[dir] && !in(dir, "proto") { // there the .proto file says it
			found = append(found, dir+" has no package comment")
		}
		switch path.Base(dir) {
		case "util", "utils", "common", "helper", "helpers", "misc", "shared", "base":
			found = append(found, dir+": the name says nothing; name the package for what it is")
		}
	}
	return found
}
