package consensus

import (
	"context"
	"fmt"
	"sync"
)

// progress is how far the local state machine has applied the log. The library's
// own AppliedIndex will not do: it counts what was handed over, not what was
// applied.
type progress struct {
	mu      sync.Mutex // guards both
	applied uint64
	changed chan struct{} // closed and replaced when applied grows
}

func newProgress(applied uint64) *progress {
	return &progress{applied: applied, changed: make(chan struct{})}
}

// advance publishes that the state is applied up to a log index.
func (p *progress) advance(logIndex uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if logIndex > p.applied {
		p.applied = logIndex
		close(p.changed)
		p.changed = make(chan struct{})
	}
}

func (p *progress) index() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.applied
}

// wait returns once the state is applied up to a log index.
func (p *progress) wait(ctx context.Context, logIndex uint64) error {
	for {
		p.mu.Lock()
		applied, changed := p.applied, p.changed
		p.mu.Unlock()
		if applied >= logIndex {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for log index %d, applied is %d: %w", logIndex, applied, context.Cause(ctx))
		}
	}
}
