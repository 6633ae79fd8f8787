package cluster

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDefaultConfigIsValid(t *testing.T) {
	require.NoError(t, DefaultConfig().Check())
}

func TestValidateNamesEachFault(t *testing.T) {
	c := Config{
		Name: "a b", ReplicationFactor: 4, Mode: "maybe",
		Gossip: GossipConfig{ListenAddress: "7946", AdvertiseAddress: ":1", Join: []string{"host"}},
		Peers:  []string{"peer:1", "peer"},
	}
	err := c.Validate()
	for _, want := range []string{
		"name:", "replication_factor: 4", `mode: "maybe"`, "gossip.listen_address:", "gossip.advertise_address:",
		"gossip.join[0]:", "peers[1]:", "peers: it excludes gossip.join",
	} {
		require.ErrorContains(t, err, want)
	}
	require.NotContains(t, err.Error(), "peers[0]")
}

func TestGossipOffLoopbackNeedsASecret(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte(" 0123456789abcdef\n"), 0o600))
	for _, c := range []struct {
		listen string
		change func(*Config)
		ok     bool
	}{
		{"127.0.0.1:7946", func(*Config) {}, true},
		{"[::1]:7946", func(*Config) {}, true},
		{"0.0.0.0:7946", func(*Config) {}, false},
		{":7946", func(*Config) {}, false},
		{"192.0.2.1:7946", func(*Config) {}, false},
		{"192.0.2.1:7946", func(c *Config) { c.Mode = ModeNone }, true},
		{"192.0.2.1:7946", func(c *Config) { c.SecretFile = secret }, true},
		{"192.0.2.1:7946", func(c *Config) { c.Peers = []string{"other:9095"} }, true}, // it does not gossip
	} {
		cfg := DefaultConfig()
		cfg.Gossip.ListenAddress = c.listen
		c.change(&cfg)
		if c.ok {
			require.NoError(t, cfg.Check(), "%+v", cfg)
			continue
		}
		require.ErrorIs(t, cfg.Check(), ErrUnprotected)
		require.ErrorContains(t, cfg.Check(), "cluster: {secret_file: FILE}")
	}
}

func TestSecretsAreTrimmedAndLong(t *testing.T) {
	c := DefaultConfig()
	secret, err := c.Secret()
	require.NoError(t, err)
	require.Nil(t, secret)
	c.SecretFile = filepath.Join(t.TempDir(), "secret")
	_, err = c.Secret()
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(c.SecretFile, []byte("\n 0123456789abcdef \n"), 0o600))
	secret, err = c.Secret()
	require.NoError(t, err)
	require.Equal(t, "0123456789abcdef", string(secret))
	require.NoError(t, os.WriteFile(c.SecretFile, []byte("                   short           "), 0o600))
	require.ErrorContains(t, c.Check(), "has 5 bytes")
}
