package consensus

import (
	"cmp"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// Status is what a replica knows of itself and its group. Log indexes of other
// nodes are known on the leader only.
type Status struct {
	// NodeID is this node.
	NodeID string
	// LeaderID is the leader as far as this node knows, empty if there is none.
	LeaderID string
	// Term is this node's term.
	Term uint64
	// LastLogIndex, CommitIndex and AppliedIndex are how far this node has the
	// log, knows it to be committed, and has applied it to its state.
	LastLogIndex, CommitIndex, AppliedIndex uint64
	// LastContact is the time since this node heard of its leader: 0 on the
	// leader, -1 if never.
	LastContact time.Duration
	// Members are all nodes of the group, sorted by id.
	Members []Member
}

// Member is a node of the Raft group.
type Member struct {
	ID, Address string
	// Voter is false for a node that follows without a vote.
	Voter bool
	// Healthy tells whether the leader finds that the node keeps up. It is known
	// on the leader only.
	Healthy bool
	// LastContact is the time since the node heard of the leader, by its own
	// word: -1 if it did not answer, or if this node does not lead.
	LastContact time.Duration
	// LastLogIndex is how far the node has the log, 0 if unknown.
	LastLogIndex uint64
}

// Status describes this node and the group as it knows it now.
func (r *Replica) Status() Status {
	leader, _ := r.Leader()
	index, _ := r.lastEntry()
	status := Status{
		NodeID: r.cfg.NodeID, LeaderID: leader, Term: r.raft.CurrentTerm(),
		LastLogIndex: index, CommitIndex: r.raft.CommitIndex(), AppliedIndex: r.applied.index(),
		LastContact: r.lastContact(),
	}
	view := r.autopilot.state.Load()
	for _, server := range r.servers() {
		member := Member{
			ID: string(server.ID), Address: string(server.Address), Voter: server.Suffrage == raft.Voter, LastContact: -1,
		}
		if view != nil && view.Servers[server.ID] != nil {
			seen := view.Servers[server.ID]
			member.Healthy, member.LastContact, member.LastLogIndex = seen.Health.Healthy, seen.Stats.LastContact, seen.Stats.LastIndex
		}
		status.Members = append(status.Members, member)
	}
	slices.SortFunc(status.Members, byID)
	return status
}

func byID(a, b Member) int { return cmp.Compare(a.ID, b.ID) }
