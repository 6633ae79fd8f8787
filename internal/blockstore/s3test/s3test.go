// Package s3test starts a real S3-compatible server for tests.
package s3test

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hundredfold/hundredfold/internal/blockstore"
)

const (
	bucketName = "blocks"
	accessKey  = "hundredfold"
	secretKey  = "a-secret-for-tests"

	startTimeout = 30 * time.Second
	healthPath   = "/health"
)

// Start starts a server on a loopback port with an empty bucket in a temporary
// directory, stops it when the test ends, and returns how to reach the bucket. If
// the server is not built, the test fails in CI and is skipped elsewhere.
func Start(t testing.TB) blockstore.Config {
	t.Helper()
	binary := Tool(t, "versitygw")
	root := t.TempDir()
	for _, dir := range []string{filepath.Join("objects", bucketName), "attributes"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	address := freeAddress(t)
	server := exec.Command(binary, "--quiet", "--port", address, "--health", healthPath,
		"posix", "--sidecar", filepath.Join(root, "attributes"), filepath.Join(root, "objects"))
	server.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+accessKey, "ROOT_SECRET_KEY="+secretKey)
	server.Stderr = os.Stderr
	require.NoError(t, server.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Wait() // it is killed in the end
	}()
	t.Cleanup(func() {
		_ = server.Process.Kill()
		<-ended
	})
	awaitHealth(t, address, ended)
	return blockstore.Config{
		Type: blockstore.TypeS3,
		S3: blockstore.S3Config{
			Endpoint:  address,
			Bucket:    bucketName,
			AccessKey: accessKey,
			SecretKey: secretKey,
			Region:    "us-east-1",
			Insecure:  true,
		},
	}
}

// Tool returns the path of a program that `make tools` builds. If it is not there,
// the test fails in CI and is skipped elsewhere; with -short it is always skipped.
func Tool(t testing.TB, name string) string {
	t.Helper()
	if testing.Short() {
		t.Skipf("%s is not started with -short", name)
	}
	_, file, _, ok := runtime.Caller(0)
	require.True(t, ok)
	root := filepath.Dir(file)
	for root != filepath.Dir(root) {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		root = filepath.Dir(root)
	}
	path := filepath.Join(root, ".bin", name)
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing: run make tools", path)
		}
		t.Skipf("%s is missing: run make tools", path)
	}
	return path
}

// freeAddress returns a loopback address that nobody listens on at the moment.
func freeAddress(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, listener.Close())
	return listener.Addr().String()
}

func awaitHealth(t testing.TB, address string, ended <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+healthPath, nil)
		require.NoError(t, err)
		if response, err := client.Do(request); err == nil {
			require.NoError(t, response.Body.Close())
			if response.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-ended:
			t.Fatal("the S3 server ended at once; what it wrote stands above")
		case <-ctx.Done():
			t.Fatalf("the S3 server does not answer at %s", address)
		case <-again.C:
		}
	}
}
