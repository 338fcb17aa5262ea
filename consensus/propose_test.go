package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/atollregistry/atoll/proto"
)

func TestProposeFromEveryNode(t *testing.T) {
	c := form(t, 3, nil)
	for i, id := range c.ids() {
		result, index, err := c.nodes[id].Propose(c.ctx(), []byte("add x"))
		if err != nil || string(result) != fmt.Sprint(i+1) || index == 0 {
			t.Fatalf("propose on %s: %q at %d, err %v", id, result, index, err)
		}
		for _, other := range c.ids() {
			if err := c.nodes[other].ReadIndex(c.ctx()); err != nil {
				t.Fatal(err)
			}
			if got := c.nodes[other].machine.count("x"); got != i+1 {
				t.Fatalf("after ReadIndex %s has %d of %d", other, got, i+1)
			}
		}
	}
	c.agree()
}

func TestConcurrentProposers(t *testing.T) {
	c := form(t, 3, nil)
	const proposers, each = 64, 10
	var running sync.WaitGroup
	for i := range proposers {
		node := c.nodes[c.ids()[i%3]]
		running.Go(func() {
			for n := range each {
				result, _, err := node.Propose(c.ctx(), fmt.Appendf(nil, "add p%d", i))
				if err != nil || string(result) != fmt.Sprint(n+1) {
					t.Errorf("proposer %d: %q, %v", i, result, err)
				}
				if err := node.ReadIndex(c.ctx()); err != nil {
					t.Errorf("proposer %d: %v", i, err)
				}
				if got := node.machine.count(fmt.Sprintf("p%d", i)); got != n+1 {
					t.Errorf("proposer %d reads %d of its own %d", i, got, n+1)
				}
			}
		})
	}
	running.Wait()
	c.agree()
}

func TestProposeRefusesWhatCantBeACommand(t *testing.T) {
	c := form(t, 1, nil)
	for _, command := range [][]byte{nil, make([]byte, maxCommandBytes+1)} {
		if _, _, err := c.nodes["n1"].Propose(c.ctx(), command); !errors.Is(err, ErrCommandRefused) {
			t.Errorf("a command of %d bytes: %v", len(command), err)
		}
	}
}

// What the state machine does not know does not get into the log, whoever proposes it:
// it would end every node.
func TestForwardedCommandsAreChecked(t *testing.T) {
	c := form(t, 3, nil)
	for _, node := range append(c.followers(), c.leader()) {
		if _, _, err := node.Propose(c.ctx(), []byte(noCommand)); !errors.Is(err, ErrCommandRefused) {
			t.Errorf("proposed by %s: %v", node.id, err)
		}
		for _, command := range [][]byte{nil, []byte(noCommand)} { // a node that checks nothing itself
			_, err := (&service{replica: c.leader().Replica}).Propose(c.ctx(), &proto.ProposeRequest{Command: command})
			if !errors.Is(fromStatus(err), ErrCommandRefused) {
				t.Errorf("forwarded %q: %v", command, err)
			}
		}
	}
	if _, _, err := c.followers()[0].Propose(c.ctx(), []byte("add x")); err != nil {
		t.Errorf("and then a good one: %v", err)
	}
	c.agree()
}

// No acknowledged command may be lost, and each that was proposed once is applied
// at most once, while leaders die one after the other.
func TestLeaderKilledUnderLoad(t *testing.T) {
	c := form(t, 3, nil)
	type proposer struct{ acknowledged, unknown int }
	const proposers = 2*maxAppendEntries + 22 // more than one group
	counts := make([]proposer, proposers)
	var running sync.WaitGroup
	stop := make(chan struct{})
	survivor := c.followers()[0]
	for i := range counts {
		running.Go(func() {
			for !isClosed(stop) {
				_, _, err := survivor.Propose(c.ctx(), fmt.Appendf(nil, "add p%d", i))
				switch {
				case err == nil:
					counts[i].acknowledged++
				case errors.Is(err, ErrOutcomeUnknown):
					counts[i].unknown++
				case !errors.Is(err, ErrNoLeader):
					t.Errorf("unexpected error: %v", err)
				}
			}
		})
	}
	for range 3 {
		leader := c.leader()
		eventually(t, "some load", func() bool { return survivor.applied.index() > leader.applied.index()/2 })
		if leader == survivor {
			if err := leader.TransferLeadership(c.ctx()); err != nil {
				t.Fatal(err)
			}
			continue
		}
		before := survivor.applied.index()
		leader.kill()
		eventually(t, "progress without the old leader", func() bool { return survivor.applied.index() > before+20 })
		c.start(leader.id)
	}
	close(stop)
	running.Wait()
	c.agree()
	for i, p := range counts {
		got := survivor.machine.count(fmt.Sprintf("p%d", i))
		if got < p.acknowledged || got > p.acknowledged+p.unknown {
			t.Errorf("proposer %d: %d applied, %d acknowledged, %d unknown", i, got, p.acknowledged, p.unknown)
		}
		if p.acknowledged == 0 {
			t.Errorf("proposer %d: nothing acknowledged", i)
		}
	}
}

// A leader that is dead and known to be so was definitely not asked.
func TestProposeWaitsForALeader(t *testing.T) {
	c := form(t, 3, nil)
	leader, follower := c.leader(), c.followers()[0]
	leader.kill()
	if _, _, err := follower.Propose(c.ctx(), []byte("add x")); err != nil {
		t.Fatalf("the election was not hidden: %v", err)
	}
	c.agree()
}

func TestProposeWithoutQuorum(t *testing.T) {
	c := form(t, 3, func(cfg *Config) { cfg.ProposeTimeout, cfg.ReadTimeout = time.Second, time.Second })
	followers := c.followers()
	last := c.leader()
	followers[0].kill()
	followers[1].kill()
	eventually(t, "the leader steps down", func() bool { return !last.IsLeader() })
	if _, _, err := last.Propose(context.Background(), []byte("add x")); !errors.Is(err, ErrNoLeader) {
		t.Fatalf("err %v, want ErrNoLeader", err)
	}
	if err := last.ReadIndex(context.Background()); !errors.Is(err, ErrNoQuorum) {
		t.Fatalf("err %v, want ErrNoQuorum", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := last.ReadIndex(ctx); !errors.Is(err, ErrNoQuorum) || !errors.Is(err, context.Canceled) {
		t.Fatalf("err %v, want ErrNoQuorum because of a cancelled context", err)
	}
	c.start(followers[0].id)
	if got := c.propose(last, "add x"); got != "1" {
		t.Fatalf("what was refused for certain was applied: count %s", got)
	}
}

// What the cut-off leader took has an unknown outcome, and it says so.
func TestOutcomeUnknownOnACutOffLeader(t *testing.T) {
	c := form(t, 3, nil)
	leader := c.leader()
	c.network.partition(c.ids(), without(c.ids(), leader.id))
	if _, _, err := leader.Propose(c.ctx(), []byte("add x")); !errors.Is(err, ErrOutcomeUnknown) {
		t.Fatalf("err %v, want ErrOutcomeUnknown", err)
	}
	eventually(t, "the others elect", func() bool {
		id, _ := c.nodes[without(c.ids(), leader.id)[0]].Leader()
		return id != "" && id != leader.id
	})
	c.network.heal()
	c.agree()
}

// A follower that was waiting for a leader now cut off gives up as soon as there
// is another, not at its deadline.
func TestForwardedProposalEndsWithTheLeader(t *testing.T) {
	c := form(t, 3, nil)
	leader, follower := c.leader(), c.followers()[0]
	c.propose(follower, "add warm") // the connection stands
	c.network.partition(c.ids(), without(c.ids(), leader.id))
	begin := time.Now()
	_, _, err := follower.Propose(c.ctx(), []byte("add x"))
	if err != nil && !errors.Is(err, ErrOutcomeUnknown) {
		t.Fatalf("err %v", err)
	}
	if took := time.Since(begin); took > follower.cfg.ProposeTimeout/2 {
		t.Fatalf("it took %s", took)
	}
	c.network.heal()
	c.agree()
}

func without(ids []string, id string) []string {
	var rest []string
	for _, other := range ids {
		if other != id {
			rest = append(rest, other)
		}
	}
	return rest
}
