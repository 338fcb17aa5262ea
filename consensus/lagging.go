package consensus

import (
	"context"
	"time"

	"github.com/hashicorp/raft"

	"github.com/atollregistry/atoll/proto"
)

const (
	// laggingPatience is how long a snapshot waits for the node that needs it. The
	// library opens one again and again for a node that is away, and each time the
	// state machine makes a copy of its state.
	laggingPatience = 2 * time.Minute
	// laggingInterval is how often the nodes are asked meanwhile.
	laggingInterval = 200 * time.Millisecond
)

// awaitLagging returns when a node answers that the log does not reach back to.
// The library does not say which node a snapshot is for.
func (r *Replica) awaitLagging() {
	ticker := time.NewTicker(laggingInterval)
	defer ticker.Stop()
	for deadline := time.Now().Add(laggingPatience); r.IsLeader() && time.Now().Before(deadline); {
		if r.hasLagging() {
			return
		}
		select {
		case <-ticker.C:
		case <-r.life.over:
			return
		}
	}
}

func (r *Replica) hasLagging() bool {
	first, err := r.storage.logs.FirstIndex()
	if err != nil {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	var others []raft.Server
	for _, server := range r.servers() {
		if server.ID != raft.ServerID(r.cfg.NodeID) {
			others = append(others, server)
		}
	}
	stats := r.askStats(ctx, others)
	for _, s := range stats {
		if isLagging(s, first) {
			return true
		}
	}
	// If all are there, one of them needs it, even if it does not show.
	return len(stats) == len(others)
}

// isLagging tells whether a node may need a state, given where the log begins:
// its log ends before that, or parted from this one before that, so that it can't
// have applied as far.
func isLagging(s *proto.RaftStatsResponse, first uint64) bool {
	return min(s.LastLogIndex, s.AppliedIndex)+1 < first
}
