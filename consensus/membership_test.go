package consensus

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
)

func (c *cluster) votersAre(what string, ids ...string) {
	c.t.Helper()
	var now []string
	eventually(c.t, what, func() bool {
		now = now[:0]
		for _, m := range c.leader().Status().Members {
			if m.Voter {
				now = append(now, m.ID)
			}
		}
		return slices.Equal(now, ids)
	})
}

func TestVotersAreCappedAndReplaced(t *testing.T) {
	c := form(t, 3, func(cfg *Config) {
		cfg.MaxVoters, cfg.ReplaceVoterAfter = 3, 500*time.Millisecond
	})
	c.start("n4")
	c.add("n4")
	eventually(t, "n4 keeps up", func() bool {
		for _, m := range c.leader().Status().Members {
			if m.ID == "n4" && m.Healthy && m.LastLogIndex > 0 && m.LastContact >= 0 {
				return true
			}
		}
		return false
	})
	c.votersAre("n4 has no vote", "n1", "n2", "n3")
	c.insist(c.nodes["n4"], "add x") // a node without a vote serves all the same
	if err := c.nodes["n4"].ReadIndex(c.ctx()); err != nil {
		t.Fatal(err)
	}
	gone := c.followers()[0].id
	c.nodes[gone].kill()
	want := without([]string{"n1", "n2", "n3", "n4"}, gone)
	c.votersAre("n4 has the vote of "+gone, want...)
	c.start(gone)
	c.insist(c.nodes[gone], "add x")
	c.votersAre(gone+" comes back without one", want...)
	c.agree()
}

func TestAddAndRemoveNodes(t *testing.T) {
	c := form(t, 3, nil)
	leader := c.leader()
	follower := c.followers()[0]
	if err := follower.AddNode(c.ctx(), "n9", "127.0.0.1:1"); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("a follower adds nodes: %v", err)
	}
	if err := leader.AddNode(c.ctx(), follower.id, follower.address); err != nil {
		t.Fatalf("adding a member again: %v", err)
	}
	if err := leader.AddNode(c.ctx(), "n9", follower.address); err == nil {
		t.Fatal("two nodes have one address")
	}
	if err := leader.RemoveNode(c.ctx(), "n9"); err != nil {
		t.Fatalf("removing a stranger: %v", err)
	}
	if err := leader.RemoveNode(c.ctx(), follower.id); err != nil {
		t.Fatal(err)
	}
	// A wiped node comes back under another id at its old address.
	address := follower.address
	follower.kill()
	delete(c.nodes, follower.id)
	c.nodes["n4"] = &testNode{address: address}
	c.start("n4")
	c.add("n4")
	c.votersAre("n4 votes", append(without([]string{"n1", "n2", "n3"}, follower.id), "n4")...)
	c.insist(c.nodes["n4"], "add x")
	c.agree()
}

// Autopilot decides on what it saw a moment ago, and must not undo what happened
// since.
func TestAutopilotCantUndo(t *testing.T) {
	c := form(t, 3, nil)
	leader, follower := c.leader(), c.followers()[0]
	guard := guardedRaft{leader.Replica}
	if err := leader.RemoveNode(c.ctx(), follower.id); err != nil {
		t.Fatal(err)
	}
	if err := guard.AddVoter(raft.ServerID(follower.id), raft.ServerAddress(follower.address), 0, 0).Error(); err == nil {
		t.Fatal("a removed node has a vote again")
	}
	if err := guard.DemoteVoter(raft.ServerID(follower.id), 0, 0).Error(); err == nil {
		t.Fatal("a removed node lost a vote")
	}
	for _, err := range []error{
		guard.RemoveServer("n1", 0, 0).Error(), guard.AddNonvoter("n1", "a", 0, 0).Error(), guard.LeadershipTransferToServer("n1", "a").Error(),
	} {
		if !errors.Is(err, errNotForAutopilot) {
			t.Errorf("err %v", err)
		}
	}
}

func TestPromoter(t *testing.T) {
	now := time.Unix(1000, 0)
	p := &promoter{maxVoters: 3, replaceAfter: time.Minute, now: func() time.Time { return now }}
	server := func(state autopilot.RaftState, healthy bool, since time.Duration) *autopilot.ServerState {
		return &autopilot.ServerState{State: state, Health: autopilot.ServerHealth{Healthy: healthy, StableSince: now.Add(-since)}}
	}
	const leader, voter, non = autopilot.RaftLeader, autopilot.RaftVoter, autopilot.RaftNonVoter
	tests := []struct {
		name             string
		servers          map[raft.ServerID]*autopilot.ServerState
		promote, demoted []raft.ServerID
	}{
		{"room for one of two", map[raft.ServerID]*autopilot.ServerState{
			"a": server(leader, true, time.Hour), "b": server(voter, true, time.Hour),
			"d": server(non, true, time.Hour), "c": server(non, true, time.Hour),
		}, []raft.ServerID{"c"}, nil},
		{"too young", map[raft.ServerID]*autopilot.ServerState{
			"a": server(leader, true, time.Hour), "b": server(non, true, time.Second),
		}, nil, nil},
		{"unwell", map[raft.ServerID]*autopilot.ServerState{
			"a": server(leader, true, time.Hour), "b": server(non, false, time.Hour),
		}, nil, nil},
		{"full", map[raft.ServerID]*autopilot.ServerState{
			"a": server(leader, true, time.Hour), "b": server(voter, true, time.Hour), "c": server(voter, false, time.Second),
			"d": server(non, true, time.Hour),
		}, nil, nil},
		{"the longest gone gives way", map[raft.ServerID]*autopilot.ServerState{
			"a": server(leader, true, time.Hour), "b": server(voter, false, 2*time.Minute), "c": server(voter, false, 3*time.Minute),
			"d": server(non, true, time.Hour),
		}, nil, []raft.ServerID{"c"}},
		{"nobody to take over", map[raft.ServerID]*autopilot.ServerState{
			"a": server(leader, true, time.Hour), "b": server(voter, true, time.Hour), "c": server(voter, false, time.Hour),
		}, nil, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			state := &autopilot.State{Servers: test.servers}
			for id, s := range test.servers {
				if s.State != non {
					state.Voters = append(state.Voters, id)
				}
			}
			got := p.CalculatePromotionsAndDemotions(&autopilot.Config{ServerStabilizationTime: 10 * time.Second}, state)
			if !slices.Equal(got.Promotions, test.promote) || !slices.Equal(got.Demotions, test.demoted) || got.Leader != "" {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestTransferLeadership(t *testing.T) {
	c := form(t, 3, nil)
	old := c.leader()
	dead := c.followers()[0]
	if err := dead.TransferLeadership(c.ctx()); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("err %v", err)
	}
	dead.kill() // the library alone might choose it
	if err := old.TransferLeadership(c.ctx()); err != nil {
		t.Fatal(err)
	}
	if heir := c.leader(); heir == old || heir == dead {
		t.Fatalf("%s leads", heir.id)
	}
	c.insist(old, "add x")
	c.agree()
}

func TestHandoverStuck(t *testing.T) {
	var h handover
	refusal := appendError(raft.ErrLeadershipTransferInProgress)
	if h.isStuck(refusal, time.Hour) {
		t.Error("at the first refusal")
	}
	if !h.isStuck(refusal, 0) {
		t.Error("not when it goes on")
	}
	h.begin()
	if h.isStuck(refusal, 0) {
		t.Error("while leadership is being handed over")
	}
	h.end()
	if h.isStuck(refusal, time.Hour) || h.isStuck(nil, 0) {
		t.Error("after it was handed over")
	}
}

func TestWhileLeader(t *testing.T) {
	c := form(t, 3, nil)
	type event struct {
		id   string
		lead bool
	}
	events := make(chan event, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 3)
	for _, node := range c.nodes {
		go func() {
			ended <- node.WhileLeader(ctx, func(ctx context.Context) {
				events <- event{node.id, true}
				<-ctx.Done()
				events <- event{node.id, false}
			})
		}()
	}
	leader := c.leader()
	if e := <-events; e != (event{leader.id, true}) {
		t.Fatalf("%+v, %s leads", e, leader.id)
	}
	if err := leader.TransferLeadership(c.ctx()); err != nil {
		t.Fatal(err)
	}
	heir := c.leader()
	seen := []event{<-events, <-events}
	if !slices.Contains(seen, event{leader.id, false}) || !slices.Contains(seen, event{heir.id, true}) {
		t.Fatalf("%+v", seen)
	}
	cancel()
	for range 3 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if e := <-events; e != (event{heir.id, false}) {
		t.Fatalf("%+v", e)
	}
}
