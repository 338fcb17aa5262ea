package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/atollregistry/atoll/proto"
)

// ReadIndex returns when the local state machine shows everything that was
// acknowledged on any node before the call. It works on any node and waits for a
// leader up to Config.ReadTimeout; then it returns ErrNoQuorum.
//
// The library's VerifyLeader will not do: it counts nodes without a vote, and
// answers that were on their way before the question. So after the question came,
// the leader takes its commit index and asks the voters for their term. If a
// majority is in the leader's term after that moment, no later leader can have
// been elected before it: each of its electors would have moved on first. So
// nothing was acknowledged by anyone that is not covered by the commit index.
func (r *Replica) ReadIndex(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.ReadTimeout)
	defer cancel()
	for {
		index, err := r.localReads.join(ctx)
		if err == nil {
			err = r.applied.wait(ctx, index)
		}
		if err == nil {
			return nil
		}
		if ended := r.pause(ctx); ended != nil {
			return fmt.Errorf("read index: %w: %w (%w)", ErrNoQuorum, ended, err)
		}
	}
}

// fetchIndex gets a read index from the leader, be it this node or another.
func (r *Replica) fetchIndex(ctx context.Context) (uint64, error) {
	if r.isOver() {
		return 0, ErrClosed
	}
	if r.IsLeader() {
		return r.leaderReads.join(ctx)
	}
	id, address := r.Leader()
	if id == "" || id == r.cfg.NodeID {
		return 0, fmt.Errorf("%w: this node knows of none", ErrNotLeader)
	}
	conn, err := r.network.Conn(address)
	if err != nil {
		return 0, fmt.Errorf("connect to leader %s: %w", id, err)
	}
	ctx, cancel := r.whileLedBy(ctx, id)
	defer cancel()
	response, err := proto.NewConsensusClient(conn).ReadIndex(ctx, &proto.ReadIndexRequest{})
	if err != nil {
		return 0, fmt.Errorf("ask leader %s for read index: %w", id, err)
	}
	return response.Index, nil
}

// provenIndex returns the commit index once it is proven that this node led when
// it was taken.
func (r *Replica) provenIndex(ctx context.Context) (uint64, error) {
	term, _ := r.lead.get()
	if !r.leads(term) {
		return 0, fmt.Errorf("%w of an open term", ErrNotLeader)
	}
	index := r.raft.CommitIndex()
	if err := r.confirm(ctx, term); err != nil {
		return 0, err
	}
	if !r.leads(term) {
		return 0, fmt.Errorf("%w any more", ErrNotLeader)
	}
	return index, nil
}

// confirm returns nil when a majority of the voters has answered that it is in
// that term.
func (r *Replica) confirm(ctx context.Context, term uint64) error {
	var others []raft.Server
	agree, voters := 0, 0
	for _, server := range r.servers() {
		switch {
		case server.Suffrage != raft.Voter:
		case server.ID == raft.ServerID(r.cfg.NodeID):
			voters++
			agree++
		default:
			voters++
			others = append(others, server)
		}
	}
	needed := voters/2 + 1
	if voters > 0 && agree >= needed {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx) // the slow ones need not finish
	defer cancel()
	answers := make(chan error, len(others))
	for _, server := range others {
		go func() { answers <- r.askTerm(ctx, server, term) }() // ends with ctx
	}
	var refusals []error
	for range others {
		if err := <-answers; err != nil {
			refusals = append(refusals, err)
		} else if agree++; agree >= needed {
			return nil
		}
	}
	return fmt.Errorf("%w: %d of %d voters confirmed term %d: %w", ErrNoQuorum, agree, voters, term, errors.Join(refusals...))
}

// askTerm returns nil if a voter answers that it is in that term. An answer of
// another node under the voter's address does not count.
func (r *Replica) askTerm(ctx context.Context, voter raft.Server, term uint64) error {
	conn, err := r.network.Conn(string(voter.Address))
	if err != nil {
		return fmt.Errorf("connect to voter %s: %w", voter.ID, err)
	}
	response, err := proto.NewConsensusClient(conn).ConfirmTerm(ctx, &proto.ConfirmTermRequest{Term: term})
	if err != nil {
		return fmt.Errorf("ask voter %s for its term: %w", voter.ID, err)
	}
	if response.NodeId != string(voter.ID) || response.Term != term {
		return fmt.Errorf("voter %s: node %q answered that it is in term %d", voter.ID, response.NodeId, response.Term)
	}
	return nil
}

// rounds shares one question among all who ask at a time. Whoever comes while a
// round is under way waits for the next, since the answer has to be of a moment
// after it came.
type rounds struct {
	timeout time.Duration
	ask     func(ctx context.Context) (uint64, error)

	mu      sync.Mutex // guards what follows
	next    *round     // nil if nobody waits for one
	running bool
	closed  bool
	done    sync.WaitGroup // the goroutine that runs the rounds
}

// round is one question and its answer.
type round struct {
	done  chan struct{} // closed when the answer is there
	index uint64
	err   error
}

func newRounds(timeout time.Duration, ask func(ctx context.Context) (uint64, error)) *rounds {
	return &rounds{timeout: timeout, ask: ask}
}

// join waits for the answer of a round that begins after the call.
func (s *rounds) join(ctx context.Context) (uint64, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return 0, ErrClosed
	}
	if s.next == nil {
		s.next = &round{done: make(chan struct{})}
	}
	mine := s.next
	if !s.running {
		s.running = true
		s.done.Go(s.run)
	}
	s.mu.Unlock()
	select {
	case <-mine.done:
		return mine.index, mine.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// run asks as long as somebody waits.
func (s *rounds) run() {
	for {
		s.mu.Lock()
		current := s.next
		s.next = nil
		s.running = current != nil
		s.mu.Unlock()
		if current == nil {
			return
		}
		// Those who wait have deadlines of their own; the round's is the longest
		// that a lost answer may hold up the next one.
		ctx, cancel := context.WithTimeout(context.Background(), s.timeout)
		current.index, current.err = s.ask(ctx)
		cancel()
		close(current.done)
	}
}

// close lets nobody join any more and returns when no round is under way.
func (s *rounds) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.done.Wait()
}
