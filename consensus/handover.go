package consensus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// probeTimeout bounds the question to the voters which of them can take over.
const probeTimeout = time.Second

// TransferLeadership hands leadership to the voter that has most of the log among
// those that answer, and returns when it has lost it. ErrNotLeader says that this
// node had none to hand over.
func (r *Replica) TransferLeadership(ctx context.Context) error {
	if !r.IsLeader() {
		return fmt.Errorf("transfer leadership: %w", ErrNotLeader)
	}
	heirs := r.heirs(ctx)
	if len(heirs) == 0 {
		return fmt.Errorf("transfer leadership: %w: no other voter answers", ErrNoQuorum)
	}
	r.handover.begin()
	defer r.handover.end()
	var refusals []error
	for _, heir := range heirs {
		err := r.await(ctx, r.raft.LeadershipTransferToServer(heir.ID, heir.Address))
		if err == nil {
			r.log.Info().Str("node", string(heir.ID)).Msg("leadership handed over")
			return nil
		}
		refusals = append(refusals, fmt.Errorf("to node %s: %w", heir.ID, err))
		if ctx.Err() != nil || !r.IsLeader() {
			break
		}
	}
	return fmt.Errorf("transfer leadership: %w", errors.Join(refusals...))
}

// heirs are the other voters that answer, the one with most of the log first. The
// library picks by what it last sent, so it may pick one that is dead.
func (r *Replica) heirs(ctx context.Context) []raft.Server {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var others []raft.Server
	for _, server := range r.servers() {
		if server.Suffrage == raft.Voter && server.ID != raft.ServerID(r.cfg.NodeID) {
			others = append(others, server)
		}
	}
	stats := r.askStats(ctx, others)
	others = slices.DeleteFunc(others, func(s raft.Server) bool { return stats[s.ID] == nil })
	slices.SortStableFunc(others, func(a, b raft.Server) int {
		return cmp.Compare(stats[b.ID].LastLogIndex, stats[a.ID].LastLogIndex)
	})
	return others
}

// errHandoverStuck ends a node that would lead without ever taking a command.
var errHandoverStuck = errors.New("the Raft library is stuck in handing leadership over, start the node again")

// handover watches for a fault of the library: a transfer that is cut off by a
// loss of leadership can leave the node refusing all commands, for ever and in
// every later term that it leads (hashicorp/raft issue 696). Only a new start of
// the process helps.
type handover struct {
	mu      sync.Mutex // guards what follows
	running int
	refused time.Time // since when commands are refused for a transfer; zero if not
}

func (h *handover) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running++
}

func (h *handover) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running--
	h.refused = time.Time{}
}

// isStuck takes what became of a command, and tells whether commands have been
// refused for longer than limit, for a transfer that nobody is making.
func (h *handover) isStuck(err error, limit time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !errors.Is(err, raft.ErrLeadershipTransferInProgress) || h.running > 0 {
		h.refused = time.Time{}
		return false
	}
	if h.refused.IsZero() {
		h.refused = time.Now()
	}
	return time.Since(h.refused) > limit
}
