package rpc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the authority of a test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	certificate, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{certificate: certificate, key: key}
}

// write signs a certificate and writes it with its key, and a's own, to cfg's files.
func (a *authority) write(t testing.TB, cfg TLSConfig, end time.Time, uses ...x509.ExtKeyUsage) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "a node"},
		NotBefore: end.Add(-2 * time.Hour), NotAfter: end, ExtKeyUsage: uses, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	for path, block := range map[string]*pem.Block{
		cfg.CertFile: {Type: "CERTIFICATE", Bytes: der},
		cfg.KeyFile:  {Type: "PRIVATE KEY", Bytes: keyDER},
		cfg.CAFile:   {Type: "CERTIFICATE", Bytes: a.certificate.Raw},
	} {
		require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
	}
}

// node returns a configuration with a certificate of a's.
func (a *authority) node(t testing.TB) Config {
	t.Helper()
	dir := t.TempDir()
	cfg := loopback()
	cfg.TLS = TLSConfig{CertFile: filepath.Join(dir, "crt"), KeyFile: filepath.Join(dir, "key"), CAFile: filepath.Join(dir, "ca")}
	a.write(t, cfg.TLS, time.Now().Add(time.Hour), x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	return cfg
}

func TestOnlyWhoCanProveThatHeIsAPeerIsServed(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	ended, serverOnly := ours.node(t), ours.node(t)
	ours.write(t, ended.TLS, time.Now().Add(-time.Minute), x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	ours.write(t, serverOnly.TLS, time.Now().Add(time.Hour), x509.ExtKeyUsageServerAuth)
	for _, c := range []struct {
		name           string
		server, client *Security
		want           string // "": served
	}{
		{"the same secret", secured(t, loopback(), secret), secured(t, loopback(), secret), ""},
		{"another secret", secured(t, loopback(), secret), secured(t, loopback(), otherSecret), "cluster.secret_file must be the same on all nodes"},
		{"nothing to a secret", secured(t, loopback(), secret), secured(t, loopback(), ""), "Unavailable"},
		{"a secret to nothing", secured(t, loopback(), ""), secured(t, loopback(), secret), "the peer has neither cluster.secret_file nor grpc.tls"},
		{"nothing on both sides", secured(t, loopback(), ""), secured(t, loopback(), ""), ""},
		{"certificates of one authority", secured(t, ours.node(t), ""), secured(t, ours.node(t), ""), ""},
		{"certificates go before a secret", secured(t, ours.node(t), secret), secured(t, ours.node(t), otherSecret), ""},
		{"a certificate of another authority", secured(t, ours.node(t), ""), secured(t, theirs.node(t), ""), "signed by unknown authority"},
		{"a certificate to a secret", secured(t, loopback(), secret), secured(t, ours.node(t), ""), "signed by unknown authority"},
		{"a secret to certificates", secured(t, ours.node(t), ""), secured(t, loopback(), secret), "grpc.tls be set on all or none"},
		{"nothing to certificates", secured(t, ours.node(t), ""), secured(t, loopback(), ""), "Unavailable"},
		{"a certificate that has ended", secured(t, ended, ""), secured(t, ours.node(t), ""), "expired"},
		{"a certificate for servers only", secured(t, ours.node(t), ""), secured(t, serverOnly, ""), "Unavailable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := serve(t, loopback(), c.server, &echo{})
			answer, err := call(t, pool(t, c.client, "prod"), n.Address(), "hello")
			if c.want == "" {
				require.NoError(t, err)
				require.Equal(t, "hello", answer)
				return
			}
			requireCode(t, codes.Unavailable, err)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestWhoCannotProveThatHeIsAPeerIsLoggedAndCounted(t *testing.T) {
	n := serve(t, loopback(), secured(t, loopback(), secret), &echo{})
	_, err := call(t, pool(t, secured(t, loopback(), otherSecret), "prod"), n.Address(), "hello")
	requireCode(t, codes.Unavailable, err)
	_, err = call(t, pool(t, secured(t, loopback(), ""), "prod"), n.Address(), "hello")
	requireCode(t, codes.Unavailable, err)
	require.NoError(t, n.stop())
	require.Contains(t, n.log.String(), "A connection was refused")
	families, err := n.registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		if family.GetName() == "hundredfold_grpc_handshake_failures_total" {
			require.GreaterOrEqual(t, family.GetMetric()[0].GetCounter().GetValue(), 2.0)
			return
		}
	}
	require.Fail(t, "nothing was counted")
}

func TestNewCertificatesAreTakenWithoutARestart(t *testing.T) {
	before, after := newAuthority(t), newAuthority(t)
	cfg := before.node(t)
	n := serve(t, loopback(), secured(t, cfg, ""), &echo{})
	_, err := call(t, pool(t, secured(t, after.node(t), ""), "prod"), n.Address(), "hello")
	requireCode(t, codes.Unavailable, err)

	after.write(t, cfg.TLS, time.Now().Add(time.Hour), x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
	answer, err := call(t, pool(t, secured(t, after.node(t), ""), "prod"), n.Address(), "hello")
	require.NoError(t, err)
	require.Equal(t, "hello", answer)
	_, err = call(t, pool(t, secured(t, before.node(t), ""), "prod"), n.Address(), "hello")
	requireCode(t, codes.Unavailable, err)
}

func TestBrokenFilesLeaveTheCertificatesBeforeInForce(t *testing.T) {
	ours := newAuthority(t)
	cfg := ours.node(t)
	n := serve(t, loopback(), secured(t, cfg, ""), &echo{})
	require.NoError(t, os.WriteFile(cfg.TLS.CertFile, []byte("half a certif"), 0o600))
	answer, err := call(t, pool(t, secured(t, ours.node(t), ""), "prod"), n.Address(), "hello")
	require.NoError(t, err)
	require.Equal(t, "hello", answer)
	require.NoError(t, n.stop())
	require.Contains(t, n.log.String(), "The certificates of grpc.tls cannot be loaded")
}

func TestFilesThatAreNoCertificatesAreRefusedAtTheStart(t *testing.T) {
	for name, damage := range map[string]func(*TLSConfig) string{
		"read grpc.tls.cert_file":         func(c *TLSConfig) string { return c.CertFile + ".absent" },
		"load grpc.tls.ca_file":           func(c *TLSConfig) string { return c.KeyFile },
		"load grpc.tls.cert_file":         func(c *TLSConfig) string { return c.CAFile },
		"name cert_file, key_file and ca": func(*TLSConfig) string { return "" },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := newAuthority(t).node(t)
			switch value := damage(&cfg.TLS); name {
			case "load grpc.tls.ca_file":
				cfg.TLS.CAFile = value
			default:
				cfg.TLS.CertFile = value
			}
			require.ErrorContains(t, Check(cfg, nil, false), name)
		})
	}
}

func TestAnAddressThatOthersCanReachNeedsProtection(t *testing.T) {
	everywhere := Config{ListenAddress: "0.0.0.0:9095"}
	certificates := newAuthority(t).node(t)
	certificates.ListenAddress = everywhere.ListenAddress
	require.NoError(t, Check(DefaultConfig(), nil, false))
	require.NoError(t, Check(everywhere, []byte(secret), false))
	require.NoError(t, Check(certificates, nil, false))
	require.NoError(t, Check(everywhere, nil, true))

	err := Check(everywhere, nil, false)
	require.ErrorIs(t, err, ErrUnprotected)
	for _, remedy := range []string{"grpc.listen_address is 0.0.0.0:9095", "127.0.0.1:9095", "secret_file", "tls", "mode: none"} {
		require.ErrorContains(t, err, remedy)
	}
	require.ErrorContains(t, Check(everywhere, []byte("short"), false), "openssl rand -hex 32")
	require.ErrorContains(t, Check(Config{ListenAddress: "9095"}, nil, false), "is not HOST:PORT")
}

// Nodes of different releases must derive the same key.
func TestTheKeyOfASecretNeverChanges(t *testing.T) {
	server, _, err := withSecret([]byte(secret))
	require.NoError(t, err)
	certificate, err := x509.ParseCertificate(server.Certificates[0].Certificate[0])
	require.NoError(t, err)
	require.Equal(t, "cf9108b397dec7c636ba80a522736457bf509379fa8abd4be617637d0396e186", fmt.Sprintf("%x", certificate.PublicKey))
}
