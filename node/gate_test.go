package node

import (
	"context"
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
		"propose": atoll.Consensus_Propose_FullMethodName, "renew": atoll.Membership_Renew_FullMethodName, "shards": atoll.Shards_ReadShard_FullMethodName,
	}
	for _, test := range []struct {
		name string
		node certified
		want string
	}{
		{"a member", member, all}, {"one that is about to join", stranger, all}, {"one with a certificate from a file", fromFile, all},
		{"one that is leaving", leaving, "identify join heartbeat propose"}, {"one that was removed", removed, "identify join heartbeat"},
	} {
		for _, method := range strings.Fields(all) {
			err := g.mayCall(test.node, methods[method])
			if allowed := strings.Contains(test.want, method); (err == nil) != allowed || err != nil && status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s calls %s: %v", test.name, method, err)
			}
		}
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
	if err := p.renewExpired(issuedLifetime); err != nil {
		t.Fatal(err)
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
