package server

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v3"
)

// ErrUnprotected says that an address other machines can reach was configured
// without authentication.
var ErrUnprotected = errors.New("listening off loopback needs authentication")

// AuthMode says what stands between the network and the data.
type AuthMode string

// The modes.
const (
	// AuthRequired asks for authentication in the web configuration file as soon
	// as the listener can be reached from another machine.
	AuthRequired AuthMode = "required"
	// AuthNone says that something else protects the listener, or nothing need.
	AuthNone AuthMode = "none"
)

// Auth is the part of the configuration that says how clients prove who they are.
type Auth struct {
	Mode AuthMode `yaml:"mode"`
}

// DefaultAuth returns the safe mode.
func DefaultAuth() Auth { return Auth{Mode: AuthRequired} }

// Validate reports an unknown mode.
func (a Auth) Validate() error {
	switch a.Mode {
	case AuthRequired, AuthNone:
		return nil
	default:
		return fmt.Errorf("mode: %q is unknown; write required or none", a.Mode)
	}
}

// Check reports whether cfg may be served under auth, without listening.
func Check(cfg Config, auth Auth) error {
	_, err := check(cfg, auth)
	return err
}

func check(cfg Config, auth Auth) (*net.TCPAddr, error) {
	if err := errors.Join(cfg.Validate(), auth.Validate()); err != nil {
		return nil, err
	}
	address, err := net.ResolveTCPAddr("tcp", cfg.ListenAddress)
	if err != nil {
		return nil, fmt.Errorf("resolve the listen address %s: %w", cfg.ListenAddress, err)
	}
	return address, permit(address, cfg, auth)
}

// permit refuses to serve address without authentication if other machines can
// reach it.
func permit(address *net.TCPAddr, cfg Config, auth Auth) error {
	if auth.Mode == AuthNone || address.IP.IsLoopback() {
		return nil
	}
	authenticates := false
	if cfg.WebConfigFile != "" {
		var err error
		if authenticates, err = hasAuthentication(cfg.WebConfigFile); err != nil {
			return err
		}
	}
	if authenticates {
		return nil
	}
	return fmt.Errorf(`%w: http.listen_address is %s and no authentication is configured. Do one of these:
  - keep to this machine:   http: {listen_address: "127.0.0.1:%d"}
  - ask for a password:     http: {web_config_file: web.yml}   where web.yml has basic_auth_users: {NAME: BCRYPT_HASH}
  - ask for certificates:   the same, where web.yml has tls_server_config: {client_auth_type: RequireAndVerifyClientCert, client_ca_file: ...}
  - leave it open to all:   auth: {mode: none}`, ErrUnprotected, cfg.ListenAddress, address.Port)
}

// hasAuthentication reports whether the web configuration at path, which is
// valid, turns strangers away. Certificates that are asked for but not verified
// against an authority prove nothing.
func hasAuthentication(path string) (bool, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("read http.web_config_file: %w", err)
	}
	var cfg web.Config
	if err := yaml.Unmarshal(content, &cfg); err != nil {
		return false, fmt.Errorf("parse http.web_config_file %s: %w", path, err)
	}
	return len(cfg.Users) > 0 || cfg.TLSConfig.ClientAuth == "RequireAndVerifyClientCert", nil
}
