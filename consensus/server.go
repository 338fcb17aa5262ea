package consensus

import (
	"context"
	"strconv"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/atollregistry/atoll/proto"
)

// service answers the other replicas. Nothing here asks a third node: a call
// takes one hop, and who asked decides whether to ask again.
type service struct {
	proto.UnimplementedConsensusServer
	replica *Replica
}

// Register adds the Consensus service to a gRPC server. It answers at once, also
// before Run, and refuses after Close.
func (r *Replica) Register(s grpc.ServiceRegistrar) {
	proto.RegisterConsensusServer(s, &service{replica: r})
}

// Propose appends a command if this node leads.
func (s *service) Propose(ctx context.Context, request *proto.ProposeRequest) (*proto.ProposeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, s.replica.cfg.ProposeTimeout)
	defer cancel()
	result, index, err := s.replica.proposeHere(ctx, request.Command)
	if err != nil {
		return nil, toStatus(err)
	}
	return &proto.ProposeResponse{Index: index, Result: result}, nil
}

// ReadIndex proves that this node leads and returns its commit index.
func (s *service) ReadIndex(ctx context.Context, request *proto.ReadIndexRequest) (*proto.ReadIndexResponse, error) {
	if index := s.replica.witnessedIndex(request.NodeId, request.Term); index > 0 {
		return &proto.ReadIndexResponse{Index: index, Term: request.Term}, nil
	}
	term, _ := s.replica.lead.get()
	ctx, cancel := context.WithTimeout(ctx, s.replica.cfg.ConfirmTimeout)
	defer cancel()
	index, err := s.replica.leaderReads.join(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	if !s.replica.leads(term) {
		term = 0 // It may have led in another one when the index was taken.
	}
	return &proto.ReadIndexResponse{Index: index, Term: term}, nil
}

// ConfirmTerm returns this node's term. Raft has it on disk before it acts on it.
func (s *service) ConfirmTerm(context.Context, *proto.ConfirmTermRequest) (*proto.ConfirmTermResponse, error) {
	if s.replica.isOver() {
		return nil, toStatus(ErrClosed)
	}
	return &proto.ConfirmTermResponse{Term: s.replica.raft.CurrentTerm(), NodeId: s.replica.cfg.NodeID}, nil
}

// RaftStats tells how far this node is.
func (s *service) RaftStats(context.Context, *proto.RaftStatsRequest) (*proto.RaftStatsResponse, error) {
	r := s.replica
	if r.isOver() {
		return nil, toStatus(ErrClosed)
	}
	index, term := r.lastEntry()
	contact := r.lastContact()
	contactMS := contact.Milliseconds()
	if contact < 0 {
		contactMS = -1
	}
	return &proto.RaftStatsResponse{
		NodeId: r.cfg.NodeID, Term: r.raft.CurrentTerm(), LastLogIndex: index, LastLogTerm: term,
		AppliedIndex: r.applied.index(), LastContactMs: contactMS,
	}, nil
}

func (r *Replica) isOver() bool {
	select {
	case <-r.life.over:
		return true
	default:
		return false
	}
}

// lastContact is the time since this node heard of its leader: 0 on the leader,
// -1 if never.
func (r *Replica) lastContact() time.Duration {
	if r.raft.State() == raft.Leader {
		return 0
	}
	last := r.raft.LastContact()
	if last.IsZero() {
		return -1
	}
	return time.Since(last)
}

// lastEntry is the log index and term of the last entry in the log, or of the
// snapshot if that is further. The library tells the term in text only.
func (r *Replica) lastEntry() (index, term uint64) {
	stats := r.raft.Stats()
	number := func(key string) uint64 {
		n, err := strconv.ParseUint(stats[key], 10, 64)
		if err != nil {
			return 0
		}
		return n
	}
	index, term = number("last_log_index"), number("last_log_term")
	if snapshot := number("last_snapshot_index"); snapshot > index {
		return snapshot, number("last_snapshot_term")
	}
	return index, term
}
