package consensus

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// groupPatience is how long a group is waited for. It is longer than one takes on
	// disks that are well. On slower ones an entry waits no longer than that for others.
	groupPatience = 25 * time.Millisecond
	// groupEnough is from how many entries on others wait for those under way. A few
	// clients at once gain nothing by that: each would wait for the others' turns.
	groupEnough = 4
)

// groupCommit has entries go into the log together: while some are under way, what comes
// waits and is the next group, of maxAppendEntries at most, which the library appends at once. Each group costs every node
// a write of its disk and a transaction of its state, whatever its size. The library alone takes what has come by the time its last write is done,
// and so makes several groups of what fits into one, each on its way to one of log,
// followers and state.
type groupCommit struct {
	// append hands an entry to Raft. It waits while Raft's queue is full.
	append func(data []byte, timeout time.Duration) raft.ApplyFuture
	// patience and enough are the constants, others in tests.
	patience time.Duration
	enough   int

	mu      sync.Mutex
	waiting []*entrant
	// underway counts the entries that are waited for.
	underway int
}

// entrant is an entry that waits for its place in the log.
type entrant struct {
	ctx  context.Context
	data []byte
	// answered is called once Raft has answered.
	answered func(raft.ApplyFuture)
}

// entryGroup are entries that go into the log together.
type entryGroup struct {
	entrants []*entrant
	// over says that nobody waits for the group any more.
	over bool
}

func newGroupCommit(log *raft.Raft) *groupCommit {
	return &groupCommit{append: log.Apply, patience: groupPatience, enough: groupEnough}
}

// add has an entry appended, with the next group.
func (g *groupCommit) add(e *entrant) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = append(g.waiting, e)
	g.start()
}

// start starts the next group if it is time. g.mu is held.
func (g *groupCommit) start() {
	if g.underway >= g.enough || len(g.waiting) == 0 {
		return
	}
	next := min(len(g.waiting), maxAppendEntries)
	group := &entryGroup{entrants: g.waiting[:next:next]}
	g.waiting, g.underway = g.waiting[next:], g.underway+next
	go g.run(group) // ends when Raft has answered, or never for what it had in its queue when it was shut down
}

// run appends a group and returns when Raft has answered for each entry.
func (g *groupCommit) run(group *entryGroup) {
	impatience := time.AfterFunc(g.patience, func() { g.end(group) })
	defer impatience.Stop()
	futures := make([]raft.ApplyFuture, len(group.entrants))
	for i, e := range group.entrants {
		if e.ctx.Err() != nil {
			futures[i] = abandoned{} // Nobody waits for it any more.
			continue
		}
		futures[i] = g.append(e.data, enqueueTimeout(e.ctx))
	}
	for i, future := range futures {
		_ = future.Error() // waits; who gets the future asks for the error again
		group.entrants[i].answered(future)
	}
	g.end(group)
}

// end lets the next group follow this one, once.
func (g *groupCommit) end(group *entryGroup) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if group.over {
		return
	}
	group.over = true
	g.underway -= len(group.entrants)
	g.start()
}

// abandoned is what became of an entry that never got to Raft.
type abandoned struct{ raft.ApplyFuture }

// Error implements raft.Future.
func (abandoned) Error() error { return raft.ErrEnqueueTimeout }
