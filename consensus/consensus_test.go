package consensus

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// close ends a node in order, as a process does that was told to stop.
func (n *testNode) close(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if err := n.Close(ctx); err != nil {
		t.Fatalf("close %s: %v", n.id, err)
	}
	n.server.Stop()
	n.stop()
	n.running.Wait()
	n.network.close()
	if err := n.machine.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(ctx); err != nil {
		t.Fatalf("close %s again: %v", n.id, err)
	}
	n.stop = nil
}

func TestOneNode(t *testing.T) {
	c := newCluster(t, nil)
	node := c.start("n1")
	if node.HasState() {
		t.Fatal("an empty node has state")
	}
	if err := node.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	if err := node.Bootstrap(); err == nil {
		t.Fatal("bootstrapped twice")
	}
	c.propose(node, "add x")
	status := node.Status()
	if status.LeaderID != "n1" || status.NodeID != "n1" || len(status.Members) != 1 || !status.Members[0].Voter || status.AppliedIndex == 0 || status.Term == 0 {
		t.Fatalf("%+v", status)
	}
	if id, address := node.Leader(); id != "n1" || address != node.address || !node.IsLeader() {
		t.Fatal(id, address)
	}
	node.close(t)
	if _, _, err := node.Propose(c.ctx(), []byte("x")); !errors.Is(err, ErrClosed) || !errors.Is(err, ErrNoLeader) {
		t.Fatalf("a closed node proposes: %v", err)
	}
	if err := node.ReadIndex(c.ctx()); !errors.Is(err, ErrClosed) {
		t.Fatalf("a closed node reads: %v", err)
	}
	if err := node.WhileLeader(c.ctx(), func(context.Context) {}); !errors.Is(err, ErrClosed) {
		t.Fatalf("a closed node leads: %v", err)
	}
	node = c.start("n1")
	if !node.HasState() {
		t.Fatal("the state is forgotten")
	}
	if got := c.propose(node, "add x"); got != "2" {
		t.Fatalf("count %s", got)
	}
}

// A leader that is told to stop hands over first, so that nobody notices.
func TestCloseHandsOver(t *testing.T) {
	c := form(t, 3, func(cfg *Config) { cfg.HeartbeatTimeout, cfg.ElectionTimeout = 5*time.Second, 5*time.Second })
	leader := c.leader()
	term := leader.raft.CurrentTerm()
	follower := c.followers()[0]
	begin := time.Now()
	leader.close(t)
	c.propose(follower, "add x")
	if took := time.Since(begin); took > 4*time.Second || follower.raft.CurrentTerm() == term {
		t.Fatalf("it took %s, as an election does", took)
	}
}

func TestAllKilledAtOnce(t *testing.T) {
	c := form(t, 3, nil)
	for range 10 {
		c.propose(c.leader(), "add x")
	}
	for _, node := range c.nodes {
		node.kill()
	}
	for _, id := range c.ids() {
		c.start(id)
	}
	if got := c.propose(c.nodes["n2"], "add x"); got != "11" {
		t.Fatalf("count %s", got)
	}
	c.agree()
}

func TestConfigIsChecked(t *testing.T) {
	_, err := Open(Config{}, nil, nil)
	if err == nil {
		t.Fatal("an empty configuration is taken")
	}
	for _, fault := range []string{"node id", "address", "folder", "Fatal", "MaxVoters", "LogWriteTimeout", "TrailingLogs"} {
		if !strings.Contains(err.Error(), fault) {
			t.Errorf("%q is not among the faults: %v", fault, err)
		}
	}
}

// What no crash leaves behind is refused at the start, with a reason.
func TestOpenRefuses(t *testing.T) {
	remove := func(names ...string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			for _, name := range names {
				if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	damage := func(name string, at int64, content string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			file, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = file.WriteAt([]byte(content), at)
			if err := errors.Join(err, file.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   error  // if known
		text   string // or part of the message
	}{
		{"state gone", remove("state"), ErrStateBehind, ""},
		{"log gone", remove("raft/raft.db"), ErrLogLost, ""},
		{"log and record gone", remove("raft"), ErrLogLost, ""},
		{"record gone", remove("raft/snapshot"), ErrLogLost, ""},
		{"record damaged", damage("raft/snapshot", 20, "xx"), ErrChecksum, ""},
		{"log is no log", damage("raft/raft.db", 0, strings.Repeat("no log", 2000)), nil, "raft.db"},
		{"log cut off", func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, "raft/raft.db"), 8192); err != nil {
				t.Fatal(err)
			}
		}, nil, "raft.db"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := form(t, 1, eager)
			node := c.nodes["n1"]
			for range 40 {
				c.propose(node, "add x")
			}
			node.cut(t, 10)
			node.kill()
			test.damage(t, filepath.Join(c.dir, "n1"))
			_, err := c.open("n1")
			if err == nil || (test.want != nil && !errors.Is(err, test.want)) || !strings.Contains(err.Error(), test.text) {
				t.Fatalf("err %v", err)
			}
		})
	}
}

func TestOpenRefusesALockedLog(t *testing.T) {
	c := form(t, 1, nil)
	if _, err := openLog(c.nodes["n1"].cfg.Dir); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Fatalf("err %v", err)
	}
}

// A log that was put back from a copy gives out log indexes a second time. The
// state machine would skip those commands; the node stops instead.
func TestRolledBackLogIsFound(t *testing.T) {
	c := form(t, 1, nil)
	dir := filepath.Join(c.dir, "n1", "raft")
	node := c.nodes["n1"]
	node.kill()
	copied := make(map[string][]byte)
	for _, file := range []string{logFile, journalFile} {
		content, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		copied[file] = content
	}
	node = c.start("n1")
	for range 10 {
		c.propose(node, "add x")
	}
	node.kill()
	for file, content := range copied {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.open("n1"); !errors.Is(err, ErrLogLost) {
		t.Fatalf("error is %v", err)
	}
	// While a snapshot is installed the state may be ahead; entries tell then.
	if err := beginInstall(dir); err != nil {
		t.Fatal(err)
	}
	node = c.start("n1")
	if _, _, err := node.Propose(c.ctx(), []byte("add x")); err == nil {
		t.Fatal("a command was acknowledged and skipped")
	}
	node.mustFail(t, ErrStateAhead)
}

// One flipped bit in the newer root of the log's file makes bbolt go back to the
// older one, without a word.
func TestLostRootIsFound(t *testing.T) {
	c := form(t, 1, nil)
	node := c.nodes["n1"]
	for range 10 {
		c.propose(node, "add x")
	}
	node.kill()
	path := filepath.Join(c.dir, "n1", "raft", logFile)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Two pages begin with a root each: a header of 16 bytes, then, at 48 bytes, the
	// transaction's number and a checksum of 8 bytes each (bbolt, type common.Meta).
	const root, number, checksum = 16, 48, 56
	newer := 0
	if binary.NativeEndian.Uint64(content[4096+root+number:]) > binary.NativeEndian.Uint64(content[root+number:]) {
		newer = 4096
	}
	content[newer+root+checksum] ^= 1
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.open("n1"); !errors.Is(err, ErrLogLost) {
		t.Fatalf("error is %v", err)
	}
}

func TestLifeFailsOnce(t *testing.T) {
	var fatal []error
	l := newLife(func(err error) { fatal = append(fatal, err) })
	stopped := make(chan struct{})
	if err := l.arm(func() { close(stopped) }); err != nil {
		t.Fatal(err)
	}
	first := errors.New("first")
	for _, err := range []error{first, errors.New("second")} {
		isolated(func() { l.fail(err); t.Error("fail returned") })
	}
	<-stopped
	if len(fatal) != 1 || fatal[0] != first || l.failure() != first || !isClosed(l.over) || l.end() {
		t.Fatalf("fatal %v, failure %v", fatal, l.failure())
	}
	// A store closed under a late reader is no failure of the process.
	l = newLife(func(err error) { t.Errorf("fatal after the end: %v", err) })
	_ = l.arm(func() {})
	l.end()
	isolated(func() { l.fail(first) })
	// Before the start is done, the failure is Open's error.
	l = newLife(func(err error) { t.Errorf("fatal before the start: %v", err) })
	isolated(func() { l.fail(first) })
	if err := l.arm(func() {}); err != first {
		t.Fatal(err)
	}
}

func TestRaftLogger(t *testing.T) {
	var text strings.Builder
	log := newRaftLogger(zerolog.New(&text).Level(zerolog.DebugLevel))
	log.Trace("a trace")
	log.Info("news", "index", uint64(7), "took", time.Second)
	log.With("peer", "n2").Named("autopilot").Error("peer away", "error", errors.New("refused"))
	for range 3 * raftLogBurst {
		log.Warn("again")
	}
	got := text.String()
	for _, want := range []string{
		`{"level":"debug","source":"raft","index":7,"took":"1s","message":"news"}`,
		`{"level":"warn","source":"raft.autopilot","peer":"n2","error":"refused","message":"peer away"}`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is missing in\n%s", want, got)
		}
	}
	if n := strings.Count(got, "again"); n == 0 || n > raftLogBurst || strings.Contains(got, "a trace") {
		t.Errorf("%d warnings in\n%s", n, got)
	}
}
