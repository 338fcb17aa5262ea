package consensus

import (
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// otherNodePause is how long a node is not asked for where another one has answered: nothing but an
// operator brings it back there, and each question costs both sides a handshake.
const otherNodePause = 2 * time.Second

// attempts keeps nodes from being asked for in vain. Every call of the library dials by itself, five
// times a second, and while a cluster looks for a leader there are more from second to second. Safe
// for concurrent use.
type attempts struct {
	mu sync.Mutex // guards next
	// next is when a node may be asked for again where another one has answered.
	next map[raft.ServerAddress]time.Time
}

func newAttempts() *attempts { return &attempts{next: make(map[raft.ServerAddress]time.Time)} }

// begin says whether now is the time for an attempt. Once the pause is over there is one, until it is
// known what comes of it, or for another pause.
func (a *attempts) begin(to raft.ServerAddress, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	next, paused := a.next[to]
	if !paused {
		return true
	}
	if now.Before(next) {
		return false
	}
	a.next[to] = now.Add(otherNodePause)
	return true
}

// end notes what came of an attempt.
func (a *attempts) end(to raft.ServerAddress, err error, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if errors.Is(err, errOtherNode) {
		a.next[to] = now.Add(otherNodePause)
	} else {
		delete(a.next, to)
	}
}
