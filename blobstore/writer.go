package blobstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

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
	source io.Reader
	// ended says that the source has been read to its end.
	ended bool
	// hasher is nil when the bytes were hashed before.
	hasher *hasher
	// room has a place for each stripe that may be in flight.
	room chan struct{}
	// avoid are the nodes that failed the last extent.
	avoid []string
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
		store: s, key: key, source: source, hasher: hasher,
		room: make(chan struct{}, maxStripesInFlight), rescues: maxRescues,
	}
}

func (a *appender) close() { a.store.appends.Add(-1) }

// appendExtent stores the next extent, or none if the source has ended. If it is
// durable only after it was stored again, that may have made several of it.
func (a *appender) appendExtent(ctx context.Context) ([]*proto.Extent, error) {
	l, _, err := a.store.planExtent(ctx, extentPlan{key: a.key}, a.avoid)
	if err != nil {
		return nil, err
	}
	small := a.store.cfg.SmallBlobBytes
	st, err := a.acquire(ctx, max(stripeMemory(l), small))
	if err != nil {
		return nil, err
	}
	// The head decides whether the extent is small, before it is placed.
	if err := a.fill(st, min(a.store.cfg.CellBytes, l.stripeBytes(), small+1)); err != nil || st.filled == 0 {
		st.release()
		return nil, err
	}
	w, err := a.store.openExtent(ctx, extentPlan{key: a.key, small: a.ended && st.filled <= small, avoid: a.avoid})
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
	a.avoid = w.failed()
	if durable < w.layout.safeShards() {
		return a.rescue(ctx, extent, w.holderErrors())
	}
	return []*proto.Extent{extent}, nil
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

// stream takes stripes to the extent until it is full, the source has ended or a
// holder has failed. It takes over the reference on the first stripe.
func (a *appender) stream(ctx context.Context, w *extentWriter, st *stripe) error {
	for {
		err := a.fill(st, w.layout.stripeBytes())
		if err == nil && st.filled > 0 {
			a.hasher.write(st)
			err = w.write(st)
		}
		st.release()
		full := w.layout.size+uint64(w.layout.stripeBytes()) > uint64(a.store.cfg.MaxExtentBytes)
		if err != nil || a.ended || full || w.broken() {
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
// append or in all. What it waits for needs no stripe to be done, and holders that
// hang are given up: so the wait ends.
func (a *appender) acquire(ctx context.Context, bytes int) (*stripe, error) {
	select {
	case a.room <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for stripe: %w", context.Cause(ctx))
	}
	buf, err := a.store.buffers.acquire(ctx, bytes)
	if err != nil {
		<-a.room
		return nil, errors.Join(err, context.Cause(ctx))
	}
	return newStripe(buf, a.room), nil
}

// fill reads until so many bytes are in the stripe, or the source has ended.
func (a *appender) fill(st *stripe, bytes int) error {
	for empty := 0; st.filled < bytes && !a.ended; {
		n, err := a.source.Read(st.buf.data[st.filled:bytes])
		st.filled += n
		switch {
		case errors.Is(err, io.EOF):
			a.ended = true
		case err != nil:
			return fmt.Errorf("read source: %w", err)
		case n > 0:
			empty = 0
		default:
			if empty++; empty == maxEmptyReads {
				return fmt.Errorf("read source: %w", io.ErrNoProgress)
			}
		}
	}
	return nil
}
