package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

// localLog is a log of one node: what is proposed is applied at once.
type localLog struct {
	mu        sync.Mutex
	machine   *metadata.Machine
	last      uint64
	proposals int
}

func (l *localLog) Propose(_ context.Context, command []byte) ([]byte, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	l.proposals++
	results, err := l.machine.Apply([]consensus.Entry{{Index: l.last, Term: 1, Data: command}})
	if err != nil {
		return nil, 0, err
	}
	return results[0], l.last, nil
}

func (l *localLog) ReadIndex(context.Context) error { return nil }

func (l *localLog) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.proposals
}

// testMember is a member of a cluster as far as joining it goes: a cluster port and a
// state with an authority.
type testMember struct {
	t       *testing.T
	store   *metadata.Store
	log     *localLog
	folder  *dataFolder
	keys    *keyring
	now     time.Time
	address string
	logged  *bytes.Buffer
}

func openTestFolder(t *testing.T, name string) *dataFolder {
	t.Helper()
	folder, err := openDataFolder(t.TempDir(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { folder.Close() })
	return folder
}

func startMember(t *testing.T) *testMember {
	t.Helper()
	m := &testMember{t: t, folder: openTestFolder(t, "n1"), now: time.Now(), logged: &bytes.Buffer{}}
	saved, err := foundCluster(m.folder, issuedLifetime)
	if err != nil {
		t.Fatal(err)
	}
	if m.keys, err = openKeyring(m.folder, saved); err != nil {
		t.Fatal(err)
	}
	machine, err := metadata.OpenMachine(metadata.MachineConfig{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { machine.Close() })
	m.log = &localLog{machine: machine}
	m.store = metadata.NewStore(machine, m.log, metadata.StoreConfig{Now: func() time.Time { return m.now }})
	founded, err := m.keys.founded()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		m.store.InitCluster(t.Context(), "the-cluster"),
		m.store.PutAuthority(t.Context(), 0, []*atoll.AuthorityCertificate{founded}),
		m.keys.forgetFounded(),
	); err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.address = tcp.Addr().String()
	logger := zerolog.New(zerolog.SyncWriter(m.logged))
	e := &enroller{store: m.store, clusterID: m.store.ClusterID, lifetime: issuedLifetime, log: logger, wrong: make(map[netip.Addr]*rate.Limiter)}
	l := newClusterListener(tcp, m.keys.tls, (&net.Dialer{}).DialContext, logger)
	l.enroll = e.serve
	done := make(chan error, 1)
	go func() { done <- l.Run(context.Background()) }() // ends with Close, below
	t.Cleanup(func() {
		l.Close()
		if err := <-done; err != nil {
			t.Errorf("listener ended with %v", err)
		}
	})
	return m
}

func (m *testMember) token(uses int, ttl time.Duration) joinToken {
	m.t.Helper()
	return m.tokenFor(JoinTokenRequest{TTL: ttl, Uses: uses})
}

func (m *testMember) tokenFor(request JoinTokenRequest) joinToken {
	m.t.Helper()
	a := &admin{store: m.store, log: zerolog.Nop()}
	made, err := a.createToken(m.t.Context(), request)
	if err != nil {
		m.t.Fatal(err)
	}
	token, err := parseJoinToken(made.Token)
	if err != nil {
		m.t.Fatal(err)
	}
	return token
}

// enrolling is a new node with a token.
func (m *testMember) enrolling(name string, token joinToken) *enrollment {
	m.t.Helper()
	key, err := newKey()
	if err != nil {
		m.t.Fatal(err)
	}
	return &enrollment{
		token: token, addresses: []string{m.address}, node: certified{name: name, id: uuid.NewString()}, key: key,
		dial: (&net.Dialer{}).DialContext, log: zerolog.Nop(),
	}
}

func (m *testMember) ask(e *enrollment) (*atoll.IssuedCertificate, error) {
	return e.ask(m.t.Context(), m.address)
}

func (m *testMember) wantRefusal(e *enrollment, words string) {
	m.t.Helper()
	issued, err := m.ask(e)
	if issued != nil || !errors.Is(err, errRefused) || !strings.Contains(err.Error(), words) {
		m.t.Errorf("certificate %v, error %v; want a refusal that says %q", issued != nil, err, words)
	}
}

func TestEnrolment(t *testing.T) {
	m := startMember(t)
	token := m.token(1, time.Hour)
	e := m.enrolling("n2", token)
	issued, err := m.ask(e)
	if err != nil {
		t.Fatal(err)
	}
	folder := openTestFolder(t, "n2")
	folder.identity.ID = e.node.id
	saved := savedIdentity{Format: credentialsFormat}
	if err := saved.install(issued, e.key); err != nil {
		t.Fatal(err)
	}
	keys, err := openKeyring(folder, saved)
	if err != nil {
		t.Fatal(err)
	}
	own, err := certifiedNode(keys.tls.certificate.Load().Leaf)
	if err != nil || own != (certified{cluster: DefaultClusterName, name: "n2", id: e.node.id}) {
		t.Errorf("certificate is that of %+v, %v", own, err)
	}
	if lifetime := lifetimeOf(keys.tls.certificate.Load().Leaf); lifetime != enrolledLifetime {
		t.Errorf("lifetime is %s", lifetime)
	}
	if serverErr, clientErr := handshake(t, m.keys.tls, keys.tls); serverErr != nil || clientErr != nil {
		t.Errorf("handshake of the new node: server says %v, client says %v", serverErr, clientErr)
	}
	// The answer was lost: the node asks again, and is answered again. Another is not.
	if _, err := m.ask(e); err != nil {
		t.Errorf("second question with the same key: %v", err)
	}
	m.wantRefusal(m.enrolling("n3", token), "used up")
	again := m.enrolling("n2", token)
	again.node.id = e.node.id
	m.wantRefusal(again, "used up")
	if bytes.Contains(m.logged.Bytes(), []byte(token.encode())) || bytes.Contains(m.logged.Bytes(), token.secret) || strings.Contains(m.logged.String(), strings.Split(token.encode(), ".")[2]) {
		t.Error("the token's secret is in the log")
	}
}

func TestBadTokens(t *testing.T) {
	m := startMember(t)
	good := m.token(1, time.Hour)
	forged := newJoinToken(good.authority)
	forged.id = good.id
	m.wantRefusal(m.enrolling("n2", forged), "no such join token")
	m.wantRefusal(m.enrolling("n2", newJoinToken(good.authority)), "no such join token")
	if before := m.log.count(); before != 3 {
		t.Errorf("wrong secrets have cost the log %d entries", before-3)
	}

	revoked := m.token(1, time.Hour)
	if err := m.store.DeleteJoinToken(t.Context(), revoked.id); err != nil {
		t.Fatal(err)
	}
	m.wantRefusal(m.enrolling("n2", revoked), "no such join token")

	expiring := m.token(1, time.Minute)
	m.now = m.now.Add(2 * time.Minute)
	m.wantRefusal(m.enrolling("n2", expiring), "is expired since")

	if _, err := m.ask(m.enrolling("n2", good)); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

// What a node says of itself must make sense, whatever token it has.
func TestBadQuestions(t *testing.T) {
	m := startMember(t)
	token := m.token(50, time.Hour)
	for name, spoil := range map[string]func(*enrollment){
		"is no node":                          func(e *enrollment) { e.node.id = "1" },
		"is no node  ":                        func(e *enrollment) { e.node.id = "urn:uuid:" + e.node.id },
		"is no node   ":                       func(e *enrollment) { e.node.id = "{" + e.node.id + "}" },
		"is no node ":                         func(e *enrollment) { e.node.name = "n2/../n1" },
		"data belongs to cluster other":       func(e *enrollment) { e.clusterID = "other" },
		"the cluster has no node with the id": func(e *enrollment) { e.clusterID = "the-cluster" },
	} {
		e := m.enrolling("n2", token)
		spoil(e)
		m.wantRefusal(e, strings.TrimSpace(name))
	}

	member := &atoll.Node{Id: uuid.NewString(), Name: "n5"}
	if err := m.store.PutNode(t.Context(), member, ""); err != nil {
		t.Fatal(err)
	}
	back := m.enrolling("n5", token)
	back.node.id, back.clusterID = member.Id, "the-cluster"
	m.wantRefusal(back, "atoll token create --member n5")
	back.token = m.tokenFor(JoinTokenRequest{Uses: 1, TTL: time.Hour, Member: "n5"})
	if _, err := m.ask(back); err != nil {
		t.Errorf("a member that comes back with its data: %v", err)
	}
	other := m.enrolling("n6", token)
	other.node.id = member.Id
	m.wantRefusal(other, `has the name "n5"`)
	if err := m.store.SetNodeState(t.Context(), member.Id, atoll.NodeState_NODE_STATE_REMOVED); err != nil {
		t.Fatal(err)
	}
	m.wantRefusal(back, "was removed from the cluster")
}

// Somebody in between has an authority of his own with the same name. He is not told the
// secret, nor anything.
func TestManInTheMiddle(t *testing.T) {
	m, middle := startMember(t), startMember(t)
	e := m.enrolling("n2", m.token(1, time.Hour))
	got := make(chan int, 1)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	forge := func(chain ...[]byte) tls.Certificate {
		own := *middle.keys.tls.certificate.Load()
		own.Certificate = append([][]byte{own.Certificate[0]}, chain...)
		return own
	}
	authority := m.keys.tls.certificate.Load().Certificate[1]
	for name, certificate := range map[string]tls.Certificate{
		"his own chain":             *middle.keys.tls.certificate.Load(),
		"the true authority behind": forge(authority),
		"both authorities":          forge(middle.keys.tls.certificate.Load().Certificate[1], authority),
		"the true authority alone":  {Certificate: [][]byte{authority}, PrivateKey: middle.keys.tls.certificate.Load().PrivateKey},
	} {
		go func() { // ends with the connection; the receive below waits for it
			conn, err := listener.Accept()
			if err != nil {
				got <- -1
				return
			}
			defer conn.Close()
			server := tls.Server(conn, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}, NextProtos: []string{protocolEnroll}})
			content, _ := io.ReadAll(server)
			got <- len(content)
		}()
		_, err := e.ask(t.Context(), listener.Addr().String())
		if err == nil || (!errors.Is(err, errStranger) && name != "the true authority alone") {
			t.Errorf("%s: error is %v", name, err)
		}
		if n := <-got; n != 0 {
			t.Errorf("%s: %d bytes were sent to the man in the middle", name, n)
		}
	}
	if _, err := m.ask(e); err != nil {
		t.Errorf("the token is not good any more: %v", err)
	}
}

func TestTokensThatAreNotWhole(t *testing.T) {
	token := newJoinToken(sha256.Sum256([]byte("authority")))
	text := token.encode()
	read, err := parseJoinToken(" " + text + "\n")
	if err != nil || read.id != token.id || !bytes.Equal(read.secret, token.secret) || read.authority != token.authority {
		t.Fatalf("token reads back as %v, %v", read, err)
	}
	for n := range text {
		if _, err := parseJoinToken(text[:n]); err == nil {
			t.Errorf("the first %d characters pass for a token", n)
		} else if n > len(joinTokenPrefix) && !strings.Contains(err.Error(), "not whole") {
			t.Errorf("the first %d characters: %v", n, err)
		}
		mistyped := []byte(text)
		mistyped[n] ^= 1
		if _, err := parseJoinToken(string(mistyped)); err == nil {
			t.Errorf("%s passes for %s", mistyped, text)
		}
	}
	secret := strings.Split(text, ".")[2]
	for _, printed := range []string{fmt.Sprint(token), fmt.Sprintf("%v %+v %#v %s", token, token, token, token)} {
		if strings.Contains(printed, secret) || strings.Contains(printed, fmt.Sprint(token.secret)) || strings.Contains(printed, fmt.Sprintf("%x", token.secret)) {
			t.Errorf("the secret is printed: %s", printed)
		}
	}
}

// Whoever floods the port with what is no question, or with wrong secrets, is held off,
// holds little, and keeps no node out for longer than that.
func TestEnrolFlood(t *testing.T) {
	m := startMember(t)
	token := m.token(1, time.Hour)
	connect := func() *tls.Conn {
		conn, err := net.Dial("tcp", m.address)
		if err != nil {
			return nil
		}
		secured := tls.Client(conn, enrollingTLS(token.authority))
		secured.SetDeadline(time.Now().Add(10 * time.Second))
		if secured.Handshake() != nil {
			conn.Close()
			return nil
		}
		return secured
	}
	// One that announces more than there may be.
	conn := connect()
	if _, err := conn.Write(binary.BigEndian.AppendUint32(nil, maxEnrollBytes+1)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a message that is too long was answered")
	}
	conn.Close()

	// Many that say nothing keep no node out that has a token.
	var silent []*tls.Conn
	for range 3 * maxEnrollments {
		if conn := connect(); conn != nil {
			silent = append(silent, conn)
		}
	}
	if len(silent) <= maxEnrollments {
		t.Fatalf("only %d connections", len(silent))
	}
	if _, err := m.ask(m.enrolling("n5", m.token(1, time.Hour))); err != nil {
		t.Errorf("a node among %d strangers who say nothing: %v", len(silent), err)
	}
	for _, conn := range silent {
		conn.SetReadDeadline(time.Now().Add(2 * handshakeTimeout))
		if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("somebody who says nothing is not cut off")
			break
		}
		conn.NetConn().Close()
	}

	// Wrong secrets: after some the host is not listened to for a while.
	wrong := m.enrolling("n2", newJoinToken(token.authority))
	refused, cutOff := 0, 0
	deadline := time.Now().Add(30 * time.Second)
	for cutOff < 3 && time.Now().Before(deadline) {
		if _, err := m.ask(wrong); errors.Is(err, errRefused) {
			refused++
		} else if err != nil && refused > 0 {
			cutOff++
		}
	}
	if cutOff < 3 || refused > wrongBurst+5 {
		t.Errorf("%d wrong secrets were answered, %d times cut off", refused, cutOff)
	}
	// The node that has the right one gets in a little later.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := m.enrolling("n2", token).run(ctx); err != nil {
		t.Errorf("the node with the right secret: %v", err)
	}
}

// Who enrols gets no further than that, and who has no certificate may do nothing else.
func TestEnrollingOpensNoOtherDoor(t *testing.T) {
	m := startMember(t)
	for _, protocols := range [][]string{{protocolEnroll, protocolGRPC}, {protocolEnroll, protocolRaft}, {protocolGRPC}, nil} {
		conn, err := net.Dial("tcp", m.address)
		if err != nil {
			t.Fatal(err)
		}
		secured := tls.Client(conn, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: protocols})
		secured.SetDeadline(time.Now().Add(10 * time.Second))
		err = secured.Handshake()
		if err == nil {
			_, err = secured.Read(make([]byte, 1))
		}
		if err == nil {
			t.Errorf("protocols %v: somebody without a certificate is let in", protocols)
		}
		conn.Close()
	}
	// A cluster with certificates from files lets nobody enrol.
	files := startListener(t, testIdentities(t, "", "n1")["n1"])
	if enrolls(t.Context(), (&net.Dialer{}).DialContext, files.tcp.Addr().String()) {
		t.Error("a cluster with certificates from files offers to enrol nodes")
	}
	if !enrolls(t.Context(), (&net.Dialer{}).DialContext, m.address) {
		t.Error("a node that enrols others is not seen to")
	}
}
