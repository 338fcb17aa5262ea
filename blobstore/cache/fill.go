package cache

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"
	"time"
)

const (
	// fillPatience is how long a disk may take for a step of a fill before readers go on without the file: it may hang.
	// For the source they wait as long as that does: it would not be faster if each of them read it.
	fillPatience = 10 * time.Second
	// fillAhead is how far a fill may be ahead of the reader that is farthest, so that a blob is
	// not fetched for a client that has gone away.
	fillAhead = 16 << 20
	// headBytes is how much of a blob its first reader shares with those who come while he reads that. If nobody did, he goes on
	// without the file, which would go again at the end: to write it, and to drop it, is a fifth of the work of a pull.
	headBytes = 16 << 20
)

var (
	errAbandoned = errors.New("nobody reads it any more")
	errPassed    = errors.New("one reader alone wanted it")
	errStuck     = errors.New("the disk hangs")
	errSize      = errors.New("it has another size than its record says")
)

// fill writes a blob into a file, while readers follow.
type fill struct {
	cache  *Cache
	blob   *blob
	source Source
	// keep says that the blob stays. The cache's lock guards it.
	keep   bool
	ctx    context.Context
	cancel context.CancelFunc

	// file, sum, inBlock and sums are the writer's: the file, the sum of the block that is being written and
	// how many bytes that has so far, and the sums of those before.
	file    *os.File
	sum     uint32
	inBlock int
	sums    []uint32
	total   uint64
	// refused says that the disk did not take what was to be written, and doubtful that nobody knows what of it the
	// disk has.
	refused, doubtful bool

	mu sync.Mutex // guards what follows
	// moved is signalled when any of it changes.
	moved *sync.Cond
	// diskSince is when the writer began what a disk may hang in; zero if it does something else.
	diskSince time.Time
	// written is how much of the blob is in the file, in whole blocks; farthest is how far a reader is.
	written, farthest uint64
	// readers have not left, and unopened of them have not opened the file.
	readers, unopened int
	ended             bool
	err               error
}

// newFill returns a fill with one reader.
func newFill(c *Cache, b *blob, source Source) *fill {
	f := &fill{cache: c, blob: b, source: source, readers: 1, unopened: 1}
	f.moved = sync.NewCond(&f.mu)
	f.ctx, f.cancel = context.WithCancel(c.ctx)
	return f
}

// enter counts one more reader. It fails if nobody will see to the fill any more.
func (f *fill) enter() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil || f.readers == 0 && f.written < f.blob.size {
		return false
	}
	f.readers++
	f.unopened++
	f.moved.Broadcast()
	return true
}

// opened says that a reader has the file, or does without.
func (f *fill) opened() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unopened--
	f.moved.Broadcast()
}

// leave takes a reader off. Without any, a fill that lacks something ends.
func (f *fill) leave() {
	f.mu.Lock()
	f.readers--
	abandoned := f.readers == 0 && f.written < f.blob.size && !f.ended
	f.moved.Broadcast()
	f.mu.Unlock()
	if abandoned {
		f.cancel()
		f.cache.abandon(f)
	}
}

// await returns how many bytes of the blob are in the file, once that is more than the reader has
// had. It fails when the fill has failed, makes no progress, or ctx has ended, of which wake must be told.
func (f *fill) await(ctx context.Context, had uint64) (written uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if had > f.farthest {
		f.farthest = had
		f.moved.Broadcast()
	}
	if f.written > had {
		return f.written, nil
	}
	timer := time.AfterFunc(f.patience(), f.wake)
	defer timer.Stop()
	for f.written <= had && f.err == nil && ctx.Err() == nil && f.patience() > 0 {
		timer.Reset(f.patience())
		f.moved.Wait()
	}
	switch {
	case f.written > had:
		return f.written, nil
	case f.err != nil:
		return 0, f.err
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	}
	return 0, errStuck
}

// patience is how long readers wait for the disk still. The caller holds the lock.
func (f *fill) patience() time.Duration {
	if f.diskSince.IsZero() {
		return f.cache.patience
	}
	return f.cache.patience - time.Since(f.diskSince)
}

// disk does what a disk may hang in, or refuse.
func (f *fill) disk(do func() error) error {
	f.noteDisk(time.Now())
	defer f.noteDisk(time.Time{})
	err := do()
	if err != nil && !errors.Is(err, errNoRoom) {
		f.refused = true
	}
	return err
}

// write writes to the file.
func (f *fill) write(p []byte) error {
	err := f.disk(func() error { _, err := f.file.Write(p); return err })
	f.doubtful = f.doubtful || err != nil
	return err
}

// sync has the disk take what was written: what it could not take would be sent as something else later.
func (f *fill) sync() error {
	err := f.disk(f.file.Sync)
	f.doubtful = f.doubtful || err != nil
	return err
}

func (f *fill) noteDisk(since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.diskSince = since
}

// wake has all look again.
func (f *fill) wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.moved.Broadcast()
}

// run fetches the blob, and keeps it if all goes well.
func (f *fill) run() {
	defer f.cancel()
	stop := context.AfterFunc(f.ctx, f.wake)
	defer stop()
	err := f.fetch()
	if err != nil && f.ctx.Err() != nil {
		err = errors.Join(errAbandoned, err)
	}
	if err == nil && !f.cache.isKept(f) {
		f.awaitOpened()
		err = errPassed
	}
	if err == nil {
		err = f.sync()
	}
	if err != nil {
		f.end(err) // Readers are not to wait for what comes now: a disk may hang in it.
	}
	if f.file != nil {
		err = errors.Join(err, f.file.Close())
	}
	if err != nil && !errors.Is(err, errAbandoned) && !errors.Is(err, errPassed) && !errors.Is(err, errNoRoom) {
		f.cache.cfg.Logger.Warn().Err(err).Str("blob", f.blob.name).Msg("blob did not come into the cache")
	}
	if err != nil && f.file != nil {
		f.cache.unlink(f.blob.path)
	}
	f.end(err)
	f.cache.settle(f, err)
}

// end tells readers that no more comes.
func (f *fill) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended, f.err = true, err
	if f.doubtful {
		f.written = 0
	}
	f.moved.Broadcast()
}

// awaitOpened returns when all readers have the file.
func (f *fill) awaitOpened() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.unopened > 0 && f.ctx.Err() == nil {
		f.moved.Wait()
	}
}

// fetch writes the file.
func (f *fill) fetch() (err error) {
	err = f.disk(func() (err error) {
		f.file, err = os.OpenFile(f.blob.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	if head := f.cache.head; f.blob.size > head && !f.cache.stays(f) {
		if err := f.copy(head); err != nil {
			return err
		}
		alone, err := f.isAlone()
		if err == nil && alone && !f.cache.isKept(f) {
			err = errPassed
		}
		if err != nil {
			return err
		}
	}
	if err := f.copy(f.blob.size); err != nil {
		return err
	}
	if f.inBlock > 0 {
		f.endBlock()
	}
	return f.write(trailer(f.sums, f.blob.name, f.blob.size))
}

// copy fetches what comes next of the blob, up to a byte.
func (f *fill) copy(end uint64) error {
	reader, err := f.source(f.ctx, f.total, end-f.total)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, reader)
	_ = reader.Close() // It has nothing to say about what was read.
	if err == nil && f.total != end {
		err = fmt.Errorf("%d bytes of %d: %w", f.total, end, errSize)
	}
	return err
}

// isAlone says whether there is one reader only, once he has read all that was written, or another has come. It fails when
// nobody is left.
func (f *fill) isAlone() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.readers == 1 && f.farthest < f.written && f.ctx.Err() == nil {
		f.moved.Wait()
	}
	if f.readers == 0 {
		return false, errAbandoned
	}
	return f.readers == 1, context.Cause(f.ctx)
}

// Write takes the next bytes of the blob. It waits while it is too far ahead.
func (f *fill) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		part := p[:min(len(p), blockBytes-f.inBlock)]
		if f.inBlock == 0 {
			if err := f.wait(); err != nil {
				return n, err
			}
			if err := f.disk(f.takeRoom); err != nil {
				return n, err
			}
		}
		if f.total+uint64(len(part)) > f.blob.size {
			return n, errSize
		}
		if err := f.write(part); err != nil {
			return n, err
		}
		n += len(part)
		f.sum = crc32.Update(f.sum, castagnoli, part)
		f.inBlock, f.total = f.inBlock+len(part), f.total+uint64(len(part))
		if f.inBlock == blockBytes {
			f.endBlock()
		}
		p = p[len(part):]
	}
	return n, nil
}

// takeRoom makes sure that there is room for the next block.
func (f *fill) takeRoom() error {
	if err := f.cache.charge(f, min(blockBytes, f.blob.size-f.total)); err != nil {
		return err
	}
	return f.cache.cfg.RequireSpace(blockBytes)
}

// endBlock lets readers have the block.
func (f *fill) endBlock() {
	f.sums = append(f.sums, f.sum)
	f.sum, f.inBlock = 0, 0
	f.mu.Lock()
	defer f.mu.Unlock()
	f.written = f.total
	f.moved.Broadcast()
}

// wait returns when the next block is wanted. It fails when nobody is left that could want it.
func (f *fill) wait() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.readers > 0 && f.ctx.Err() == nil && f.written >= f.farthest+fillAhead {
		f.moved.Wait()
	}
	if f.readers == 0 {
		return errAbandoned
	}
	return context.Cause(f.ctx)
}
