package node

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	// readinessInterval is the pause between two linearizable reads that show
	// that this node can serve everything.
	readinessInterval = time.Second
	// readinessGrace is how long after the last such read the node still counts
	// as ready. It outlasts an election, which requests wait through, so that the
	// balancer does not drop all nodes at each one.
	readinessGrace = 12 * time.Second
)

// errNoMajority is why a member can't serve everything.
var errNoMajority = errors.New("no contact with a majority of the voters")

// readiness knows what this node can serve now.
type readiness struct {
	readIndex func(context.Context) error

	joined  atomic.Bool
	closing atomic.Bool
	// lastRead is when a linearizable read last succeeded; nil for never. It has a
	// monotonic reading, so that setting the clock does not count as silence.
	lastRead atomic.Pointer[time.Time]
}

// Run reads again and again.
func (r *readiness) Run(ctx context.Context) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, readinessGrace)
		if err := r.readIndex(attempt); err == nil {
			now := time.Now()
			r.lastRead.Store(&now)
		}
		cancel()
		if pause(ctx, readinessInterval) != nil {
			return nil
		}
	}
}

// forReads is nil when the node can serve reads by digest, which need no quorum.
func (r *readiness) forReads() error {
	switch {
	case r.closing.Load():
		return fmt.Errorf("shutting down")
	case !r.joined.Load():
		return fmt.Errorf("not a member of a cluster yet")
	default:
		return nil
	}
}

// forWrites is nil when the node can serve everything.
func (r *readiness) forWrites() error {
	if err := r.forReads(); err != nil {
		return err
	}
	last := r.lastRead.Load()
	if last == nil {
		return fmt.Errorf("%w yet", errNoMajority)
	}
	if age := time.Since(*last); age > readinessGrace {
		return fmt.Errorf("%w for %s", errNoMajority, age.Round(time.Second))
	}
	return nil
}
