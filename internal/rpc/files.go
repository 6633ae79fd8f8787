package rpc

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// errNoAuthority says that the CA file has no certificate.
var errNoAuthority = errors.New("there is no certificate in it")

// files are certificates in files, read again for each handshake: these are rare,
// since connections last. Files that are being replaced, or are broken, leave what
// was read before in force. Safe for concurrent use.
type files struct {
	cfg TLSConfig

	mu struct {
		sync.Mutex
		text   [3][]byte // of the certificate, the key and the authorities, as loaded
		loaded identity
		fault  error
	}
}

// identity is a certificate with its key, and who may vouch for peers. Immutable.
type identity struct {
	certificate *tls.Certificate
	authorities *x509.CertPool
}

// withFiles returns configurations for mutual TLS with the files that cfg names.
//
// The certificate of a peer must be of one of the authorities and for the use it is
// put to. Its names are not compared with the address: peers are found by gossip, as
// often as not by an IP address that no certificate can know, and who holds a
// certificate of this cluster's authority is a member whatever its name.
func withFiles(cfg TLSConfig) (f *files, server, client *tls.Config, err error) {
	f = &files{cfg: cfg}
	if err := f.load(); err != nil {
		return nil, nil, nil, err
	}
	server = &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true, // a session would outlive the authorities
		ClientAuth:             tls.RequireAnyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return f.current().certificate, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			return f.current().verify(state, x509.ExtKeyUsageClientAuth)
		},
	}
	client = &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return f.current().certificate, nil
		},
		// VerifyConnection checks the chain, by the authorities of the moment.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection: func(state tls.ConnectionState) error {
			return f.current().verify(state, x509.ExtKeyUsageServerAuth)
		},
	}
	return f, server, client, nil
}

// current returns what is in the files now, or was when they were last whole.
func (f *files) current() identity {
	// An error leaves what is loaded in force: a half-written file must not cut the
	// node off. The server logs it.
	fault := f.load()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.fault = fault
	return f.mu.loaded
}

// fault says what was wrong with the files at the last handshake.
func (f *files) fault() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.fault
}

// expiry returns when the certificate in force ends.
func (f *files) expiry() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.loaded.certificate.Leaf.NotAfter
}

// load reads the files and takes them over if they are whole and have changed.
func (f *files) load() error {
	var text [3][]byte
	for i, file := range []struct{ key, path string }{
		{"cert_file", f.cfg.CertFile}, {"key_file", f.cfg.KeyFile}, {"ca_file", f.cfg.CAFile},
	} {
		var err error
		if text[i], err = os.ReadFile(file.path); err != nil {
			return fmt.Errorf("read grpc.tls.%s: %w", file.key, err)
		}
	}
	f.mu.Lock()
	same := f.mu.loaded.certificate != nil &&
		bytes.Equal(text[0], f.mu.text[0]) && bytes.Equal(text[1], f.mu.text[1]) && bytes.Equal(text[2], f.mu.text[2])
	f.mu.Unlock()
	if same {
		return nil
	}
	certificate, err := tls.X509KeyPair(text[0], text[1])
	if err != nil {
		return fmt.Errorf("load grpc.tls.cert_file %s and key_file %s: %w", f.cfg.CertFile, f.cfg.KeyFile, err)
	}
	authorities := x509.NewCertPool()
	if !authorities.AppendCertsFromPEM(text[2]) {
		return fmt.Errorf("load grpc.tls.ca_file %s: %w", f.cfg.CAFile, errNoAuthority)
	}
	f.mu.Lock()
	f.mu.text, f.mu.loaded = text, identity{certificate: &certificate, authorities: authorities}
	f.mu.Unlock()
	return nil
}

// verify checks that the peer's certificate is of one of the authorities and may be
// used so.
func (i identity) verify(state tls.ConnectionState, usage x509.ExtKeyUsage) error {
	if len(state.PeerCertificates) == 0 {
		return errNoProof
	}
	options := x509.VerifyOptions{
		Roots:         i.authorities,
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{usage},
	}
	for _, certificate := range state.PeerCertificates[1:] {
		options.Intermediates.AddCert(certificate)
	}
	if _, err := state.PeerCertificates[0].Verify(options); err != nil {
		return fmt.Errorf("the peer's certificate is not good for this cluster (grpc.tls.ca_file): %w", err)
	}
	return nil
}
