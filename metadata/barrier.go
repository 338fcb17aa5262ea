package metadata

import (
	"context"
	"sync/atomic"
	"time"
)

// barrier is what the reads of one request share.
//
// A read must show everything that was acknowledged before the request began. The read
// index gives more: everything that was acknowledged before *the read* began. So once
// one read of a request has had its read index, the local state has all that any read
// of the same request must show, and more by the time of the next one: its reads may
// do without another round to the leader. What they return is still as if it had been
// read between the request's beginning and its end, each not before the one in front of
// it, which is what linearizable means (Herlihy and Wing 1990, section 2.3).
//
// It follows that a barrier must not outlive its request, that a request which waits
// for others' changes must not have one, and that it says nothing to another node.
type barrier struct {
	// passed is the store whose state has everything, nil as long as there is none.
	passed atomic.Pointer[Store]
	// begun is when the first read began to wait; nil for not yet. All reads share one
	// wait: without a quorum a request of two reads would else be held up for twice as
	// long.
	begun atomic.Pointer[time.Time]
}

type barrierKey struct{}

// WithBarrier returns a context under which the first read that asks the cluster
// speaks for all that follow. It is for one request that only reads.
func WithBarrier(ctx context.Context) context.Context {
	return context.WithValue(ctx, barrierKey{}, &barrier{})
}

// boundedWait is context.WithTimeout, counted from the first wait under the barrier if
// ctx has one.
func boundedWait(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	b, has := ctx.Value(barrierKey{}).(*barrier)
	if !has {
		return context.WithTimeout(ctx, timeout)
	}
	if b.begun.Load() == nil {
		now := time.Now()
		b.begun.CompareAndSwap(nil, &now)
	}
	return context.WithDeadline(ctx, b.begun.Load().Add(timeout))
}

// readIndex returns once the local state has everything that was acknowledged before
// the call, or before the request whose barrier is in ctx.
func (s *Store) readIndex(ctx context.Context) error {
	b, has := ctx.Value(barrierKey{}).(*barrier)
	if has && b.passed.Load() == s {
		return nil
	}
	if err := s.log.ReadIndex(ctx); err != nil {
		return err
	}
	if has {
		b.passed.Store(s)
	}
	return nil
}

// CatchUp returns once this node has everything that was acknowledged on any node
// before the call, or before the request whose barrier is in ctx. Error:
// ErrUnavailable.
func (s *Store) CatchUp(ctx context.Context) error {
	return s.read(ctx, func(view) error { return nil })
}

// CatchUpForContent is CatchUp for a request that content by its digest may answer:
// when there is no quorum for a while, what this node knows has to do, which Stale then
// tells. Error: ErrUnavailable, if ctx ends.
func (s *Store) CatchUpForContent(ctx context.Context) error {
	return s.readContent(ctx, func(view) error { return ctx.Err() })
}

// CatchUpForNames is CatchUp for a request that tags and lists answer: it is
// CatchUpForContent if StoreConfig.AvailableReads says so. Error: ErrUnavailable.
func (s *Store) CatchUpForNames(ctx context.Context) error {
	return s.readNamed(ctx, func(view) error { return ctx.Err() })
}
