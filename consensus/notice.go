package consensus

import (
	"sync"

	"github.com/hashicorp/raft"
)

// A leader tells its followers what is committed with the next entries, or, if none come, after Config.CommitTimeout.
// Until then a follower does not apply what everybody else knows to be acknowledged, and a read there waits for that:
// longest where there is little to do. But the leader's answer to the read says it as well. So
// a follower tells its own Raft, by the message that the leader will send anyway: an AppendEntries without entries,
// behind the committed one. The library takes it only in its present term and if that very entry, of that term, is in the log here:
// then all before it are the leader's, too (Raft's log matching property), and may be applied.

// notice says that a leader has told of a committed entry.
type notice struct {
	leader  raft.ServerID
	address raft.ServerAddress
	// term is both the leader's and the entry's.
	term, index uint64
}

// notices hands notices to Raft. Safe for concurrent use.
type notices struct {
	logs  interface{ LastIndex() (uint64, error) }
	inbox chan<- raft.RPC
	over  <-chan struct{}
	// woken has a token when there may be something to do.
	woken chan struct{}

	mu     sync.Mutex
	newest notice // index 0 for none
}

func newNotices(logs interface{ LastIndex() (uint64, error) }, inbox chan<- raft.RPC, over <-chan struct{}) *notices {
	return &notices{logs: logs, inbox: inbox, over: over, woken: make(chan struct{}, 1)}
}

// note takes down what a leader has told.
func (n *notices) note(told notice) {
	n.mu.Lock()
	newer := told.term > n.newest.term || told.term == n.newest.term && told.index > n.newest.index
	if newer {
		n.newest = told
	}
	n.mu.Unlock()
	if newer {
		n.wake()
	}
}

// stored is called when entries have come.
func (n *notices) stored() {
	n.mu.Lock()
	waiting := n.newest.index > 0
	n.mu.Unlock()
	if waiting {
		n.wake()
	}
}

func (n *notices) wake() {
	select {
	case n.woken <- struct{}{}:
	default:
	}
}

// run tells Raft of notices until the replica ends: of each as soon as its entry is in the log.
func (n *notices) run(r *raft.Raft) {
	for {
		select {
		case <-n.woken:
		case <-n.over:
			return
		}
		if told := n.take(r); told.index > 0 {
			n.tell(told)
		}
	}
}

// take returns the notice if it is time for it. It forgets one that says nothing new.
func (n *notices) take(r *raft.Raft) notice {
	last, err := n.logs.LastIndex()
	if err != nil {
		return notice{} // The log's own trouble ends the replica.
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	told := n.newest
	_, leader := r.LeaderWithID()
	switch {
	case told.index <= r.CommitIndex(), told.term != r.CurrentTerm(), told.leader != leader:
		n.newest = notice{}
		return notice{}
	case told.index > last:
		return notice{} // It is on its way.
	}
	n.newest = notice{}
	return told
}

// tell waits until Raft has taken a notice.
func (n *notices) tell(told notice) {
	answer := make(chan raft.RPCResponse, 1)
	message := raft.RPC{RespChan: answer, Command: &raft.AppendEntriesRequest{
		RPCHeader:    raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(told.leader), Addr: []byte(told.address)},
		Term:         told.term,
		PrevLogEntry: told.index, PrevLogTerm: told.term, LeaderCommitIndex: told.index,
	}}
	select {
	case n.inbox <- message:
	case <-n.over:
		return
	}
	select {
	case <-answer: // A refusal means that Raft knows better.
	case <-n.over:
	}
}
