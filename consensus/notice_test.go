package consensus

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// taciturn leaders tell their followers only with the next entries what is committed, or after longer than a test takes.
func taciturn(cfg *Config) { cfg.CommitTimeout = 2 * testTimeout }

// A read on a follower does not wait for the leader to tell what is committed: the answer to the read says it.
func TestReadsBringCommitIndex(t *testing.T) {
	for _, voters := range []int{3, 5} {
		c := form(t, voters, taciturn)
		for i, node := range c.followers() {
			for range 5 {
				c.propose(c.leader(), "add x")
				began := time.Now()
				if err := node.ReadIndex(c.ctx()); err != nil {
					t.Fatal(err)
				}
				t.Logf("%d voters: %s reads after %s", voters, node.id, time.Since(began))
			}
			if count := node.machine.count("x"); count != 5*(i+1) {
				t.Errorf("%s counts %d, want %d", node.id, count, 5*(i+1))
			}
		}
	}
}

// A notice of an entry that is on its way is kept until it is there. One of another term or leader is none.
func TestNoticeWaitsForItsEntry(t *testing.T) {
	c := form(t, 3, taciturn)
	leader, node := c.leader(), c.followers()[0]
	c.propose(leader, "add x")
	if err := node.ReadIndex(c.ctx()); err != nil {
		t.Fatal(err)
	}
	term, last := leader.raft.CurrentTerm(), leader.raft.LastIndex()
	told := notice{leader: raft.ServerID(leader.id), address: raft.ServerAddress(leader.address), term: term, index: last + 1}
	wrong := []notice{told, told}
	wrong[0].term--
	wrong[1].leader = raft.ServerID(node.id)
	for _, notice := range wrong {
		node.notices.note(notice)
		eventually(t, "the notice is forgotten", func() bool { return node.notices.index() == 0 })
	}
	node.notices.note(told)
	if node.raft.CommitIndex() > last {
		t.Error("what nobody has is committed")
	}
	c.propose(leader, "add x")
	eventually(t, "the entry is applied", func() bool { return node.machine.count("x") == 2 })
	if index := node.notices.index(); index != 0 {
		t.Errorf("a notice of %d is still there", index)
	}
}

// index is that of the notice that waits.
func (n *notices) index() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.newest.index
}

// Raft takes no notice of an entry that is not in its log, or there of another term.
func TestRaftChecksNotices(t *testing.T) {
	c := form(t, 3, taciturn)
	first := c.leader()
	c.propose(first, "add x")
	before := first.raft.LastIndex()
	if err := first.TransferLeadership(c.ctx()); err != nil {
		t.Fatal(err)
	}
	leader := c.leader()
	c.insist(leader, "add x")
	node := c.followers()[0]
	if err := node.ReadIndex(c.ctx()); err != nil {
		t.Fatal(err)
	}
	c.network.partition(c.ids(), []string{node.id}, c.others(node))
	// Nobody tells this node of what the leader has from here on.
	c.insist(leader, "add x")
	committed, last := node.raft.CommitIndex(), node.raft.LastIndex()
	for _, index := range []uint64{before, last + 1, last + 1000} {
		told := notice{leader: raft.ServerID(leader.id), address: raft.ServerAddress(leader.address), term: node.raft.CurrentTerm(), index: index}
		node.notices.tell(told)
		if now := node.raft.CommitIndex(); now != committed {
			t.Errorf("told of %d, the node takes %d for committed, not %d", index, now, committed)
		}
	}
	c.network.heal()
	eventually(t, "the node reads again", func() bool {
		c.insist(c.leader(), "add x") // such a leader has to have something to send
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return node.ReadIndex(ctx) == nil
	})
	if got, want := node.machine.dump(), c.leader().machine.dump(); got != want {
		t.Errorf("the node has %q, the leader %q", got, want)
	}
}

// others are the ids of all other nodes.
func (c *cluster) others(node *testNode) (ids []string) {
	for _, id := range c.ids() {
		if id != node.id {
			ids = append(ids, id)
		}
	}
	return ids
}
