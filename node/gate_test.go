package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"google.golang.org/grpc/codes"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	atoll "github.com/atollregistry/atoll/proto"
)

// boundIdentity is that of another node of a member's cluster.
func (m *testMember) boundIdentity(name string) (*clusterTLS, certified) {
	m.t.Helper()
	folder := openTestFolder(m.t, name)
	e := m.enrolling(name, m.token(1, time.Hour))
	e.node.id = folder.identity.ID
	issued, err := m.ask(e)
	if err != nil {
		m.t.Fatal(err)
	}
	saved := savedIdentity{Format: credentialsFormat}
	if err := saved.install(issued, e.key); err != nil {
		m.t.Fatal(err)
	}
	keys, err := openKeyring(folder, saved)
	if err != nil {
		m.t.Fatal(err)
	}
	return keys.tls, certified{cluster: keys.tls.clusterName, name: name, id: folder.identity.ID}
}

func TestGate(t *testing.T) {
	member, leaving, removed := certified{name: "n1", id: uuid.NewString()}, certified{name: "n2", id: uuid.NewString()}, certified{name: "n3", id: uuid.NewString()}
	stranger, fromFile := certified{name: "n4", id: uuid.NewString()}, certified{name: "n3"}
	nodes := []*atoll.Node{
		{Id: member.id, Name: "n1", ClusterAddress: "a:1"},
		{Id: removed.id, Name: "n3", ClusterAddress: "a:3", State: atoll.NodeState_NODE_STATE_REMOVED},
	}
	g := newGate(func() []*atoll.Node { return nodes }, make(chan struct{}, 1), zerolog.Nop())
	g.inGroup = func(id string) bool { return id == leaving.id }
	nodes = append(nodes, &atoll.Node{Id: leaving.id, Name: "n2", ClusterAddress: "a:2", State: atoll.NodeState_NODE_STATE_REMOVED})

	const all = "identify join heartbeat propose renew shards"
	methods := map[string]string{
		"identify": atoll.Membership_Identify_FullMethodName, "join": atoll.Membership_Join_FullMethodName, "heartbeat": atoll.Membership_Heartbeat_FullMethodName,
		"propose": atoll.Consensus_Propose_FullMethodName, "renew": atoll.Membership_Renew_FullMethodName, "shards": shardLinks,
	}
	for _, test := range []struct {
		name string
		node certified
		want string
	}{
		{"a member", member, all}, {"one that is about to join", stranger, "identify join heartbeat renew shards"}, {"one with a certificate from a file", fromFile, all},
		{"one that is leaving", leaving, "identify join heartbeat propose"}, {"one that was removed", removed, "identify join heartbeat"},
	} {
		for _, method := range strings.Fields(all) {
			err := g.mayCall(test.node, methods[method])
			if allowed := strings.Contains(test.want, method); (err == nil) != allowed || err != nil && status.Code(err) != codes.PermissionDenied && test.node != stranger {
				t.Errorf("%s calls %s: %v", test.name, method, err)
			}
		}
	}
	if code := status.Code(g.mayCall(stranger, methods["propose"])); code != codes.FailedPrecondition {
		t.Errorf("whoever has not joined yet is told %s, not that nothing was done", code)
	}
	// Even if the group does not get rid of it, the time to leave is over some day.
	g.removed[leaving.id] = time.Now().Add(-leaveTimeout)
	if g.standing(leaving) != standingRemoved {
		t.Error("a removed node may take any time to leave")
	}

	for _, test := range []struct {
		node certified
		id   string
		want bool
	}{
		{member, member.id, true}, {member, leaving.id, false}, {member, "", true},
		{stranger, stranger.id, true}, {stranger, member.id, false},
		{certified{name: "n1"}, member.id, true}, {fromFile, member.id, false}, {certified{name: "new"}, uuid.NewString(), true},
	} {
		if err := g.holds(test.node, test.id); (err == nil) != test.want || err != nil && !errors.Is(err, errOtherCertificate) {
			t.Errorf("%+v as %q: %v", test.node, test.id, err)
		}
	}
	if got := nodeAt(nodes, "a:1"); got != (certified{name: "n1", id: member.id}) {
		t.Errorf("at a:1 there is %+v", got)
	}
	if got := nodeAt(nodes, "a:3"); got != (certified{}) {
		t.Errorf("a removed node is expected: %+v", got)
	}
}

// When a node is removed, its connections break at once, and it gets none for Raft.
func TestRemovalBreaksConnections(t *testing.T) {
	m := startMember(t)
	first, firstNode := m.boundIdentity("n2")
	second, secondNode := m.boundIdentity("n3")
	if err := errors.Join(
		m.store.PutNode(t.Context(), &atoll.Node{Id: firstNode.id, Name: "n2"}, ""),
		m.store.PutNode(t.Context(), &atoll.Node{Id: secondNode.id, Name: "n3"}, ""),
	); err != nil {
		t.Fatal(err)
	}
	g := newGate(m.store.LocalNodes, make(chan struct{}, 1), zerolog.Nop())
	g.inGroup = func(string) bool { return false }
	server := startListener(t, m.keys.tls, g)
	g.cluster, g.keys, g.authority = server, m.keys, m.store.LocalAuthority

	address := server.tcp.Addr().String()
	firstConn, err := startListener(t, first).raft.Dial(address, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer firstConn.Close()
	secondConn, err := startListener(t, second).raft.Dial(address, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer secondConn.Close()
	accepted := make(map[string]net.Conn)
	for range 2 {
		conn, err := server.raft.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		accepted[conn.(*nodeConn).node.name] = conn
	}
	if err := g.holdsConn(accepted["n2"], firstNode.id); err != nil {
		t.Error(err)
	}
	if err := g.holdsConn(accepted["n2"], secondNode.id); !errors.Is(err, errOtherCertificate) {
		t.Errorf("n2 as n3: %v", err)
	}

	g.look()
	if err := m.store.SetNodeState(t.Context(), firstNode.id, atoll.NodeState_NODE_STATE_REMOVED); err != nil {
		t.Fatal(err)
	}
	g.look()
	_ = firstConn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := firstConn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the removed node's connection: %v", err)
	}
	if _, err := accepted["n3"].Write([]byte("x")); err != nil {
		t.Errorf("another node's connection: %v", err)
	}
	if _, err := io.ReadFull(secondConn, make([]byte, 1)); err != nil {
		t.Errorf("another node's connection: %v", err)
	}
	again, err := startListener(t, first).raft.Dial(address, 5*time.Second)
	if err == nil {
		_ = again.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err = again.Read(make([]byte, 1))
		again.Close()
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a removed node dials for Raft: %v", err)
	}
}

// Whoever is dialled must have the certificate of the node that is meant.
func TestDialledNodeMustBeTheOne(t *testing.T) {
	m := startMember(t)
	identity, node := m.boundIdentity("n2")
	_, other := m.boundIdentity("n3")
	for _, test := range []struct {
		name     string
		expected certified
		want     bool
	}{
		{"the node itself", certified{id: node.id, name: "n2"}, true},
		{"whoever is there", certified{}, true},
		{"another node", certified{id: other.id, name: "n3"}, false},
		{"the node before it was wiped", certified{id: uuid.NewString(), name: "n2"}, false},
		{"another name", certified{id: node.id, name: "n9"}, false},
	} {
		pool := newConnPool(m.keys.tls, (&net.Dialer{}).DialContext, func() string { return "" }, func(string) certified { return certified{} })
		listener := startListener(t, identity)
		server := newGRPCServer(func() string { return "" }, func(certified, string) error { return nil })
		atoll.RegisterMembershipServer(server, identifies{id: node.id, name: "n2"})
		go func() { _ = server.Serve(&listener.grpc) }() // ends with Stop
		_, err := pool.identifyAs(t.Context(), target{listener.tcp.Addr().String(), test.expected})
		if (err == nil) != test.want {
			t.Errorf("%s: %v", test.name, err)
		}
		listener.Close() // without that, the server waits for connections
		server.Stop()
		pool.Close()
	}
	// One that says that it is another than its certificate is not believed.
	listener := startListener(t, identity)
	server := newGRPCServer(func() string { return "" }, func(certified, string) error { return nil })
	atoll.RegisterMembershipServer(server, identifies{id: other.id, name: "n3"})
	go func() { _ = server.Serve(&listener.grpc) }() // ends with Stop
	defer server.Stop()
	defer listener.Close()
	pool := newConnPool(m.keys.tls, (&net.Dialer{}).DialContext, func() string { return "" }, func(string) certified { return certified{} })
	defer pool.Close()
	if _, err := pool.identify(t.Context(), listener.tcp.Addr().String()); !errors.Is(err, errOtherCertificate) {
		t.Errorf("a node that says it is another: %v", err)
	}
}

// Only who answers at a node's address, in the place of that, takes over its name at once:
// one that is being started again does not answer either.
func TestNameIsTakenOver(t *testing.T) {
	m := startMember(t)
	identity, joining := m.boundIdentity("n2")
	listener := startListener(t, identity)
	address := listener.tcp.Addr().String()
	former := &atoll.Node{Id: uuid.NewString(), Name: "n2", ClusterAddress: address}
	if err := m.store.PutNode(t.Context(), former, ""); err != nil {
		t.Fatal(err)
	}
	pool := newConnPool(m.keys.tls, (&net.Dialer{}).DialContext, func() string { return "" }, func(string) certified { return certified{} })
	defer pool.Close()
	leader := &membership{
		self: &atoll.Node{Id: m.folder.identity.ID, Name: "n1"}, store: m.store, pool: pool,
		peers: newPeers(m.folder.identity.ID, pool, m.store.LocalNodes, zerolog.Nop()),
	}
	joins := &atoll.Node{Id: joining.id, Name: "n2", ClusterAddress: address}
	if id, err := leader.replaced(t.Context(), m.store.LocalNodes(), joins); id != "" || err == nil || !strings.Contains(err.Error(), "its place is free after") {
		t.Errorf("while nobody answers there, %q is replaced, error %v", id, err)
	}
	server := newGRPCServer(func() string { return "" }, func(certified, string) error { return nil })
	atoll.RegisterMembershipServer(server, identifies{id: joining.id, name: "n2"})
	go func() { _ = server.Serve(&listener.grpc) }() // ends with Stop
	defer server.Stop()
	defer listener.Close()
	deadline := time.Now().Add(20 * time.Second) // below replaceAfter; it asks again and again
	for {
		id, err := leader.replaced(t.Context(), m.store.LocalNodes(), joins)
		if id == former.Id && err == nil {
			break
		}
		if id != "" || time.Now().After(deadline) {
			t.Fatalf("once the new one answers there, %q is replaced, error %v", id, err)
		}
	}
}

// identifies answers the one question.
type identifies struct {
	atoll.UnimplementedMembershipServer
	id, name string
}

func (i identifies) Identify(context.Context, *atoll.IdentifyRequest) (*atoll.IdentifyResponse, error) {
	return &atoll.IdentifyResponse{NodeId: i.id, Name: i.name}, nil
}

// A cluster makes all its certificates itself, or none.
func TestCertificatesFromFilesAndOwnDontMix(t *testing.T) {
	m := startMember(t)
	dir := t.TempDir()
	// Even one by the very authority, without the node's id.
	authority := m.store.LocalAuthority().GetCertificates()[0]
	key, err := parseKeyDER(authority.GetKey())
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := keyPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, authorityCertFile), certificatePEM(authority.GetDer()), 0o600),
		os.WriteFile(filepath.Join(dir, authorityKeyFile), encoded, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	fromFile := identityOf(t, makeCertificates(t, dir, "n2")[0])
	if serverErr, _ := handshake(t, m.keys.tls, fromFile); serverErr == nil || !strings.Contains(serverErr.Error(), "makes its certificates itself") {
		t.Errorf("a certificate without an id: %v", serverErr)
	}
}

// A node that was off until its certificate expired makes itself another, with the
// authority that it knows; unless it knows none, or that it was removed.
func TestExpiredWhileOff(t *testing.T) {
	m := startMember(t)
	expire := func() *parts {
		t.Helper()
		key, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		authority, err := parseAuthority(m.store.LocalAuthority())
		if err != nil {
			t.Fatal(err)
		}
		issued, err := authority.issue(certified{name: "n1", id: m.folder.identity.ID}, -time.Minute, key.Public())
		if err != nil {
			t.Fatal(err)
		}
		next := savedIdentity{Format: credentialsFormat}
		if err := next.install(issued, key); err != nil {
			t.Fatal(err)
		}
		keys, err := openKeyring(m.folder, next)
		if err != nil {
			t.Fatal(err)
		}
		return &parts{keys: keys, machine: m.log.machine, self: &atoll.Node{Id: m.folder.identity.ID, Name: "n1"}, log: zerolog.Nop()}
	}
	p := expire()
	joining := &formation{keys: p.keys}
	if joining.expired() == nil {
		t.Error("a node whose certificate has expired goes on asking to be let in")
	}
	if err := p.renewExpired(issuedLifetime); err != nil {
		t.Fatal(err)
	}
	if err := joining.expired(); err != nil {
		t.Errorf("after the renewal: %v", err)
	}
	if _, err := p.keys.tls.verify(certificateChain(p.keys.tls)); err != nil {
		t.Errorf("the new certificate: %v", err)
	}
	if err := m.store.PutNode(t.Context(), &atoll.Node{Id: p.self.Id, Name: "n1"}, ""); err != nil {
		t.Fatal(err)
	}
	if err := m.store.SetNodeState(t.Context(), p.self.Id, atoll.NodeState_NODE_STATE_REMOVED); err != nil {
		t.Fatal(err)
	}
	if err := expire().renewExpired(issuedLifetime); err == nil || !strings.Contains(err.Error(), "new join token") {
		t.Errorf("a removed node: %v", err)
	}
}

// A request to join that names no node is refused, and does not end the process.
func TestJoinOfNobody(t *testing.T) {
	m := startMember(t)
	_, node := m.boundIdentity("n2")
	if err := m.store.PutNode(t.Context(), &atoll.Node{Id: node.id, Name: "n2"}, ""); err != nil {
		t.Fatal(err)
	}
	asked := grpcpeer.NewContext(t.Context(), &grpcpeer.Peer{AuthInfo: callerInfo{node: node}})
	for _, request := range []*atoll.JoinRequest{{}, {Forwarded: true}, {Node: &atoll.Node{}}, {Node: &atoll.Node{Id: node.id}, Forwarded: true}} {
		if err := (&membership{store: m.store}).checkJoining(asked, request); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", request, err)
		}
	}
}

// A node that nobody answers makes itself a certificate if it can't wait: by a new
// authority, whether or not the old one is gone, and after its clock was wrong.
func TestRenewalWithoutAnAnswer(t *testing.T) {
	m := startMember(t)
	self := &atoll.Node{Id: m.folder.identity.ID, Name: "n1"}
	if err := errors.Join(
		m.store.PutNode(t.Context(), self, ""),
		m.store.PutNode(t.Context(), &atoll.Node{Id: uuid.NewString(), Name: "n2", ClusterAddress: "127.0.0.1:1"}, ""),
	); err != nil {
		t.Fatal(err)
	}
	pool := newConnPool(m.keys.tls, (&net.Dialer{}).DialContext, m.store.ClusterID, func(string) certified { return certified{} })
	defer pool.Close()
	r := &renewal{
		self: self, keys: m.keys, store: m.store, lifetime: issuedLifetime, log: zerolog.Nop(),
		peers: newPeers(self.Id, pool, m.store.LocalNodes, zerolog.Nop()),
	}
	if r.reason(time.Now(), 0) != "" || r.renew(t.Context(), "for nothing") == nil {
		t.Error("a node that could wait for an answer does not")
	}
	made, err := makeAuthorityRecord(DefaultClusterName)
	if err != nil {
		t.Fatal(err)
	}
	first := m.store.LocalAuthority().GetCertificates()[0]
	changeTo := func(revision uint64, certificates ...*atoll.AuthorityCertificate) func() error {
		return func() error {
			return errors.Join(m.store.PutAuthority(t.Context(), revision, certificates), m.keys.adopt(m.store.LocalAuthority()))
		}
	}
	for _, test := range []struct {
		name string
		does func() error
	}{
		{"both are trusted", changeTo(1, made, &atoll.AuthorityCertificate{Der: first.Der})},
		{"the old one is gone", changeTo(2, first)},
		{"its clock was wrong", func() error { return m.keys.issueLater(m.store.LocalAuthority(), 1000*time.Hour) }},
	} {
		if err := test.does(); err != nil {
			t.Fatal(err)
		}
		reason := r.reason(time.Now(), 0)
		if reason == "" {
			t.Errorf("%s: there is no reason to renew", test.name)
		}
		if err := r.renew(t.Context(), reason); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		if r.isBad() || r.hasOtherIssuer() {
			t.Errorf("%s: the certificate is not good", test.name)
		}
	}
}

// issueLater puts a certificate in place that is not good before some time.
func (k *keyring) issueLater(record *atoll.ClusterAuthority, after time.Duration) error {
	by, err := parseAuthority(record)
	if err != nil {
		return err
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	template, err := certificateTemplate("n1", issuedLifetime)
	if err != nil {
		return err
	}
	template.NotBefore, template.NotAfter = template.NotBefore.Add(after), template.NotAfter.Add(after)
	template.URIs = nodeURIs(certified{cluster: DefaultClusterName, name: "n1", id: k.folder.identity.ID})
	der, err := x509.CreateCertificate(rand.Reader, template, by.signer(), key.Public(), by.key)
	if err != nil {
		return err
	}
	k.tls.certificate.Store(&tls.Certificate{Certificate: [][]byte{der, by.signer().Raw}, PrivateKey: key, Leaf: mustParse(der)})
	return nil
}

func mustParse(der []byte) *x509.Certificate {
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return certificate
}
