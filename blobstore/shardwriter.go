package blobstore

import (
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"

	"github.com/atollregistry/atoll/proto"
)

// writeBehindBytes is how much of a shard is written before the kernel is told to
// begin with it. A writer waits for the run before the last, so that at most two
// runs are left for the fsync in the end, however long the shard is and however
// slow the disk.
const writeBehindBytes = 8 << 20

// pageBytes is the unit in which the kernel writes to disk, or a divisor of it.
const pageBytes = 4 << 10

// ShardWriter writes one shard to a file without a place among the shards, and
// gives it one when all of it is durable. It is not safe for concurrent use.
// After an error only Abort is left.
type ShardWriter struct {
	disk   *Disk
	header shardHeader
	// file is nil when the writer is done.
	file *os.File
	// sums are the checksums of the whole cells so far; sum is that of the cell
	// begun, of which inCell bytes were written.
	sums   []uint32
	sum    uint32
	inCell int
	// offset is the length of the file so far. What is before started was handed to
	// the disk, what is before settled has been taken by it, and what is before dropped
	// the kernel was told to forget.
	offset, started, settled, dropped int64
	failed                            bool
	// named, if not nil, is called when the shard is durable under its name.
	named func()
}

// Create begins a new shard. The caller must end it with Commit or Abort. It fails
// with ErrNoSpace when the reserve would be touched, with ErrBusy when too many
// shards are being written, with ErrDisk when the disk fails or did so shortly
// before, with ErrInvalid and ErrClosed.
func (d *Disk) Create(header *proto.ShardHeader) (*ShardWriter, error) {
	h, err := newShardHeader(header)
	if err != nil {
		return nil, fmt.Errorf("create shard: %w", err)
	}
	if d.closed.Load() {
		return nil, fmt.Errorf("create shard %s: %w", h.id, ErrClosed)
	}
	if d.resting() {
		return nil, fmt.Errorf("create shard %s: the disk failed less than %s ago: %w", h.id, diskRest, ErrDisk)
	}
	select {
	case d.writers <- struct{}{}:
	default:
		return nil, fmt.Errorf("create shard %s: %d shards are being written: %w", h.id, cap(d.writers), ErrBusy)
	}
	w := &ShardWriter{disk: d, header: h, sum: h.cellSeed(0)}
	if err := w.begin(); err != nil {
		w.Abort()
		return nil, fmt.Errorf("create shard %s: %w", h.id, err)
	}
	return w, nil
}

// begin makes the file.
func (w *ShardWriter) begin() error {
	if err := w.disk.requireSpace(footerBytes); err != nil {
		return err
	}
	file, err := w.disk.calls.create(filepath.Join(w.disk.dir, unfinishedFolder), w.header.id.String()+".*")
	if err != nil {
		return w.disk.fault(err)
	}
	w.file = file
	return nil
}

// Write appends bytes of the shard's cells. The pieces need not end where cells
// end, and may be reused when Write returns. It fails with ErrNoSpace, ErrDisk
// and ErrInvalid.
func (w *ShardWriter) Write(pieces ...[]byte) error {
	return w.append(pieces, func() {
		for _, piece := range pieces {
			w.checksum(piece)
		}
	})
}

// writeCells is Write for whole cells whose checksums are known: nobody else had the bytes since. Only the last cell
// of the shard may be short.
func (w *ShardWriter) writeCells(cells [][]byte, checksums []uint32) error {
	fits := len(cells) == len(checksums) && w.offset%int64(w.header.cellBytes) == 0
	for i, cell := range cells {
		fits = fits && (len(cell) == int(w.header.cellBytes) || i == len(cells)-1 && len(cell) < int(w.header.cellBytes))
	}
	if !fits {
		w.failed = true
		return fmt.Errorf("write shard %s: cells are not whole: %w", w.header.id, ErrInvalid)
	}
	return w.append(cells, func() {
		w.sums = append(w.sums, checksums...)
		w.sum = w.header.cellSeed(uint32(len(w.sums)))
	})
}

// append writes pieces of which checksum takes note.
func (w *ShardWriter) append(pieces [][]byte, checksum func()) error {
	if err := w.appendPieces(pieces, checksum); err != nil {
		w.failed = true
		return fmt.Errorf("write shard %s: %w", w.header.id, err)
	}
	return nil
}

func (w *ShardWriter) appendPieces(pieces [][]byte, checksum func()) error {
	if w.file == nil || w.failed {
		return fmt.Errorf("the writer is done: %w", ErrInvalid)
	}
	size := 0
	for _, piece := range pieces {
		size += len(piece)
	}
	if w.offset+int64(size) > MaxShardCells*int64(w.header.cellBytes) {
		return fmt.Errorf("more than %d cells: %w", MaxShardCells, ErrInvalid)
	}
	if err := w.disk.requireSpace(size); err != nil {
		return err
	}
	checksum()
	if err := w.write(pieces...); err != nil {
		return err
	}
	return w.writeBehind()
}

// checksum takes bytes into the checksums of the cells that they belong to.
func (w *ShardWriter) checksum(piece []byte) {
	for len(piece) > 0 {
		n := min(len(piece), int(w.header.cellBytes)-w.inCell)
		w.sum = crc32.Update(w.sum, castagnoli(), piece[:n])
		w.inCell += n
		piece = piece[n:]
		if w.inCell == int(w.header.cellBytes) {
			w.endCell()
		}
	}
}

func (w *ShardWriter) endCell() {
	w.sums = append(w.sums, w.sum)
	w.sum, w.inCell = w.header.cellSeed(uint32(len(w.sums))), 0
}

func (w *ShardWriter) write(pieces ...[]byte) error {
	if err := w.disk.calls.write(w.file, pieces); err != nil {
		return w.disk.fault(err)
	}
	for _, piece := range pieces {
		w.offset += int64(len(piece))
	}
	return nil
}

// writeBehind keeps the disk busy while the shard comes in. An error is final,
// like that of an fsync: see startWriteback.
func (w *ShardWriter) writeBehind() error {
	end := w.offset - w.offset%pageBytes // The next write changes the last page again.
	if end-w.started < w.disk.writeBehind {
		return nil
	}
	if err := w.disk.calls.writeback(w.file, w.started, end-w.started, false); err != nil {
		return w.disk.fault(err)
	}
	if w.settled < w.started {
		if err := w.disk.calls.writeback(w.file, w.settled, w.started-w.settled, true); err != nil {
			return w.disk.fault(err)
		}
	}
	w.settled, w.started = w.started, end
	if w.settled-w.dropped > recentOfShard+w.disk.writeBehind {
		dropFromCache(w.file, w.dropped, w.settled-recentOfShard-w.dropped)
		w.dropped = w.settled - recentOfShard
	}
	return nil
}

// Commit makes the shard durable under its name, in the place of an older one of
// the same name, and returns the size of its file. It fails with ErrChecksum when
// the bytes written are not those that the trailer tells of, and with ErrDisk,
// ErrNoSpace and ErrInvalid. A shard whose Commit failed does not count, even if
// the file is there: no record names it, and the sweep takes it.
func (w *ShardWriter) Commit(trailer *proto.ShardTrailer) (fileBytes uint64, err error) {
	defer w.Abort()
	if err := w.commit(trailer); err != nil {
		return 0, fmt.Errorf("commit shard %s: %w", w.header.id, err)
	}
	return uint64(w.offset), nil
}

// commit follows reliability rules that are tested against a simulated power
// failure: contents, then name, then folder (DESIGN.md, crash points).
func (w *ShardWriter) commit(trailer *proto.ShardTrailer) error {
	if w.file == nil || w.failed {
		return fmt.Errorf("the writer is done: %w", ErrInvalid)
	}
	if err := w.verify(trailer); err != nil {
		return err
	}
	if err := w.write(encodeTrailer(w.header, trailer.GetExtentSize(), w.sums)); err != nil {
		return err
	}
	if err := w.disk.calls.sync(w.file); err != nil {
		return w.disk.fault(err)
	}
	unfinished := w.file.Name()
	err := w.file.Close()
	w.file = nil
	if err == nil {
		err = w.disk.name(unfinished, w.header.id)
	}
	if err != nil {
		_ = w.disk.calls.remove(unfinished) // Else the next start drops it.
		return w.disk.fault(err)
	}
	w.disk.handles.forget(w.header.id)
	if err := w.disk.calls.syncDir(filepath.Dir(w.disk.path(w.header.id))); err != nil {
		return w.disk.fault(err)
	}
	if err := w.disk.retired(); err != nil {
		return err // Nobody would miss the shard.
	}
	if w.named != nil {
		w.named()
	}
	w.disk.recent.add(w.header.id, w.offset-w.dropped)
	return nil
}

// verify compares what was written with what the sender meant.
func (w *ShardWriter) verify(trailer *proto.ShardTrailer) error {
	if w.inCell > 0 {
		w.endCell()
	}
	l, err := w.header.layout(trailer.GetExtentSize())
	if err != nil {
		return err
	}
	if w.offset != l.shardBytes() {
		return fmt.Errorf("%d bytes instead of %d: %w", w.offset, l.shardBytes(), ErrChecksum)
	}
	if !slices.Equal(w.sums, trailer.GetCellChecksums()) {
		return fmt.Errorf("cells differ from what was sent: %w", ErrChecksum)
	}
	return nil
}

// Abort drops the shard. It does nothing after Commit.
func (w *ShardWriter) Abort() {
	if w.disk == nil {
		return
	}
	if w.file != nil {
		name := w.file.Name()
		_ = w.file.Close() // Nothing of it is wanted.
		_ = w.disk.calls.remove(name)
		w.file = nil
	}
	<-w.disk.writers
	w.disk = nil
}

func (h shardHeader) cellSeed(cell uint32) uint32 {
	return cellSeed(h.id.extent[:], h.id.number, cell)
}
