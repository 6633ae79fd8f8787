package archtest

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/hundredfold/hundredfold"

func TestTreeObeysTheRules(t *testing.T) {
	tree, err := Load(module, "../..")
	require.NoError(t, err)
	require.NotEmpty(t, tree.Files)
	for _, violation := range tree.Check() {
		t.Error(violation)
	}
}

func TestImports(t *testing.T) {
	const ours = module + "/"
	for _, c := range []struct {
		name, file, imports string
		want                string // the violation's last words, "" if allowed
	}{
		{"cmd wires roles", "cmd/hundredfold/querier.go", ours + "querier", ""},
		{"a role uses an internal package", "querier/q.go", ours + "internal/blockstore", ""},
		{"a role uses a part of itself", "querier/api/a.go", ours + "querier/promql", ""},
		{"a role uses generated code", "querier/q.go", ours + "proto/query/v1", ""},
		{"a role uses a role", "querier/q.go", ours + "ingester", "roles never import roles"},
		{"a role's test uses a role", "querier/q_test.go", ours + "ingester", "roles never import roles"},
		{"a role uses a part of a role", "querier/q.go", ours + "ingester/head", "roles never import roles"},
		{"an internal package uses a role", "internal/server/s.go", ours + "querier", "only cmd imports roles"},
		{"a role uses cmd", "querier/q.go", ours + "cmd/hundredfold/config", "nothing imports cmd"},
		{"an internal package uses another", "internal/write/w.go", ours + "internal/tenant", ""},
		{"the tenant package uses another", "internal/tenant/t.go", ours + "internal/wire", "imports none of them"},
		{"the ring uses another", "internal/hashring/r.go", ours + "internal/tenant", "imports none of them"},
		{"an external test uses its own package", "internal/tenant/t_test.go", ours + "internal/tenant", ""},
		{"production code uses the test cluster", "cmd/hundredfold/m.go", ours + "internal/testcluster", "for tests only"},
		{"a test uses the test cluster", "cmd/hundredfold/m_test.go", ours + "internal/testcluster", ""},
		{"production code uses a package for tests", "querier/q.go", ours + "internal/blockstore/blocktest", "for tests only"},
		{"a package for tests uses another", "querier/queriertest/q.go", ours + "internal/blockstore/blocktest", ""},
		{"a package for tests uses another role", "querier/queriertest/q.go", ours + "ingester", "roles never import roles"},
		{"a test of the whole uses roles", "test/promql/p_test.go", ours + "ingester", ""},
		{"the test cluster uses roles", "internal/testcluster/c.go", ours + "ingester", ""},
		{"blockstore uses objstore", "internal/blockstore/b.go", "github.com/thanos-io/objstore/providers/s3", ""},
		{"a role uses objstore", "ingester/i.go", "github.com/thanos-io/objstore", "only internal/blockstore may"},
		{"a test hands in a bucket", "ingester/i_test.go", "github.com/thanos-io/objstore", ""},
		{"another package uses generated code", "internal/server/s.go", ours + "proto/query/v1", "know messages"},
		{"cmd uses generated code", "cmd/hundredfold/m.go", ours + "proto/query/v1", "know messages"},
		{"the converter uses generated code", "internal/wire/w.go", ours + "proto/query/v1", ""},
		{"a test uses generated code", "internal/server/s_test.go", ours + "proto/query/v1", ""},
		{"a role uses memberlist", "ingester/i.go", "github.com/hashicorp/memberlist", "only internal/cluster may"},
	} {
		t.Run(c.name, func(t *testing.T) {
			pkg := "p"
			if c.name == "an external test uses its own package" {
				pkg = "p_test"
			}
			file, err := Parse(c.file, []byte("// Package p is an example.\npackage "+pkg+"\n\nimport _ \""+c.imports+"\"\n"))
			require.NoError(t, err)
			found := (&Tree{Module: module, Files: []File{file}}).Check()
			if c.want == "" {
				require.Empty(t, found)
				return
			}
			require.Len(t, found, 1)
			require.Contains(t, found[0], c.want)
		})
	}
}

func TestPackagesAndSizes(t *testing.T) {
	long := "func f() {\n" + strings.Repeat("\n", maxFunctionLines-1) + "}\n"
	for _, c := range []struct {
		name, file, source string
		want               string
	}{
		{"undocumented", "internal/a/a.go", "package a\n", "no package comment"},
		{"named for nothing", "internal/util/a.go", "// Package util is a heap.\npackage util\n", "the name says nothing"},
		{"handwritten code in proto", "proto/a/v1/a.go", "// Package a is an example.\npackage a\n", "generated code only"},
		{"a function too long", "internal/a/a.go", "// Package a is an example.\npackage a\n" + long, "function f has 101 lines"},
		{"a role that connects", "querier/q.go", "// Package q is an example.\npackage q\n\nimport \"google.golang.org/grpc\"\n\nvar c, _ = grpc.NewClient(\"\")\n", "uses grpc.NewClient: only internal/rpc"},
		{"a role that serves", "querier/q.go", "// Package q is an example.\npackage q\n\nimport g \"google.golang.org/grpc\"\n\nvar s = g.NewServer()\n", "uses grpc.NewServer: only internal/rpc"},
		{"a file too long", "internal/a/a.go", "// Package a is an example.\npackage a\n" + strings.Repeat("\n", maxFileLines-1), "has 701 lines"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file, err := Parse(c.file, []byte(c.source))
			require.NoError(t, err)
			found := (&Tree{Module: module, Files: []File{file}}).Check()
			require.Len(t, found, 1)
			require.Contains(t, found[0], c.want)
		})
	}
}
