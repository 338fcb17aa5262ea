package blobstore

import (
	"fmt"

	"github.com/atollregistry/atoll/proto"
)

// layout is the arithmetic of one extent: how its bytes are cut into stripes and
// cells. It is pure; all sizes are in bytes.
//
// Stripe s holds the k*cell bytes of the extent from s*k*cell on, where cell is
// the layout's cell size; data shard d has the d-th cell of it. In the last
// stripe, which may be short, a cell is ceil(rest/k), and the stripe is padded
// with zeros up to k such cells. So every shard, data or parity, has one cell in
// each stripe, cell number s in stripe s, and all shards are equally long.
type layout struct {
	// data and parity are k and m.
	data, parity int
	// cell is the size of a cell in every stripe but the last.
	cell int
	// size is the extent's.
	size uint64
}

// newLayout checks a layout and binds it to the size of an extent. It fails with
// ErrInvalid when no extent of this software can look like that.
func newLayout(l *proto.Layout, extentBytes uint64) (layout, error) {
	k, m, cell := l.GetDataShards(), l.GetParityShards(), l.GetCellBytes()
	switch {
	case k < 1 || k > MaxDataShards || m > MaxParityShards:
		return layout{}, fmt.Errorf("layout with %d data and %d parity shards: %w", k, m, ErrInvalid)
	case cell < 1 || cell > MaxCellBytes:
		return layout{}, fmt.Errorf("layout with cells of %d bytes: %w", cell, ErrInvalid)
	case extentBytes < 1 || extentBytes > MaxShardCells*uint64(cell)*uint64(k):
		return layout{}, fmt.Errorf("extent of %d bytes in cells of %d on %d data shards: %w", extentBytes, cell, k, ErrInvalid)
	}
	return layout{data: int(k), parity: int(m), cell: int(cell), size: extentBytes}, nil
}

// extentLayout returns the layout of a recorded extent. It fails with ErrInvalid
// when the record can't be true.
func extentLayout(e *proto.Extent) (layout, error) {
	l, err := newLayout(e.GetLayout(), e.GetSize())
	if err != nil {
		return layout{}, fmt.Errorf("extent %x: %w", e.GetId(), err)
	}
	if len(e.GetHolders()) != l.shards() {
		return layout{}, fmt.Errorf("extent %x: %d holders for %d shards: %w", e.GetId(), len(e.GetHolders()), l.shards(), ErrInvalid)
	}
	return l, nil
}

// shards returns k+m.
func (l layout) shards() int { return l.data + l.parity }

// mirrored says that every shard is a whole copy of the extent.
func (l layout) mirrored() bool { return l.data == 1 }

// stripeBytes returns the data bytes of a full stripe.
func (l layout) stripeBytes() int { return l.data * l.cell }

// stripes returns how many stripes the extent has, which is also how many cells
// each shard has.
func (l layout) stripes() int {
	full := uint64(l.stripeBytes())
	return int((l.size + full - 1) / full)
}

// dataBytes returns how many bytes of the extent are in a stripe.
func (l layout) dataBytes(stripe int) int {
	full := uint64(l.stripeBytes())
	return int(min(full, l.size-uint64(stripe)*full))
}

// cellBytes returns the size of the cells of a stripe.
func (l layout) cellBytes(stripe int) int {
	return (l.dataBytes(stripe) + l.data - 1) / l.data
}

// shardBytes returns the size of one shard: all its cells together.
func (l layout) shardBytes() int64 {
	last := l.stripes() - 1
	return int64(last)*int64(l.cell) + int64(l.cellBytes(last))
}

// cellOffset returns where a cell begins in its shard.
func (l layout) cellOffset(stripe int) int64 { return int64(stripe) * int64(l.cell) }

// cellsBytes returns the size of a run of cells of one shard.
func (l layout) cellsBytes(first, cells int) int {
	if cells == 0 {
		return 0
	}
	last := first + cells - 1
	return (cells-1)*l.cell + l.cellBytes(last)
}

// stripesOf returns the stripes that hold a range of the extent's bytes. The
// range must be in the extent and not be empty.
func (l layout) stripesOf(offset, length uint64) (first, stripes int) {
	full := uint64(l.stripeBytes())
	first = int(offset / full)
	return first, int((offset+length-1)/full) - first + 1
}

// stripeRange is the part of a byte range that lies in one stripe.
type stripeRange struct {
	// from and to bound the bytes wanted, counted in the stripe's data.
	from, to int
	// firstShard and lastShard are the data shards whose cells hold these bytes,
	// both included.
	firstShard, lastShard int
}

// stripeRange cuts a range of the extent's bytes down to one of the stripes that
// hold it.
func (l layout) stripeRange(stripe int, offset, length uint64) stripeRange {
	start := uint64(stripe) * uint64(l.stripeBytes())
	end := start + uint64(l.dataBytes(stripe))
	from := int(max(offset, start) - start)
	to := int(min(offset+length, end) - start)
	cell := l.cellBytes(stripe)
	return stripeRange{from: from, to: to, firstShard: from / cell, lastShard: (to - 1) / cell}
}
