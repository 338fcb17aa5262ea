package consensus

import (
	"context"
	"fmt"
	"slices"

	"github.com/hashicorp/raft"

	"github.com/atollregistry/atoll/proto"
)

// Who is in the Raft group and who votes. Where shards may lie is another matter:
// see metadata/node.go.

// servers are the members by the latest configuration in the log, committed or
// not, as Raft itself counts them.
func (r *Replica) servers() []raft.Server {
	future := r.raft.GetConfiguration()
	if err := future.Error(); err != nil { // in this version of the library it never is
		return nil
	}
	return future.Configuration().Servers
}

// otherVoters counts the voters beside this node.
func (r *Replica) otherVoters() int {
	n := 0
	for _, server := range r.servers() {
		if server.Suffrage == raft.Voter && server.ID != raft.ServerID(r.cfg.NodeID) {
			n++
		}
	}
	return n
}

// AddNode lets a node into the group without a vote, or gives a member a new
// address. It gets a vote once it has kept up for a while, as long as there are
// fewer than Config.MaxVoters. Adding a member that is there already does
// nothing. ErrNotLeader says that only the leader can, ErrOutcomeUnknown that
// leadership was lost on the way; both may be tried again.
func (r *Replica) AddNode(ctx context.Context, id, address string) error {
	unlock, err := r.lockMembership(ctx)
	if err != nil {
		return fmt.Errorf("add node %s: %w", id, err)
	}
	defer unlock()
	for _, server := range r.servers() {
		switch known := server.ID == raft.ServerID(id); {
		case known && server.Address == raft.ServerAddress(address):
			return nil
		case !known && server.Address == raft.ServerAddress(address):
			return fmt.Errorf("add node %s: its address %s is that of node %s, which has to be removed first", id, address, server.ID)
		}
	}
	// For a voter this changes the address and leaves it its vote.
	future := r.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), 0, enqueueTimeout(ctx))
	if err := r.await(ctx, future); err != nil {
		return fmt.Errorf("add node %s: %w", id, appendError(err))
	}
	r.log.Info().Str("node", id).Str("address", address).Msg("node added to the Raft group")
	return nil
}

// RemoveNode takes a node out of the group. Removing one that is not a member
// does nothing. Errors are those of AddNode.
func (r *Replica) RemoveNode(ctx context.Context, id string) error {
	unlock, err := r.lockMembership(ctx)
	if err != nil {
		return fmt.Errorf("remove node %s: %w", id, err)
	}
	defer unlock()
	if !slices.ContainsFunc(r.servers(), func(s raft.Server) bool { return s.ID == raft.ServerID(id) }) {
		return nil
	}
	if err := r.await(ctx, r.raft.RemoveServer(raft.ServerID(id), 0, enqueueTimeout(ctx))); err != nil {
		return fmt.Errorf("remove node %s: %w", id, appendError(err))
	}
	r.log.Info().Str("node", id).Msg("node removed from the Raft group")
	return nil
}

// lockMembership makes this the only change of the configuration from here. The
// library's compare-and-set is no help: it does not tell the index to compare.
func (r *Replica) lockMembership(ctx context.Context) (unlock func(), err error) {
	if !r.IsLeader() {
		return nil, ErrNotLeader
	}
	select {
	case r.membership <- struct{}{}:
		return func() { <-r.membership }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: another change is under way: %w", ErrNotLeader, context.Cause(ctx))
	case <-r.life.over:
		return nil, fmt.Errorf("%w: %w", ErrNotLeader, ErrClosed)
	}
}

// await waits for a future of Raft, which knows no context.
func (r *Replica) await(ctx context.Context, future raft.Future) error {
	answered := make(chan error, 1)
	go func() { answered <- future.Error() }() // ends when Raft answers
	select {
	case err := <-answered:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-r.life.over:
		return ErrClosed
	}
}

// askStats asks nodes how far they are, all at once. Those that don't answer
// before ctx ends, or are not who they should be, are missing from the result.
func (r *Replica) askStats(ctx context.Context, servers []raft.Server) map[raft.ServerID]*proto.RaftStatsResponse {
	type answer struct {
		id    raft.ServerID
		stats *proto.RaftStatsResponse
	}
	answers := make(chan answer, len(servers))
	for _, server := range servers {
		go func() { // ends with ctx; received from below
			conn, err := r.network.Conn(string(server.Address))
			if err != nil {
				answers <- answer{}
				return
			}
			stats, err := proto.NewConsensusClient(conn).RaftStats(ctx, &proto.RaftStatsRequest{})
			if err != nil || stats.NodeId != string(server.ID) {
				answers <- answer{}
				return
			}
			answers <- answer{server.ID, stats}
		}()
	}
	all := make(map[raft.ServerID]*proto.RaftStatsResponse, len(servers))
	for range servers {
		if a := <-answers; a.stats != nil {
			all[a.id] = a.stats
		}
	}
	return all
}
