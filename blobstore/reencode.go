package blobstore

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/atollregistry/atoll/proto"
)

// maxRescues bounds how often an extent is stored again because holders failed
// while it was.
const maxRescues = 3

// rescue stores an extent again that can be read, but would not survive the loss
// of another node: it is read back from the shards that are durable and encoded
// for the nodes that are healthy now. What it was before becomes garbage, since
// no record names it. cause is why the extent came out short.
//
// The append holds no stripes meanwhile, so its rescue finds memory like any
// other append.
func (a *appender) rescue(ctx context.Context, extent *proto.Extent, cause error) ([]*proto.Extent, error) {
	if a.rescues == 0 {
		return nil, fmt.Errorf("store extent again, %d times in vain: %w", maxRescues, cause)
	}
	a.store.log.Info().Hex("extent", extent.GetId()).Uint64("bytes", extent.GetSize()).AnErr("cause", cause).
		Msg("extent lost its redundancy while it was written, storing it again")
	return a.store.storeAgain(ctx, extent, func(source io.Reader) *appender {
		again := a.store.newAppender(a.key, source, nil)
		again.again, again.rescues, again.avoid, again.full = a.again, a.rescues-1, a.avoid, a.full
		return again
	})
}

// reencode stores an extent again in the layout and on the nodes that fit the
// cluster now, and returns what it has become: durable, every shard on a node, and
// not recorded. It fails as Append does.
func (s *Store) reencode(ctx context.Context, extent *proto.Extent) ([]*proto.Extent, error) {
	extents, err := s.storeAgain(ctx, extent, func(source io.Reader) *appender {
		a := s.newAppender(string(extent.GetId()), &pacedReader{ctx, s.pace, source}, nil)
		a.again = extentPlan{parity: int(extent.GetLayout().GetParityShards()), patient: true}
		return a
	})
	if err != nil {
		return nil, err
	}
	for _, e := range extents {
		if slices.Contains(e.GetHolders(), "") {
			return nil, fmt.Errorf("store extent %x again: a node was late: %w", extent.GetId(), ErrInsufficientNodes)
		}
	}
	return extents, nil
}

// storeAgain reads an extent back and stores what it reads with the appender that
// newAppender returns.
func (s *Store) storeAgain(ctx context.Context, extent *proto.Extent, newAppender func(io.Reader) *appender) ([]*proto.Extent, error) {
	source, err := s.Read(ctx, []*proto.Extent{extent}, 0, extent.GetSize())
	if err != nil {
		return nil, fmt.Errorf("store extent %x again: %w", extent.GetId(), err)
	}
	defer source.Close()
	again := newAppender(source)
	defer again.close()
	var extents []*proto.Extent
	var size uint64
	for !again.ended {
		more, err := again.appendExtent(ctx)
		if err != nil {
			return nil, fmt.Errorf("store extent %x again: %w", extent.GetId(), err)
		}
		for _, e := range more {
			size += e.GetSize()
		}
		extents = append(extents, more...)
	}
	if size != extent.GetSize() {
		return nil, fmt.Errorf("store extent %x again: %d bytes of %d: %w", extent.GetId(), size, extent.GetSize(), ErrChecksum)
	}
	return extents, nil
}
