package blobstore

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/atollregistry/atoll/blobstore/cache"
	"github.com/atollregistry/atoll/proto"
)

// mirrorReader reads a blob of which this node has all extents as mirrored shards. Those
// are the blob's bytes as they are, so that the kernel can send them; but then nobody
// compares checksums on the way. So each cell is compared just before it is sent, until all of
// a shard were in one go; that counts for as long as it does in the cache.
type mirrorReader struct {
	store *Store
	ctx   context.Context
	// parts are still to be read; nil once rest was asked for them.
	parts []part
	// rest reads all that is left, verified: for those who want bytes, not a file sent.
	rest   io.ReadCloser
	end    func()
	closed bool
}

// readMirror is Read for a blob that is mirrored here: what it returns can have files sent.
func (s *Store) readMirror(ctx context.Context, extents []*proto.Extent, offset, length uint64) (io.ReadCloser, error) {
	parts, err := cutParts(extents, offset, length)
	if err != nil {
		return nil, fmt.Errorf("read blob: %w", err)
	}
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("read blob: %w", err)
	}
	return &mirrorReader{store: s, ctx: ctx, parts: parts, end: end}, nil
}

// Read implements io.Reader.
func (r *mirrorReader) Read(p []byte) (int, error) {
	if err := r.readRest(); err != nil {
		return 0, err
	}
	return r.rest.Read(p)
}

// readRest has all that is left read as any blob is.
func (r *mirrorReader) readRest() (err error) {
	if r.closed {
		return fs.ErrClosed
	}
	if r.rest != nil {
		return nil
	}
	var extents []*proto.Extent
	var offset, length uint64
	for i, p := range r.parts {
		if i == 0 {
			offset = p.offset
		}
		extents, length = append(extents, p.extent), length+p.length
	}
	r.rest, err = r.store.Read(r.ctx, extents, offset, length)
	if err == nil {
		r.parts = nil
	}
	return err
}

// WriteTo implements io.WriterTo. It hands sound shards to a cache.Sender.
func (r *mirrorReader) WriteTo(w io.Writer) (written int64, err error) {
	sender, ok := w.(cache.Sender)
	for ok && len(r.parts) > 0 && !r.closed {
		n, err := r.sendPart(sender, w)
		written += n
		if err != nil {
			return written, err
		}
		r.parts = r.parts[1:]
	}
	if err := r.readRest(); err != nil {
		return written, err
	}
	n, err := io.Copy(w, r.rest)
	return written + n, err
}

// sendPart sends the first part: its shard's file, or what that does not give as bytes.
func (r *mirrorReader) sendPart(sender cache.Sender, w io.Writer) (written int64, err error) {
	p := &r.parts[0]
	if m := r.store.openMirror(p); m != nil {
		written, err = r.sendFile(sender, m)
		m.close()
		if err != nil {
			return written, err
		}
	}
	if p.length == 0 {
		return written, nil
	}
	direct, err := r.store.Read(r.ctx, []*proto.Extent{p.extent}, p.offset, p.length)
	if err != nil {
		return written, err
	}
	n, err := io.Copy(w, direct)
	p.offset, p.length = p.offset+uint64(n), p.length-uint64(n)
	_ = direct.Close() // It has nothing to say about what was read.
	if err == nil && p.length > 0 {
		err = io.ErrUnexpectedEOF
	}
	return written + n, err
}

// sendFile sends a part from its shard's file as far as that gives it, and is sound.
func (r *mirrorReader) sendFile(sender cache.Sender, m *mirror) (written int64, err error) {
	for m.part.length > 0 {
		if r.ctx.Err() != nil {
			return written, fmt.Errorf("read blob: %w", context.Cause(r.ctx))
		}
		bytes, damage := m.sound()
		var n int64
		if damage == nil {
			n, damage, err = cache.SendSome(sender, m.file, bytes)
		}
		written += n
		m.part.offset, m.part.length = m.part.offset+uint64(n), m.part.length-uint64(n)
		if err != nil {
			return written, err
		}
		if damage != nil { // What is wrong with it the next reader of bytes finds out.
			m.disk.handles.forget(m.shard.id)
			return written, nil
		}
	}
	return written, nil
}

// Close ends the reader. It may be called again.
func (r *mirrorReader) Close() (err error) {
	if r.closed {
		return nil
	}
	r.closed = true
	if r.rest != nil {
		err = r.rest.Close()
	}
	r.end()
	return err
}

// mirror is a part's shard on this node, while it is sent.
type mirror struct {
	store *Store
	part  *part
	disk  *Disk
	shard *openShard
	// file is the shard's once more, with a position of its own.
	file *os.File
	// checks says that cells are compared before they are sent. All from the extent's byte first up to
	// checked were, since began.
	checks         bool
	first, checked uint64
	began          time.Time
}

// openMirror opens the shard that this node has of a part; nil if it can't be sent.
func (s *Store) openMirror(p *part) *mirror {
	if isInline(p.extent) {
		return nil
	}
	number := uint32(slices.Index(p.extent.GetHolders(), s.cluster.Self()))
	id, err := newShardID(p.extent.GetId(), number)
	if err != nil || slices.Contains(p.extent.GetDamagedShards(), number) {
		return nil
	}
	d, shard, err := s.disks.acquire(id, false)
	if err != nil {
		return nil
	}
	var file *os.File
	if err = ErrChecksum; shard.layout == p.layout {
		file, err = d.reopen(shard, int64(p.offset))
	}
	if err != nil {
		d.handles.release(shard)
		return nil
	}
	shard.passage.keep() // Else its pages went while they are sent, if others read it, too.
	first := p.offset / uint64(p.layout.cell) * uint64(p.layout.cell)
	m := &mirror{store: s, part: p, disk: d, shard: shard, file: file, first: first, checked: first, began: time.Now()}
	checked := shard.checked.Load()
	m.checks = checked == nil || time.Since(*checked) > cache.TrustInterval
	return m
}

// reopen opens a shard's file once more, at a position. It fails if that is another file by now, as
// it may be of an openShard that others keep.
func (d *Disk) reopen(shard *openShard, position int64) (*os.File, error) {
	file, err := os.Open(d.path(shard.id))
	if err != nil {
		return nil, readFault(err)
	}
	was, err := shard.file.Stat()
	if err == nil {
		var is fs.FileInfo
		if is, err = file.Stat(); err == nil && !os.SameFile(was, is) {
			err = ErrShardUnknown
		}
	}
	if err == nil {
		_, err = file.Seek(position, io.SeekStart)
	}
	if err != nil {
		_ = file.Close() // It was not even read.
		return nil, err
	}
	return file, nil
}

// sound returns how many of the part's bytes may be sent, at least one. It fails with
// ErrChecksum or ErrDisk.
func (m *mirror) sound() (bytes uint64, err error) {
	p := m.part
	if !m.checks {
		return p.length, nil
	}
	if p.offset >= m.checked {
		if err := m.checkCell(int(m.checked / uint64(p.layout.cell))); err != nil {
			return 0, err
		}
	}
	return min(m.checked-p.offset, p.length), nil
}

// checkCell compares a cell with its checksum, and takes note when that was the last of all.
func (m *mirror) checkCell(cell int) error {
	l := m.part.layout
	run := shardRun{extentID: m.shard.id.extent[:], layout: l, number: int(m.shard.id.number), first: cell, cells: 1}
	buf := m.store.buffers.overdraw(run.bytes())
	defer buf.release()
	if err := readFull(m.shard.file, buf.data, l.cellOffset(cell)); err != nil {
		return err
	}
	if err := run.verify(m.shard.checksums[cell:cell+1], buf.data); err != nil {
		return err
	}
	m.checked += uint64(run.bytes())
	if m.first == 0 && m.checked == l.size {
		m.shard.checked.Store(&m.began)
	}
	return nil
}

func (m *mirror) close() {
	_ = m.file.Close() // It was only read.
	m.disk.handles.release(m.shard)
}

// distrustMirror forgets that a shard was sound, if it is on this node.
func (s *Store) distrustMirror(node string, extentID []byte, number int) {
	id, err := newShardID(extentID, uint32(number))
	if err == nil && node == s.cluster.Self() {
		s.disks.forget(id)
	}
}
