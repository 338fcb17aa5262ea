package blobstore

import (
	"context"
	"fmt"

	"github.com/atollregistry/atoll/proto"
)

// rebuildShard sees to it that this node's disk has a shard of an extent, whole
// and durable. A sound one is left alone. Else it is copied from the node that the
// record names, or rebuilt from k others, verified cell by cell, and takes the
// place of what there was. Recording that is the caller's business.
//
// It fails with ErrTooFewShards when the shard can't be had now, with
// ErrNoSpace, ErrDisk and ErrInvalid.
func (s *Store) rebuildShard(ctx context.Context, extent *proto.Extent, number int) error {
	l, err := extentLayout(extent)
	if err != nil {
		return err
	}
	if number >= l.shards() {
		return fmt.Errorf("extent %x has no shard %d: %w", extent.GetId(), number, ErrInvalid)
	}
	if s.checkShard(ctx, extent.GetId(), l, number) == nil {
		return nil
	}
	source := s.newExtentSource(extent, l)
	if extent.GetHolders()[number] == s.cluster.Self() {
		source.distrust(number) // Its sound cells are the last resort.
	}
	w, err := s.disk.Create(&proto.ShardHeader{ExtentId: extent.GetId(), ShardNumber: uint32(number), Layout: extent.GetLayout()})
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
		if err := s.storeCells(ctx, w, trailer, run); err != nil {
			return err
		}
	}
	_, err = w.Commit(trailer)
	return err
}

// storeCells appends cells to a shard and to what its trailer says of them.
func (s *Store) storeCells(ctx context.Context, w *ShardWriter, trailer *proto.ShardTrailer, cells [][]byte) error {
	size := 0
	for _, cell := range cells {
		size += len(cell)
		number := uint32(len(trailer.CellChecksums))
		trailer.CellChecksums = append(trailer.CellChecksums, cellChecksum(w.header.id.extent[:], w.header.id.number, number, cell))
	}
	if err := s.pace.wait(ctx, size); err != nil {
		return err
	}
	return w.Write(cells...)
}

// checkShard reads a shard on this node's disk from end to end. It fails with
// ErrShardUnknown, ErrChecksum or ErrDisk when the shard is not what it should be.
func (s *Store) checkShard(ctx context.Context, extentID []byte, l layout, number int) error {
	id, err := newShardID(extentID, uint32(number))
	if err != nil {
		return err
	}
	shard, err := s.disk.acquire(id)
	if err != nil {
		return err
	}
	found := shard.layout
	s.disk.handles.release(shard)
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
