package consensus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
)

// maxTrailing is how many entries a node may be behind and still count as keeping
// up. Under full load that is a few hundred milliseconds.
const maxTrailing = 1000

// pilot decides on the leader who votes, by the library for that. It never removes
// a node: that is for whoever knows what else is on it.
type pilot struct {
	replica *Replica
	library *autopilot.Autopilot
	// state is the library's latest view; nil while this node does not lead.
	state atomic.Pointer[autopilot.State]
}

func newPilot(r *Replica) *pilot {
	p := &pilot{replica: r}
	p.library = autopilot.New(guardedRaft{r}, p,
		autopilot.WithLogger(newRaftLogger(r.cfg.Logger)),
		autopilot.WithUpdateInterval(r.cfg.AutopilotInterval),
		autopilot.WithReconcileInterval(2*r.cfg.AutopilotInterval),
		autopilot.WithPromoter(&promoter{
			maxVoters: r.cfg.MaxVoters, replaceAfter: r.cfg.ReplaceVoterAfter, now: time.Now,
		}),
	)
	return p
}

// run works whenever this node leads, until ctx ends.
func (p *pilot) run(ctx context.Context) {
	_ = p.replica.WhileLeader(ctx, func(ctx context.Context) { // the replica's end is told elsewhere
		p.library.Start(ctx)
		<-ctx.Done()
		<-p.library.Stop()
		p.state.Store(nil)
	})
}

// AutopilotConfig implements autopilot.ApplicationIntegration.
func (p *pilot) AutopilotConfig() *autopilot.Config {
	return &autopilot.Config{
		CleanupDeadServers:      false,
		LastContactThreshold:    2 * p.replica.cfg.HeartbeatTimeout,
		MaxTrailingLogs:         maxTrailing,
		ServerStabilizationTime: p.replica.cfg.StabilizationTime,
	}
}

// NotifyState implements autopilot.ApplicationIntegration.
func (p *pilot) NotifyState(state *autopilot.State) { p.state.Store(state) }

// KnownServers implements autopilot.ApplicationIntegration. Every member counts as
// alive; whether it is well shows in its stats.
func (p *pilot) KnownServers() map[raft.ServerID]*autopilot.Server {
	known := make(map[raft.ServerID]*autopilot.Server)
	for _, server := range p.replica.servers() {
		known[server.ID] = &autopilot.Server{
			ID: server.ID, Name: string(server.ID), Address: server.Address,
			NodeStatus: autopilot.NodeAlive, NodeType: autopilot.NodeVoter,
			IsLeader: p.replica.IsLeader() && string(server.ID) == p.replica.cfg.NodeID,
		}
	}
	return known
}

// FetchServerStats implements autopilot.ApplicationIntegration. A node without an
// answer must not keep the stats it had, by which it would be well for ever.
func (p *pilot) FetchServerStats(ctx context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	all := make(map[raft.ServerID]*autopilot.ServerStats, len(servers))
	var others []raft.Server
	for id, server := range servers {
		if string(id) == p.replica.cfg.NodeID {
			index, term := p.replica.lastEntry()
			all[id] = &autopilot.ServerStats{LastTerm: term, LastIndex: index}
			continue
		}
		all[id] = &autopilot.ServerStats{LastContact: -1}
		others = append(others, raft.Server{ID: id, Address: server.Address})
	}
	for id, stats := range p.replica.askStats(ctx, others) {
		all[id] = &autopilot.ServerStats{
			LastContact: time.Duration(stats.LastContactMs) * time.Millisecond,
			LastTerm:    stats.LastLogTerm,
			LastIndex:   stats.LastLogIndex,
		}
	}
	return all
}

// RemoveFailedServer implements autopilot.ApplicationIntegration. It is not called.
func (p *pilot) RemoveFailedServer(*autopilot.Server) {}

// promoter decides who gets a vote and who loses it.
type promoter struct {
	autopilot.StablePromoter
	maxVoters    int
	replaceAfter time.Duration
	now          func() time.Time
}

// CalculatePromotionsAndDemotions implements autopilot.Promoter. Votes go to nodes
// that keep up, up to maxVoters. When all votes are given out and a node could
// take one, a voter that has been out of reach for long loses its own. It gets it
// back, when it returns, only if there is room.
func (p *promoter) CalculatePromotionsAndDemotions(cfg *autopilot.Config, state *autopilot.State) autopilot.RaftChanges {
	now := p.now()
	var ready, gone []raft.ServerID
	for id, server := range state.Servers {
		switch server.State {
		case autopilot.RaftNonVoter:
			if server.Health.IsStable(now, state.ServerStabilizationTime(cfg)) {
				ready = append(ready, id)
			}
		case autopilot.RaftVoter:
			if !server.Health.Healthy && now.Sub(server.Health.StableSince) >= p.replaceAfter {
				gone = append(gone, id)
			}
		}
	}
	slices.Sort(ready)
	slices.SortFunc(gone, func(a, b raft.ServerID) int { // the longest gone first
		return cmp.Or(state.Servers[a].Health.StableSince.Compare(state.Servers[b].Health.StableSince), cmp.Compare(a, b))
	})
	room := p.maxVoters - len(state.Voters)
	switch {
	case len(ready) == 0:
		return autopilot.RaftChanges{}
	case room > 0:
		return autopilot.RaftChanges{Promotions: ready[:min(room, len(ready))]}
	case len(gone) > 0:
		return autopilot.RaftChanges{Demotions: gone[:1]} // the promotion follows in the next round
	default:
		return autopilot.RaftChanges{}
	}
}

// guardedRaft is Raft as the library may use it. The library decides on what it
// saw up to an interval ago. Unguarded it could bring back a node that has been
// removed since, or its old address.
type guardedRaft struct{ replica *Replica }

// AddVoter implements autopilot.Raft: it gives a member without a vote one.
func (g guardedRaft) AddVoter(id raft.ServerID, address raft.ServerAddress, _ uint64, _ time.Duration) raft.IndexFuture {
	return g.change("give node "+string(id)+" a vote", func(servers []raft.Server, timeout time.Duration) raft.IndexFuture {
		voters := 0
		for _, server := range servers {
			if server.Suffrage == raft.Voter {
				voters++
			}
		}
		if voters >= g.replica.cfg.MaxVoters || !slices.Contains(servers, raft.Server{Suffrage: raft.Nonvoter, ID: id, Address: address}) {
			return nil
		}
		return g.replica.raft.AddVoter(id, address, 0, timeout)
	})
}

// DemoteVoter implements autopilot.Raft.
func (g guardedRaft) DemoteVoter(id raft.ServerID, _ uint64, _ time.Duration) raft.IndexFuture {
	return g.change("take the vote of node "+string(id), func(servers []raft.Server, timeout time.Duration) raft.IndexFuture {
		if !slices.ContainsFunc(servers, func(s raft.Server) bool { return s.ID == id && s.Suffrage == raft.Voter }) {
			return nil
		}
		return g.replica.raft.DemoteVoter(id, 0, timeout)
	})
}

// change makes one change of the configuration, on what it is now, and waits for
// it. what returns nil if the change does not fit any more.
func (g guardedRaft) change(name string, what func(servers []raft.Server, timeout time.Duration) raft.IndexFuture) raft.IndexFuture {
	ctx, cancel := context.WithTimeout(context.Background(), g.replica.cfg.ProposeTimeout)
	defer cancel()
	unlock, err := g.replica.lockMembership(ctx)
	if err != nil {
		return refused{fmt.Errorf("%s: %w", name, err)}
	}
	defer unlock()
	future := what(g.replica.servers(), enqueueTimeout(ctx))
	if future == nil {
		return refused{fmt.Errorf("%s: the members have changed", name)}
	}
	if err := g.replica.await(ctx, future); err != nil {
		return refused{fmt.Errorf("%s: %w", name, err)}
	}
	g.replica.log.Info().Str("change", name).Msg("voters changed")
	return future
}

// errNotForAutopilot refuses what is none of autopilot's business.
var errNotForAutopilot = errors.New("autopilot may not do this")

// AddNonvoter implements autopilot.Raft. It is refused.
func (g guardedRaft) AddNonvoter(raft.ServerID, raft.ServerAddress, uint64, time.Duration) raft.IndexFuture {
	return refused{errNotForAutopilot}
}

// RemoveServer implements autopilot.Raft. It is refused.
func (g guardedRaft) RemoveServer(raft.ServerID, uint64, time.Duration) raft.IndexFuture {
	return refused{errNotForAutopilot}
}

// LeadershipTransferToServer implements autopilot.Raft. It is refused.
func (g guardedRaft) LeadershipTransferToServer(raft.ServerID, raft.ServerAddress) raft.Future {
	return refused{errNotForAutopilot}
}

// LastIndex implements autopilot.Raft.
func (g guardedRaft) LastIndex() uint64 { return g.replica.raft.LastIndex() }

// Leader implements autopilot.Raft.
func (g guardedRaft) Leader() raft.ServerAddress {
	address, _ := g.replica.raft.LeaderWithID()
	return address
}

// GetConfiguration implements autopilot.Raft.
func (g guardedRaft) GetConfiguration() raft.ConfigurationFuture {
	return g.replica.raft.GetConfiguration()
}

// Stats implements autopilot.Raft.
func (g guardedRaft) Stats() map[string]string { return g.replica.raft.Stats() }

// State implements autopilot.Raft.
func (g guardedRaft) State() raft.RaftState { return g.replica.raft.State() }

// refused is the future of a change that was not made.
type refused struct{ err error }

func (r refused) Error() error  { return r.err }
func (r refused) Index() uint64 { return 0 }
