package workload

import (
	"sync"

	"github.com/atollregistry/atoll/jepsen/history"
)

const (
	// operationsPerKey is after how many operations a key is replaced, if the workload says nothing else.
	operationsPerKey = 200
	// unknownPerKey is after how many writes of unknown outcome it is, and maxUncertain bounds those
	// together with the operations under way, which may become such. The search for an order takes time
	// that grows exponentially with them: 7 take a tenth of a second, 10 take five seconds.
	unknownPerKey = 4
	maxUncertain  = 7
)

// rotation has the keys that clients work on. A key that has served its time gives way to a
// new one. It may be used from many goroutines.
type rotation struct {
	// name names the n-th key.
	name func(n int) string
	// most is after how many operations a key is replaced.
	most int

	mu   sync.Mutex // guards all below, and what is in slots
	live []*slot
	made int
}

// slot is a key in use.
type slot struct {
	key        string
	operations int
	unknown    int
	underWay   int    // operations between hold and its release
	lastSeen   string // what a client was told last
	prepared   bool   // for keys that are repositories: config and anchor were acknowledged
}

// newRotation returns a rotation of some keys at a time.
func newRotation(live int, name func(n int) string) *rotation {
	r := &rotation{name: name, most: operationsPerKey, live: make([]*slot, live)}
	for i := range r.live {
		r.live[i] = r.fresh()
	}
	return r
}

func (r *rotation) fresh() *slot {
	r.made++
	return &slot{key: r.name(r.made - 1), lastSeen: absent}
}

// take returns the i-th key, for one operation.
func (r *rotation) take(i int) *slot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current(i)
}

// current is take; the caller holds mu.
func (r *rotation) current(i int) *slot {
	s := r.live[i]
	if s.operations >= r.most || s.unknown >= unknownPerKey || s.unknown+s.underWay >= maxUncertain {
		s = r.fresh()
		r.live[i] = s
	}
	s.operations++
	return s
}

// hold is take for keys that several clients may write to at once. The caller must call release
// once it has noted how the operation ended.
func (r *rotation) hold(i int) (s *slot, release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s = r.current(i)
	s.underWay++
	return s, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		s.underWay--
	}
}

// note says how an operation on a key ended, and what is there now as far as it has told.
func (r *rotation) note(s *slot, op *history.Op, seen string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if op.Outcome == history.Unknown && !isRead(op.Kind) {
		s.unknown++
	}
	if seen != "" {
		s.lastSeen = seen
	}
}

// seen returns what note was told last.
func (r *rotation) seen(s *slot) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return s.lastSeen
}

// prepared says that a key that is a repository can be used.
func (r *rotation) prepared(s *slot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.prepared = true
}

// isPrepared says whether prepared was called.
func (r *rotation) isPrepared(s *slot) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return s.prepared
}

// spend counts an operation on a key for several.
func (r *rotation) spend(s *slot, operations int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.operations += operations - 1
}
