package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/crypto/acme"
	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/gateway/acmetest"
	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/proto"
)

// sharedRecord is the state of a cluster.
type sharedRecord struct {
	mu      sync.Mutex
	record  *proto.RegistryCertificate
	history []*proto.RegistryCertificate
}

func (s *sharedRecord) get() *proto.RegistryCertificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.record == nil {
		return &proto.RegistryCertificate{}
	}
	return pb.Clone(s.record).(*proto.RegistryCertificate)
}

// nodeRecords is what one node knows of it: nothing new, unless it catches up.
type nodeRecords struct {
	shared *sharedRecord
	mu     sync.Mutex
	known  *proto.RegistryCertificate
	// apart nodes can't reach the others.
	apart    atomic.Bool
	caughtUp atomic.Int64
}

func (n *nodeRecords) RegistryCertificate() (*proto.RegistryCertificate, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return pb.Clone(n.known).(*proto.RegistryCertificate), nil
}

func (n *nodeRecords) CatchUp(context.Context) error {
	if n.apart.Load() {
		return metadata.ErrUnavailable
	}
	n.caughtUp.Add(1)
	known := n.shared.get()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known = known
	return nil
}

func (n *nodeRecords) PutRegistryCertificate(ctx context.Context, next *proto.RegistryCertificate) error {
	if n.apart.Load() {
		return metadata.ErrUnavailable
	}
	if err := n.shared.put(next); err != nil {
		return err
	}
	next.Revision++
	return n.CatchUp(ctx)
}

func (s *sharedRecord) put(next *proto.RegistryCertificate) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if next.GetRevision() != s.record.GetRevision() {
		return metadata.ErrChanged
	}
	s.record = pb.Clone(next).(*proto.RegistryCertificate)
	s.record.Revision++
	s.history = append(s.history, s.record)
	return nil
}

// acmeNode is one of several nodes behind one name.
type acmeNode struct {
	*ACME
	records *nodeRecords
	address string
}

// acmeCluster is nodes behind a balancer that passes connections on in turn.
type acmeCluster struct {
	t      *testing.T
	shared *sharedRecord
	nodes  []*acmeNode
	port   int
	// listener is on the port, where the authority looks.
	listener net.Listener
	turn     atomic.Int64
	log      safeBuffer
	domains  []string
}

func newACMECluster(t *testing.T, count int, domains ...string) *acmeCluster {
	t.Helper()
	c := &acmeCluster{t: t, shared: &sharedRecord{}, domains: domains}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.port = listener.Addr().(*net.TCPAddr).Port
	c.listener = listener
	t.Cleanup(func() { _ = listener.Close() })
	for range count {
		records := &nodeRecords{shared: c.shared, known: &proto.RegistryCertificate{}}
		node := &acmeNode{records: records, ACME: NewACME(ACMEConfig{Domains: domains, Logger: zerolog.New(&c.log)}, records)}
		c.nodes = append(c.nodes, node)
	}
	return c
}

// start has the nodes serve, with an authority. Nothing is taken in before: somebody who
// still knows the port from its last owner may connect at any time.
func (c *acmeCluster) start(authority *acmetest.Authority) {
	for _, node := range c.nodes {
		node.cfg.Directory, node.cfg.Roots = authority.Directory, authority.ServerRoots
		node.address = startTLSWith(c.t, New(Config{}, newMemoryMetadata(), newMemoryBlobs()), node.ACME, nil)
	}
	var relays sync.WaitGroup
	relays.Go(func() {
		for {
			conn, err := c.listener.Accept()
			if err != nil {
				return
			}
			relays.Go(func() { c.relay(conn) })
		}
	})
	c.t.Cleanup(func() {
		_ = c.listener.Close()
		relays.Wait()
	})
}

func (c *acmeCluster) relay(client net.Conn) {
	defer client.Close()
	node := c.nodes[int(c.turn.Add(1))%len(c.nodes)]
	server, err := net.DialTimeout("tcp", node.address, patience)
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
}

// serial is the certificate that a node shows for a name, "" if the handshake fails.
func (c *acmeCluster) serial(node *acmeNode, name string, authority *acmetest.Authority) string {
	c.t.Helper()
	dialer := tls.Dialer{Config: &tls.Config{ServerName: name, RootCAs: authority.Roots}}
	conn, err := dialer.DialContext(c.t.Context(), "tcp", node.address)
	if err != nil {
		return ""
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// TestACME: the leader gets one certificate for all names while the authority reaches
// any of the nodes, all serve it, also those that have lost the others, and it is
// renewed in time with a new key.
func TestACME(t *testing.T) {
	c := newACMECluster(t, 3, "registry.example", "images.example")
	authority := acmetest.Start(t, c.port, 90*24*3600)
	c.start(authority)
	leader := c.nodes[0]
	if c.serial(leader, "registry.example", authority) != "" {
		t.Fatal("there is a certificate before there was an order")
	}
	leader.keepOnce(t.Context())
	if record := c.shared.get(); record.GetFailures() != 0 || len(record.GetChallenges()) != 0 || len(record.GetChain()) < 2 {
		t.Fatalf("failures %d, %d challenges left, a chain of %d: %s", record.GetFailures(), len(record.GetChallenges()), len(record.GetChain()), c.log.String())
	}
	for i, node := range c.nodes[1:] {
		if node.records.caughtUp.Load() == 0 {
			t.Errorf("node %d was never asked for a challenge's answer: the test shows nothing", i+1)
		}
		if err := node.records.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		node.records.apart.Store(true) // what it has will do
	}
	first := c.serial(leader, "registry.example", authority)
	for i, node := range c.nodes {
		for _, name := range c.domains {
			if serial := c.serial(node, name, authority); serial == "" || serial != first {
				t.Errorf("node %d shows %q for %s, not %q: %s", i, serial, name, first, c.log.String())
			}
		}
		node.records.apart.Store(false)
	}
	if until := time.Until(leader.NotAfter()); until < 89*24*time.Hour || until > 90*24*time.Hour {
		t.Errorf("it expires in %s", until)
	}

	revision, key := c.shared.get().GetRevision(), string(c.shared.get().GetKey())
	leader.now = func() time.Time { return time.Now().Add(59 * 24 * time.Hour) }
	leader.keepOnce(t.Context())
	if c.shared.get().GetRevision() != revision {
		t.Error("renewed before two thirds of its life were over")
	}
	leader.now = func() time.Time { return time.Now().Add(61 * 24 * time.Hour) }
	leader.keepOnce(t.Context())
	for _, node := range c.nodes {
		if err := node.records.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		node.refresh()
		if serial := c.serial(node, "registry.example", authority); serial == "" || serial == first {
			t.Errorf("not renewed: %q", serial)
		}
	}
	if string(c.shared.get().GetKey()) == key {
		t.Error("the new certificate has the old key")
	}
	for _, record := range c.shared.history {
		for _, secret := range [][]byte{record.GetKey(), record.GetAccountKey()} {
			if len(secret) > 0 && strings.Contains(c.log.String(), string(secret)) {
				t.Error("the log has a key")
			}
		}
	}
}

// TestACMEFailures: an authority that does not reach the cluster is asked again ever
// less often, also by the next leader, and nothing is left to be answered.
func TestACMEFailures(t *testing.T) {
	c := newACMECluster(t, 2, "registry.example")
	const nobody = 1 // a port that no socket gets by itself
	authority := acmetest.Start(t, nobody, 3600)
	c.start(authority)
	now := time.Now()
	attempts := func(node *acmeNode, after time.Duration) int {
		now = now.Add(after)
		node.now = func() time.Time { return now }
		if err := node.records.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		node.keepOnce(t.Context())
		return int(c.shared.get().GetFailures())
	}
	first, second := c.nodes[0], c.nodes[1]
	for i, step := range []struct {
		node  *acmeNode
		after time.Duration
		want  int
	}{
		{first, 0, 1}, {first, firstOrderPause - time.Second, 1}, {second, 0, 1}, {second, time.Second, 2},
		{first, 2*firstOrderPause - time.Second, 2}, {first, time.Second, 3},
	} {
		if got := attempts(step.node, step.after); got != step.want {
			t.Fatalf("step %d: %d attempts, want %d: %s", i, got, step.want, c.log.String())
		}
		record := c.shared.get()
		if len(record.GetChallenges()) != 0 || !strings.Contains(record.GetProblem(), "registry.example") {
			t.Errorf("step %d: %d challenges are left, problem %q", i, len(record.GetChallenges()), record.GetProblem())
		}
	}
	if !strings.Contains(c.log.String(), "port 443 of every domain") {
		t.Errorf("the log does not say what is needed: %s", c.log.String())
	}
	// Another authority is another matter, and has its own account.
	before := string(c.shared.get().GetAccountKey())
	reachable := acmetest.Start(t, c.port, 3600)
	for _, node := range c.nodes {
		node.cfg.Directory, node.cfg.Roots = reachable.Directory, reachable.ServerRoots
	}
	if got := attempts(second, 0); got != 0 || string(c.shared.get().GetAccountKey()) == before {
		t.Errorf("%d failures with another authority: %s", got, c.log.String())
	}
}

// TestACMEOrdersAnew: a record whose directory was taken out, since its keys may be known
// to somebody, is followed by one with other keys, and serves until then.
func TestACMEOrdersAnew(t *testing.T) {
	c := newACMECluster(t, 1, "registry.example")
	authority := acmetest.Start(t, c.port, 3600)
	c.start(authority)
	node := c.nodes[0]
	node.keepOnce(t.Context())
	old := c.shared.get()
	first := c.serial(node, "registry.example", authority)
	spoiled := c.shared.get()
	spoiled.Directory = ""
	if err := node.records.PutRegistryCertificate(t.Context(), spoiled); err != nil {
		t.Fatal(err)
	}
	node.refresh()
	if first == "" || c.serial(node, "registry.example", authority) != first {
		t.Error("the old certificate is not served any more")
	}
	node.keepOnce(t.Context())
	record := c.shared.get()
	if string(record.GetAccountKey()) == string(old.GetAccountKey()) || string(record.GetKey()) == string(old.GetKey()) ||
		c.serial(node, "registry.example", authority) == first {
		t.Errorf("the keys are the old ones: %s", c.log.String())
	}
}

func TestOrderPause(t *testing.T) {
	for failures, want := range map[uint32]time.Duration{
		1: firstOrderPause, 2: 2 * firstOrderPause, 3: 4 * firstOrderPause, 20: lastOrderPause, 1 << 31: lastOrderPause,
	} {
		if got := orderPause(failures); got != want {
			t.Errorf("after %d failures: %s, want %s", failures, got, want)
		}
	}
}

// TestTwoOrders: of two nodes that both take themselves for the leader one goes on.
func TestTwoOrders(t *testing.T) {
	c := newACMECluster(t, 2, "registry.example")
	authority := acmetest.Start(t, c.port, 3600)
	c.start(authority)
	var both sync.WaitGroup
	for _, node := range c.nodes {
		both.Go(func() { node.keepOnce(t.Context()) })
	}
	both.Wait()
	c.shared.mu.Lock()
	defer c.shared.mu.Unlock()
	if len(c.shared.record.GetChain()) == 0 || c.shared.record.GetFailures() != 0 {
		t.Errorf("no certificate: %s", c.log.String())
	}
	if account := c.shared.history[0].GetAccountKey(); string(account) != string(c.shared.record.GetAccountKey()) {
		t.Error("the account's key was lost")
	}
}

// TestChallengeHandshakes: a handshake for a challenge gets nothing but its answer, and
// not for names that are not the cluster's, without asking anybody.
func TestChallengeHandshakes(t *testing.T) {
	c := newACMECluster(t, 1, "registry.example")
	authority := acmetest.Start(t, c.port, 3600)
	c.start(authority)
	node := c.nodes[0]
	ask := func(name string) (*tls.Certificate, error) { return node.answer(t.Context(), name) }
	if _, err := ask("other.example"); err == nil || node.records.caughtUp.Load() != 0 {
		t.Errorf("another name: %v, the cluster was asked %d times", err, node.records.caughtUp.Load())
	}
	if _, err := ask("registry.example"); err == nil {
		t.Error("answered without a challenge")
	}
	_, key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	record := &proto.RegistryCertificate{AccountKey: key, Challenges: []*proto.ACMEChallenge{{Domain: "registry.example", Token: "token"}}}
	if err := c.shared.put(record); err != nil {
		t.Fatal(err)
	}
	if certificate, err := ask("registry.example"); err != nil || len(certificate.Certificate) == 0 {
		t.Errorf("no answer: %v", err)
	}
	for range maxChallengeAnswers {
		node.answers <- struct{}{}
	}
	if _, err := ask("registry.example"); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("one too many: %v", err)
	}
	for range maxChallengeAnswers {
		<-node.answers
	}
	// After the handshake there is nothing to talk about.
	config := &tls.Config{ServerName: "registry.example", NextProtos: []string{acme.ALPNProto}, InsecureSkipVerify: true}
	conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", node.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(conn, "GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n")
	if content, err := io.ReadAll(conn); len(content) > 0 || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the connection goes on: %q, %v", content, err)
	}
}

// TestACMEUnusableRecord: a record that makes no sense takes nothing away.
func TestACMEUnusableRecord(t *testing.T) {
	c := newACMECluster(t, 1, "registry.example")
	authority := acmetest.Start(t, c.port, 3600)
	c.start(authority)
	node := c.nodes[0]
	node.keepOnce(t.Context())
	first := c.serial(node, "registry.example", authority)
	for _, spoil := range []func(*proto.RegistryCertificate){
		func(r *proto.RegistryCertificate) { r.Chain[0] = []byte("nothing") },
		func(r *proto.RegistryCertificate) { _, r.Key, _ = newKey() },
		func(r *proto.RegistryCertificate) { r.Key = []byte("nothing") },
	} {
		record := c.shared.get()
		good := c.shared.get()
		spoil(record)
		if err := node.records.PutRegistryCertificate(t.Context(), record); err != nil {
			t.Fatal(err)
		}
		before := strings.Count(c.log.String(), "can't be used")
		node.refresh()
		if serial := c.serial(node, "registry.example", authority); serial != first || strings.Count(c.log.String(), "can't be used") != before+1 {
			t.Errorf("shows %q, not %q: %s", serial, first, c.log.String())
		}
		if !node.due(record) {
			t.Error("nobody gets another one")
		}
		good.Revision = c.shared.get().GetRevision()
		if err := node.records.PutRegistryCertificate(t.Context(), good); err != nil {
			t.Fatal(err)
		}
	}
	if response, err := (&http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{ServerName: "registry.example", RootCAs: authority.Roots},
	}}).Get("https://" + node.address + "/v2/"); err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("%v, %v", response, err)
	} else {
		_ = response.Body.Close()
	}
}
