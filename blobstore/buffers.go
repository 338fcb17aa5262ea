package blobstore

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
)

const (
	// minBufferBytes is the smallest buffer handed out.
	minBufferBytes = 4 << 10
	// bufferStepBytes is what larger buffers are rounded up to: a stripe is a
	// multiple of it with the default cell size, so nothing is wasted.
	bufferStepBytes = 64 << 10
)

// buffers hands out memory for stripes within one budget for the whole store,
// and keeps what comes back for the next. What it keeps idle, the garbage
// collector may take. Safe for concurrent use.
type buffers struct {
	budget      *semaphore.Weighted
	budgetBytes int64
	idle        sync.Map // Size in bytes -> *sync.Pool of *[]byte.
	// used is the bytes handed out, those outside of the budget included.
	used atomic.Int64
	// waiting is how many wait for the budget.
	waiting atomic.Int64
}

func newBuffers(budgetBytes int64) *buffers {
	return &buffers{budget: semaphore.NewWeighted(budgetBytes), budgetBytes: budgetBytes}
}

// acquire returns a buffer of so many bytes, waiting until the budget allows it.
// The bytes are not zeroed. A buffer larger than the whole budget is charged as
// the whole budget, so that it can be had at all. It fails only when ctx ends.
func (b *buffers) acquire(ctx context.Context, bytes int) (*buffer, error) {
	charge := b.charge(bytes)
	b.waiting.Add(1)
	err := b.budget.Acquire(ctx, charge)
	b.waiting.Add(-1)
	if err != nil {
		return nil, fmt.Errorf("wait for buffer of %d bytes: %w", bytes, err)
	}
	return b.newBuffer(bytes, charge), nil
}

// tryAcquire is acquire without waiting; it returns nil if the budget is used up.
func (b *buffers) tryAcquire(bytes int) *buffer {
	charge := b.charge(bytes)
	if !b.budget.TryAcquire(charge) {
		return nil
	}
	return b.newBuffer(bytes, charge)
}

// overdraw returns a buffer outside of the budget. A reader may hold one stripe
// this way, so that every reader moves on however many there are.
func (b *buffers) overdraw(bytes int) *buffer { return b.newBuffer(bytes, 0) }

func (b *buffers) charge(bytes int) int64 {
	return min(int64(roundBuffer(bytes)), b.budgetBytes)
}

func (b *buffers) newBuffer(bytes int, charge int64) *buffer {
	size := roundBuffer(bytes)
	memory := b.pool(size).Get().(*[]byte)
	b.used.Add(int64(size))
	*memory = (*memory)[:bytes]
	return &buffer{data: *memory, memory: memory, owner: b, charge: charge, size: size}
}

func (b *buffers) pool(size int) *sync.Pool {
	if pool, ok := b.idle.Load(size); ok {
		return pool.(*sync.Pool)
	}
	pool, _ := b.idle.LoadOrStore(size, &sync.Pool{New: func() any {
		memory := make([]byte, size)
		return &memory
	}})
	return pool.(*sync.Pool)
}

// roundBuffer returns the size of the memory behind a buffer. Small sizes are
// powers of two, so that there are few pools.
func roundBuffer(bytes int) int {
	if bytes >= bufferStepBytes {
		return (bytes + bufferStepBytes - 1) / bufferStepBytes * bufferStepBytes
	}
	size := minBufferBytes
	for size < bytes {
		size *= 2
	}
	return size
}

// buffer is memory of the store's budget. Whoever acquired it may write to it,
// and must release it once.
type buffer struct {
	data   []byte
	memory *[]byte
	owner  *buffers
	charge int64
	size   int
}

// release gives the memory back.
func (b *buffer) release() {
	b.data = nil
	*b.memory = (*b.memory)[:b.size]
	b.owner.pool(b.size).Put(b.memory)
	b.settle()
}

// forfeit is release for memory that a call that hangs may still be reading: the
// budget gets its share back, the memory goes to the garbage collector.
func (b *buffer) forfeit() {
	b.data = nil
	b.settle()
}

func (b *buffer) settle() {
	b.owner.used.Add(-int64(b.size))
	if b.charge > 0 {
		b.owner.budget.Release(b.charge)
	}
}
