package gateway

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// certificateFiles are a certificate's files, which a test may replace.
type certificateFiles struct {
	t         *testing.T
	cert, key string
}

func newCertificateFiles(t *testing.T) *certificateFiles {
	t.Helper()
	dir := t.TempDir()
	return &certificateFiles{t, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
}

// write puts a new certificate of 127.0.0.1 into the files.
func (f *certificateFiles) write(serial int64, until time.Time) {
	f.t.Helper()
	cert, key := f.make(serial, until)
	f.replace(f.key, key)
	f.replace(f.cert, cert)
}

func (f *certificateFiles) make(serial int64, until time.Time) (cert, key []byte) {
	f.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		f.t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		f.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
}

func (f *certificateFiles) replace(name string, content []byte) {
	f.t.Helper()
	if err := os.WriteFile(name+".new", content, 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		f.t.Fatal(err)
	}
}

// startTLS serves a handler by TLS as a node does.
func startTLS(t *testing.T, handler http.Handler, certificate *Certificate) string {
	t.Helper()
	return startTLSWith(t, handler, certificate, nil)
}

// startTLSWith does so for clients that may show certificates.
func startTLSWith(t *testing.T, handler http.Handler, certificates Certificates, authority *ClientAuthority) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := NewServer(handler, TLSConfig(certificates, authority), zerolog.Nop())
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

func openCertificate(t *testing.T, files *certificateFiles, log io.Writer) *Certificate {
	t.Helper()
	certificate, err := OpenCertificate(files.cert, files.key, zerolog.New(log))
	if err != nil {
		t.Fatal(err)
	}
	certificate.interval = 5 * time.Millisecond
	return certificate
}

// startHTTP2 serves a handler by HTTP/2 alone.
func startHTTP2(t *testing.T, handler http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	server.Config = NewServer(handler, nil, zerolog.Nop())
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	transport := server.Client().Transport.(*http.Transport)
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetHTTP2(true)
	return server
}

// handshake connects as a client with these protocols.
func handshake(address string, config *tls.Config) (tls.ConnectionState, error) {
	config.InsecureSkipVerify = true // What is tested is which one comes, not who signed it.
	dialer := tls.Dialer{Config: config}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState(), nil
}

func TestTLSProtocols(t *testing.T) {
	files := newCertificateFiles(t)
	files.write(1, time.Now().Add(time.Hour))
	address := startTLS(t, New(Config{}, newMemoryMetadata(), newMemoryBlobs()), openCertificate(t, files, io.Discard))
	for offered, want := range map[string]string{"h2,http/1.1": "http/1.1", "http/1.1,h2": "http/1.1", "h2": "h2", "http/1.1": "http/1.1", "": ""} {
		config := &tls.Config{}
		if offered != "" {
			config.NextProtos = strings.Split(offered, ",")
		}
		state, err := handshake(address, config)
		if err != nil || state.NegotiatedProtocol != want {
			t.Errorf("offered %q: got %q, %v; want %q", offered, state.NegotiatedProtocol, err, want)
		}
	}
	for version, allowed := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		_, err := handshake(address, &tls.Config{MinVersion: version, MaxVersion: version})
		if (err == nil) != allowed {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
}

// TestPlainHTTPOnTLSPort: whoever forgot the s is told so.
func TestPlainHTTPOnTLSPort(t *testing.T) {
	files := newCertificateFiles(t)
	files.write(1, time.Now().Add(time.Hour))
	address := startTLS(t, New(Config{}, newMemoryMetadata(), newMemoryBlobs()), openCertificate(t, files, io.Discard))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusBadRequest || !strings.Contains(string(content), "HTTPS") {
		t.Errorf("got %d %q, %v", response.StatusCode, content, err)
	}
}

// TestCertificateIsReplaced: new connections get a new certificate at once, those
// that are open go on, and files that can't be used change nothing.
func TestCertificateIsReplaced(t *testing.T) {
	files := newCertificateFiles(t)
	files.write(1, time.Now().Add(time.Hour))
	var log safeBuffer
	certificate := openCertificate(t, files, &log)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- certificate.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	address := startTLS(t, New(Config{}, newMemoryMetadata(), newMemoryBlobs()), certificate)
	serves := func(serial int64) bool {
		state, err := handshake(address, &tls.Config{})
		return err == nil && state.PeerCertificates[0].SerialNumber.Int64() == serial
	}
	if !serves(1) {
		t.Fatal("the first certificate is not served")
	}
	old, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	_ = old.SetDeadline(time.Now().Add(patience))

	files.write(2, time.Now().Add(2*time.Hour))
	eventually(t, patience, func() bool { return serves(2) })
	if _, err := io.WriteString(old, "GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(old), nil)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("the open connection: %v, %v", response, err)
	}

	// refusals counts what was logged about files that can't be used.
	refusals := func() int { return strings.Count(log.String(), "the old one stays") }
	cert, key := files.make(3, time.Now().Add(time.Hour))
	for i, spoil := range []func(){
		func() { files.replace(files.cert, []byte("not a certificate")) },
		func() { files.replace(files.cert, cert) }, // The key is still that of the second one.
		func() { files.replace(files.cert, make([]byte, maxCertificateBytes+1)) },
		func() { _ = os.Remove(files.cert) },
		func() { files.write(4, time.Now().Add(-time.Hour)) },
	} {
		before := refusals()
		spoil()
		eventually(t, patience, func() bool { return refusals() > before })
		if !serves(2) {
			t.Errorf("%d: bad files took the good certificate away", i)
		}
	}
	files.replace(files.key, key)
	files.replace(files.cert, cert)
	eventually(t, patience, func() bool { return serves(3) })
	if strings.Contains(log.String(), "PRIVATE") {
		t.Error("the log has a key")
	}
}

// TestCertificateMustBeUsable: a node does not start with files that it can't use.
func TestCertificateMustBeUsable(t *testing.T) {
	files := newCertificateFiles(t)
	if _, err := OpenCertificate(files.cert, files.key, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), files.cert) {
		t.Errorf("without files: %v", err)
	}
	files.write(1, time.Now().Add(time.Hour))
	_, other := files.make(2, time.Now().Add(time.Hour))
	files.replace(files.key, other)
	if _, err := OpenCertificate(files.cert, files.key, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), files.key) {
		t.Errorf("with another key: %v", err)
	}
}
