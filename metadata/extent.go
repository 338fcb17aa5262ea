package metadata

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/atollregistry/atoll/proto"
)

const extentIDBytes = 16

// maxExtents bounds the extents of one blob: its record is rewritten whole for
// each of them.
const maxExtents = 1 << 16

// checkExtents refuses extents that can't be what a writer has stored.
func (c *change) checkExtents(extents []*proto.Extent) error {
	seen := make(map[string]bool, len(extents))
	for _, e := range extents {
		if err := c.checkExtent(e); err != nil {
			return err
		}
		if seen[string(e.GetId())] {
			return invalid("extent %x is given twice", e.GetId())
		}
		seen[string(e.GetId())] = true
	}
	return nil
}

func (c *change) checkExtent(e *proto.Extent) error {
	data, parity := int(e.GetLayout().GetDataShards()), int(e.GetLayout().GetParityShards())
	switch {
	case len(e.GetId()) != extentIDBytes:
		return invalid("extent id has %d bytes, not %d", len(e.GetId()), extentIDBytes)
	case e.GetSize() == 0:
		return invalid("extent %x is empty", e.GetId())
	case data < 1 || e.GetLayout().GetCellBytes() == 0:
		return invalid("extent %x has no layout", e.GetId())
	case len(e.GetHolders()) != data+parity:
		return invalid("extent %x has %d holders for %d shards", e.GetId(), len(e.GetHolders()), data+parity)
	}
	exists, err := c.has(bucketExtents, e.GetId())
	if err != nil {
		return err
	}
	if exists {
		return invalid("extent %x is recorded already", e.GetId())
	}
	held := 0
	for number, holder := range e.GetHolders() {
		if holder == "" {
			continue
		}
		held++
		if slices.Contains(e.GetHolders()[:number], holder) {
			return invalid("extent %x has two shards on node %s", e.GetId(), holder)
		}
		if member, err := c.isMember(holder); err != nil {
			return err
		} else if !member {
			return refuse(proto.Refusal_REFUSAL_HOLDER_UNKNOWN, "extent %x has a shard on %q", e.GetId(), holder)
		}
	}
	if held < data {
		return invalid("extent %x has %d shards, fewer than the %d that it can be read from", e.GetId(), held, data)
	}
	return nil
}

// sizeOf returns the bytes of all extents, behind start; ok is false if they are
// more than can be counted.
func sizeOf(start uint64, extents []*proto.Extent) (size uint64, ok bool) {
	size = start
	for _, e := range extents {
		sum, carry := bits.Add64(size, e.GetSize(), 0)
		if carry != 0 {
			return 0, false
		}
		size = sum
	}
	return size, true
}

// idsOf returns the extents' ids.
func idsOf(extents []*proto.Extent) [][]byte {
	ids := make([][]byte, len(extents))
	for i, e := range extents {
		ids[i] = e.GetId()
	}
	return ids
}

// recordExtents stores extents that checkExtents has passed.
func (c *change) recordExtents(extents []*proto.Extent, owner *proto.ExtentRecord) error {
	for _, e := range extents {
		record := &proto.ExtentRecord{Extent: e, Owner: owner.GetOwner()}
		if err := c.put(bucketExtents, e.GetId(), record); err != nil {
			return err
		}
		for number, holder := range e.GetHolders() {
			if err := c.indexShard(e.GetId(), number, holder); err != nil {
				return err
			}
		}
	}
	return nil
}

// indexShard notes where a shard is, or that it is missing.
func (c *change) indexShard(id []byte, number int, holder string) error {
	if holder == "" {
		return c.putValue(bucketDegraded, id, nil)
	}
	value := binary.BigEndian.AppendUint32(nil, uint32(number))
	return c.putValue(bucketShardsByNode, keyOf(holder, string(id)), value)
}

// ownExtents makes recorded extents the blob's.
func (c *change) ownExtents(ids [][]byte, digest string) error {
	for _, id := range ids {
		var record proto.ExtentRecord
		if err := c.mustRecord(bucketExtents, id, &record); err != nil {
			return err
		}
		record.Owner = &proto.ExtentRecord_BlobDigest{BlobDigest: digest}
		if err := c.put(bucketExtents, id, &record); err != nil {
			return err
		}
	}
	return nil
}

// dropExtents forgets extents; their shards become garbage that the holders
// sweep.
func (c *change) dropExtents(ids [][]byte) error {
	for _, id := range ids {
		var record proto.ExtentRecord
		if err := c.mustRecord(bucketExtents, id, &record); err != nil {
			return err
		}
		for _, holder := range record.GetExtent().GetHolders() {
			if holder == "" {
				continue
			}
			if err := c.remove(bucketShardsByNode, keyOf(holder, string(id))); err != nil {
				return err
			}
		}
		if err := errors.Join(c.remove(bucketDegraded, id), c.remove(bucketExtents, id)); err != nil {
			return err
		}
	}
	return nil
}

// unreadable reports whether one of the extents has fewer shards on members than
// it can be read from, not counting those that are unreachable.
func (c *change) unreadable(ids [][]byte, unreachable []string) (bool, error) {
	for _, id := range ids {
		var record proto.ExtentRecord
		if err := c.mustRecord(bucketExtents, id, &record); err != nil {
			return false, err
		}
		held := 0
		for _, holder := range record.GetExtent().GetHolders() {
			member, err := c.isMember(holder)
			if err != nil {
				return false, err
			}
			if member && !slices.Contains(unreachable, holder) {
				held++
			}
		}
		if held < int(record.GetExtent().GetLayout().GetDataShards()) {
			return true, nil
		}
	}
	return false, nil
}

// extents returns the extents with the given ids, in that order.
func (v view) extents(ids [][]byte) ([]*proto.Extent, error) {
	extents := make([]*proto.Extent, len(ids))
	for i, id := range ids {
		var record proto.ExtentRecord
		if err := v.mustRecord(bucketExtents, id, &record); err != nil {
			return nil, err
		}
		extents[i] = record.GetExtent()
	}
	return extents, nil
}

// LiveExtents tells for each id whether a blob or an upload has an extent with
// that id. An extent that is not live, and was stored so long ago that its writer
// has recorded it or given up, is garbage. Error: ErrUnavailable.
func (s *Store) LiveExtents(ctx context.Context, ids [][]byte) ([]bool, error) {
	live := make([]bool, len(ids))
	err := s.read(ctx, func(v view) error {
		for i, id := range ids {
			if len(id) != extentIDBytes {
				return fmt.Errorf("%w: extent id of %d bytes", ErrInvalid, len(id))
			}
			exists, err := v.has(bucketExtents, id)
			if err != nil {
				return err
			}
			live[i] = exists
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return live, nil
}
