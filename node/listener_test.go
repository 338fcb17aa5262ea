package node

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// testIdentities makes one authority and a certificate for each name.
func testIdentities(t *testing.T, cluster string, names ...string) map[string]*clusterTLS {
	t.Helper()
	certificates, err := MakeCertificates(CertificatesConfig{Dir: t.TempDir(), Cluster: cluster, Nodes: names})
	if err != nil {
		t.Fatal(err)
	}
	identities := make(map[string]*clusterTLS)
	for _, c := range certificates {
		identity, err := loadClusterTLS(ClusterConfig{CA: c.CA, Cert: c.Cert, Key: c.Key}, c.Node)
		if err != nil {
			t.Fatal(err)
		}
		identities[c.Node] = identity
	}
	return identities
}

func startListener(t *testing.T, identity *clusterTLS, gates ...*gate) *clusterListener {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newClusterListener(tcp, identity, (&net.Dialer{}).DialContext, zerolog.Nop())
	for _, g := range gates {
		l.gate = g
	}
	done := make(chan error, 1)
	go func() { done <- l.Run(context.Background()) }() // ends with Close, below
	t.Cleanup(func() {
		l.Close()
		if err := <-done; err != nil {
			t.Errorf("listener ended with %v", err)
		}
	})
	return l
}

func TestRaftConnectionReachesRaft(t *testing.T) {
	identities := testIdentities(t, "", "n1", "n2")
	server := startListener(t, identities["n1"])
	client := startListener(t, identities["n2"])
	conn, err := client.raft.Dial(server.tcp.Addr().String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	accepted, err := server.raft.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(accepted, got); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
}

// A stranger on the cluster port never gets a byte of an answer, nor a place in
// front of Raft or gRPC.
func TestStrangersAreRefused(t *testing.T) {
	identities := testIdentities(t, "", "n1")
	server := startListener(t, identities["n1"])
	foreign := testIdentities(t, "", "n2")["n2"]
	otherCluster := testIdentities(t, "other", "n2")["n2"]
	trusting := func(config *tls.Config) *tls.Config {
		config.VerifyConnection = nil // the attacker believes everybody
		return config
	}
	tests := []struct {
		name   string
		config *tls.Config
	}{
		{"no certificate", &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocolRaft}}},
		{"another authority", trusting(foreign.client(protocolRaft, certified{}))},
		{"another authority, for shards", trusting(foreign.client(protocolShards, certified{}))},
		{"another authority and cluster", trusting(otherCluster.client(protocolGRPC, certified{}))},
		{"TLS 1.2", func() *tls.Config {
			config := trusting(identities["n1"].client(protocolRaft, certified{}))
			config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return config
		}()},
		{"unknown protocol", trusting(identities["n1"].client("http/1.1", certified{}))},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			tcp, err := net.Dial("tcp", server.tcp.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			conn := tls.Client(tcp, test.config)
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			if err := conn.Handshake(); err != nil {
				return // refused during the handshake
			}
			// In TLS 1.3 the client ends its handshake before the server has seen
			// its certificate: the refusal comes with the first read.
			if n, err := conn.Read(make([]byte, 1)); err == nil || n > 0 {
				t.Error("the stranger was let in")
			}
			select {
			case <-server.raft.conns:
				t.Error("the stranger reached Raft")
			case <-server.grpc.conns:
				t.Error("the stranger reached gRPC")
			case <-server.shards.conns:
				t.Error("the stranger reached shards")
			default:
			}
		})
	}
}

// A node does not talk to a server that is not of its cluster.
func TestForeignServerIsRefused(t *testing.T) {
	server := startListener(t, testIdentities(t, "", "n1")["n1"])
	client := startListener(t, testIdentities(t, "", "n2")["n2"])
	if conn, err := client.raft.Dial(server.tcp.Addr().String(), 5*time.Second); err == nil {
		conn.Close()
		t.Error("the node trusted a server with a foreign certificate")
	}
}

// hostConn is a connection from a host, that counts how often it is closed.
type hostConn struct {
	net.Conn
	host   string
	closed int
}

func (c *hostConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(c.host), Port: 1} }
func (c *hostConn) Close() error         { c.closed++; return nil }

// One host that floods the port leaves room for others: beyond its share, its own
// connections give way.
func TestHandshakesOfOneHost(t *testing.T) {
	l := newClusterListener(nil, nil, nil, zerolog.Nop())
	other := &hostConn{host: "10.0.0.2"}
	begun := []*newcomer{l.begin(other)}
	var flood []*hostConn
	for range 3 * maxHandshakesOfHost {
		flood = append(flood, &hostConn{host: "10.0.0.1"})
		begun = append(begun, l.begin(flood[len(flood)-1]))
	}
	broken := 0
	for _, conn := range flood {
		broken += conn.closed
	}
	if broken != 2*maxHandshakesOfHost || len(l.handshakes) != maxHandshakesOfHost+1 || flood[len(flood)-1].closed > 0 {
		t.Errorf("%d connections of the flood are broken, %d handshakes are under way", broken, len(l.handshakes))
	}
	if other.closed > 0 {
		t.Error("another host's connection is broken")
	}
	for _, h := range begun {
		l.end(h)
	}
	if len(l.handshakes) > 0 {
		t.Errorf("%d handshakes are remembered that are over", len(l.handshakes))
	}
}

// Somebody who connects and says nothing is cut off, and meanwhile keeps nobody
// else waiting.
func TestSilentStrangerBlocksNobody(t *testing.T) {
	identities := testIdentities(t, "", "n1", "n2")
	server := startListener(t, identities["n1"])
	silent, err := net.Dial("tcp", server.tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	client := startListener(t, identities["n2"])
	conn, err := client.raft.Dial(server.tcp.Addr().String(), 3*time.Second)
	if err != nil {
		t.Fatalf("a silent stranger blocks a node: %v", err)
	}
	conn.Close()
	silent.SetReadDeadline(time.Now().Add(2 * handshakeTimeout))
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("the silent stranger got an answer")
	} else if netErr, ok := err.(net.Error); ok && netErr.Timeout() {
		t.Error("the silent stranger was not cut off")
	}
}

// dialFrom opens connections from another host of this machine's own network.
func dialFrom(host string) Dialer {
	return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}}).DialContext
}

// Silent strangers of several hosts, as many as there may be and more, keep no node out.
func TestSilentFloodKeepsNoNodeOut(t *testing.T) {
	identities := testIdentities(t, "", "n1", "n2")
	server := startListener(t, identities["n1"])
	address := server.tcp.Addr().String()
	for i := range 3 * maxHandshakesOfHost {
		conn, err := dialFrom([]string{"127.0.0.2", "127.0.0.3", "127.0.0.4"}[i%3])(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	client := startListener(t, identities["n2"])
	for i := range 5 {
		conn, err := client.raft.Dial(address, 3*time.Second)
		if err == nil {
			_, err = conn.Write([]byte{0})
		}
		if err != nil {
			t.Fatalf("node is kept out by strangers who say nothing, at attempt %d: %v", i, err)
		}
		accepted, err := server.raft.Accept()
		if err != nil {
			t.Fatal(err)
		}
		accepted.Close()
		conn.Close()
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	if held := len(server.handshakes); held > maxHandshakes {
		t.Errorf("%d strangers are held, more than %d", held, maxHandshakes)
	}
}
