package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/crypto/bcrypt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// started is a Server that runs until the end of the test or stop.
type started struct {
	*Server
	url    string
	client *http.Client
	stop   func() error
}

func start(t testing.TB, cfg Config, auth Auth, routes map[string]http.Handler) *started {
	t.Helper()
	s, err := Open(cfg, auth, NewReadiness(), nil, prometheus.NewRegistry())
	require.NoError(t, err)
	return run(t, s, routes)
}

func startLogging(t testing.TB, cfg Config, logger *slog.Logger) *started {
	t.Helper()
	s, err := Open(cfg, DefaultAuth(), NewReadiness(), logger, prometheus.NewRegistry())
	require.NoError(t, err)
	return run(t, s, nil)
}

func run(t testing.TB, s *Server, routes map[string]http.Handler) *started {
	t.Helper()
	for pattern, h := range routes {
		s.Handle(pattern, h)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	client := &http.Client{Transport: &http.Transport{}}
	var result error
	stopped := false
	stop := func() error {
		if !stopped {
			stopped = true
			cancel()
			result = <-done
			client.CloseIdleConnections()
		}
		return result
	}
	t.Cleanup(func() { _ = stop() })
	return &started{Server: s, url: "http://" + s.Address(), client: client, stop: stop}
}

func loopback() Config { return Config{ListenAddress: "127.0.0.1:0"} }

func (s *started) get(t testing.TB, path string) (int, string) {
	t.Helper()
	resp, err := s.client.Get(s.url + path)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}

func TestReadyTellsTheReasonUntilNothingIsWaitedFor(t *testing.T) {
	s := start(t, loopback(), DefaultAuth(), nil)
	s.readiness.Wait("ingester", "replaying the write-ahead log of 3 tenants")

	for _, path := range []string{"/ready", "/-/ready", "/prometheus/-/ready"} {
		code, body := s.get(t, path)
		require.Equal(t, http.StatusServiceUnavailable, code, path)
		require.Equal(t, "ingester: replaying the write-ahead log of 3 tenants\n", body)
	}
	code, _ := s.get(t, "/-/healthy")
	require.Equal(t, http.StatusOK, code, "an unready process is healthy")

	s.readiness.Ready("ingester")
	code, body := s.get(t, "/ready")
	require.Equal(t, http.StatusOK, code)
	require.Equal(t, "ready\n", body)
}

func TestEveryRouteIsServedUnderPrometheusAndCountedOnce(t *testing.T) {
	s := start(t, loopback(), DefaultAuth(), map[string]http.Handler{
		"GET /{$}": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "home") }),
		"/api/v1/label/{name}/values": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.URL.Path)
		}),
	})
	for _, prefix := range []string{"", "/prometheus"} {
		_, body := s.get(t, prefix+"/api/v1/label/job/values")
		require.Equal(t, "/api/v1/label/job/values", body)
		_, body = s.get(t, prefix+"/")
		require.Equal(t, "home", body)
	}
	_, body := s.get(t, "/prometheus")
	require.Equal(t, "home", body)
	code, _ := s.get(t, "/nothing/here")
	require.Equal(t, http.StatusNotFound, code)

	require.NoError(t, s.stop())
	count := func(route, code string) float64 {
		return testutil.ToFloat64(s.metrics.requests.WithLabelValues(route, code))
	}
	require.EqualValues(t, 2, count("/api/v1/label/{name}/values", "200"))
	require.EqualValues(t, 3, count("/", "200"))
	require.EqualValues(t, 1, count("other", "404"))
}

func TestPanicIsAnsweredWith500AndTheProcessGoesOn(t *testing.T) {
	s := start(t, loopback(), DefaultAuth(), map[string]http.Handler{
		"/early": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("before the answer") }),
		"/late": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "half of the ans")
			w.(http.Flusher).Flush()
			panic("in the answer")
		}),
	})
	code, body := s.get(t, "/early")
	require.Equal(t, http.StatusInternalServerError, code)
	require.Contains(t, body, "internal error")
	require.NotContains(t, body, "before the answer", "the client learns nothing of the inside")

	resp, err := s.client.Get(s.url + "/late")
	require.NoError(t, err)
	_, err = io.ReadAll(resp.Body)
	require.Error(t, err, "an answer that was cut short must not look whole")
	require.NoError(t, resp.Body.Close())

	code, _ = s.get(t, "/-/healthy")
	require.Equal(t, http.StatusOK, code)
	require.EqualValues(t, 2, testutil.ToFloat64(s.metrics.panics))
}

func TestGateAnswers503WithTheReasonUntilItOpens(t *testing.T) {
	readiness := NewReadiness()
	var left atomic.Int64
	gate := NewGate(readiness, func() time.Duration { return time.Duration(left.Load()) })
	s := start(t, loopback(), DefaultAuth(), map[string]http.Handler{"/api/": gate})
	readiness.Wait("ingester", "opening")

	resp, err := s.client.Get(s.url + "/api/v1/write")
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Equal(t, "1", resp.Header.Get("Retry-After"))
	require.Equal(t, "not ready: ingester: opening\n", string(body))

	for estimate, want := range map[time.Duration]string{9 * time.Second: "4", time.Hour: "30"} {
		left.Store(int64(estimate))
		resp, err := s.client.Get(s.url + "/api/v1/write")
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, want, resp.Header.Get("Retry-After"))
	}

	gate.Open(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	code, _ := s.get(t, "/api/v1/write")
	require.Equal(t, http.StatusNoContent, code)
}

func TestStopWaitsForRunningRequests(t *testing.T) {
	running, finish := make(chan struct{}), make(chan struct{})
	s := start(t, loopback(), DefaultAuth(), map[string]http.Handler{
		"/slow": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(running)
			<-finish
			if r.Context().Err() == nil {
				_, _ = io.WriteString(w, "whole")
			}
		}),
	})
	answer := make(chan string, 1)
	go func() {
		resp, err := s.client.Get(s.url + "/slow")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		answer <- string(body)
	}()
	<-running
	stopped := make(chan error, 1)
	go func() { stopped <- s.stop() }()
	// The listener closes while the request still runs.
	for {
		conn, err := net.Dial("tcp", s.Address())
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	reason, waiting := s.readiness.Reason()
	require.True(t, waiting)
	require.Equal(t, "the process is stopping", reason)
	close(finish)
	require.Equal(t, "whole", <-answer)
	require.NoError(t, <-stopped)
}

func TestRequestsThatOutstayTheDrainAreCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		readiness := NewReadiness()
		client, conn := net.Pipe()
		s := &Server{
			logger: discard(), metrics: newMetrics(nil), readiness: readiness,
			listener: &oneConn{conn: conn, closed: make(chan struct{})}, mux: http.NewServeMux(),
		}
		running := make(chan struct{})
		s.Handle("/forever", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			close(running)
			<-r.Context().Done()
		}))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		go func() { _, _ = io.WriteString(client, "GET /forever HTTP/1.1\r\nHost: x\r\n\r\n") }()
		<-running
		begin := time.Now()
		cancel()
		require.NoError(t, <-done)
		require.Equal(t, drainTimeout, time.Since(begin))
		_ = client.Close()
	})
}

func TestListeningOffLoopbackNeedsAuthentication(t *testing.T) {
	dir := t.TempDir()
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	require.NoError(t, err)
	cert, key := selfSigned(t, dir)
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	tlsPart := fmt.Sprintf("tls_server_config:\n  cert_file: %s\n  key_file: %s\n", cert, key)
	var (
		password  = file("password.yml", "basic_auth_users:\n  alice: "+string(hash)+"\n")
		onlyTLS   = file("tls.yml", tlsPart)
		anyCert   = file("anycert.yml", tlsPart+"  client_auth_type: RequireAnyClientCert\n")
		verified  = file("verified.yml", tlsPart+"  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: "+cert+"\n")
		anywhere  = []string{":0", "0.0.0.0:0", "[::]:0"}
		required  = DefaultAuth()
		openToAll = Auth{Mode: AuthNone}
	)
	for _, address := range anywhere {
		for name, c := range map[string]struct {
			web     string
			auth    Auth
			refused bool
		}{
			"nothing":                   {"", required, true},
			"TLS alone":                 {onlyTLS, required, true},
			"certificates not verified": {anyCert, required, true},
			"a password":                {password, required, false},
			"verified certificates":     {verified, required, false},
			"open on purpose":           {"", openToAll, false},
		} {
			t.Run(address+" with "+name, func(t *testing.T) {
				s, err := Open(Config{ListenAddress: address, WebConfigFile: c.web}, c.auth, NewReadiness(), nil, prometheus.NewRegistry())
				if !c.refused {
					require.NoError(t, err)
					require.NoError(t, s.Close())
					return
				}
				require.ErrorIs(t, err, ErrUnprotected)
				require.ErrorContains(t, err, "auth: {mode: none}")
				require.ErrorContains(t, err, "web_config_file: web.yml")
			})
		}
	}
}

func TestWebConfigFileBringsTLSAndPasswords(t *testing.T) {
	dir := t.TempDir()
	cert, key := selfSigned(t, dir)
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	require.NoError(t, err)
	path := filepath.Join(dir, "web.yml")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil,
		"tls_server_config: {cert_file: %s, key_file: %s}\nbasic_auth_users: {alice: %s}\n", cert, key, hash), 0o600))
	s := start(t, Config{ListenAddress: "127.0.0.1:0", WebConfigFile: path}, DefaultAuth(), nil)
	s.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	s.url = "https://" + s.Address()

	code, _ := s.get(t, "/metrics")
	require.Equal(t, http.StatusUnauthorized, code)
	s.url = "https://alice:secret@" + s.Address()
	code, body := s.get(t, "/metrics")
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, body, "hundredfold_http_requests_in_flight 1")
}

func TestWhatIsTurnedAwayIsCountedAndLoggedWithoutThePassword(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "web.yml")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, "basic_auth_users: {alice: %s}\n", hash), 0o600))
	logged := &lines{}
	s := startLogging(t, Config{ListenAddress: "127.0.0.1:0", WebConfigFile: path}, slog.New(slog.NewJSONHandler(logged, nil)))
	ask := func(user, password string) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/prometheus/metrics", nil)
		require.NoError(t, err)
		if user != "" {
			r.SetBasicAuth(user, password)
		}
		resp, err := s.client.Do(r)
		require.NoError(t, err)
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		require.NoError(t, err)
		return resp.StatusCode
	}
	require.Equal(t, http.StatusOK, ask("alice", "secret"))
	require.Equal(t, http.StatusUnauthorized, ask("", ""))
	require.Equal(t, http.StatusUnauthorized, ask("alice", "guessed"))
	require.Equal(t, http.StatusUnauthorized, ask("mallory", "guessed"))
	require.NoError(t, s.stop())

	require.EqualValues(t, 1, testutil.ToFloat64(s.metrics.refused.WithLabelValues("no_password")))
	require.EqualValues(t, 2, testutil.ToFloat64(s.metrics.refused.WithLabelValues("wrong_password")))
	require.EqualValues(t, 1, testutil.ToFloat64(s.metrics.requests.WithLabelValues("/metrics", "200")))
	text := logged.String()
	require.Equal(t, 1, strings.Count(text, "could not prove who they are"), "one line in a while: %s", text)
	require.Regexp(t, `"by":"127\.0\.0\.1:[0-9]+, user alice"`, text)
	require.Contains(t, text, `"act":"GET /prometheus/metrics"`)
	require.NotContains(t, text, "guessed")
}

func TestAConnectionWithoutACertificateThatIsAskedForIsCountedAndLogged(t *testing.T) {
	dir := t.TempDir()
	cert, key := selfSigned(t, dir)
	path := filepath.Join(dir, "web.yml")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil,
		"tls_server_config: {cert_file: %s, key_file: %s, client_auth_type: RequireAndVerifyClientCert, client_ca_file: %s}\n", cert, key, cert), 0o600))
	logged := &lines{}
	s := startLogging(t, Config{ListenAddress: "127.0.0.1:0", WebConfigFile: path}, slog.New(slog.NewJSONHandler(logged, nil)))
	s.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	_, err := s.client.Get("https://" + s.Address() + "/metrics")
	require.Error(t, err)
	require.NoError(t, s.stop())
	require.EqualValues(t, 1, testutil.ToFloat64(s.metrics.refused.WithLabelValues("handshake")))
	require.Regexp(t, `"by":"127\.0\.0\.1:[0-9]+","cause":"tls: client didn't provide a certificate"`, logged.String())
	require.Contains(t, logged.String(), "could not prove who they are")
}

func TestHandshakesThatFailForOtherReasonsAccuseNobody(t *testing.T) {
	dir := t.TempDir()
	cert, key := selfSigned(t, dir)
	path := filepath.Join(dir, "web.yml")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, "tls_server_config: {cert_file: %s, key_file: %s}\n", cert, key), 0o600))
	for _, c := range []struct {
		name  string
		talk  func(t *testing.T, conn *net.TCPConn)
		cause string // "": connection trouble, which is not worth a line
	}{
		{"nothing", func(*testing.T, *net.TCPConn) {}, ""},
		{"half a record", func(t *testing.T, conn *net.TCPConn) {
			_, err := conn.Write([]byte{22, 3, 1, 0, 200, 1})
			require.NoError(t, err)
		}, ""},
		{"a reset", func(t *testing.T, conn *net.TCPConn) {
			_, err := conn.Write([]byte{22, 3, 1, 0, 200, 1})
			require.NoError(t, err)
			require.NoError(t, conn.SetLinger(0))
		}, ""},
		{"plain HTTP", func(t *testing.T, conn *net.TCPConn) {
			_, err := conn.Write([]byte("GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"))
			require.NoError(t, err)
			_, err = io.Copy(io.Discard, conn)
			require.NoError(t, err)
		}, "client sent an HTTP request to an HTTPS server"},
		{"no trust", func(t *testing.T, conn *net.TCPConn) {
			require.Error(t, tls.Client(conn, &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"}).HandshakeContext(t.Context()))
		}, "remote error: tls: bad certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			logged := &lines{}
			s := startLogging(t, Config{ListenAddress: "127.0.0.1:0", WebConfigFile: path},
				slog.New(slog.NewJSONHandler(logged, &slog.HandlerOptions{Level: slog.LevelDebug})))
			conn, err := net.Dial("tcp", s.Address())
			require.NoError(t, err)
			c.talk(t, conn.(*net.TCPConn))
			require.NoError(t, conn.Close())
			require.Eventually(t, func() bool {
				return strings.Contains(logged.String(), `TLS handshake error`) || strings.Contains(logged.String(), `"cause"`)
			}, 10*time.Second, time.Millisecond)
			require.NoError(t, s.stop())
			require.NotContains(t, logged.String(), "prove who they are")
			require.Zero(t, testutil.ToFloat64(s.metrics.refused.WithLabelValues("handshake")))
			counted := 0
			if c.cause != "" {
				counted = 1
				require.Regexp(t, `"level":"WARN".*"by":"127\.0\.0\.1:[0-9]+","cause":"`+c.cause, logged.String())
			} else {
				require.NotContains(t, logged.String(), `"level":"WARN"`)
			}
			require.EqualValues(t, counted, testutil.ToFloat64(s.metrics.refused.WithLabelValues("protocol")))
		})
	}
}

func TestCausesOfFailedHandshakesAreToldApart(t *testing.T) {
	for cause, want := range map[string]string{
		"read tcp 127.0.0.1:1->127.0.0.1:2: i/o timeout":                    "connection",
		"read tcp 127.0.0.1:1->127.0.0.1:2: read: connection reset by peer": "connection",
		"write tcp 127.0.0.1:1->127.0.0.1:2: write: broken pipe":            "connection",
		"EOF":              "connection",
		"context canceled": "connection",
		"tls: client didn't provide a certificate":                                         "handshake",
		"tls: failed to verify certificate: x509: certificate signed by unknown authority": "handshake",
		"tls: invalid signature by the client certificate: crypto/rsa: verification error": "handshake",
		"could not find allowed SANs in client cert, found: [a]":                           "handshake",
		"client sent an HTTP request to an HTTPS server":                                   "protocol",
		"tls: first record does not look like a TLS handshake":                             "protocol",
		"tls: client offered only unsupported versions: [301]":                             "protocol",
		"remote error: tls: unknown certificate authority":                                 "protocol",
		"remote error: tls: expired certificate of a client":                               "protocol",
	} {
		got := "protocol"
		switch {
		case connectionTrouble(cause):
			got = "connection"
		case aboutTheirCertificate(cause):
			got = "handshake"
		}
		require.Equal(t, want, got, cause)
	}
}

func TestConfigurationFaultsAreAllReported(t *testing.T) {
	_, err := Open(Config{ListenAddress: "nowhere", WebConfigFile: "/does/not/exist"}, Auth{Mode: "basic"}, NewReadiness(), nil, prometheus.NewRegistry())
	require.ErrorContains(t, err, `listen_address: "nowhere" is not HOST:PORT`)
	require.ErrorContains(t, err, "web_config_file: /does/not/exist")
	require.ErrorContains(t, err, `mode: "basic" is unknown; write required or none`)
}

func selfSigned(t *testing.T, dir string) (certFile, keyFile string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	require.NoError(t, err)
	keyDER, err := x509.MarshalECPrivateKey(private)
	require.NoError(t, err)
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600))
	return certFile, keyFile
}
