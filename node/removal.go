package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/atollregistry/atoll/consensus"
	atoll "github.com/atollregistry/atoll/proto"
)

// ErrRemoved ends a node that an operator has removed, or that another one has taken
// the place of. Its id never comes back.
var ErrRemoved = errors.New("this node was removed from the cluster, and its data folder is of no more use: " +
	"to join again, as a new node, start it on an empty one")

const (
	// removalPoll is the pause between two looks at whether this node was removed.
	removalPoll = 500 * time.Millisecond
	// leaveTimeout bounds how long a removed node waits to be out of the Raft group.
	leaveTimeout = 15 * time.Second
)

// isRemoved says whether this node was removed, by its own state or by the word of
// another node: one that was away then does not learn it from the log any more.
func (p *parts) isRemoved() bool {
	return p.peers.removed.Load() || wasRemoved(p.store.LocalNodes(), p.self.Id)
}

// wasRemoved says whether the records have a node as removed.
func wasRemoved(nodes []*atoll.Node, id string) bool {
	return slices.ContainsFunc(nodes, func(node *atoll.Node) bool {
		return node.Id == id && node.State == atoll.NodeState_NODE_STATE_REMOVED
	})
}

// awaitRemoval returns true when this node was removed and is out of the Raft group,
// or false when ctx ends. A voter that ended at once would be missing in a group that
// still counts on it, and a leader has to hand over first.
func (p *parts) awaitRemoval(ctx context.Context) bool {
	for !p.isRemoved() {
		if pause(ctx, removalPoll) != nil {
			return false
		}
	}
	p.log.Warn().Msg("this node was removed from the cluster: it ends")
	p.ready.closing.Store(true)
	leaving, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	for isMember(p.replica, p.self.Id) && pause(leaving, removalPoll) == nil {
	}
	return ctx.Err() == nil
}

// isMember says whether a node is in the Raft group as this one knows it.
func isMember(replica *consensus.Replica, id string) bool {
	return slices.ContainsFunc(replica.Status().Members, func(m consensus.Member) bool { return m.ID == id })
}
