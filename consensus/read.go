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
// nothing was acknowledged by anyone that is not covered by the commit index. A voter
// that asks on behalf of its clients says its term with the question, and has thereby answered.
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
	// All who wait for this answer came before the term is taken.
	request := &proto.ReadIndexRequest{Term: r.raft.CurrentTerm(), NodeId: r.cfg.NodeID}
	response, err := proto.NewConsensusClient(conn).ReadIndex(ctx, request)
	if err != nil {
		return 0, fmt.Errorf("ask leader %s for read index: %w", id, err)
	}
	r.notices.note(notice{leader: raft.ServerID(id), address: raft.ServerAddress(address), term: response.Term, index: response.Index})
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

// witnessedIndex is provenIndex for a node that asks, and was in a term when it did: where that node
// and this one are a majority of the voters, nobody else needs to be asked. It returns 0 where others do.
func (r *Replica) witnessedIndex(node string, term uint64) uint64 {
	open, _ := r.lead.get()
	if node == r.cfg.NodeID || open != term || !r.leads(term) {
		return 0
	}
	index := r.raft.CommitIndex()
	agree, others, needed := r.electorate()
	for _, server := range others {
		if string(server.ID) == node {
			agree++
		}
	}
	if agree < needed || !r.leads(term) {
		return 0
	}
	return index
}

// electorate returns whether this node votes, as 1 or 0, the other voters, and how many are a majority.
func (r *Replica) electorate() (own int, others []raft.Server, needed int) {
	for _, server := range r.servers() {
		switch {
		case server.Suffrage != raft.Voter:
		case server.ID == raft.ServerID(r.cfg.NodeID):
			own = 1
		default:
			others = append(others, server)
		}
	}
	return own, others, (own+len(others))/2 + 1
}

// confirmHedge is how long the leader waits for as many voters as make a majority before it asks the others as well.
const confirmHedge = 10 * time.Millisecond

// confirm returns nil when a majority of the voters has answered that it is in
// that term. It asks no more voters than it needs, those first that answered last time, as long as they
// answer soon.
func (r *Replica) confirm(ctx context.Context, term uint64) error {
	agree, others, needed := r.electorate()
	voters := agree + len(others)
	if voters > 0 && agree >= needed {
		return nil
	}
	r.responders.sort(others)
	ctx, cancel := context.WithCancel(ctx) // the slow ones need not finish
	defer cancel()
	type answer struct {
		voter raft.ServerID
		err   error
	}
	answers, asked := make(chan answer, len(others)), 0
	ask := func(count int) {
		for ; asked < min(count, len(others)); asked++ {
			server := others[asked]
			go func() { answers <- answer{server.ID, r.askTerm(ctx, server, term)} }() // ends with ctx
		}
	}
	ask(needed - agree)
	hedge := time.NewTimer(confirmHedge)
	defer hedge.Stop()
	var refusals []error
	for len(refusals)+needed <= voters {
		select {
		case one := <-answers:
			if one.err != nil {
				refusals = append(refusals, one.err)
				ask(asked + 1)
				continue
			}
			r.responders.note(one.voter)
			if agree++; agree >= needed {
				return nil
			}
		case <-hedge.C:
			ask(len(others))
		}
	}
	return fmt.Errorf("%w: %d of %d voters confirmed term %d: %w", ErrNoQuorum, agree, voters, term, errors.Join(refusals...))
}

// responders knows who answered last. Safe for concurrent use.
type responders struct {
	mu    sync.Mutex // guards what follows
	count uint64
	last  map[raft.ServerID]uint64
}

// note takes down that a voter has answered.
func (r *responders) note(id raft.ServerID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = make(map[raft.ServerID]uint64)
	}
	r.count++
	r.last[id] = r.count
}

// sort puts those first that have answered last.
func (r *responders) sort(voters []raft.Server) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortStableFunc(voters, func(a, b raft.Server) int { return cmp.Compare(r.last[b.ID], r.last[a.ID]) })
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
