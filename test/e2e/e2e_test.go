// Package e2e tests Hundredfold from outside: the built program, together with
// real Prometheus servers and a real S3 server, with nothing but HTTP, signals,
// files and exit codes in between.
package e2e

import (
	"os"
	"testing"

	"github.com/hundredfold/hundredfold/internal/testcluster"
)

func TestMain(m *testing.M) { os.Exit(testcluster.Main(m)) }

// quiet leaves only what tests send in the store.
const quiet = "self_monitoring: {enabled: false}\n"
