package nodetest

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/atollregistry/atoll/gateway/acmetest"
	"github.com/atollregistry/atoll/node"
)

// startRelay passes TCP connections on to addresses in turn.
func startRelay(t *testing.T, targets func() []string) (port int) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var relays sync.WaitGroup
	var turn atomic.Int64
	relays.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			relays.Go(func() {
				defer client.Close()
				addresses := targets()
				server, err := net.Dial("tcp", addresses[int(turn.Add(1))%len(addresses)])
				if err != nil {
					return
				}
				defer server.Close()
				var both sync.WaitGroup
				for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
					both.Go(func() {
						_, _ = io.Copy(pair[0], pair[1])
						_ = pair[0].(*net.TCPConn).CloseWrite()
					})
				}
				both.Wait()
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		relays.Wait()
	})
	return listener.Addr().(*net.TCPAddr).Port
}

// TestClusterGetsItsCertificate: an authority that reaches any node signs one
// certificate, which all nodes serve, also after a restart without a quorum.
func TestClusterGetsItsCertificate(t *testing.T) {
	var mu sync.Mutex
	var addresses []string
	port := startRelay(t, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return addresses
	})
	authority := acmetest.Start(t, port, 3600)
	roots := filepath.Join(t.TempDir(), "authority.pem")
	if err := os.WriteFile(roots, authority.ServerRootPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	c := Start(t, 3, func(cfg *node.Config) {
		cfg.Registry.PlainHTTP = false
		cfg.Registry.TLS.ACME = node.ACMEConfig{Domains: []string{"registry.example"}, Directory: authority.Directory, CA: roots}
		mu.Lock()
		defer mu.Unlock()
		addresses = append(addresses, cfg.Registry.Listen)
	})
	shows := func(m *Member) string {
		conn, err := tls.Dial("tcp", m.Config.Registry.Listen, &tls.Config{ServerName: "registry.example", RootCAs: authority.Roots})
		if err != nil {
			return ""
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	wants := func(m *Member, serial string) {
		c.Eventually(FormTimeout, m.Config.Name+" serves the certificate", func() error {
			if shown := shows(m); shown == "" || serial != "" && shown != serial {
				return fmt.Errorf("it serves %q, not %q", shown, serial)
			}
			return nil
		})
	}
	wants(c.Members[0], "")
	first := shows(c.Members[0])
	for _, m := range c.Members {
		wants(m, first)
	}
	for _, m := range c.Members {
		m.Stop()
	}
	c.Members[1].Start()
	wants(c.Members[1], first)
}
