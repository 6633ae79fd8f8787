// Command devcluster is `make cluster`: a whole cluster on loopback, with a real
// S3-compatible server. `make cluster-add`, `make cluster-drain` and `make cluster-kill`
// act on it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hundredfold/hundredfold/internal/testcluster/fleet"
)

const (
	startTimeout = 2 * time.Minute
	socket       = "control.sock"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "devcluster:", err)
		os.Exit(1)
	}
}

// options are the same for all subcommands.
type options struct {
	dir, bin, listen string
	member, zone     string
	load             []string // flags of loadgen, for bench
}

func command(ctx context.Context, args []string) error {
	var o options
	set := flag.NewFlagSet("devcluster", flag.ExitOnError)
	set.StringVar(&o.dir, "dir", "data/cluster", "`DIRECTORY` of everything")
	set.StringVar(&o.bin, "bin", ".bin", "`DIRECTORY` of the programs")
	set.StringVar(&o.listen, "listen", "127.0.0.1:9009", "`HOST:PORT` of the one URL")
	set.StringVar(&o.member, "member", "", "`NAME` of the member to act on; the last ingester by default")
	set.StringVar(&o.zone, "zone", "", "`ZONE` of the ingester to add; that with the fewest by default")
	what := "run"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		what, args = args[0], args[1:]
	}
	if err := set.Parse(args); err != nil {
		return err
	}
	o.load = set.Args()
	switch what {
	case "run":
		return run(ctx, o)
	case "bench":
		return bench(ctx, o)
	case "add", "drain", "kill", "start":
		return ask(ctx, o, what)
	default:
		return fmt.Errorf("%q is none of run, bench, add, drain, kill, start", what)
	}
}

// run runs the cluster until ctx ends.
func run(ctx context.Context, o options) error {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return err
	}
	store, yaml, err := startS3(ctx, o, dir)
	if err != nil {
		return err
	}
	f, err := fleet.New(fleet.Config{
		Dir: dir, Binary: filepath.Join(o.bin, "hundredfold"), YAML: yaml,
		Zones: []string{"a", "b", "c"}, Distributors: 2, Queriers: 2, Compactors: 1,
		Output: os.Stderr,
	})
	if err != nil {
		return errors.Join(err, store.Stop())
	}
	err = serve(ctx, o, dir, f)
	fmt.Println("stopping the cluster")
	return errors.Join(err, f.Close(), ended(store.Stop()))
}

// ended takes for no failure that a program ends by the signal that stops it.
func ended(err error) error {
	if err != nil && strings.Contains(err.Error(), "signal: terminated") {
		return nil
	}
	return err
}

// startS3 starts the object store and returns the cluster's configuration.
func startS3(ctx context.Context, o options, dir string) (*fleet.Program, string, error) {
	const access, secret = "hundredfold", "a-secret-for-loopback"
	objects, attributes := filepath.Join(dir, "s3", "objects"), filepath.Join(dir, "s3", "attributes")
	for _, path := range []string{filepath.Join(objects, "blocks"), attributes} {
		if err := os.MkdirAll(path, 0o750); err != nil {
			return nil, "", err
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		return nil, "", err
	}
	log, err := os.OpenFile(filepath.Join(dir, "s3", "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, "", err
	}
	store := fleet.NewProgram(log, []string{"ROOT_ACCESS_KEY=" + access, "ROOT_SECRET_KEY=" + secret},
		filepath.Join(o.bin, "versitygw"), "--quiet", "--port", address, "--health", "/health", "posix", "--sidecar", attributes, objects)
	if err := store.Start(); err != nil {
		return nil, "", fmt.Errorf("start the object store: %w", err)
	}
	if err := awaitHealth(ctx, "http://"+address+"/health", store); err != nil {
		return nil, "", errors.Join(err, store.Stop())
	}
	return store, fmt.Sprintf(`bucket:
  type: s3
  s3: {endpoint: %q, bucket: blocks, access_key: %s, secret_key: %s, region: us-east-1, insecure: true}
`, address, access, secret), nil
}

func awaitHealth(ctx context.Context, url string, store *fleet.Program) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	client := &http.Client{Timeout: time.Second}
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		if err := store.Alive(); err != nil {
			return fmt.Errorf("the object store: %w", err)
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
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return errors.Join(errors.New("the object store does not answer"), err)
		}
	}
}

// serve starts the members, stands before them, and obeys the other commands.
func serve(ctx context.Context, o options, dir string, f *fleet.Fleet) error {
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := f.Start(starting); err != nil {
		return err
	}
	front, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, socket)
	_ = os.Remove(path) // left by a run that was killed
	control, err := net.Listen("unix", path)
	if err != nil {
		return errors.Join(err, front.Close())
	}
	failed := make(chan error, 2)
	servers := []*http.Server{
		{Handler: fleet.NewFront(f), ReadHeaderTimeout: 10 * time.Second},
		{Handler: &controller{fleet: f}, ReadHeaderTimeout: 10 * time.Second},
	}
	for i, listener := range []net.Listener{front, control} {
		go func() { failed <- servers[i].Serve(listener) }()
	}
	announce(o, dir, f)
	select {
	case <-ctx.Done():
		err = nil
	case err = <-failed:
	}
	return errors.Join(err, servers[0].Close(), servers[1].Close())
}

func announce(o options, dir string, f *fleet.Fleet) {
	fmt.Printf(`
the cluster is ready
  write   http://%[1]s/api/v1/write
  query   http://%[1]s            (also as the URL of a Prometheus data source)
  state   %[2]s/cluster
  logs    %[3]s/logs

`, o.listen, f.Members("querier")[0].URL, dir)
	for _, m := range f.Members("") {
		fmt.Printf("  %-16s %s\n", m.Name, m.URL)
	}
	fmt.Print("\nin another terminal: make cluster-add, cluster-drain, cluster-kill, cluster-start; Ctrl-C ends it all\n\n")
}

// ask has the cluster that runs do something, and shows what it says.
func ask(ctx context.Context, o options, what string) error {
	path := filepath.Join(o.dir, socket)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	form := url.Values{"member": {o.member}, "zone": {o.zone}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://cluster/"+what, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("%w; does `make cluster` run?", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(text)))
	}
	fmt.Print(string(text))
	return nil
}
