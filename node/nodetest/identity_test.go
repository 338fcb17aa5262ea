package nodetest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/node"
	atoll "github.com/atollregistry/atoll/proto"
)

// lines is a log to look into while it is written.
type lines struct {
	mu      sync.Mutex // guards content
	content bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.content.Write(p)
}

func (l *lines) has(words string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !strings.Contains(l.content.String(), words) {
		return fmt.Errorf("the log does not say %q", words)
	}
	return nil
}

// certificateOf reads what a member keeps of its own.
func (m *Member) certificateOf() (certificate tls.Certificate, content []byte) {
	m.cluster.t.Helper()
	content, err := os.ReadFile(filepath.Join(m.Config.Home(), "certificate.json"))
	if err != nil {
		m.cluster.t.Fatal(err)
	}
	var saved struct{ Certificate, Key string }
	if err := json.Unmarshal(content, &saved); err != nil {
		m.cluster.t.Fatal(err)
	}
	certificate, err = tls.X509KeyPair([]byte(saved.Certificate), []byte(saved.Key))
	if err != nil {
		m.cluster.t.Fatal(err)
	}
	return certificate, content
}

// thief calls a member with a certificate, as somebody who has stolen it would.
type thief struct {
	t           *testing.T
	certificate tls.Certificate
	cluster     string
}

func (f thief) config(protocol string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, Certificates: []tls.Certificate{f.certificate}, NextProtos: []string{protocol}}
}

// call calls all that he may be after.
func (f thief) call(on *Member, as string) (shards, propose, renew error, heartbeat *atoll.HeartbeatResponse, heartbeatErr error) {
	f.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+on.Config.Cluster.Address, grpc.WithTransportCredentials(credentials.NewTLS(f.config("h2"))))
	if err != nil {
		f.t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "atoll-cluster", f.cluster)
	shards = f.shards(on)
	_, propose = atoll.NewConsensusClient(conn).Propose(ctx, &atoll.ProposeRequest{})
	_, renew = atoll.NewMembershipClient(conn).Renew(ctx, &atoll.RenewRequest{})
	heartbeat, heartbeatErr = atoll.NewMembershipClient(conn).Heartbeat(ctx, &atoll.HeartbeatRequest{NodeId: as})
	return shards, propose, renew, heartbeat, heartbeatErr
}

// shards tells whether he gets to read shards.
func (f thief) shards(on *Member) error {
	conn, err := tls.Dial("tcp", on.Config.Cluster.Address, f.config("atoll-shards/1"))
	if err != nil {
		return err
	}
	defer conn.Close()
	call, err := proto.Marshal(&atoll.ShardCall{ClusterId: f.cluster, NodeId: on.running().ID(), Read: &atoll.ReadShardRequest{}})
	if err != nil {
		return err
	}
	message := binary.BigEndian.AppendUint32(nil, uint32(len(call)))
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(message, 0), call...)); err != nil {
		return err
	}
	prefix := make([]byte, 8)
	if _, err := io.ReadFull(conn, prefix); err != nil {
		return err
	}
	encoded := make([]byte, binary.BigEndian.Uint32(prefix))
	if _, err := io.ReadFull(conn, encoded); err != nil {
		return err
	}
	var answer atoll.ShardAnswer
	if err := proto.Unmarshal(encoded, &answer); err != nil {
		return err
	}
	return status.Error(codes.Code(answer.Code), answer.Error)
}

// raft tells whether he gets to speak Raft.
func (f thief) raft(on *Member) error {
	conn, err := tls.Dial("tcp", on.Config.Cluster.Address, f.config("atoll-raft/2"))
	if err != nil {
		return err
	}
	defer conn.Close()
	var greeting []byte
	for _, text := range []string{on.running().ID(), f.cluster, "11111111-1111-4111-8111-111111111111"} {
		greeting = append(append(greeting, byte(len(text))), text...)
	}
	if _, err := conn.Write(greeting); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	var answer [1]byte
	if _, err := conn.Read(answer[:]); err != nil {
		return err
	}
	if answer[0] != 'y' {
		return fmt.Errorf("the answer is %q", answer)
	}
	return nil
}

func (m *Member) clusterID() string {
	m.cluster.t.Helper()
	s, err := m.Status()
	if err != nil {
		m.cluster.t.Fatal(err)
	}
	return s.Cluster
}

// wantStartFault fails unless the node ends by itself and says why.
func (m *Member) wantStartFault(words string) {
	m.cluster.t.Helper()
	m.Start()
	if err := m.WaitEnd(); err == nil || !strings.Contains(err.Error(), words) {
		m.cluster.t.Errorf("node %s ended with %v, want %q", m.Config.Name, err, words)
	}
}

// A node comes in by a token, keeps its certificate, needs another token once its disk is
// gone, and is out when it is removed. Its certificate is good for nobody else.
func TestClusterWithJoinTokens(t *testing.T) {
	t.Parallel()
	c := StartWithTokens(t, 3, nil)
	n1, n2, n3 := c.Members[0], c.Members[1], c.Members[2]
	for i, m := range c.Members {
		push(t, c, "app", "v"+m.Config.Name, uint64(i), m)
	}
	if info, err := os.Stat(filepath.Join(n2.Config.Home(), "certificate.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file with the node's key: %v, %v", info.Mode(), err)
	}
	if _, content := n1.certificateOf(); bytes.Contains(content, []byte("authority_key")) {
		t.Error("the first node has the authority's key in a file still")
	}

	// The token is used up, and does not matter any more.
	n2.Stop()
	n2.Start()
	n2.WaitReady()
	stolen, content := n2.certificateOf()
	cluster := n1.clusterID()
	f := thief{t, stolen, cluster}
	if _, _, _, _, err := f.call(n1, n3.running().ID()); status.Code(err) != codes.PermissionDenied {
		t.Errorf("heartbeat as another node: %v", err)
	}
	if err := f.raft(n1); err == nil {
		t.Error("somebody with the certificate of a node speaks Raft as another")
	}

	// A wiped node has none, and one with another node's certificate gets no further.
	n3.Crash()
	n3.Wipe()
	n3.wantStartFault("is used up")
	if err := os.WriteFile(filepath.Join(n3.Config.Home(), "certificate.json"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	n3.wantStartFault("holds the certificate of node n2")
	n3.Wipe()
	n3.Config.Token = ""
	n3.wantStartFault("give it a join token")
	n3.Config.Token = c.Token(1)
	n3.Start()
	n3.WaitReady()
	c.WaitWhole()

	// Removed: told so, and nothing else.
	id := n2.running().ID()
	if shards, _, renew, heartbeat, err := f.call(n1, id); status.Code(shards) == codes.PermissionDenied || status.Code(renew) == codes.PermissionDenied || err != nil || heartbeat.Removed {
		t.Errorf("a member calls: shards %v, renew %v, heartbeat %v, %v", shards, renew, heartbeat, err)
	}
	n2.Crash()
	c.Eventually(FormTimeout, "the node is removed", func() error {
		removal, err := node.Remove(t.Context(), n1.Config.Home(), "n2", true)
		if err == nil && !removal.Removed {
			err = errors.New(removal.Refusal)
		}
		return err
	})
	for _, on := range []*Member{n1, n3} {
		c.Eventually(10*time.Second, "the removed node's certificate is refused", func() error {
			shards, propose, renew, heartbeat, err := f.call(on, id)
			if status.Code(shards) != codes.PermissionDenied || status.Code(propose) != codes.PermissionDenied || status.Code(renew) != codes.PermissionDenied || err != nil || !heartbeat.Removed {
				return fmt.Errorf("shards %v, propose %v, renew %v, heartbeat %v, %w", shards, propose, renew, heartbeat, err)
			}
			if f.raft(on) == nil {
				return errors.New("it speaks Raft")
			}
			return nil
		})
	}
	n2.Start()
	n2.wantRemovedEnd()
	n2.Config.Token = c.Token(1)
	n2.Start()
	n2.wantRemovedEnd()
	c.drop(n2)
	push(t, c, "app", "after", 9, n1, n3)
	c.WaitWhole()
	c.Check()
}

// certificates are when those of all nodes expire, as a node sees it.
func (m *Member) certificates() (map[string]time.Time, error) {
	s, err := m.Status()
	if err != nil {
		return nil, err
	}
	expires := make(map[string]time.Time)
	for _, n := range s.Nodes {
		if n.CertificateExpires == nil {
			return nil, fmt.Errorf("nothing known of the certificate of %s", n.ID)
		}
		expires[n.ID] = *n.CertificateExpires
	}
	return expires, nil
}

// Certificates of some seconds are renewed again and again, and no client sees it. They must
// last for as long as a node takes to join on a busy machine.
func TestRenewalUnderLoad(t *testing.T) {
	t.Parallel()
	const lifetime = 15 * time.Second
	c := StartWithTokens(t, 3, func(m *Member) { m.Options = []node.Option{node.WithCertificateLifetime(lifetime)} })
	push(t, c, "app", "v1", 1, c.Members...)
	l := c.startLoad()
	until := time.Now().Add(2 * lifetime)
	c.Eventually(5*lifetime, "all certificates are renewed twice", func() error {
		expires, err := c.Members[0].certificates()
		if err != nil {
			return err
		}
		for name, at := range expires {
			if at.Before(until) {
				return fmt.Errorf("that of %s expires at %s, before %s", name, at, until)
			}
		}
		return nil
	})
	t.Logf("%d images pushed and pulled meanwhile", l.end())
	if s, err := c.Members[0].Status(); err != nil || len(s.Nodes) != 3 {
		t.Errorf("status is %+v, %v", s, err)
	}
	c.Check()
}

// rotated waits for a state of the authority, and returns it.
func (m *Member) rotated(state string) *node.AuthorityStatus {
	m.cluster.t.Helper()
	var last *node.AuthorityStatus
	m.cluster.Eventually(FormTimeout, "the authority is "+state, func() (err error) {
		last, err = node.FetchAuthority(m.cluster.t.Context(), m.Config.Home())
		if err == nil && last.State != state {
			err = fmt.Errorf("it is %s, waiting for %v", last.State, last.Waiting)
		}
		return err
	})
	return last
}

// The authority is changed under load, while the leader dies after each step.
func TestAuthorityRotation(t *testing.T) {
	t.Parallel()
	c := StartWithTokens(t, 3, nil)
	push(t, c, "app", "v1", 1, c.Members...)
	before := c.Members[0].rotated("settled")
	unused := c.Token(1)
	l := c.startLoad()
	asked := c.Members[1]
	if _, err := node.RotateAuthority(t.Context(), asked.Config.Home()); err != nil {
		t.Fatal(err)
	}
	_, err := node.RotateAuthority(t.Context(), asked.Config.Home())
	if err != nil { // it may be over by now
		wantError(t, err, "is being changed already")
	}
	for range 2 {
		leader := c.Leader()
		l.without(leader)
		leader.Crash()
		leader.Start()
		leader.WaitReady()
		l.without()
	}
	after := c.Members[0].rotated("settled")
	if after.Authorities[0].Fingerprint == before.Authorities[0].Fingerprint || len(after.Authorities) != 1 {
		t.Errorf("authorities are %+v, before %+v", after.Authorities, before.Authorities)
	}
	for _, n := range after.Nodes {
		if n.Issuer != after.Authorities[0].Fingerprint {
			t.Errorf("the certificate of %s is by %s", n.Node, n.Issuer)
		}
	}
	t.Logf("%d images pushed and pulled meanwhile", l.end())

	// Whoever has not heard of it is told what to do.
	stranger := c.configure(3, 4, nil)[3]
	stranger.Config.Cluster.CA, stranger.Config.Cluster.Cert, stranger.Config.Cluster.Key = "", "", ""
	stranger.Config.Name, stranger.Config.Join, stranger.Config.Token = "n4", []string{c.Members[0].Config.Cluster.Address}, unused
	log := &lines{}
	stranger.Log = log
	stranger.Start()
	c.Eventually(FormTimeout, "the node with the old token says why it is not let in", func() error { return log.has("The token's secret was not sent") })
	stranger.cancelRun()
	_ = stranger.wait() // it was waiting
	for _, m := range c.Members {
		m.Stop()
		m.Start()
	}
	for _, m := range c.Members {
		m.WaitReady()
	}
	c.Check()
}

// A node that was away while the authority was changed says so, and gets back with its
// data by a token.
func TestAwayDuringRotation(t *testing.T) {
	t.Parallel()
	log := &lines{}
	c := StartWithTokens(t, 3, func(m *Member) { m.Config.DownAfter = 15 * time.Second })
	push(t, c, "app", "v1", 1, c.Members...)
	away := c.Members[2]
	id := away.running().ID()
	away.Stop()
	if _, err := node.RotateAuthority(t.Context(), c.Members[0].Config.Home()); err != nil {
		t.Fatal(err)
	}
	waiting := c.Members[0].rotated("spreading")
	if len(waiting.Waiting) == 0 || !strings.Contains(strings.Join(waiting.Waiting, " "), "node n3") {
		t.Errorf("it waits for %v", waiting.Waiting)
	}
	_, err := node.CreateJoinToken(t.Context(), c.Members[0].Config.Home(), node.JoinTokenRequest{TTL: time.Hour, Uses: 1})
	wantError(t, err, "wait until 'atoll ca status' shows that the new one signs")
	c.Members[0].rotated("settled") // once n3 is down

	away.Log = log
	away.Start()
	c.Eventually(FormTimeout, "the node says what to do", func() error { return log.has("needs a new join token") })
	away.cancelRun()
	_ = away.wait() // it had not come in
	// It can't ask the others, but it does not take them for gone.
	wantError(t, away.survey(false).Refusal(), "the node at "+c.Members[0].Config.Cluster.Address+" runs, and can't be asked")
	// A token for new nodes, which may be anybody's, makes nobody a member that there is.
	away.Config.Token = c.Token(1)
	away.Start()
	c.Eventually(FormTimeout, "the node says which token it needs", func() error { return log.has("atoll token create --member n3") })
	away.cancelRun()
	_ = away.wait()
	away.Config.Token = c.token(1, "n3")
	away.Log = nil
	away.Start()
	away.WaitReady()
	if got := away.running().ID(); got != id {
		t.Errorf("it came back as %s, not %s", got, id)
	}
	c.WaitWhole()
	c.Check()
}

// After the loss of quorum a node with the cluster's own certificates is recovered, and
// another one rejoins.
func TestRecoverWithJoinTokens(t *testing.T) {
	t.Parallel()
	c := StartWithTokens(t, 3, quickExpiryOf)
	push(t, c, "app", "v1", 1, c.Members...)
	chosen, second, gone := c.Members[0], c.Members[1], c.Members[2]
	for _, m := range c.Members {
		m.Crash()
	}
	gone.Wipe()
	chosen.recoverCluster(anyStep)
	chosen.Start()
	chosen.WaitReady()
	second.rejoin(anyStep)
	second.Start()
	second.WaitReady()
	gone.wantStartFault("is used up")
	gone.Config.Token = c.Token(1)
	gone.Start()
	gone.WaitReady()
	push(t, c, "app", "v2", 2, c.Members...)
	c.WaitWhole()
	c.Check()
}

// The authority was changed after a recovery, and a node that was away the whole time
// has to get a certificate before it can find out that it must rejoin.
func TestRejoinAfterRotation(t *testing.T) {
	t.Parallel()
	c := StartWithTokens(t, 3, func(m *Member) {
		quickExpiryOf(m)
		m.Config.DownAfter = 15 * time.Second
	})
	push(t, c, "app", "v1", 1, c.Members...)
	chosen, second, gone := c.Members[0], c.Members[1], c.Members[2]
	for _, m := range c.Members {
		m.Crash()
	}
	gone.Wipe()
	chosen.recoverCluster(anyStep)
	chosen.Start()
	chosen.WaitReady()
	if _, err := node.RotateAuthority(t.Context(), chosen.Config.Home()); err != nil {
		t.Fatal(err)
	}
	chosen.rotated("settled")
	wantError(t, second.survey(true).Refusal(), "can't be asked")
	second.Config.Token = c.token(1, "n2")
	second.Start()
	second.wantSuperseded()
	second.rejoin(anyStep)
	second.Start()
	second.WaitReady()
	for _, acked := range c.Acked() {
		if err := second.Read(acked); err != nil {
			t.Errorf("acknowledged content is not there: %v", err)
		}
	}
}

func quickExpiryOf(m *Member) { quickExpiry(&m.Config) }

// A cluster has one authority: a node whose disk is gone forms no second one while the
// first is there, whatever it is told.
func TestBootstrapBesideACluster(t *testing.T) {
	t.Parallel()
	c := StartWithTokens(t, 2, nil)
	n1 := c.Members[0]
	n1.Crash()
	n1.Wipe()
	n1.Config.Join = []string{n1.Config.Cluster.Address, c.Members[1].Config.Cluster.Address}
	n1.wantStartFault("a node of one answers at " + c.Members[1].Config.Cluster.Address)
	if _, err := node.OpenRecovery(n1.Config, false, zerolog.Nop()); err == nil {
		t.Error("a folder without a certificate was opened for a recovery")
	}
}
