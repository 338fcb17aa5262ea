package consensus

import (
	"runtime"
	"sync"
)

// life is the replica's end: closed by its owner, or failed for good.
//
// The Raft library goes on after most errors of its stores, and some of what it
// then does is unsafe: a follower whose log write failed after a truncation
// keeps a wrong idea of its log, and a failed apply would be acknowledged. So no
// such error ever gets back to it.
type life struct {
	fatal func(error)
	// over is closed when the replica is closed or has failed.
	over chan struct{}

	mu    sync.Mutex // guards what follows
	armed bool       // Open is done: from here on a failure is fatal
	ended bool
	err   error  // the first failure
	stop  func() // makes the replica mute; set when armed
}

func newLife(fatal func(error)) *life {
	return &life{fatal: fatal, over: make(chan struct{})}
}

// fail ends the replica and, by Config.Fatal, the process. It does not return:
// should the process live on, only this goroutine ends, with its deferred calls.
// All deferred calls of the Raft library answer "no" or "don't know".
func (l *life) fail(err error) {
	l.mu.Lock()
	first := l.err == nil && !l.ended
	if l.err == nil {
		l.err = err
	}
	if first {
		l.ended = true
		close(l.over)
	}
	armed, stop := l.armed, l.stop
	l.mu.Unlock()
	// A store that is closed under a late reader is no failure of the disk.
	if first && armed {
		go stop() // it may wait for a peer; nobody waits for it
		l.fatal(err)
	}
	runtime.Goexit()
}

// arm makes every later failure fatal. It returns the failure that came before.
// stop silences the replica without waiting for its goroutines: on a disk that
// hangs, its heartbeats would keep the others from electing a leader.
func (l *life) arm(stop func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed, l.stop = true, stop
	return l.err
}

// end begins an orderly end and tells whether it is the first.
func (l *life) end() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return false
	}
	l.ended = true
	close(l.over)
	return true
}

// failure returns the error that ended the replica, if one did.
func (l *life) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
