// Package acmetest runs a certificate authority for tests: Let's Encrypt's Pebble, in
// this process, which asks for every name at 127.0.0.1.
package acmetest

import (
	"crypto/x509"
	"encoding/pem"
	"io"
	"log" //nolint:depguard // Pebble takes no other logger.
	"net"
	"net/http/httptest"
	"testing"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
)

// Goroutine is a function of Pebble that goes on for as long as the process.
const Goroutine = "github.com/letsencrypt/pebble/v2/va.VAImpl.processTasks"

// Authority is a certificate authority.
type Authority struct {
	// Directory is the URL of its directory.
	Directory string
	// ServerRoots verify the server there, Roots what the authority signs.
	ServerRoots, Roots *x509.CertPool
	// ServerRootPEM is the certificate in ServerRoots.
	ServerRootPEM []byte
}

// Start starts an authority that looks for the names on a port of 127.0.0.1. Its
// certificates are valid for seconds. The test must not run in parallel with others.
func Start(t *testing.T, port int, validSeconds uint64) *Authority {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1") // no pauses as of a network
	logger := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	authority := ca.New(logger, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {ValidityPeriod: validSeconds}})
	validation := va.New(logger, 0, port, false, startNames(t), store)
	front := wfe.New(logger, store, validation, authority, []string{"authority.example"}, false, false, 1, 1)
	server := httptest.NewTLSServer(front.Handler())
	t.Cleanup(server.Close)

	a := &Authority{Directory: server.URL + wfe.DirectoryPath, ServerRoots: x509.NewCertPool(), Roots: x509.NewCertPool()}
	a.ServerRoots.AddCert(server.Certificate())
	a.ServerRootPEM = encode(server.Certificate().Raw)
	root, err := x509.ParseCertificate(authority.GetRootCert(0).DER)
	if err != nil {
		t.Fatal(err)
	}
	a.Roots.AddCert(root)
	return a
}

// startNames starts a name server for which every name is 127.0.0.1. Pebble asks by TCP.
func startNames(t *testing.T) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{Listener: listener, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, question *dns.Msg) {
		answer := new(dns.Msg).SetReply(question)
		if q := question.Question[0]; q.Qtype == dns.TypeA {
			answer.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(127, 0, 0, 1),
			}}
		}
		_ = w.WriteMsg(answer) // Whoever does not get it asks again.
	})}
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	ended := make(chan error, 1)
	go func() { ended <- server.ActivateAndServe() }() // the cleanup waits for it
	<-started
	t.Cleanup(func() {
		if err := server.Shutdown(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

func encode(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
