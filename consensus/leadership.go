package consensus

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// leadership is the term that this node leads and has opened.
//
// A new leader has all committed entries but does not know which they are until
// one of its own term is committed (Ongaro's thesis, section 6.4). Until then it
// must not answer reads. Raft commits a no-op for that, which never reaches the
// state machine; so the replica commits an empty command, and the term counts as
// open when the state machine has applied it.
type leadership struct {
	mu      sync.Mutex // guards both
	term    uint64     // 0 if none
	changed chan struct{}
}

func newLeadership() *leadership { return &leadership{changed: make(chan struct{})} }

// set publishes the open term; 0 when leadership is lost.
func (l *leadership) set(term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.term != term {
		l.term = term
		close(l.changed)
		l.changed = make(chan struct{})
	}
}

// get returns the open term and a channel that is closed when it is another.
func (l *leadership) get() (term uint64, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.term, l.changed
}

// watchLeadership opens each term that this node leads, until ctx ends.
func (r *Replica) watchLeadership(ctx context.Context) {
	defer r.lead.set(0)
	retry := time.NewTicker(retryInterval)
	defer retry.Stop()
	for {
		r.followLeadership(ctx)
		// LeaderCh keeps only the latest change, but never loses that one. The
		// ticker is for a term whose opening failed and that this node still leads,
		// as after a handing over that came to nothing.
		select {
		case <-r.raft.LeaderCh():
		case <-retry.C:
		case <-ctx.Done():
			return
		case <-r.life.over:
			return
		}
	}
}

// followLeadership brings r.lead in line with Raft.
func (r *Replica) followLeadership(ctx context.Context) {
	open, _ := r.lead.get()
	leads := r.raft.State() == raft.Leader
	if open != 0 && (!leads || r.raft.CurrentTerm() != open) {
		r.log.Info().Uint64("term", open).Msg("leadership lost")
		r.lead.set(0)
		open = 0
	}
	if !leads || open != 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.ProposeTimeout)
	defer cancel()
	opened, err := r.appendEntry(ctx, nil)
	if err != nil {
		r.log.Debug().Err(err).Msg("term not opened")
		return
	}
	r.log.Info().Uint64("term", opened.term).Uint64("index", opened.index).Msg("leadership won")
	r.lead.set(opened.term)
}

// leads tells whether this node is, as far as it knows, the leader of a term that
// it has opened.
func (r *Replica) leads(term uint64) bool {
	return term != 0 && r.raft.CurrentTerm() == term && r.raft.State() == raft.Leader
}

// WhileLeader runs f whenever this node leads, until ctx ends; then it returns
// nil, or ErrClosed if the replica ended first. f's context is cancelled when
// leadership is lost, and f must then return; another node may lead by then
// already, so what f does must be safe to do twice. If f returns before that, it
// is not run again in the same term.
func (r *Replica) WhileLeader(ctx context.Context, f func(ctx context.Context)) error {
	for {
		term, changed := r.lead.get()
		if term != 0 {
			r.leadWith(ctx, changed, f)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		case <-r.life.over:
			return ErrClosed
		}
	}
}

// leadWith runs f until it returns, and cancels its context when lost is closed.
func (r *Replica) leadWith(ctx context.Context, lost <-chan struct{}, f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with leadWith
		select {
		case <-lost:
		case <-r.life.over:
		case <-ctx.Done():
		}
		cancel()
	}()
	f(ctx)
}

// signal wakes all who wait for the next election, or anything that looks like
// one.
type signal struct {
	mu   sync.Mutex // guards next
	next chan struct{}
}

func newSignal() *signal { return &signal{next: make(chan struct{})} }

// wait returns a channel that is closed by the next call of raise.
func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

func (s *signal) raise() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.next)
	s.next = make(chan struct{})
}

// watchElections raises r.election when Raft learns of a new leader or loses the
// one it had.
func (r *Replica) watchElections() {
	changes := make(chan raft.Observation, 1) // one says as much as ten
	r.raft.RegisterObserver(raft.NewObserver(changes, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	}))
	go func() { // ends with the replica
		for {
			select {
			case <-changes:
				r.election.raise()
			case <-r.life.over:
				return
			}
		}
	}()
}

// whileLedBy returns a context that ends when this node no longer takes the node
// of that id for the leader: what was asked of it will hardly be answered.
func (r *Replica) whileLedBy(ctx context.Context, id string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() { // ends when the caller cancels
		defer cancel()
		for {
			changed := r.election.wait()
			if leader, _ := r.Leader(); leader != id {
				return
			}
			select {
			case <-changed:
			case <-r.life.over:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, cancel
}

// pause waits a moment for a leader. It returns an error when there is no use in
// waiting any longer.
func (r *Replica) pause(ctx context.Context) error {
	timer := time.NewTimer(retryInterval)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-r.election.wait():
		return nil
	case <-r.life.over:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
