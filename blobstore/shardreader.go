package blobstore

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/atollregistry/atoll/proto"
)

// ReadCells reads whole cells of a shard into buf, which must have room for them,
// and returns the part of buf that they fill, one after the other, with their
// stored checksums, which the caller may not change. The caller compares these
// with cellChecksum: nothing is verified here but the file's trailer.
// It fails with ErrShardUnknown, ErrChecksum (the file is not what was written),
// ErrDisk, ErrBusy (too many files are open), ErrClosed and ErrInvalid (there are
// no such cells, buf is too small, or the format is of other software).
func (d *Disk) ReadCells(request *proto.ReadShardRequest, buf []byte) (checksums []uint32, data []byte, err error) {
	id, err := newShardID(request.GetExtentId(), request.GetShardNumber())
	if err != nil {
		return nil, nil, fmt.Errorf("read shard: %w", err)
	}
	shard, err := d.acquire(id)
	if err != nil {
		return nil, nil, fmt.Errorf("read shard %s: %w", id, err)
	}
	defer d.handles.release(shard)
	return d.readOpen(shard, request, intoBuffer(buf))
}

// intoBuffer has cells read into buf.
func intoBuffer(buf []byte) func(size int) ([]byte, error) {
	return func(size int) ([]byte, error) {
		if size > len(buf) {
			return nil, fmt.Errorf("%d bytes into a buffer of %d: %w", size, len(buf), ErrInvalid)
		}
		return buf[:size], nil
	}
}

// readOpen reads cells of an open shard into memory that room provides once the
// size is known.
func (d *Disk) readOpen(shard *openShard, request *proto.ReadShardRequest, room func(size int) ([]byte, error)) (checksums []uint32, data []byte, err error) {
	id := shard.id
	first, cells := uint64(request.GetFirstCell()), uint64(request.GetCells())
	if cells == 0 || first+cells > uint64(len(shard.checksums)) {
		return nil, nil, fmt.Errorf("read shard %s: cells %d to %d of %d: %w", id, first, first+cells, len(shard.checksums), ErrInvalid)
	}
	data, err = room(shard.layout.cellsBytes(int(first), int(cells)))
	if err != nil {
		return nil, nil, fmt.Errorf("read shard %s: %w", id, err)
	}
	if err := d.handles.read(shard, data, shard.layout.cellOffset(int(first))); err != nil {
		d.handles.forget(id)
		return nil, nil, fmt.Errorf("read shard %s: %w", id, err)
	}
	return shard.checksums[first : first+cells], data, nil
}

// acquire returns a shard's open file, for release when it was used.
func (d *Disk) acquire(id shardID) (*openShard, error) {
	if d.closed.Load() {
		return nil, ErrClosed
	}
	shard, generation := d.handles.lookup(id)
	if shard != nil {
		return shard, nil
	}
	shard, err := openShardFile(d.path(id), id)
	if err != nil {
		return nil, err
	}
	return d.handles.keep(shard, generation), nil
}

// openShard is a shard's open file with all that its trailer says.
type openShard struct {
	id        shardID
	file      *os.File
	layout    layout
	checksums []uint32
	passage   passage
	// checked is when it was last read through, and sound; nil if it was not since it was opened.
	checked atomic.Pointer[time.Time]
	// users counts the reads under way, and the cache if it holds the shard. At 0
	// the file is closed. Guarded by the cache's lock.
	users int
}

// close is called when nobody reads any more.
func (s *openShard) close() {
	_ = s.file.Close() // It was only read.
}

// openShardFile opens a shard and checks its trailer and length.
func openShardFile(path string, id shardID) (*openShard, error) {
	file, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, ErrShardUnknown
	case err != nil:
		return nil, readFault(err)
	}
	shard := &openShard{id: id, file: file}
	if shard.layout, shard.checksums, err = readShardMeta(file, id); err != nil {
		_ = file.Close() // It was only read.
		return nil, err
	}
	return shard, nil
}

// readShardMeta reads what is around the cells.
func readShardMeta(file *os.File, id shardID) (layout, []uint32, error) {
	info, err := file.Stat()
	if err != nil {
		return layout{}, nil, fmt.Errorf("%w: %w", ErrDisk, err)
	}
	size := info.Size()
	if size < footerBytes {
		return layout{}, nil, fmt.Errorf("%d bytes are no shard: %w", size, ErrChecksum)
	}
	b := make([]byte, footerBytes)
	if err := readFull(file, b, size-footerBytes); err != nil {
		return layout{}, nil, err
	}
	footer, err := decodeShardFooter(id, b, size)
	if err != nil {
		return layout{}, nil, err
	}
	b = make([]byte, trailerBytes(footer.layout)-footerBytes)
	if err := readFull(file, b, size-footerBytes-int64(len(b))); err != nil {
		return layout{}, nil, err
	}
	checksums, err := footer.decodeChecksums(b)
	return footer.layout, checksums, err
}

// readFull reads exactly buf. A file that ends early was cut off.
func readFull(file *os.File, buf []byte, offset int64) error {
	n, err := file.ReadAt(buf, offset)
	switch {
	case n == len(buf):
		return nil
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the file ends at %d: %w", offset+int64(n), ErrChecksum)
	}
	return fmt.Errorf("%w: %w", ErrDisk, err)
}

// openShards keeps the files read last open, since a transfer reads a shard in
// many small runs, and opening one costs two reads. Safe for concurrent use.
type openShards struct {
	limit int

	mu    sync.Mutex
	byID  map[shardID]*list.Element
	order *list.List // Of *openShard, the one used last in front.
	// generation counts the calls of forget. A file that was opened before a call
	// may be of a shard that was replaced since, and is not kept.
	generation uint64
	// passed are shards that were read through and dropped from the kernel's cache, which they are not the next time.
	passed *simplelru.LRU[shardID, struct{}]
}

func newOpenShards(limit int) *openShards {
	passed, err := simplelru.NewLRU[shardID, struct{}](maxPassed, nil)
	if err != nil {
		panic(err) // Unreachable: the size is positive.
	}
	return &openShards{limit: limit, byID: make(map[shardID]*list.Element), order: list.New(), passed: passed}
}

// read reads exactly buf of an open shard.
func (o *openShards) read(shard *openShard, buf []byte, offset int64) error {
	size := shard.layout.shardBytes()
	shard.passage.begin(shard.file, size, offset, len(buf))
	if err := readFull(shard.file, buf, offset); err != nil {
		return err
	}
	if shard.passage.end(shard.file, size, offset+int64(len(buf))) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.passed.Add(shard.id, struct{}{})
	}
	return nil
}

// lookup returns the open shard if it is kept, for release after use, and the
// generation to give to keep if it is not.
func (o *openShards) lookup(id shardID) (*openShard, uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	element, ok := o.byID[id]
	if !ok {
		return nil, o.generation
	}
	o.order.MoveToFront(element)
	shard := element.Value.(*openShard)
	shard.users++
	return shard, o.generation
}

// keep takes a shard just opened into the cache, and returns the shard to use and
// then release: another one, if another read was faster.
func (o *openShards) keep(shard *openShard, generation uint64) *openShard {
	o.mu.Lock()
	defer o.mu.Unlock()
	if element, ok := o.byID[shard.id]; ok {
		shard.close()
		shard = element.Value.(*openShard)
		shard.users++
		return shard
	}
	shard.users = 1
	if _, passed := o.passed.Get(shard.id); passed {
		shard.passage.keep()
	}
	if generation != o.generation {
		return shard
	}
	shard.users++
	o.byID[shard.id] = o.order.PushFront(shard)
	for o.order.Len() > o.limit {
		o.drop(o.order.Back())
	}
	return shard
}

// wants says whether the shard was read lately, and not as one that is read once.
func (o *openShards) wants(id shardID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	element, ok := o.byID[id]
	return ok && element.Value.(*openShard).passage.isKept()
}

// release ends the use of a shard.
func (o *openShards) release(shard *openShard) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.leave(shard)
}

// forget closes a shard's file once nobody reads it any more.
func (o *openShards) forget(id shardID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.generation++
	if element, ok := o.byID[id]; ok {
		o.drop(element)
	}
}

// forgetAll is forget for all shards.
func (o *openShards) forgetAll() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.generation++
	for o.order.Len() > 0 {
		o.drop(o.order.Back())
	}
}

// drop takes a shard out of the cache. The lock is held.
func (o *openShards) drop(element *list.Element) {
	shard := o.order.Remove(element).(*openShard)
	delete(o.byID, shard.id)
	o.leave(shard)
}

// leave counts one user less. The lock is held.
func (o *openShards) leave(shard *openShard) {
	if shard.users--; shard.users == 0 {
		shard.close()
	}
}
