package consensus

import (
	"sync"
	"time"
)

// watchSteps is in how many steps a watch waits.
const watchSteps = 4

// watch waits for something that takes too long. It counts steps rather than looking at the
// clock: a process that was stopped, or whose machine slept, has lost a step and not all of its
// time, and what it was waiting for may have been done long ago.
type watch struct {
	step time.Duration
	late func()

	mu    sync.Mutex // guards what follows
	timer *time.Timer
	left  int
	over  bool
}

// startWatch calls late, on a goroutine of its own, unless stop is called in time.
func startWatch(limit time.Duration, late func()) *watch {
	w := &watch{step: limit / watchSteps, late: late, left: watchSteps}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(w.step, w.tick)
	return w
}

// tick ends a step.
func (w *watch) tick() {
	if w.next() {
		w.late()
	}
}

// next begins the next step, and says whether there is none.
func (w *watch) next() (late bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return false
	}
	w.left--
	w.over = w.left == 0
	if !w.over {
		w.timer.Reset(w.step)
	}
	return w.over
}

// stop ends the watch, and says whether that was in time.
func (w *watch) stop() (inTime bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	inTime = !w.over
	w.over = true
	w.timer.Stop()
	return inTime
}
