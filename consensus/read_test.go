package consensus

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// patient makes n3 a leader that believes in itself for long after it is cut off,
// as one does that was stopped and goes on.
func patient(cfg *Config) {
	cfg.MaxVoters = 3
	cfg.ReadTimeout = time.Second
	if cfg.NodeID == "n3" {
		cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaderLease = time.Minute, time.Minute, time.Minute
	}
}

// The ex-leader has all non-voters on its side, which the library's own check
// would count.
func TestStaleLeaderServesNoReads(t *testing.T) {
	c := form(t, 3, patient)
	stale := c.nodes["n3"]
	if err := c.leader().raft.LeadershipTransferToServer("n3", raft.ServerAddress(stale.address)).Error(); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"n4", "n5"} {
		c.start(id)
		c.add(id)
	}
	voters, others := []string{"n1", "n2"}, []string{"n3", "n4", "n5"}
	follower := c.nodes[others[len(others)-1]]
	if err := follower.ReadIndex(c.ctx()); err != nil {
		t.Fatal(err)
	}
	c.network.partition(c.ids(), voters, others)
	c.insist(c.nodes["n1"], "add x") // the other side has to elect first
	if !stale.IsLeader() {
		t.Fatal("the old leader has stepped down, so this shows nothing")
	}
	if err := stale.raft.VerifyLeader().Error(); err != nil {
		t.Logf("the library's check has learned: %v", err)
	}
	for _, node := range []*testNode{stale, follower} {
		if err := node.ReadIndex(context.Background()); !errors.Is(err, ErrNoQuorum) {
			t.Fatalf("%s serves a stale read: err %v", node.id, err)
		}
		if node.machine.count("x") != 0 {
			t.Fatalf("%s has what it can't have", node.id)
		}
	}
	c.network.heal()
	eventually(t, "the old leader follows", func() bool { return !stale.IsLeader() })
	if err := stale.ReadIndex(c.ctx()); err != nil || stale.machine.count("x") == 0 {
		t.Fatalf("count %d, err %v", stale.machine.count("x"), err)
	}
	c.agree()
}

// A voter that answers under another id, or from another term, does not confirm.
func TestConfirmNeedsAMajorityOfTheTerm(t *testing.T) {
	c := form(t, 3, nil)
	leader := c.leader()
	term := leader.raft.CurrentTerm()
	if err := leader.confirm(c.ctx(), term); err != nil {
		t.Fatal(err)
	}
	if err := leader.confirm(c.ctx(), term+1); !errors.Is(err, ErrNoQuorum) {
		t.Fatalf("err %v", err)
	}
	servers := leader.servers()
	for _, server := range servers {
		if string(server.ID) == leader.id {
			continue
		}
		if err := leader.askTerm(c.ctx(), server, term); err != nil {
			t.Fatal(err)
		}
		server.ID = "another"
		if err := leader.askTerm(c.ctx(), server, term); err == nil {
			t.Fatal("an answer of another node counts")
		}
	}
}

// A voter that asks confirms the term that it was in, where that makes a majority, and nobody else does.
func TestWitnessedIndex(t *testing.T) {
	c := form(t, 3, nil)
	leader, follower := c.leader(), c.followers()[0]
	c.propose(leader, "add x")
	term := leader.raft.CurrentTerm()
	if index := leader.witnessedIndex(follower.id, term); index < leader.raft.CommitIndex() {
		t.Errorf("log index %d for a voter of the term", index)
	}
	for name, index := range map[string]uint64{
		"of an older term":    leader.witnessedIndex(follower.id, term-1),
		"of a later term":     leader.witnessedIndex(follower.id, term+1),
		"of software before":  leader.witnessedIndex("", 0),
		"that does not vote":  leader.witnessedIndex("another", term),
		"that is the leader":  leader.witnessedIndex(leader.id, term),
		"that asks no leader": follower.witnessedIndex(leader.id, term),
	} {
		if index != 0 {
			t.Errorf("log index %d for a node %s", index, name)
		}
	}
	five := form(t, 5, nil)
	leader = five.leader()
	if index := leader.witnessedIndex(five.followers()[0].id, leader.raft.CurrentTerm()); index != 0 {
		t.Errorf("log index %d by two of five", index)
	}
}

// The leader asks no more voters than it needs, and others soon if those don't answer.
func TestConfirmAsksAnother(t *testing.T) {
	c := form(t, 3, nil)
	leader, followers := c.leader(), c.followers()
	if err := leader.ReadIndex(c.ctx()); err != nil {
		t.Fatal(err)
	}
	for i, gone := range followers {
		c.network.partition(c.ids(), []string{gone.id}, []string{leader.id, followers[1-i].id})
		began := time.Now()
		if err := leader.ReadIndex(c.ctx()); err != nil {
			t.Errorf("without %s: %v", gone.id, err)
		}
		if took := time.Since(began); took > leader.cfg.ConfirmTimeout {
			t.Errorf("without %s a read took %s", gone.id, took)
		}
		c.network.heal()
	}
}

func TestReadsGoOnThroughAnElection(t *testing.T) {
	c := form(t, 3, nil)
	survivor := c.followers()[0]
	leader := c.leader()
	c.propose(survivor, "add x")
	leader.kill()
	if err := survivor.ReadIndex(c.ctx()); err != nil {
		t.Fatal(err)
	}
}

func TestRoundsAreSharedAndNeverStale(t *testing.T) {
	var asked atomic.Uint64
	begun, goOn := make(chan struct{}), make(chan struct{})
	s := newRounds(testTimeout, func(context.Context) (uint64, error) {
		n := asked.Add(1)
		begun <- struct{}{}
		<-goOn
		return n, nil
	})
	var running sync.WaitGroup
	join := func(want uint64) {
		running.Go(func() {
			if got, err := s.join(context.Background()); got < want || err != nil {
				t.Errorf("round %d, err %v, want round %d or later", got, err, want)
			}
		})
	}
	join(1)
	<-begun // who comes from here on must not get the first answer
	waiting := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.next != nil
	}
	for range 10 {
		join(2)
	}
	eventually(t, "others wait", waiting)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.join(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("err %v", err)
	}
	goOn <- struct{}{}
	<-begun
	goOn <- struct{}{}
	// Whoever of the ten was slow to come has a round of its own.
	finished := make(chan struct{})
	go func() { running.Wait(); close(finished) }()
	for done := false; !done; {
		select {
		case <-begun:
			goOn <- struct{}{}
		case <-finished:
			done = true
		}
	}
	if n := asked.Load(); n > 6 {
		t.Errorf("%d rounds for eleven calls", n)
	}
	s.close()
	if _, err := s.join(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("err %v", err)
	}
}

func TestProgress(t *testing.T) {
	p := newProgress(3)
	if err := p.wait(context.Background(), 3); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.wait(ctx, 4); !errors.Is(err, context.Canceled) {
		t.Fatalf("err %v", err)
	}
	done := make(chan error)
	go func() { done <- p.wait(context.Background(), 5) }()
	p.advance(4)
	p.advance(2)
	p.advance(5)
	if err := <-done; err != nil || p.index() != 5 {
		t.Fatalf("index %d, err %v", p.index(), err)
	}
}
