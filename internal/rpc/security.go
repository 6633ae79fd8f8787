package rpc

import (
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// minSecret is the least length of a secret, in bytes. Everybody who can connect
	// sees the public key that follows from the secret and can try secrets against it
	// at leisure, so a password would not do.
	minSecret = 16
	// keyPurpose keeps the key apart from all else that is derived from the secret. It
	// is part of the protocol: another value is another key.
	keyPurpose = "hundredfold grpc v1: ed25519 key of every member"
)

var (
	errOtherSecret = errors.New("the peer has another cluster secret")
	errNoProof     = errors.New("the peer shows no certificate")
)

// Security is what proves to peers that they are of one cluster and keeps strangers
// from reading along. It is immutable and safe for concurrent use.
type Security struct {
	kind           string
	server, client credentials.TransportCredentials
	files          *files // nil if certificates do not come from files
}

// NewSecurity returns mutual TLS with the files that cfg names; or, if it names none,
// mutual TLS 1.3 with a key that follows from secret; or, without a secret either, no
// protection at all, see Check.
func NewSecurity(cfg Config, secret []byte) (*Security, error) {
	var (
		kind           string
		certificates   *files
		server, client *tls.Config
		err            error
	)
	switch {
	case cfg.TLS.configured():
		kind = "mutual TLS with the certificates of grpc.tls"
		certificates, server, client, err = withFiles(cfg.TLS)
	case len(secret) > 0:
		kind = "mutual TLS with a key from the secret of the cluster"
		server, client, err = withSecret(secret)
	default:
		return &Security{kind: "nothing", server: insecure.NewCredentials(), client: insecure.NewCredentials()}, nil
	}
	if err != nil {
		return nil, err
	}
	return &Security{
		kind:   kind,
		server: credentials.NewTLS(server),
		client: explaining{credentials.NewTLS(client)},
		files:  certificates,
	}, nil
}

// Authenticates reports whether strangers are turned away.
func (s *Security) Authenticates() bool { return s.client.Info().SecurityProtocol == "tls" }

// String says for logs what protects the connections.
func (s *Security) String() string { return s.kind }

// withSecret returns configurations in which both sides hold the same key, which only
// who knows the secret can derive. TLS 1.3 makes each side prove that it holds the key
// of its certificate; that this key is the one is all that is left to check. The
// certificate is but the key's envelope: names, authorities and the time of day mean
// nothing, so neither addresses nor clocks can be wrong.
func withSecret(secret []byte) (server, client *tls.Config, err error) {
	if len(secret) < minSecret {
		return nil, nil, fmt.Errorf("the secret of the cluster has %d bytes, at least %d are needed; make one with: openssl rand -hex 32", len(secret), minSecret)
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, keyPurpose, ed25519.SeedSize)
	if err != nil {
		return nil, nil, fmt.Errorf("derive a key from the secret of the cluster: %w", err)
	}
	key := ed25519.NewKeyFromSeed(seed)
	public, _ := key.Public().(ed25519.PublicKey)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "hundredfold"},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(nil, template, template, public, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate for the secret of the cluster: %w", err)
	}
	config := &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		// Every connection proves anew that both sides hold the key.
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAnyClientCert,
		// The chain is not looked at; VerifyConnection pins the key, on both sides and in
		// every handshake.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return errNoProof
			}
			// Both keys are public, so the comparison needs no constant time.
			if theirs, ok := state.PeerCertificates[0].PublicKey.(ed25519.PublicKey); !ok || !theirs.Equal(public) {
				return errOtherSecret
			}
			return nil
		},
	}
	return config, config, nil
}

// explaining says in the error of a failed handshake, which callers and logs get to
// see, what usually is the matter.
type explaining struct {
	credentials.TransportCredentials
}

// ClientHandshake implements credentials.TransportCredentials.
func (e explaining) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := e.TransportCredentials.ClientHandshake(ctx, authority, raw)
	var other tls.RecordHeaderError
	switch {
	case err == nil:
		return conn, info, nil
	case errors.As(err, &other):
		err = fmt.Errorf("%w; the peer has neither cluster.secret_file nor grpc.tls, or is another program", err)
	case errors.Is(err, errOtherSecret):
		err = fmt.Errorf("%w; cluster.secret_file must be the same on all nodes, and grpc.tls be set on all or none", err)
	}
	return nil, nil, err
}

// Clone implements credentials.TransportCredentials.
func (e explaining) Clone() credentials.TransportCredentials {
	return explaining{e.TransportCredentials.Clone()}
}
