package blobstore

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/atollregistry/atoll/proto"
)

const (
	// maxStripesInFlight bounds the stripes of one append that wait for a holder. It
	// is enough for messages of messageBytes while another one is filled.
	maxStripesInFlight = 8
	// minStripesInFlight is how many stripes of its own an append should find memory
	// for, so that it can fill one while another one is sent.
	minStripesInFlight = 2
	// minCellBytes bounds how small cells become when many appends share the budget.
	minCellBytes = 32 << 10
	// maxEmptyReads bounds how often a reader may return nothing and no error.
	maxEmptyReads = 100
)

// Recorded is what Append hands over for recording: extents that became durable,
// and how far the upload has come with them.
type Recorded struct {
	// ExpectedSize is the upload's size before these extents.
	ExpectedSize uint64
	// Extents are never empty.
	Extents  []*proto.Extent
	Progress Progress
}

// Append stores what it reads from r, up to its end, behind from.Size.
//
// An extent that is followed by more is handed to record as soon as it is durable,
// and Append goes on when record returns; without record it is kept for the tail.
// What is left is returned as tail: extents that are durable but not recorded.
// Their first byte is byte tailFrom of the blob. The caller records them, together
// with to, or they become garbage.
//
// What ends at or before byte Config.InlineBlobBytes of the blob is one inline extent, in
// no shard: it becomes durable with its record.
//
// Durable means: at least k+1 shards are (k if there is no parity), on different
// nodes, after fsync. A holder that fails or stalls on the way costs nothing but
// time: the extent ends there, and if it is not durable then, it is stored again
// on healthy nodes.
//
// An error of r or record comes back wrapped, and r is not read after Append has
// returned. Append fails with ErrInsufficientNodes, ErrNoSpace, ErrTooFewShards
// (more holders failed at once than the redundancy covers), ErrHashState and
// ErrClosed. After an error only what was recorded counts.
func (s *Store) Append(ctx context.Context, from Progress, r io.Reader, record func(context.Context, Recorded) error) (
	to Progress, tail []*proto.Extent, tailFrom uint64, err error,
) {
	hashes, err := resumeHashes(from)
	if err != nil {
		return Progress{}, nil, 0, err
	}
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return Progress{}, nil, 0, err
	}
	defer end()
	hasher := startHasher(hashes)
	defer hasher.stop()
	a := s.newAppender(from.UploadID, r, hasher)
	defer a.close()
	a.offset, a.inlineEnd = from.Size, uint64(s.cfg.InlineBlobBytes)

	to, tailFrom = from, from.Size
	for !a.ended {
		extents, err := a.appendExtent(ctx)
		if err != nil {
			return Progress{}, nil, 0, fmt.Errorf("append at byte %d: %w", to.Size, err)
		}
		tail = append(tail, extents...)
		for _, extent := range extents {
			to.Size += extent.GetSize()
		}
		a.offset = to.Size
		if to.Hashes, err = hasher.states(); err != nil {
			return Progress{}, nil, 0, err
		}
		if a.ended || record == nil || len(tail) == 0 {
			continue
		}
		if err := record(ctx, Recorded{ExpectedSize: tailFrom, Extents: tail, Progress: to}); err != nil {
			return Progress{}, nil, 0, fmt.Errorf("record extents up to byte %d: %w", to.Size, err)
		}
		tail, tailFrom = nil, to.Size
	}
	return to, tail, tailFrom, nil
}

// appender cuts a stream into extents.
type appender struct {
	store  *Store
	key    string
	intake *intake
	// ended says that the source has been read to its end.
	ended bool
	// offset is where in the blob the next extent begins, and inlineEnd the byte at or
	// before which an inline one ends; 0 if there is to be none.
	offset, inlineEnd uint64
	// hasher is nil when the bytes were hashed before.
	hasher *hasher
	// room has a place for each stripe that may be in flight.
	room chan struct{}
	// avoid are the nodes that failed the last extent, full those that had no room
	// for one.
	avoid, full []string
	// again is set when another extent is stored again: see extentPlan.
	again extentPlan
	// rescues is how often an extent may still be stored again.
	rescues int
}

// newAppender is undone by close.
func (s *Store) newAppender(uploadID string, source io.Reader, hasher *hasher) *appender {
	key := uploadID
	if key == "" {
		key = string(newExtentID())
	}
	s.appends.Add(1)
	return &appender{
		store: s, key: key, intake: newIntake(source, s.cfg.CellBytes), hasher: hasher,
		room: make(chan struct{}, maxStripesInFlight), rescues: maxRescues,
	}
}

func (a *appender) close() {
	a.intake.close()
	a.store.appends.Add(-1)
}

// gather waits for the next bytes, without memory of the budget.
func (a *appender) gather() error {
	err := a.intake.gather()
	a.ended = a.intake.exhausted()
	return err
}

// headMemory returns how many bytes the first stripe needs: only those that have
// come, if there are no more.
func (a *appender) headMemory(l layout) int {
	small := a.store.cfg.SmallBlobBytes
	if come := a.intake.to - a.intake.from; a.intake.ended && come <= small {
		return come
	}
	return max(stripeMemory(l), small)
}

// appendExtent stores the next extent, or none if the source has ended. If it is
// durable only after it was stored again, that may have made several of it.
func (a *appender) appendExtent(ctx context.Context) ([]*proto.Extent, error) {
	if err := a.gather(); err != nil || a.ended {
		return nil, err
	}
	if a.endsInline() {
		return a.appendInline(ctx)
	}
	l, _, err := a.store.planExtent(ctx, a.plan(false))
	if err != nil {
		return nil, err
	}
	small := a.store.cfg.SmallBlobBytes
	st, err := a.acquire(ctx, a.headMemory(l))
	if err != nil {
		return nil, err
	}
	// The head decides whether the extent is small, before it is placed.
	if _, err := a.fill(st, min(len(st.buf.data), a.store.cfg.CellBytes, l.stripeBytes(), small+1)); err != nil {
		st.release()
		return nil, err
	}
	w, err := a.store.openExtent(ctx, a.plan(a.ended && st.filled <= small))
	if err != nil {
		st.release()
		return nil, err
	}
	defer w.drop()
	if st, err = a.recut(ctx, st, w.layout); err != nil {
		return nil, err
	}
	if err := a.stream(ctx, w, st); err != nil {
		return nil, err
	}
	extent, durable, err := w.finish(ctx)
	if err != nil {
		return nil, err
	}
	a.avoid, a.full = w.failed(), w.full()
	if durable < w.layout.safeShards() {
		return a.rescue(ctx, extent, w.holderErrors())
	}
	return []*proto.Extent{extent}, nil
}

// plan is what the next extent is wanted for.
func (a *appender) plan(small bool) extentPlan {
	plan := a.again
	plan.key, plan.small, plan.avoid, plan.full = a.key, small, a.avoid, a.full
	return plan
}

// recut returns the first stripe with memory for a layout that may be another one
// than it was acquired for. It never holds one stripe while it waits for another.
func (a *appender) recut(ctx context.Context, st *stripe, l layout) (*stripe, error) {
	fits := stripeMemory(l) <= len(st.buf.data)
	if fits || a.ended && l.mirrored() && st.filled <= l.cell {
		return st, nil
	}
	head := slices.Clone(st.buf.data[:st.filled])
	st.release()
	st, err := a.acquire(ctx, stripeMemory(l))
	if err != nil {
		return nil, err
	}
	st.filled = copy(st.buf.data, head)
	return st, nil
}

// stream takes stripes to the extent until it is full, the source has ended or is
// too slow, or a holder has failed. It takes over the reference on the first stripe.
func (a *appender) stream(ctx context.Context, w *extentWriter, st *stripe) error {
	for {
		slow, err := a.fill(st, w.layout.stripeBytes())
		if err == nil && st.filled > 0 {
			a.hasher.write(st)
			err = w.write(st)
		}
		st.release()
		full := w.layout.size+uint64(w.layout.stripeBytes()) > uint64(a.store.cfg.MaxExtentBytes)
		if err != nil || a.ended || slow || full || w.broken() {
			return err
		}
		if err := a.gather(); err != nil || a.ended {
			return err
		}
		if st, err = a.acquire(ctx, stripeMemory(w.layout)); err != nil {
			return err
		}
	}
}

// shareCell returns the size of a cell with which so many appends share the
// budget. A stripe always has room for more than a small blob.
func shareCell(l layout, cfg Config, appends int64) int {
	l.cell = cfg.CellBytes
	for {
		need := appends * minStripesInFlight * int64(stripeMemory(l))
		half := l
		half.cell /= 2
		if need <= cfg.BufferBytes || half.cell < minCellBytes || half.stripeBytes() <= cfg.SmallBlobBytes {
			return l.cell
		}
		l = half
	}
}

// acquire returns an empty stripe. It waits while too many are in flight, in this
// append or in all. What it waits for needs no stripe to be done, holders that hang
// are given up, and so are clients that are slow: so the wait ends. If that takes
// longer than Store.memoryWait it fails with ErrBusy.
func (a *appender) acquire(ctx context.Context, bytes int) (*stripe, error) {
	select {
	case a.room <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for stripe: %w", context.Cause(ctx))
	}
	limited, cancel := context.WithTimeoutCause(ctx, a.store.memoryWait, ErrBusy)
	defer cancel()
	buf, err := a.store.buffers.acquire(limited, bytes)
	if err != nil {
		<-a.room
		return nil, fmt.Errorf("%w: %w", context.Cause(limited), err)
	}
	return newStripe(buf, a.room), nil
}

// fill reads until so many bytes are in the stripe, or the source has ended. It ends
// early, and says so, when that takes long and others wait for memory: then the
// stripe has to go as it is.
func (a *appender) fill(st *stripe, bytes int) (slow bool, err error) {
	for st.filled < bytes && !a.ended && !slow {
		if a.intake.from == a.intake.to {
			slow, err = a.readMore(st, bytes)
		}
		if err != nil {
			return false, err
		}
		st.filled += a.intake.take(st.buf.data[st.filled:bytes])
		a.ended = a.intake.exhausted()
	}
	return slow, nil
}

// readMore reads once: into the stripe as long as not too many do, since that can't
// be interrupted, or else into the intake.
func (a *appender) readMore(st *stripe, bytes int) (slow bool, err error) {
	direct := a.store.directReads
	if !a.intake.reading && direct.TryAcquire(st.buf.charge) {
		defer direct.Release(st.buf.charge)
		n, err := a.intake.source.Read(st.buf.data[st.filled:bytes])
		st.filled += n
		return false, a.intake.note(intakeResult{n, err})
	}
	a.intake.begin()
	select {
	case read := <-a.intake.results:
		return false, a.intake.arrived(read)
	default:
	}
	timer := time.NewTimer(time.Until(st.acquired.Add(a.store.patience)))
	defer timer.Stop()
	for {
		select {
		case read := <-a.intake.results:
			return false, a.intake.arrived(read)
		case <-timer.C:
			if a.store.buffers.waiting.Load() > 0 {
				return true, nil
			}
			timer.Reset(patiencePoll)
		}
	}
}
