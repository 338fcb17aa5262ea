package gateway

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// limiter lets a bounded amount of something happen at once, and a bounded
// number of requests wait for it for a bounded time.
type limiter struct {
	size    int64
	slots   *semaphore.Weighted
	waiting atomic.Int64
	// maxWaiting is how many requests may wait; more are refused at once.
	maxWaiting int64
	wait       time.Duration
	// refusal is the error when the wait was in vain.
	refusal error
	metrics limitMetrics
}

// waitingPerSlot bounds the queue in front of a limit of a number of requests.
// With bytes as slots the bound is out of reach, but then so are the requests.
const waitingPerSlot = 4

func newLimiter(size int64, wait time.Duration, refusal error, m limitMetrics) *limiter {
	return &limiter{
		size: size, slots: semaphore.NewWeighted(size), maxWaiting: waitingPerSlot * size,
		wait: wait, refusal: refusal, metrics: m,
	}
}

// acquire takes n slots, first come, first served. It fails with the limit's
// error when that takes too long, or with the context's. The caller must call
// release once.
func (l *limiter) acquire(ctx context.Context, n int64) (release func(), err error) {
	n = min(n, l.size)
	if !l.slots.TryAcquire(n) {
		if err := l.queue(ctx, n); err != nil {
			return nil, err
		}
	}
	l.metrics.inUse.Add(float64(n))
	return func() {
		l.metrics.inUse.Sub(float64(n))
		l.slots.Release(n)
	}, nil
}

func (l *limiter) queue(ctx context.Context, n int64) error {
	defer l.waiting.Add(-1)
	if l.waiting.Add(1) > l.maxWaiting {
		l.metrics.refused.Inc()
		return fmt.Errorf("wait for a turn: queue is full: %w", l.refusal)
	}
	waitCtx, cancel := context.WithTimeout(ctx, l.wait)
	defer cancel()
	if err := l.slots.Acquire(waitCtx, n); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("wait for a turn: %w", ctx.Err())
		}
		l.metrics.refused.Inc()
		return fmt.Errorf("wait %s for a turn: %w", l.wait, l.refusal)
	}
	return nil
}
