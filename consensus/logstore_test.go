package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// testStorage opens storage without Raft, on an armed life.
func testStorage(t *testing.T, dir string, sm StateMachine, wrap func(diskLog) diskLog) (*storage, *life) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Dir, cfg.wrapLog, cfg.LogWriteTimeout = dir, wrap, 200*time.Millisecond
	l := newLife(func(error) {})
	s, err := openStorage(&cfg, sm, l)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.arm(func() {}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.disk.Close() })
	return s, l
}

func testMachine(t *testing.T) *diary {
	t.Helper()
	j, err := openDiary(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

// isolated runs f, which may end its goroutine.
func isolated(f func()) {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	<-done
}

func entries(from, to, term uint64) (logs []*raft.Log) {
	for i := from; i <= to; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "command %d", i), AppendedAt: time.Unix(1, 0)})
	}
	return logs
}

func TestLogKeepsWhatItIsGiven(t *testing.T) {
	s, _ := testStorage(t, t.TempDir(), testMachine(t), nil)
	logs := entries(1, 3, 7)
	logs[1].Data, logs[2].Type, logs[2].Extensions = nil, raft.LogConfiguration, []byte("more")
	if err := s.logs.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	if string(logs[0].Data) != "command 1" {
		t.Fatalf("the caller's entry was changed: %q", logs[0].Data)
	}
	for _, want := range logs {
		var got raft.Log
		if err := s.logs.GetLog(want.Index, &got); err != nil {
			t.Fatal(err)
		}
		if got.Term != want.Term || got.Type != want.Type || !bytes.Equal(got.Data, want.Data) || !bytes.Equal(got.Extensions, want.Extensions) || !got.AppendedAt.Equal(want.AppendedAt) {
			t.Errorf("got %+v, want %+v", got, *want)
		}
	}
	for _, index := range []uint64{0, 4} {
		if err := s.logs.GetLog(index, new(raft.Log)); err != raft.ErrLogNotFound {
			t.Errorf("log index %d: err %v", index, err)
		}
	}
	if !s.cache.IsMonotonic() {
		t.Error("Raft would not drop the log after a snapshot")
	}
}

// emptied returns the log once its journal is empty.
func emptied(t *testing.T, s *storage) *journaledLog {
	log := s.disk.diskLog.(*journaledLog)
	if err := log.empty(nil); err != nil {
		t.Fatal(err)
	}
	return log
}

func TestDamagedEntryIsFatal(t *testing.T) {
	damages := map[string]func(l *raft.Log){
		"a bit of the data":  func(l *raft.Log) { l.Data[3] ^= 4 },
		"a bit of the sum":   func(l *raft.Log) { l.Data[len(l.Data)-1] ^= 1 },
		"cut short":          func(l *raft.Log) { l.Data = l.Data[:2] },
		"the term":           func(l *raft.Log) { l.Term++ },
		"the type":           func(l *raft.Log) { l.Type = raft.LogNoop },
		"another log index":  func(l *raft.Log) { l.Index = 1; l.Data = l.Data[:len(l.Data)-1] },
		"something extended": func(l *raft.Log) { l.Extensions = []byte{1} },
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			s, life := testStorage(t, t.TempDir(), testMachine(t), nil)
			if err := s.logs.StoreLogs(entries(1, 3, 1)); err != nil {
				t.Fatal(err)
			}
			var raw raft.Log
			if err := s.disk.GetLog(2, &raw); err != nil {
				t.Fatal(err)
			}
			raw.Data = slices.Clone(raw.Data)
			damage(&raw)
			if err := emptied(t, s).BoltStore.StoreLogs([]*raft.Log{&raw}); err != nil {
				t.Fatal(err)
			}
			isolated(func() {
				_ = s.logs.GetLog(raw.Index, new(raft.Log))
				t.Error("a damaged entry was returned")
			})
			if err := life.failure(); !errors.Is(err, ErrChecksum) {
				t.Errorf("err %v", err)
			}
		})
	}
}

func TestHoleInTheLogIsFatal(t *testing.T) {
	s, life := testStorage(t, t.TempDir(), testMachine(t), nil)
	if err := s.logs.StoreLogs(entries(1, 3, 1)); err != nil {
		t.Fatal(err)
	}
	if err := s.disk.DeleteRange(2, 2); err != nil {
		t.Fatal(err)
	}
	isolated(func() {
		_ = s.logs.GetLog(2, new(raft.Log))
		t.Error("a missing entry passed for one that was cut off")
	})
	if err := life.failure(); !errors.Is(err, ErrChecksum) {
		t.Errorf("err %v", err)
	}
}

// Cutting the log at either end while it is read is no hole.
func TestReadingWhileTheLogIsCut(t *testing.T) {
	s, life := testStorage(t, t.TempDir(), testMachine(t), nil)
	if err := s.logs.StoreLogs(entries(1, 500, 1)); err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for i := uint64(1); i <= 200; i += 10 {
			_ = s.logs.DeleteRange(i, i+9)
		}
	})
	running.Go(func() {
		for i := uint64(500); i > 300; i -= 10 {
			_ = s.logs.DeleteRange(i-9, i)
		}
	})
	for range 20 {
		for i := uint64(1); i <= 500; i += 7 {
			isolated(func() { _ = s.logs.GetLog(i, new(raft.Log)) })
		}
	}
	running.Wait()
	if err := life.failure(); err != nil {
		t.Fatal(err)
	}
}

// After each piece of a deletion the log must be whole: a crash may follow.
func TestDeletionNeverLeavesAGap(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		first := 1 + random.Uint64N(5000)
		last := first + random.Uint64N(5000)
		from, to := random.Uint64N(first+1), first+random.Uint64N(6000) // the front
		if random.IntN(2) == 0 {
			from, to = first+random.Uint64N(last-first+1), last+random.Uint64N(10) // the back
		}
		wantFirst, wantLast := first, last
		switch {
		case from <= first && to >= last:
			wantFirst, wantLast = 0, 0
		case from <= first:
			wantFirst = max(first, to+1)
		case to >= last:
			wantLast = from - 1
		default:
			continue // Raft never deletes in the middle
		}
		for pieces := 0; ; pieces++ {
			d, ok := nextDelete(first, last, from, to)
			if !ok {
				break
			}
			if d.to-d.from >= deleteChunk || pieces > 12 {
				t.Fatalf("piece [%d, %d], number %d", d.from, d.to, pieces)
			}
			switch {
			case d.from == first && d.to == last:
				first, last = 0, 0
			case d.from == first:
				first = d.to + 1
			case d.to == last:
				last = d.from - 1
			default:
				t.Fatalf("deleting [%d, %d] leaves a gap in [%d, %d]", d.from, d.to, first, last)
			}
		}
		if first != wantFirst || last != wantLast {
			t.Fatalf("left [%d, %d], want [%d, %d]", first, last, wantFirst, wantLast)
		}
	}
}

func TestFrontStaysWhileASnapshotIsSent(t *testing.T) {
	s, _ := testStorage(t, t.TempDir(), testMachine(t), nil)
	if err := s.logs.StoreLogs(entries(1, 100, 1)); err != nil {
		t.Fatal(err)
	}
	check := func(wantFirst, wantLast uint64) {
		t.Helper()
		first, _ := s.logs.FirstIndex()
		last, _ := s.logs.LastIndex()
		if first != wantFirst || last != wantLast {
			t.Fatalf("[%d, %d], want [%d, %d]", first, last, wantFirst, wantLast)
		}
	}
	s.logs.held.Add(1)
	_ = s.logs.DeleteRange(1, 50)
	check(1, 100)
	_ = s.logs.DeleteRange(91, 100) // entries that the new leader does not have must go
	check(1, 90)
	s.logs.held.Add(-1)
	_ = s.logs.DeleteRange(1, 50)
	check(51, 90)
	_ = s.logs.DeleteRange(0, 90)
	check(0, 0)
}

// A crash between the halves of a vote leaves a vote for nobody.
func TestTornVote(t *testing.T) {
	s, _ := testStorage(t, t.TempDir(), testMachine(t), nil)
	_ = s.stable.SetUint64([]byte(voteTermKey), 1)
	_ = s.stable.Set([]byte(voteCandidateKey), []byte("n1"))
	_ = s.stable.SetUint64([]byte(voteTermKey), 2)
	if candidate, err := s.stable.Get([]byte(voteCandidateKey)); err != nil || string(candidate) != nobody {
		t.Errorf("the vote in the new term is for %q (%v)", candidate, err)
	}
}

func TestStableStore(t *testing.T) {
	s, life := testStorage(t, t.TempDir(), testMachine(t), nil)
	if _, err := s.stable.GetUint64([]byte("n")); err == nil || err.Error() != "not found" {
		t.Fatalf("err %v: Raft compares the text", err)
	}
	_ = s.stable.SetUint64([]byte("n"), 42)
	_ = s.stable.Set([]byte("k"), nil)
	if n, err := s.stable.GetUint64([]byte("n")); n != 42 || err != nil {
		t.Fatal(n, err)
	}
	if v, err := s.stable.Get([]byte("k")); len(v) != 0 || err != nil {
		t.Fatal(v, err)
	}
	raw, _ := s.disk.Get([]byte("n"))
	if err := s.disk.Set([]byte("m"), raw); err != nil { // a right value under a wrong key
		t.Fatal(err)
	}
	isolated(func() {
		_, _ = s.stable.GetUint64([]byte("m"))
		t.Error("a damaged value was returned")
	})
	if err := life.failure(); !errors.Is(err, ErrChecksum) {
		t.Errorf("err %v", err)
	}
}

// faultyLog hangs or fails on demand, from the given moment on.
type faultyLog struct {
	diskLog
	err  atomic.Pointer[error]
	hang atomic.Pointer[chan struct{}]
}

func (f *faultyLog) fault() error {
	if hang := f.hang.Load(); hang != nil {
		<-*hang
	}
	if err := f.err.Load(); err != nil {
		return *err
	}
	return nil
}

func (f *faultyLog) StoreLogs(logs []*raft.Log) error {
	return errors.Join(f.fault(), f.diskLog.StoreLogs(logs))
}

func (f *faultyLog) DeleteRange(from, to uint64) error {
	return errors.Join(f.fault(), f.diskLog.DeleteRange(from, to))
}

func (f *faultyLog) Set(key, value []byte) error {
	return errors.Join(f.fault(), f.diskLog.Set(key, value))
}

func TestFailedWriteNeverReturns(t *testing.T) {
	writes := map[string]func(s *storage){
		"append": func(s *storage) { _ = s.logs.StoreLog(entries(2, 2, 1)[0]) },
		"delete": func(s *storage) { _ = s.logs.DeleteRange(1, 1) },
		"set":    func(s *storage) { _ = s.stable.SetUint64([]byte("n"), 1) },
	}
	eio := errors.New("input/output error")
	for name, write := range writes {
		for _, hangs := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s hangs=%v", name, hangs), func(t *testing.T) {
				faulty := &faultyLog{}
				s, life := testStorage(t, t.TempDir(), testMachine(t), func(d diskLog) diskLog { faulty.diskLog = d; return faulty })
				_ = s.logs.StoreLogs(entries(1, 1, 1))
				want, release := eio, make(chan struct{})
				if hangs {
					want = ErrLogWriteTimeout
					faulty.hang.Store(&release)
				} else {
					faulty.err.Store(&eio)
				}
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					write(s)
					t.Error("the write returned")
				}()
				eventually(t, "the failure", func() bool { return life.failure() != nil })
				close(release)
				<-ended
				if err := life.failure(); !errors.Is(err, want) {
					t.Errorf("err %v, want %v", err, want)
				}
			})
		}
	}
}

// faulty gives one node of a cluster a log that can be made to fail.
func faulty(id string, f *faultyLog) func(cfg *Config) {
	return func(cfg *Config) {
		cfg.LogWriteTimeout = 500 * time.Millisecond
		if cfg.NodeID == id {
			cfg.wrapLog = func(d diskLog) diskLog { f.diskLog = d; return f }
		}
	}
}

// Heartbeats alone would keep a leader with a hung disk in office for ever.
func TestHungDiskUnderTheLeader(t *testing.T) {
	log := &faultyLog{}
	c := form(t, 3, faulty("n1", log))
	leader, follower := c.leader(), c.nodes["n2"]
	if leader.id != "n1" {
		t.Fatalf("%s leads", leader.id)
	}
	release := make(chan struct{})
	log.hang.Store(&release)
	c.insist(follower, "add x")
	leader.mustFail(t, ErrLogWriteTimeout)
	close(release)
	log.hang.Store(nil)
	leader.kill()
	c.configure = nil
	c.start("n1")
	c.agree()
}

func TestFailedDiskUnderAFollower(t *testing.T) {
	log := &faultyLog{}
	c := form(t, 3, faulty("n3", log))
	eio := errors.New("input/output error")
	log.err.Store(&eio)
	c.insist(c.nodes["n2"], "add x")
	c.nodes["n3"].mustFail(t, eio)
	c.nodes["n3"].kill()
	c.configure = nil
	c.start("n3")
	c.insist(c.nodes["n3"], "add x")
	c.agree()
}

// An error of the state machine is never an answer to a command.
func TestFailedApply(t *testing.T) {
	c := form(t, 1, nil)
	node := c.nodes["n1"]
	if _, _, err := node.Propose(c.ctx(), []byte("fail")); !errors.Is(err, ErrOutcomeUnknown) {
		t.Fatalf("err %v", err)
	}
	node.mustFail(t, nil)
	if err := node.ReadIndex(c.ctx()); !errors.Is(err, ErrNoQuorum) {
		t.Fatalf("err %v", err)
	}
}

func TestDamagedLogIsFoundAtStart(t *testing.T) {
	c := form(t, 1, nil)
	for range 5 {
		c.propose(c.nodes["n1"], "add x")
	}
	c.nodes["n1"].kill()
	db, err := openLog(filepath.Join(c.dir, "n1", "raft"))
	if err != nil {
		t.Fatal(err)
	}
	var raw raft.Log
	if err := db.GetLog(4, &raw); err != nil {
		t.Fatal(err)
	}
	raw.Data[0] ^= 1
	if err := errors.Join(db.StoreLog(&raw), db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.open("n1"); !errors.Is(err, ErrChecksum) {
		t.Fatalf("err %v", err)
	}
}
