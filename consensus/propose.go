package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/atollregistry/atoll/proto"
)

// maxCommandBytes bounds a command. One of 4 MiB takes 50 ms to append, and holds
// up what is behind it for as long.
const maxCommandBytes = 4 << 20

// Propose has the leader append the command and returns what the state machine
// answered, and the command's log index. It works on any node; on one that does
// not lead it asks the leader, and while there is none it waits for one, up to
// Config.ProposeTimeout. ErrNoLeader means that the command will never be
// applied, ErrOutcomeUnknown that it may be, even later. It never proposes a
// command again whose outcome is unknown.
func (r *Replica) Propose(ctx context.Context, command []byte) (result []byte, logIndex uint64, err error) {
	if len(command) == 0 || len(command) > maxCommandBytes {
		return nil, 0, fmt.Errorf("propose command: %w: it has %d bytes, allowed are 1 to %d", ErrCommandRefused, len(command), maxCommandBytes)
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.ProposeTimeout)
	defer cancel()
	for {
		result, logIndex, err = r.proposeOnce(ctx, command)
		if err == nil {
			return result, logIndex, nil
		}
		if !errors.Is(err, ErrNotLeader) {
			return nil, 0, fmt.Errorf("propose command: %w", err)
		}
		if ended := r.pause(ctx); ended != nil {
			return nil, 0, fmt.Errorf("propose command: %w: %w (%w)", ErrNoLeader, ended, err)
		}
	}
}

// proposeOnce tries the leader of this moment. ErrNotLeader means that the
// command was definitely not appended.
func (r *Replica) proposeOnce(ctx context.Context, command []byte) ([]byte, uint64, error) {
	if r.isOver() {
		return nil, 0, fmt.Errorf("%w: %w", ErrNotLeader, ErrClosed)
	}
	if r.IsLeader() {
		return r.proposeHere(ctx, command)
	}
	id, address := r.Leader()
	if id == "" || id == r.cfg.NodeID {
		return nil, 0, fmt.Errorf("%w: this node knows of none", ErrNotLeader)
	}
	conn, err := r.network.Conn(address)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: connect to leader %s: %w", ErrNotLeader, id, err)
	}
	ctx, cancel := r.whileLedBy(ctx, id)
	defer cancel()
	var reached peer.Peer
	response, err := proto.NewConsensusClient(conn).Propose(ctx, &proto.ProposeRequest{Command: command}, grpc.Peer(&reached))
	if err == nil {
		return response.Result, response.Index, nil
	}
	// gRPC tells the peer of every call that got as far as a connection. Without
	// one nothing was sent. Other implementations of Conn make no such promise.
	if _, ok := conn.(*grpc.ClientConn); ok && reached.Addr == nil {
		return nil, 0, fmt.Errorf("%w: leader %s was not reached: %w", ErrNotLeader, id, err)
	}
	return nil, 0, fmt.Errorf("leader %s: %w", id, fromStatus(err))
}

// proposeHere appends the command if this node leads. It may come from another node,
// which nothing is taken on trust of: an entry that Apply fails on ends the cluster.
func (r *Replica) proposeHere(ctx context.Context, command []byte) ([]byte, uint64, error) {
	if len(command) == 0 || len(command) > maxCommandBytes {
		return nil, 0, fmt.Errorf("%w: it has %d bytes, allowed are 1 to %d", ErrCommandRefused, len(command), maxCommandBytes)
	}
	if err := r.check(command); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrCommandRefused, err)
	}
	o, err := r.appendEntry(ctx, command)
	return o.result, o.index, err
}

// appendEntry hands an entry to Raft and waits until it is applied here. It returns
// ErrNotLeader if the entry was definitely not appended, and ErrOutcomeUnknown if
// that is not certain.
func (r *Replica) appendEntry(ctx context.Context, data []byte) (outcome, error) {
	select {
	case r.proposals <- struct{}{}:
	case <-ctx.Done():
		return outcome{}, fmt.Errorf("%w: %d commands wait before this one: %w", ErrNotLeader, maxProposals, context.Cause(ctx))
	case <-r.life.over:
		return outcome{}, fmt.Errorf("%w: %w", ErrNotLeader, ErrClosed)
	}
	type answer struct {
		outcome outcome
		err     error
	}
	answered := make(chan answer, 1)
	r.groupCommit.add(&entrant{ctx: ctx, data: data, answered: func(future raft.ApplyFuture) {
		defer func() { <-r.proposals }()
		if err := future.Error(); err != nil {
			answered <- answer{err: appendError(err)}
			return
		}
		answered <- answer{outcome: future.Response().(outcome)}
	}})
	select {
	case a := <-answered:
		if r.handover.isStuck(a.err, 2*(r.cfg.ElectionTimeout+r.cfg.NetworkTimeout)) {
			go r.life.fail(errHandoverStuck)
		}
		if a.outcome.skipped {
			go r.life.fail(fmt.Errorf("propose command: %w: log index %d was applied before it was given out", ErrStateAhead, a.outcome.index))
			return outcome{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, ErrStateAhead)
		}
		return a.outcome, a.err
	case <-ctx.Done():
		return outcome{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, context.Cause(ctx))
	case <-r.life.over:
		return outcome{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, ErrClosed)
	}
}

// enqueueTimeout bounds how long an entry may wait for room in Raft's queue. To the library
// 0 means for ever.
func enqueueTimeout(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return time.Minute // all callers set one
	}
	return max(time.Until(deadline), time.Millisecond)
}

// appendError tells the errors that say no from those that say nothing. Leadership
// that was lost says nothing: the entry may live on in a follower.
func appendError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	default:
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
}
