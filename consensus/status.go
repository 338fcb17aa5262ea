package consensus

import "time"

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
