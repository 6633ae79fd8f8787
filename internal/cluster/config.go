package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"

	"github.com/hundredfold/hundredfold/internal/hashring"
)

// ErrUnprotected says that the gossip of a cluster would be open to other machines
// without a secret.
var ErrUnprotected = errors.New("gossip off loopback needs a secret")

// Mode says what stands between the network and the cluster.
type Mode string

// The modes.
const (
	// ModeRequired asks for a secret as soon as other machines can reach a node.
	ModeRequired Mode = "required"
	// ModeNone says that something else protects the network, or nothing need.
	ModeNone Mode = "none"
)

// minSecret is how many bytes a secret has at least.
const minSecret = 16

// Config says which cluster a node belongs to and how it finds the others.
type Config struct {
	// Enabled makes a process with all roles a node of a cluster that knows no others;
	// one with fewer roles, or with Peers or Gossip.Join, always is.
	Enabled bool `yaml:"enabled"`
	// Name keeps clusters apart that reach each other by mistake.
	Name string `yaml:"name"`
	// Zone is the failure domain of this node; replicas avoid sharing one.
	Zone string `yaml:"zone"`
	// ReplicationFactor is how many ingesters hold each series, 1 to 3. It is the
	// same on all nodes.
	ReplicationFactor int `yaml:"replication_factor"`
	// SecretFile is the path of a file with the secret that all nodes share, at
	// least 16 bytes. Gossip is encrypted with it.
	SecretFile string `yaml:"secret_file"`
	Mode       Mode   `yaml:"mode"`
	// Gossip is how nodes find each other, unless Peers lists them.
	Gossip GossipConfig `yaml:"gossip"`
	// Peers are the gRPC addresses, as host:port, of the other nodes, for networks
	// in which gossip cannot work. This node may be among them.
	Peers []string `yaml:"peers"`
}

// GossipConfig says where a node gossips.
type GossipConfig struct {
	// ListenAddress is HOST:PORT, for UDP and TCP.
	ListenAddress string `yaml:"listen_address"`
	// AdvertiseAddress is where others reach it, as HOST:PORT; empty: where it
	// listens, or a private address of this machine if it listens on all.
	AdvertiseAddress string `yaml:"advertise_address"`
	// Join are addresses, as HOST:PORT, of some nodes; all of a name's addresses
	// are tried.
	Join []string `yaml:"join"`
}

// DefaultConfig returns the configuration of a node that knows no others.
func DefaultConfig() Config {
	return Config{
		Name:              "hundredfold",
		ReplicationFactor: hashring.MaxRF,
		Mode:              ModeRequired,
		Gossip:            GossipConfig{ListenAddress: "127.0.0.1:7946"},
	}
}

var namePattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// Validate reports all faults of c.
func (c Config) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !namePattern.MatchString(c.Name) {
		fault("name: %q is not 1 to 64 letters, digits, dots, dashes or underscores", c.Name)
	}
	if len(c.Zone) > maxString {
		fault("zone: it has %d bytes, more than %d", len(c.Zone), maxString)
	}
	if c.ReplicationFactor < 1 || c.ReplicationFactor > hashring.MaxRF {
		fault("replication_factor: %d is outside 1 to %d", c.ReplicationFactor, hashring.MaxRF)
	}
	if c.Mode != ModeRequired && c.Mode != ModeNone {
		fault("mode: %q is unknown; write required or none", c.Mode)
	}
	address := func(key, value string) {
		if host, port, err := net.SplitHostPort(value); err != nil || host == "" || port == "" {
			fault("%s: %q is not HOST:PORT", key, value)
		}
	}
	if _, _, err := net.SplitHostPort(c.Gossip.ListenAddress); err != nil {
		fault("gossip.listen_address: %q is not HOST:PORT", c.Gossip.ListenAddress)
	}
	if c.Gossip.AdvertiseAddress != "" {
		address("gossip.advertise_address", c.Gossip.AdvertiseAddress)
	}
	for i, join := range c.Gossip.Join {
		address(fmt.Sprintf("gossip.join[%d]", i), join)
	}
	for i, peer := range c.Peers {
		address(fmt.Sprintf("peers[%d]", i), peer)
	}
	if len(c.Peers) > 0 && len(c.Gossip.Join) > 0 {
		fault("peers: it excludes gossip.join; nodes are either listed or found by gossip")
	}
	return errors.Join(errs...)
}

// gossips reports whether nodes find each other by gossip and not by a list.
func (c Config) gossips() bool { return len(c.Peers) == 0 }

// Check reports whether a node may run under c, without opening anything. The
// addresses of gRPC are not its business.
func (c Config) Check() error {
	if err := c.Validate(); err != nil {
		return err
	}
	if _, err := c.Secret(); err != nil {
		return err
	}
	if !c.gossips() {
		return nil
	}
	listen, err := net.ResolveTCPAddr("tcp", c.Gossip.ListenAddress)
	if err != nil {
		return fmt.Errorf("resolve cluster.gossip.listen_address %s: %w", c.Gossip.ListenAddress, err)
	}
	return c.permit(listen, c.SecretFile != "")
}

// permit refuses to gossip where other machines can join unless they prove that
// they belong here.
func (c Config) permit(listen *net.TCPAddr, secret bool) error {
	if c.Mode == ModeNone || secret || listen.IP.IsLoopback() {
		return nil
	}
	return fmt.Errorf(`%w: cluster.gossip.listen_address is %s and cluster.secret_file is not set. Do one of these:
  - keep to this machine:     cluster: {gossip: {listen_address: "127.0.0.1:%d"}}
  - share a secret:           cluster: {secret_file: FILE}   where FILE, the same on all nodes, has 16 bytes or more (head -c 32 /dev/urandom | base64)
  - leave it open to all:     cluster: {mode: none}`, ErrUnprotected, c.Gossip.ListenAddress, listen.Port)
}

// Secret returns what SecretFile holds, without the white space around it; nil if
// none is configured.
func (c Config) Secret() ([]byte, error) {
	if c.SecretFile == "" {
		return nil, nil
	}
	content, err := os.ReadFile(c.SecretFile)
	if err != nil {
		return nil, fmt.Errorf("read cluster.secret_file: %w", err)
	}
	secret := bytes.TrimSpace(content)
	if len(secret) < minSecret {
		return nil, fmt.Errorf("cluster.secret_file: %s has %d bytes; a secret has at least %d", c.SecretFile, len(secret), minSecret)
	}
	return secret, nil
}
