package blobstore

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/atollregistry/atoll/proto"
)

const (
	// maxGroupBytes bounds what a reader fetches at once. With k=2 it makes messages
	// of 1 MiB.
	maxGroupBytes = 2 << 20
	// groupsAhead is how many groups a reader fetches beyond the one being read.
	groupsAhead = 1
	// readersShare is the part of the budget, one in so many bytes, that readers may
	// take, so that slow clients who pull don't keep others from pushing.
	readersShare = 2
)

// Read opens length bytes, from offset on, of the blob made of extents. Nothing is
// fetched before the first byte is asked for. Every cell is verified; one that is
// missing, late or rotten is rebuilt from others of its stripe. What is inline is there.
//
// The reader fails with ErrTooFewShards when that can't be done, and with
// ErrClosed; what it returned before is good. It also has WriteTo, which writes
// cells as they are. It is for one goroutine, and must be closed; it stops when
// ctx ends. Read fails with ErrInvalid if the range is not in the blob.
func (s *Store) Read(ctx context.Context, extents []*proto.Extent, offset, length uint64) (io.ReadCloser, error) {
	parts, err := cutParts(extents, offset, length)
	if err != nil {
		return nil, fmt.Errorf("read blob: %w", err)
	}
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("read blob: %w", err)
	}
	s.readers.Add(1)
	return &reader{
		store: s, parts: parts, end: end, cancelled: ctx.Done(),
		start: func(g *group) { s.goWork(func() { g.fetch(ctx) }) },
		cause: func() error { return context.Cause(ctx) },
	}, nil
}

// part is what of one extent is still to be read.
type part struct {
	extent         *proto.Extent
	layout         layout
	source         *extentSource // nil before the first group
	offset, length uint64
}

// cutParts returns the parts of the extents that a range of the blob lies in.
func cutParts(extents []*proto.Extent, offset, length uint64) ([]part, error) {
	var parts []part
	wanted := length
	for _, extent := range extents {
		size := extent.GetSize()
		if offset >= size {
			offset -= size
			continue
		}
		if wanted == 0 {
			break
		}
		l, err := readableLayout(extent)
		if err != nil {
			return nil, err
		}
		take := min(wanted, size-offset)
		parts = append(parts, part{extent: extent, layout: l, offset: offset, length: take})
		wanted -= take
		offset = 0
	}
	if wanted > 0 {
		return nil, fmt.Errorf("%d bytes are beyond the end: %w", wanted, ErrInvalid)
	}
	return parts, nil
}

// reader reads a range of a blob, group by group.
type reader struct {
	store *Store
	parts []part
	// ahead are the groups being fetched, in order; the first is the one being read.
	ahead []*group
	err   error
	// start begins to fetch a group, cause says why the context has ended, and end
	// ends it.
	start     func(*group)
	cancelled <-chan struct{}
	cause     func() error
	end       func()
	closed    bool
}

// Read is io.Reader's.
func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	piece, err := r.next()
	if err != nil {
		return 0, err
	}
	n := copy(p, piece)
	r.ahead[0].consume(n)
	return n, nil
}

// WriteTo is io.WriterTo's: it writes cells from where they were received.
func (r *reader) WriteTo(w io.Writer) (written int64, err error) {
	for {
		piece, err := r.next()
		if errors.Is(err, io.EOF) {
			return written, nil
		}
		if err != nil {
			return written, err
		}
		n, err := w.Write(piece)
		written += int64(n)
		r.ahead[0].consume(n)
		if err == nil && n < len(piece) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return written, err
		}
	}
}

// next returns bytes of the first group, which the caller consumes, or io.EOF.
func (r *reader) next() ([]byte, error) {
	for r.err == nil {
		if len(r.ahead) > 0 && r.ahead[0].exhausted() {
			r.ahead[0].release()
			r.ahead = r.ahead[1:]
		}
		r.fetchAhead()
		if len(r.ahead) == 0 {
			r.err = io.EOF
			break
		}
		first := r.ahead[0]
		select {
		case <-first.done:
		case <-r.cancelled:
			r.err = fmt.Errorf("read blob: %w", r.cause())
			continue
		}
		if first.err != nil {
			r.err = fmt.Errorf("read extent %x at byte %d: %w", first.source.id, first.offset, first.err)
			continue
		}
		if !first.exhausted() {
			return first.pieces[0], nil
		}
	}
	return nil, r.err
}

// fetchAhead starts to fetch groups while the budget has memory for them. The one
// that is read next gets memory in any case.
func (r *reader) fetchAhead() {
	for len(r.ahead) <= groupsAhead && len(r.parts) > 0 {
		if isInline(r.parts[0].extent) {
			r.ahead, r.parts = append(r.ahead, inlineGroup(r.parts[0])), r.parts[1:]
			continue
		}
		g := r.store.newGroup(&r.parts[0], len(r.ahead) == 0)
		if g == nil {
			return
		}
		if r.parts[0].length == 0 {
			r.parts = r.parts[1:]
		}
		r.ahead = append(r.ahead, g)
		r.start(g)
	}
}

// Close stops all fetches. It may be called again.
func (r *reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	if r.err == nil {
		r.err = fmt.Errorf("read blob: reader closed: %w", ErrInvalid)
	}
	r.end()
	for _, g := range r.ahead {
		<-g.done // Comes at once, even if a disk hangs: see group.fetch.
		g.release()
	}
	r.ahead, r.parts = nil, nil
	r.store.readers.Add(-1)
	return nil
}
