package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// testAuthority signs certificates of clients.
type testAuthority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestAuthority(t *testing.T) *testAuthority {
	t.Helper()
	a := &testAuthority{t: t}
	a.cert, a.key = a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true})
	return a
}

// sign makes a certificate; the authority's own one at first.
func (a *testAuthority) sign(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber, template.NotBefore = big.NewInt(1), time.Now().Add(-48*time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	parent, parentKey := a.cert, a.key
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// client makes what a client shows.
func (a *testAuthority) client(template *x509.Certificate) tls.Certificate {
	a.t.Helper()
	cert, key := a.sign(template)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func (a *testAuthority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

var forClients = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}

// startNaming serves by TLS who the client is.
func startNaming(t *testing.T, authority *ClientAuthority) string {
	t.Helper()
	files := newCertificateFiles(t)
	files.write(1, time.Now().Add(time.Hour))
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name, ok := clientCertificateName(r); ok {
			w.Header().Set("Name", name)
		}
	})
	return startTLSWith(t, handler, openCertificate(t, files, io.Discard), authority)
}

// askName returns who the server takes the client for, "" for nobody.
func askName(t *testing.T, address string, certificates ...tls.Certificate) (string, error) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: certificates}, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Client{Transport: transport, Timeout: patience}).Do(request)
	if err != nil {
		return "", err
	}
	_ = response.Body.Close()
	return response.Header.Get("Name"), nil
}

// TestClientCertificateName: a certificate that the authority signed for a client names
// an account, no certificate is fine, and any other one ends the handshake.
func TestClientCertificateName(t *testing.T) {
	known, other := newTestAuthority(t), newTestAuthority(t)
	file := filepath.Join(t.TempDir(), "clients.pem")
	if err := os.WriteFile(file, known.pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	authority, err := OpenClientAuthority(file, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	address := startNaming(t, authority)
	if name, err := askName(t, address); name != "" || err != nil {
		t.Errorf("without a certificate: %q, %v", name, err)
	}
	named := func(name string) pkix.Name { return pkix.Name{CommonName: name} }
	for _, test := range []struct {
		name     string
		template x509.Certificate
		want     string
	}{
		{"a common name", x509.Certificate{Subject: named("ci"), DNSNames: []string{"other"}}, "ci"},
		{"an e-mail address", x509.Certificate{EmailAddresses: []string{"ann@example.com"}, DNSNames: []string{"other"}}, "ann@example.com"},
		{"a host name", x509.Certificate{DNSNames: []string{"builder.example"}}, "builder.example"},
		{"two host names", x509.Certificate{DNSNames: []string{"a.example", "b.example"}}, ""},
		{"two e-mail addresses", x509.Certificate{EmailAddresses: []string{"a@example.com", "b@example.com"}, DNSNames: []string{"a"}}, ""},
		{"no name", x509.Certificate{}, ""},
		{"a line break", x509.Certificate{Subject: named("ci\nadmin")}, ""},
		{"a space", x509.Certificate{Subject: named("ci admin")}, ""},
		{"letters that look alike", x509.Certificate{Subject: named("\u0430dmin")}, ""},
		{"a long name", x509.Certificate{Subject: named(strings.Repeat("x", maxCertificateName+1))}, ""},
		{"a node", x509.Certificate{Subject: named("n1"), URIs: []*url.URL{{Scheme: "atoll", Host: "c", Path: "/node/n1"}}}, ""},
	} {
		test.template.ExtKeyUsage = forClients
		if name, err := askName(t, address, known.client(&test.template)); name != test.want || err != nil {
			t.Errorf("%s: got %q, %v; want %q", test.name, name, err, test.want)
		}
	}
	for name, certificate := range map[string]tls.Certificate{
		"another authority's": other.client(&x509.Certificate{Subject: named("ci"), ExtKeyUsage: forClients}),
		"a server's":          known.client(&x509.Certificate{Subject: named("ci"), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}),
		"an expired one":      known.client(&x509.Certificate{Subject: named("ci"), ExtKeyUsage: forClients, NotAfter: time.Now().Add(-time.Hour)}),
	} {
		// crypto/tls shows only what an authority that the server names has signed.
		if got, err := askNameAnyway(t, address, certificate); err == nil {
			t.Errorf("%s: let in as %q", name, got)
		}
	}
}

// askNameAnyway is askName by a client that shows its certificate whoever is asked
// for.
func askNameAnyway(t *testing.T, address string, certificate tls.Certificate) (string, error) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		InsecureSkipVerify:   true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil },
	}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Client{Transport: transport, Timeout: patience}).Do(request)
	if err != nil {
		return "", err
	}
	_ = response.Body.Close()
	return response.Header.Get("Name"), nil
}

// TestClientAuthorityIsReplaced: a new authority counts for new connections, also of
// clients that were here before, and a file that can't be used changes nothing.
func TestClientAuthorityIsReplaced(t *testing.T) {
	first, second := newTestAuthority(t), newTestAuthority(t)
	files := &certificateFiles{t: t}
	file := filepath.Join(t.TempDir(), "clients.pem")
	files.replace(file, first.pem())
	var log safeBuffer
	authority, err := OpenClientAuthority(file, zerolog.New(&log))
	if err != nil {
		t.Fatal(err)
	}
	authority.interval = 5 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- authority.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	address := startNaming(t, authority)
	template := func() *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: "ci"}, ExtKeyUsage: forClients}
	}
	old, young := first.client(template()), second.client(template())
	letsIn := func(certificate tls.Certificate) bool {
		name, err := askNameAnyway(t, address, certificate)
		return err == nil && name == "ci"
	}
	if !letsIn(old) || letsIn(young) {
		t.Fatal("the first authority does not count")
	}
	notAnAuthority, _ := first.sign(template())
	for i, content := range [][]byte{
		nil, []byte("nothing"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("secret")}),
		append(first.pem(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("broken")})...),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: notAnAuthority.Raw}),
	} {
		before := strings.Count(log.String(), "the old one stays")
		files.replace(file, content)
		// Two contents with the same fault are logged once.
		if i != 1 {
			eventually(t, patience, func() bool { return strings.Count(log.String(), "the old one stays") > before })
		}
		if !letsIn(old) {
			t.Errorf("%d: a bad file took the authority away", i)
		}
	}
	files.replace(file, second.pem())
	eventually(t, patience, func() bool { return letsIn(young) && !letsIn(old) })
}

// TestClientSessionsAreNotResumed: a client can't go on with an authority that was
// taken out by resuming what it agreed on before.
func TestClientSessionsAreNotResumed(t *testing.T) {
	known := newTestAuthority(t)
	file := filepath.Join(t.TempDir(), "clients.pem")
	if err := os.WriteFile(file, known.pem(), 0o600); err != nil {
		t.Fatal(err)
	}
	authority, err := OpenClientAuthority(file, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	address := startNaming(t, authority)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(4), MinVersion: version, MaxVersion: version}
		for range 3 {
			conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			// With TLS 1.3 tickets come with the first read.
			_ = conn.SetDeadline(time.Now().Add(patience))
			if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, conn)
			if conn.(*tls.Conn).ConnectionState().DidResume {
				t.Errorf("%s: resumed", tls.VersionName(version))
			}
			_ = conn.Close()
		}
	}
}
