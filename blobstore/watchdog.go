package blobstore

import (
	"sync"
	"time"
)

// watchdog says when a holder makes no progress. It is armed before a step that
// may hang, and disarmed after it.
type watchdog struct {
	mu       sync.Mutex // guards all
	timer    *time.Timer
	deadline time.Time // zero while disarmed
	cells    []*cell
	stalled  func(stuck []*cell)
}

// init must be called first. stalled is called at most once for each arm, on a
// goroutine of its own, with the cells that are stuck.
func (w *watchdog) init(stalled func(stuck []*cell)) {
	w.stalled = stalled
	w.timer = time.AfterFunc(time.Hour, w.expire)
	w.timer.Stop()
}

// arm begins a step that may take so long. If it is about cells, not nil, it ends
// when all of them are released; an empty list needs no watching.
func (w *watchdog) arm(limit time.Duration, cells []*cell) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if cells != nil && len(cells) == 0 {
		return
	}
	w.cells, w.deadline = cells, time.Now().Add(limit)
	w.timer.Reset(limit)
}

// disarm ends the step.
func (w *watchdog) disarm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deadline = time.Time{}
	w.timer.Stop()
}

func (w *watchdog) expire() {
	stuck, stalled := w.stuck()
	if stalled {
		w.stalled(stuck)
	}
}

// stuck says whether the step has taken too long. The timer may have gone off for
// a step that ended just then.
func (w *watchdog) stuck() (cells []*cell, stalled bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.deadline.IsZero() || time.Now().Before(w.deadline) {
		return nil, false
	}
	w.deadline = time.Time{}
	if w.cells == nil {
		return nil, true
	}
	for _, c := range w.cells {
		if !c.done.Load() {
			cells = append(cells, c)
		}
	}
	return cells, len(cells) > 0
}
