package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/hundredfold/hundredfold/internal/testcluster/fleet"
	"github.com/hundredfold/hundredfold/internal/testcluster/slowstore"
)

const (
	bucketName = "blocks"
	accessKey  = "hundredfold"
	secretKey  = "a-secret-for-loopback"

	startTimeout = time.Minute
)

// objectStore is an S3-compatible server on a folder, behind a slow proxy.
type objectStore struct {
	server  *fleet.Program
	proxy   *slowstore.Proxy
	front   *http.Server
	failed  chan error
	address string // of the proxy
}

// bucketDir returns the folder of dir that is the bucket.
func bucketDir(dir string) string { return filepath.Join(dir, "objects", bucketName) }

// startStore serves bucketDir(dir).
func startStore(ctx context.Context, o options, dir, listen string) (_ *objectStore, err error) {
	attributes := filepath.Join(dir, "attributes")
	for _, path := range []string{bucketDir(dir), attributes} {
		if err := os.MkdirAll(path, 0o750); err != nil {
			return nil, err
		}
	}
	address, err := fleet.FreeAddress("127.0.0.1")
	if err != nil {
		return nil, err
	}
	s := &objectStore{failed: make(chan error, 1)}
	s.server = fleet.NewProgram(os.Stderr, []string{"ROOT_ACCESS_KEY=" + accessKey, "ROOT_SECRET_KEY=" + secretKey},
		filepath.Join(o.bin, "versitygw"), "--quiet", "--port", address, "--health", "/health",
		"posix", "--sidecar", attributes, filepath.Dir(bucketDir(dir)))
	if err := s.server.Start(); err != nil {
		return nil, fmt.Errorf("start the object store: %w", err)
	}
	target := &url.URL{Scheme: "http", Host: address}
	if err := await(ctx, startTimeout, target.String()+"/health", s.server); err != nil {
		return nil, errors.Join(fmt.Errorf("the object store: %w", err), s.server.Stop())
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, errors.Join(err, s.server.Stop())
	}
	s.address = listener.Addr().String()
	s.proxy = slowstore.New(o.store, target)
	s.front = &http.Server{Handler: s.proxy, ReadHeaderTimeout: 10 * time.Second}
	go func() { s.failed <- s.front.Serve(listener) }()
	return s, nil
}

// yaml returns the configuration of the bucket.
func (s *objectStore) yaml() string {
	return fmt.Sprintf(`bucket:
  type: s3
  s3: {endpoint: %q, bucket: %s, access_key: %s, secret_key: %s, region: us-east-1, insecure: true}
`, s.address, bucketName, accessKey, secretKey)
}

func (s *objectStore) stop() error {
	err := s.front.Close()
	if ended := <-s.failed; !errors.Is(ended, http.ErrServerClosed) {
		err = errors.Join(err, ended)
	}
	_ = s.server.Stop() // it ends by the signal that stops it
	return err
}

// await waits until the program answers 200 at url.
func await(ctx context.Context, timeout time.Duration, url string, program *fleet.Program) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client := &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		if err := program.Alive(); err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err == nil {
			err = resp.Body.Close()
			if err == nil && resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.Join(err, fmt.Errorf("it answers %s", resp.Status))
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", url, err)
		}
	}
}

// serve writes the history below --dir as the tenant default, and serves it slowly until
// it is interrupted.
func serve(ctx context.Context, o options) error {
	tenant := filepath.Join(bucketDir(o.dir), "default")
	part := o
	part.dir = tenant
	if err := generate(ctx, part); err != nil {
		return err
	}
	s, err := startStore(ctx, o, o.dir, o.listen)
	if err != nil {
		return err
	}
	fmt.Printf("# %s and %d bytes per second, until interrupted; the configuration of Hundredfold:\n%s", o.store.Latency, o.store.BytesPerSecond, s.yaml())
	select {
	case <-ctx.Done():
	case err := <-s.failed:
		return err
	}
	fmt.Printf("%+v\n", s.proxy.Counts())
	return s.stop()
}
