// Package rpc is how the processes of a cluster call each other: a gRPC Server, a
// Pool of connections to peers, and the Security between them, which is mutual TLS
// whose certificates are given as files or follow from the cluster's secret. All
// that is the same for every call is here: the cluster's name is checked, calls are
// counted and timed, panics are caught, sizes and times are bounded, dead peers are
// noticed.
//
// It knows neither services nor who is in the cluster.
package rpc

import (
	"errors"
	"fmt"
	"net"
	"time"
)

const (
	// maxMessage bounds a message, so that no peer makes another hold more. Frames of
	// pushes and selects are about a megabyte; the rest is room for one huge series.
	maxMessage = 64 << 20
	// maxHeader bounds the headers and trailers of a call; a trailer has an error with
	// its details.
	maxHeader = 1 << 20
	// maxStreams bounds the calls that run at once on a connection; more wait at the
	// caller. A querier has a call per select.
	maxStreams = 1024

	// streamWindow and connWindow are how much a peer may send before it hears that
	// something was read: what 10 Gbit/s carry within a round trip of 1.5 ms. They are
	// constant, so that what a slow reader holds has a bound.
	streamWindow = 2 << 20
	connWindow   = 16 << 20
	// ioBuffer is the size of the reads and writes of a connection. The library lends
	// buffers for writing to connections that write, so that idle ones have none.
	ioBuffer = 64 << 10

	// A peer that is silent for pingAfter is asked whether it lives, and is taken for
	// dead after another pingTimeout. 10 s is the least that the library allows on a
	// client. What was sent and is not acknowledged by the peer's kernel ends the
	// connection within pingTimeout (TCP_USER_TIMEOUT, which the library sets).
	pingAfter   = 10 * time.Second
	pingTimeout = 5 * time.Second
	// The kernel asks sooner than the library can, so that a stream on which this side
	// only waits learns within tcpIdle + pingTimeout that a host is gone.
	tcpIdle     = 3 * time.Second
	tcpInterval = time.Second

	// unaryTimeout ends calls that nobody has given a deadline. Streams have none:
	// some live as long as the process.
	unaryTimeout = time.Minute
	// drainTimeout is how long calls that run at the stop may take to finish.
	drainTimeout = 10 * time.Second

	// clusterHeader carries the name of the caller's cluster with every call.
	clusterHeader = "hundredfold-cluster"
)

// ErrUnprotected says that an address other machines can reach was configured
// without anything that tells peers from strangers.
var ErrUnprotected = errors.New("listening off loopback needs a secret or certificates")

// Config says where to listen for peers and what proves that they are peers.
type Config struct {
	// ListenAddress is HOST:PORT; off loopback it needs a secret or TLS.
	ListenAddress string `yaml:"listen_address"`
	// TLS names certificates. Without them the secret of the cluster does.
	TLS TLSConfig `yaml:"tls"`
}

// TLSConfig names PEM files: all three or none. They are read again for each new
// connection, so that they can be replaced while the process runs.
type TLSConfig struct {
	// CertFile has this process's certificate, good for servers and for clients,
	// followed by the authorities between it and CAFile, if any.
	CertFile string `yaml:"cert_file"`
	// KeyFile has the key of that certificate.
	KeyFile string `yaml:"key_file"`
	// CAFile has the authorities. Whoever holds a certificate of theirs is a peer, by
	// whatever name, so they must be this cluster's own.
	CAFile string `yaml:"ca_file"`
}

// DefaultConfig returns the configuration of a process that nobody configured.
func DefaultConfig() Config { return Config{ListenAddress: "127.0.0.1:9095"} }

// Validate reports all faults of c.
func (c Config) Validate() error {
	var errs []error
	if _, _, err := net.SplitHostPort(c.ListenAddress); err != nil {
		errs = append(errs, fmt.Errorf("listen_address: %q is not HOST:PORT", c.ListenAddress))
	}
	if c.TLS.configured() {
		for _, file := range []struct{ key, path string }{
			{"cert_file", c.TLS.CertFile}, {"key_file", c.TLS.KeyFile}, {"ca_file", c.TLS.CAFile},
		} {
			if file.path == "" {
				errs = append(errs, fmt.Errorf("tls.%s: it is empty; name cert_file, key_file and ca_file, or none of them", file.key))
			}
		}
	}
	return errors.Join(errs...)
}

func (c TLSConfig) configured() bool { return c != TLSConfig{} }

// Check reports whether cfg may be served with the secret (none if it is empty),
// without listening. open says that the configuration has cluster.mode: none, so
// that whoever reaches the address is trusted.
func Check(cfg Config, secret []byte, open bool) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	security, err := NewSecurity(cfg, secret)
	if err != nil {
		return err
	}
	address, err := resolve(cfg)
	if err != nil {
		return err
	}
	if open || security.Authenticates() || address.IP.IsLoopback() {
		return nil
	}
	return fmt.Errorf(`%w: grpc.listen_address is %s, and peers cannot be told from strangers. Do one of these:
  - keep to this machine:    grpc: {listen_address: "127.0.0.1:%d"}
  - share a secret:          cluster: {secret_file: secret}   the same file on all nodes; make it with: openssl rand -hex 32 > secret
  - give out certificates:   grpc: {tls: {cert_file: node.crt, key_file: node.key, ca_file: ca.crt}}
  - trust the whole network: cluster: {mode: none}`, ErrUnprotected, cfg.ListenAddress, address.Port)
}

func resolve(cfg Config) (*net.TCPAddr, error) {
	address, err := net.ResolveTCPAddr("tcp", cfg.ListenAddress)
	if err != nil {
		return nil, fmt.Errorf("resolve grpc.listen_address %s: %w", cfg.ListenAddress, err)
	}
	return address, nil
}
