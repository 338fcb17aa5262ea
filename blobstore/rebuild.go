package blobstore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// rebuildShard sees to it that this node's disk has a shard of an extent, whole
// and durable. A sound one is left alone. Else it is copied from the node that the
// record names, or rebuilt from k others, verified cell by cell, and takes the
// place of what there was. Recording that is the caller's business.
//
// It fails with ErrTooFewShards when the shard can't be had now, with
// ErrNoSpace, ErrDisk and ErrInvalid. A disk that hangs is left behind, and takes no
// shards for a while.
func (s *Store) rebuildShard(ctx context.Context, extent *proto.Extent, number int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &rebuild{store: s, stalled: make(chan struct{}), disks: s.disks.serving()}
	r.watch.init(r.stall)
	done := make(chan error, 1)
	s.goWork(func() { // Ends with ctx, or when the disk answers.
		defer r.watch.disarm()
		done <- r.run(ctx, extent, number)
	})
	select {
	case err := <-done:
		return err
	case <-r.stalled:
		return fmt.Errorf("rebuild shard %d of extent %x: %w: %w", number, extent.GetId(), ErrDisk, errStalled)
	}
}

// rebuild is the rebuilding of one shard on a disk that may hang.
type rebuild struct {
	store *Store
	watch watchdog
	once  sync.Once
	// stalled is closed when the disk hangs.
	stalled chan struct{}

	mu sync.Mutex // guards disks
	// disks are those that may be to blame: all, until it is known which takes the shard.
	disks []*Disk
}

// stall is called when a step takes too long.
func (r *rebuild) stall([]*cell) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.disks {
		d.rest()
	}
	r.once.Do(func() { close(r.stalled) })
}

// within carries out a step that takes so long at most, unless the disk hangs.
func (r *rebuild) within(limit time.Duration, step func() error) error {
	r.watch.arm(limit, nil)
	defer r.watch.disarm()
	return step()
}

// create begins the shard.
func (r *rebuild) create(header *proto.ShardHeader) (w *ShardWriter, err error) {
	err = r.within(r.store.cfg.StallTimeout, func() error {
		w, err = r.store.disks.create(header)
		return err
	})
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.disks = []*Disk{w.disk}
	return w, nil
}

// run is rebuildShard without regard to disks that hang.
func (r *rebuild) run(ctx context.Context, extent *proto.Extent, number int) error {
	s, stall := r.store, r.store.cfg.StallTimeout
	l, err := extentLayout(extent)
	if err != nil {
		return err
	}
	if number >= l.shards() {
		return fmt.Errorf("extent %x has no shard %d: %w", extent.GetId(), number, ErrInvalid)
	}
	inTime := stall + time.Duration(l.shardBytes()/slowBytesPerSecond)*time.Second
	if r.within(inTime, func() error { return s.keepShard(ctx, extent.GetId(), l, number) }) == nil {
		return r.within(commitStalls*stall, func() error { return s.disks.syncName(extent.GetId(), uint32(number)) })
	}
	source := s.newExtentSource(extent, l)
	source.hasty = true // One task that fails late keeps the others of its batch waiting.
	if extent.GetHolders()[number] == s.cluster.Self() {
		source.distrust(number) // Its sound cells are the last resort.
	}
	w, err := r.create(&proto.ShardHeader{ExtentId: extent.GetId(), ShardNumber: uint32(number), Layout: extent.GetLayout()})
	if err != nil {
		return err
	}
	defer w.Abort()
	cells := s.readShardCells(ctx, source, number)
	defer cells.close()
	trailer := &proto.ShardTrailer{ExtentSize: extent.GetSize()}
	for {
		run, err := cells.next()
		if err != nil {
			return fmt.Errorf("rebuild shard %d of extent %x: %w", number, extent.GetId(), err)
		}
		if len(run) == 0 {
			break
		}
		if err := r.storeCells(ctx, w, trailer, run); err != nil {
			return err
		}
	}
	if ctx.Err() != nil { // A disk does not look at it.
		return context.Cause(ctx)
	}
	return r.within(commitStalls*stall, func() error {
		_, err := w.Commit(trailer)
		return err
	})
}

// storeCells appends cells to a shard and to what its trailer says of them.
func (r *rebuild) storeCells(ctx context.Context, w *ShardWriter, trailer *proto.ShardTrailer, cells [][]byte) error {
	size := 0
	for _, cell := range cells {
		size += len(cell)
		number := uint32(len(trailer.CellChecksums))
		trailer.CellChecksums = append(trailer.CellChecksums, cellChecksum(w.header.id.extent[:], w.header.id.number, number, cell))
	}
	if err := r.store.pace.wait(ctx, size); err != nil {
		return err
	}
	return r.within(r.store.cfg.StallTimeout, func() error { return w.Write(cells...) })
}

// keepShard sees to it that a shard that is sound on this node's disk stays there.
// It fails as checkShard does.
//
// The sweep may have met the file as one without a record, long ago, and be about to
// delete it while the record that will name it is on its way. So it is made another
// file for the sweep first, with a grace of its own.
func (s *Store) keepShard(ctx context.Context, extentID []byte, l layout, number int) error {
	id, err := newShardID(extentID, uint32(number))
	if err != nil {
		return err
	}
	if err := s.disks.renew(id); err != nil {
		return err
	}
	return s.checkShard(ctx, extentID, l, number)
}

// checkShard reads a shard on this node's disk from end to end: the file that has
// its name now, and not one that was kept open, whose name may be gone. It fails
// with ErrShardUnknown, ErrChecksum or ErrDisk when the shard is not what it should be.
func (s *Store) checkShard(ctx context.Context, extentID []byte, l layout, number int) error {
	id, err := newShardID(extentID, uint32(number))
	if err != nil {
		return err
	}
	s.disks.forget(id)
	d, shard, err := s.disks.acquire(id, false)
	if err != nil {
		return err
	}
	found := shard.layout
	d.handles.release(shard)
	if found != l {
		return fmt.Errorf("shard %s has another layout than its record: %w", id, ErrChecksum)
	}
	run := shardRun{extentID: extentID, layout: l, number: number, cells: min(l.runCells(), l.stripes())}
	buf := s.buffers.overdraw(run.bytes())
	defer buf.release()
	for ; run.first < l.stripes(); run.first += run.cells {
		run.cells = min(run.cells, l.stripes()-run.first)
		if err := s.readShard(ctx, s.cluster.Self(), run, buf.data[:run.bytes()]); err != nil {
			return err
		}
	}
	return nil
}

// runCells is how many cells of a shard are read at once.
func (l layout) runCells() int { return max(1, maxReadBytes/l.cell) }

// shardCells yields the cells of one shard, as they are or rebuilt from others. It
// is for one goroutine, and must be closed.
type shardCells struct {
	store  *Store
	source *extentSource
	number int
	// first is the first cell that was not asked for yet.
	first int
	// ahead are the groups being fetched, in order; given is the one whose cells the
	// caller has.
	ahead []*group
	given *group
	// start begins to fetch a group, stop ends all fetches.
	start     func(*group)
	cancelled <-chan struct{}
	cause     func() error
	stop      context.CancelFunc
}

func (s *Store) readShardCells(ctx context.Context, source *extentSource, number int) *shardCells {
	ctx, stop := context.WithCancel(ctx)
	return &shardCells{
		store: s, source: source, number: number, stop: stop, cancelled: ctx.Done(),
		start: func(g *group) { s.goWork(func() { g.fetch(ctx) }) },
		cause: func() error { return context.Cause(ctx) },
	}
}

// next returns the next cells, valid until the next call, and none at the end. It
// fails with ErrTooFewShards, or when the context ends.
func (c *shardCells) next() ([][]byte, error) {
	if c.given != nil {
		c.given.release()
		c.given = nil
	}
	for len(c.ahead) <= groupsAhead && c.first < c.source.layout.stripes() {
		g := c.nextGroup()
		c.ahead = append(c.ahead, g)
		c.start(g)
	}
	if len(c.ahead) == 0 {
		return nil, nil
	}
	g := c.ahead[0]
	select {
	case <-g.done:
	case <-c.cancelled:
		return nil, c.cause()
	}
	if g.err != nil {
		return nil, g.err
	}
	c.ahead, c.given = c.ahead[1:], g
	return g.pieces, nil
}

// nextGroup is the fetch of the next cells.
func (c *shardCells) nextGroup() *group {
	l := c.source.layout
	stripes := min(l.runCells(), l.stripes()-c.first)
	sp := span{first: c.first, stripes: stripes, firstShard: c.number, lastShard: c.number, bytes: l.cellsBytes(c.first, stripes)}
	c.first += stripes
	return &group{
		span: sp, store: c.store, source: c.source, done: make(chan struct{}),
		offset: uint64(sp.first) * uint64(l.stripeBytes()), memory: c.store.tryReadMemory(sp.memoryBytes(l)),
	}
}

func (c *shardCells) close() {
	c.stop()
	if c.given != nil {
		c.given.release()
	}
	for _, g := range c.ahead {
		<-g.done // Comes at once, even if a disk hangs: see group.fetch.
		g.release()
	}
}
