package consensus

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// eager takes a snapshot every few entries and keeps little of the log.
func eager(cfg *Config) {
	cfg.SnapshotInterval, cfg.SnapshotThreshold, cfg.TrailingLogs = 20*time.Millisecond, 10, 5
}

// cut waits until a node's log begins behind a log index.
func (n *testNode) cut(t testing.TB, index uint64) {
	t.Helper()
	eventually(t, "the log of "+n.id+" is cut", func() bool {
		first, _ := n.storage.logs.FirstIndex()
		return first > index
	})
}

// leaveBehind kills a node and commits until the others' logs no longer reach
// back to it.
func (c *cluster) leaveBehind(id string) {
	c.t.Helper()
	node := c.nodes[id]
	node.kill()
	behind := node.applied.index()
	for range 60 {
		c.insist(c.leader(), "add x")
	}
	for _, other := range c.ids() {
		if other != id {
			c.nodes[other].cut(c.t, behind+20)
		}
	}
}

func TestSnapshotCostsNothing(t *testing.T) {
	c := form(t, 1, eager)
	node := c.nodes["n1"]
	for range 50 {
		c.propose(node, "add x")
	}
	node.cut(t, 20)
	for _, name := range []string{incomingFile, recordTemp} {
		eventually(t, name+" is gone, unless the next snapshot makes it", func() bool {
			_, err := os.Stat(filepath.Join(node.cfg.Dir, name))
			return errors.Is(err, os.ErrNotExist)
		})
	}
	info, err := os.Stat(filepath.Join(node.cfg.Dir, recordFile))
	if err != nil || info.Size() > 1000 {
		t.Fatalf("record: %v, %v", info, err)
	}
	before := node.machine.dump()
	node.kill()
	node = c.start("n1")
	if got := c.propose(node, "add x"); got != "51" {
		t.Fatalf("after the restart %s, before it\n%s", got, before)
	}
}

func TestLaggingFollowerGetsTheState(t *testing.T) {
	c := form(t, 3, eager)
	lagging := without(c.ids(), c.leader().id)[0]
	c.leaveBehind(lagging)
	node := c.start(lagging)
	c.agree()
	eventually(t, "the snapshot is recorded", func() bool { return node.storage.logs.record.Load() != nil })
	for range 5 {
		c.insist(node, "add y")
	}
	if err := node.ReadIndex(c.ctx()); err != nil || node.machine.count("y") < 5 {
		t.Fatalf("count %d, err %v", node.machine.count("y"), err)
	}
	node.kill()
	c.start(lagging)
	c.insist(c.nodes[lagging], "add y")
	c.agree()
}

// TestLaggingFollowerUnderLoad has the leader cut its log while the state is on
// its way.
func TestLaggingFollowerUnderLoad(t *testing.T) {
	c := form(t, 3, eager)
	leader := c.leader()
	lagging := without(c.ids(), leader.id)[0]
	c.leaveBehind(lagging)
	stop := make(chan struct{})
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			for !isClosed(stop) {
				_, _, _ = leader.Propose(c.ctx(), []byte("add z"))
			}
		})
	}
	node := c.start(lagging)
	eventually(t, "the lagging node keeps up under load", func() bool {
		return node.applied.index()+50 > leader.applied.index() && node.machine.count("z") > 0
	})
	close(stop)
	running.Wait()
	c.agree()
}

// A crash after each step of an installation, as the disk would be found.
func TestCrashWhileInstalling(t *testing.T) {
	var r *record // the leader's
	restore := func(t *testing.T, c *cluster, id string) {
		leader := c.leader()
		r = leader.storage.logs.record.Load()
		state, _, _, err := leader.machine.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		j, err := openDiary(filepath.Join(c.dir, id, "state"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(beginInstall(filepath.Join(c.dir, id, "raft")), j.Restore(state), j.Close()); err != nil {
			t.Fatal(err)
		}
	}
	commit := func(t *testing.T, c *cluster, id string) {
		installed := *r
		installed.installed = true
		if err := installed.save(filepath.Join(c.dir, id, "raft")); err != nil {
			t.Fatal(err)
		}
	}
	steps := []struct {
		name  string
		crash func(t *testing.T, c *cluster, id string)
	}{
		{"while it comes in", func(t *testing.T, c *cluster, id string) {
			if err := os.WriteFile(filepath.Join(c.dir, id, "raft", incomingFile), []byte("half a sta"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"after the state was swapped", restore},
		{"while the record is written", func(t *testing.T, c *cluster, id string) {
			restore(t, c, id)
			if err := os.WriteFile(filepath.Join(c.dir, id, "raft", recordTemp), r.encode()[:20], 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"after the record was written", func(t *testing.T, c *cluster, id string) {
			restore(t, c, id)
			commit(t, c, id)
		}},
		{"while the log is dropped", func(t *testing.T, c *cluster, id string) {
			restore(t, c, id)
			commit(t, c, id)
			db, err := openJournaledLog(filepath.Join(c.dir, id, "raft"))
			if err != nil {
				t.Fatal(err)
			}
			last, err := db.LastIndex()
			if err := errors.Join(err, db.DeleteRange(last-2, last), db.Close()); err != nil {
				t.Fatal(err)
			}
		}},
	}
	c := form(t, 3, eager)
	lagging := without(c.ids(), c.leader().id)[0]
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			c.leaveBehind(lagging)
			step.crash(t, c, lagging)
			node := c.start(lagging)
			c.agree()
			c.insist(node, "add y")
			node.kill()
			c.start(lagging)
			c.agree()
		})
	}
}

// A state machine that can't restore keeps the old state, and gets another try.
func TestFailedRestoreIsTriedAgain(t *testing.T) {
	c := form(t, 3, eager)
	lagging := without(c.ids(), c.leader().id)[0]
	c.leaveBehind(lagging)
	old := c.nodes[lagging]
	failures := 0
	dir := filepath.Join(c.dir, lagging, "state")
	c.wrapMachine = func(j *diary) {
		if j.dir == dir {
			j.beforeRestore = func() error {
				if failures++; failures <= 2 {
					return errors.New("no space left on device")
				}
				return nil
			}
		}
	}
	node := c.start(lagging)
	c.agree()
	if failures != 3 || node.failure() != nil {
		t.Fatalf("%d tries, failure %v", failures, node.failure())
	}
	eventually(t, "the incoming file is gone", func() bool {
		_, err := os.Stat(filepath.Join(old.cfg.Dir, incomingFile))
		return errors.Is(err, os.ErrNotExist)
	})
}

// The tail of a cut-off leader goes beyond the snapshot that it then gets. The
// library would fetch that snapshot again and again.
func TestDivergedLogGivesWay(t *testing.T) {
	c := form(t, 3, func(cfg *Config) {
		eager(cfg)
		if cfg.NodeID == "n3" {
			cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaderLease = time.Minute, time.Minute, time.Minute
		}
	})
	stale := c.nodes["n3"]
	if err := c.leader().raft.LeadershipTransferToServer("n3", raft.ServerAddress(stale.address)).Error(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "n3 leads an open term", func() bool { term, _ := stale.lead.get(); return stale.leads(term) })
	c.network.partition(c.ids(), []string{"n1", "n2"})
	base := stale.raft.LastIndex()
	for range 300 {
		stale.raft.Apply([]byte("add never"), 0)
	}
	eventually(t, "n3 has its tail", func() bool { return stale.raft.LastIndex() == base+300 })
	for range 60 {
		c.insist(c.nodes["n1"], "add x")
	}
	c.nodes["n1"].cut(t, base+20)
	c.nodes["n2"].cut(t, base+20)
	c.network.heal()
	// If a message from before the cut gets through first, the tail goes without a
	// snapshot.
	eventually(t, "n3 has the others' state", func() bool {
		return stale.failure() != nil || stale.machine.count("x") >= 60
	})
	c.insist(c.nodes["n1"], "add y")
	eventually(t, "n3 goes on, or not", func() bool {
		return stale.failure() != nil || stale.machine.count("y") > 0
	})
	node := stale
	if stale.failure() != nil {
		stale.mustFail(t, ErrLogDiverged)
		stale.kill()
		c.configure = eager
		node = c.start("n3")
	}
	c.agree()
	if node.machine.count("never") != 0 || node.machine.count("x") < 60 {
		t.Fatalf("state of n3:\n%s", node.machine.dump())
	}
	c.insist(node, "add x")
	c.agree()
}

// Of a log that a snapshot replaced nothing stays, and Raft does not go on if it
// remembers too much of it.
func TestReplacedLogIsDropped(t *testing.T) {
	for _, test := range []struct {
		last  uint64 // of the log, in term 3
		index uint64 // of the snapshot, in term 4
		ends  bool
	}{{5, 10, false}, {10, 10, true}, {20, 10, true}} {
		dir, sm := t.TempDir(), testMachine(t)
		s, life := testStorage(t, dir, sm, nil)
		_ = s.cache.StoreLogs(entries(1, test.last, 3))
		if _, err := sm.Apply([]Entry{{test.index, 4, []byte("add x")}}); err != nil {
			t.Fatal(err)
		}
		state, _, _, err := sm.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		store := testSnapshots(s, dir, sm)
		sink, _ := store.Create(1, test.index, 4, raft.Configuration{}, 1, nil)
		if _, err := io.Copy(sink, state); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(sink.Close(), state.Close()); err != nil {
			t.Fatal(err)
		}
		_, incoming, err := store.Open(incomingID)
		if err != nil {
			t.Fatal(err)
		}
		machine := &fsm{sm: sm, applied: newProgress(0), snapshots: store, logs: s.cache, life: life}
		isolated(func() {
			if err := machine.Restore(incoming); err != nil || test.ends {
				t.Errorf("last %d: err %v", test.last, err)
			}
		})
		if errors.Is(life.failure(), ErrLogDiverged) != test.ends {
			t.Errorf("last %d: failure %v", test.last, life.failure())
		}
		if last, err := s.disk.LastIndex(); last != 0 || err != nil {
			t.Errorf("the log still ends at %d, err %v", last, err)
		}
		for i := uint64(1); i < test.index; i++ {
			if err := s.cache.GetLog(i, new(raft.Log)); err != raft.ErrLogNotFound {
				t.Errorf("log index %d: err %v", i, err)
			}
		}
		if machine.applied.index() != test.index {
			t.Errorf("applied %d", machine.applied.index())
		}
	}
}

func testSnapshots(s *storage, dir string, sm StateMachine) *snapshotStore {
	return &snapshotStore{dir: dir, sm: sm, logs: s.logs, outgoing: make(map[*outgoing]struct{}), stall: testTimeout, onStall: func() {}, awaited: func() {}}
}

// A snapshot that arrives late must not drop what this node acknowledged, and one
// that it has to the last entry is as good as installed.
func TestNeedlessSnapshot(t *testing.T) {
	for _, test := range []struct {
		name         string
		record, last uint64 // what the node has, all of term 3
		index, term  uint64 // what comes
		refused      bool
		known        bool
	}{
		{"before the record", 10, 20, 5, 3, true, false},
		{"at the record, more in the log", 10, 20, 10, 3, true, false},
		{"at the record, nothing more", 10, 10, 10, 3, false, true},
		{"in the middle of the log", 10, 20, 15, 3, true, false},
		{"in the middle of another log", 10, 20, 15, 4, false, false},
		{"at the end of the log", 10, 20, 20, 3, false, false},
		{"behind the log", 10, 20, 21, 3, false, false},
		{"to an empty node", 0, 0, 21, 3, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, sm := t.TempDir(), testMachine(t)
			s, _ := testStorage(t, dir, sm, nil)
			store := testSnapshots(s, dir, sm)
			_ = s.logs.StoreLogs(entries(1, max(test.last, 1), 3))
			if test.record > 0 {
				if err := store.keep((&record{index: test.record, term: 3}).meta()); err != nil {
					t.Fatal(err)
				}
			}
			_ = s.logs.DeleteRange(1, max(test.record, 1))
			made, err := store.Create(1, test.index, test.term, raft.Configuration{}, 1, nil)
			if err != nil {
				t.Fatal(err)
			}
			sink := made.(*snapshotSink)
			if _, err = sink.Write([]byte("state")); errors.Is(err, errNotNeeded) != test.refused || sink.known != test.known {
				t.Errorf("known %v, err %v", sink.known, err)
			}
			if !test.known {
				if err := sink.Cancel(); err != nil {
					t.Error(err)
				}
				return
			}
			if err := sink.Close(); err != nil {
				t.Fatal(err)
			}
			_, state, err := store.Open(incomingID)
			if err != nil {
				t.Fatal(err)
			}
			if r, err := store.install(state); r != nil || err != nil {
				t.Fatal(r, err)
			}
		})
	}
}

// The entry of the record is known even if it was cut off the log.
func TestRecordStandsInForItsEntry(t *testing.T) {
	dir, sm := t.TempDir(), testMachine(t)
	s, _ := testStorage(t, dir, sm, nil)
	_ = s.logs.StoreLogs(entries(1, 20, 3))
	if err := testSnapshots(s, dir, sm).keep((&record{index: 10, term: 3}).meta()); err != nil {
		t.Fatal(err)
	}
	_ = s.logs.DeleteRange(1, 10)
	var last raft.Log
	if err := s.logs.GetLog(10, &last); err != nil || last.Index != 10 || last.Term != 3 {
		t.Fatalf("%+v, err %v", last, err)
	}
	if err := s.logs.GetLog(9, &last); err != raft.ErrLogNotFound {
		t.Fatalf("err %v", err)
	}
	_ = s.logs.DeleteRange(11, 20)
	if index, err := s.logs.LastIndex(); index != 10 || err != nil {
		t.Fatalf("an empty log ends at %d, err %v", index, err)
	}
}

func TestOutgoingStreamEndsBeforeTheStateIsSwapped(t *testing.T) {
	dir, sm := t.TempDir(), testMachine(t)
	s, _ := testStorage(t, dir, sm, nil)
	_ = s.logs.StoreLogs(entries(1, 5, 1))
	if _, err := sm.Apply([]Entry{{5, 1, []byte("add x")}}); err != nil {
		t.Fatal(err)
	}
	store := testSnapshots(s, dir, sm)
	if _, _, err := store.Open("1-5"); err == nil {
		t.Fatal("opened what is not there")
	}
	if err := store.keep((&record{index: 5, term: 1}).meta()); err != nil {
		t.Fatal(err)
	}
	meta, stream, err := store.Open("1-5")
	if err != nil || meta.Index != 5 || meta.Size == 0 || s.logs.held.Load() != 1 {
		t.Fatalf("%+v, held %d, err %v", meta, s.logs.held.Load(), err)
	}
	if _, err := stream.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if _, err := store.install(bytes.NewReader(nil)); err == nil {
		t.Fatal("installed nothing")
	}
	if _, err := io.ReadAll(stream); err == nil {
		t.Fatal("the stream goes on")
	}
	if err := stream.Close(); err != nil || s.logs.held.Load() != 0 {
		t.Fatalf("held %d, err %v", s.logs.held.Load(), err)
	}
}

// A snapshot that stops coming must not hold Raft's main loop for ever.
func TestStalledSnapshotIsGivenUp(t *testing.T) {
	dir, sm := t.TempDir(), testMachine(t)
	s, _ := testStorage(t, dir, sm, nil)
	store := testSnapshots(s, dir, sm)
	stalled := make(chan struct{})
	store.stall, store.onStall = 10*time.Millisecond, func() { close(stalled) }
	sink, _ := store.Create(1, 9, 1, raft.Configuration{}, 1, nil)
	if _, err := sink.Write([]byte("st")); err != nil {
		t.Fatal(err)
	}
	<-stalled
	if err := sink.Cancel(); err != nil {
		t.Fatal(err)
	}
}

func TestRecordSurvivesAsItWas(t *testing.T) {
	dir := t.TempDir()
	if r, err := loadRecord(dir); r != nil || err != nil {
		t.Fatal(r, err)
	}
	want := &record{index: 7, term: 3, serversIndex: 2, installed: true, servers: raft.Configuration{Servers: []raft.Server{
		{Suffrage: raft.Voter, ID: "a", Address: "a:1"}, {Suffrage: raft.Nonvoter, ID: "b", Address: "b:1"},
	}}}
	if err := want.save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := loadRecord(dir)
	if err != nil || !bytes.Equal(got.encode(), want.encode()) || len(got.servers.Servers) != 2 || !got.installed {
		t.Fatalf("%+v, err %v", got, err)
	}
	file := want.encode()
	for i := range file {
		damaged := bytes.Clone(file)
		damaged[i] ^= 0x10
		if _, err := decodeRecord(damaged); err == nil {
			t.Errorf("byte %d may change", i)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add((&record{index: 7, term: 3}).encode())
	f.Add(seal(nil, []byte(recordMagic+"0123456789012345678901234")))
	f.Fuzz(func(t *testing.T, file []byte) {
		r, err := decodeRecord(seal(nil, file))
		if (r == nil) == (err == nil) {
			t.Fatalf("%v, %v", r, err)
		}
	})
}
