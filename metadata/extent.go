package metadata

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"

	"github.com/atollregistry/atoll/proto"
)

const extentIDBytes = 16

// maxExtents bounds the extents of one blob: its record is rewritten whole for
// each of them.
const maxExtents = 1 << 16

// checkExtents refuses extents that can't be what a writer has stored from a byte of
// the blob on. From MaxInlineExtentEnd on none is inline.
func (c *change) checkExtents(extents []*proto.Extent, offset uint64) error {
	era, err := c.era()
	if err != nil {
		return err
	}
	seen := make(map[string]bool, len(extents))
	offset = min(offset, MaxInlineExtentEnd)
	for _, e := range extents {
		if err := checkEra(e, era); err != nil {
			return err
		}
		if err := c.checkExtent(e, offset); err != nil {
			return err
		}
		offset += min(e.GetSize(), MaxInlineExtentEnd-offset) // It can't overflow.
		if seen[string(e.GetId())] {
			return invalid("extent %x is given twice", e.GetId())
		}
		seen[string(e.GetId())] = true
	}
	return nil
}

func (c *change) checkExtent(e *proto.Extent, offset uint64) error {
	switch {
	case len(e.GetId()) != extentIDBytes:
		return invalid("extent id has %d bytes, not %d", len(e.GetId()), extentIDBytes)
	case e.GetSize() == 0:
		return invalid("extent %x is empty", e.GetId())
	case len(e.GetDamagedShards()) > 0:
		return invalid("extent %x is damaged from the start", e.GetId())
	}
	if err := checkForm(e, offset); err != nil {
		return err
	}
	exists, err := c.has(bucketExtents, e.GetId())
	if err != nil {
		return err
	}
	if exists {
		return invalid("extent %x is recorded already", e.GetId())
	}
	return c.checkHolders(e)
}

// checkForm refuses an extent whose bytes are neither in shards nor in the extent
// itself.
func checkForm(e *proto.Extent, offset uint64) error {
	if isInline(e) {
		return checkInline(e, offset)
	}
	data, parity := int(e.GetLayout().GetDataShards()), int(e.GetLayout().GetParityShards())
	switch {
	case data < 1 || e.GetLayout().GetCellBytes() == 0:
		return invalid("extent %x has no layout", e.GetId())
	case len(e.GetContent()) > 0:
		return invalid("extent %x has a layout and %d bytes of content", e.GetId(), len(e.GetContent()))
	case len(e.GetHolders()) != data+parity:
		return invalid("extent %x has %d holders for %d shards", e.GetId(), len(e.GetHolders()), data+parity)
	}
	return nil
}

// checkHolders refuses an extent that could not be read from the members. A shard
// on a node that was removed since it was stored is on no node: the extent is as if
// that node had been removed a moment later, and is repaired like it.
func (c *change) checkHolders(e *proto.Extent) error {
	held, gone := 0, ""
	for number, holder := range e.GetHolders() {
		if holder == "" {
			continue
		}
		if slices.Contains(e.GetHolders()[:number], holder) {
			return invalid("extent %x has two shards on node %s", e.GetId(), holder)
		}
		var node proto.Node
		found, err := c.record(bucketNodes, keyOf(holder), &node)
		switch {
		case err != nil:
			return err
		case !found:
			return refuse(proto.Refusal_REFUSAL_HOLDER_UNKNOWN, "extent %x has a shard on %q", e.GetId(), holder)
		case node.GetState() == proto.NodeState_NODE_STATE_REMOVED:
			e.Holders[number], gone = "", holder
		default:
			held++
		}
	}
	data := int(e.GetLayout().GetDataShards())
	switch {
	case held >= data:
		return nil
	case gone != "":
		return refuse(proto.Refusal_REFUSAL_HOLDER_UNKNOWN, "extent %x has a shard on %q", e.GetId(), gone)
	}
	return invalid("extent %x has %d shards, fewer than the %d that it can be read from", e.GetId(), held, data)
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
		e.Era = 0 // of no more use
		if err := c.putContent(e); err != nil {
			return err
		}
		if err := c.putExtent(&proto.ExtentRecord{Extent: e, Owner: owner.GetOwner()}); err != nil {
			return err
		}
		for number, holder := range e.GetHolders() {
			if err := c.addShard(e, number, holder); err != nil {
				return err
			}
		}
	}
	return nil
}

// putExtent stores an extent and notes whether it is degraded.
func (c *change) putExtent(record *proto.ExtentRecord) error {
	e := record.GetExtent()
	if slices.Contains(e.GetHolders(), "") || len(e.GetDamagedShards()) > 0 {
		if err := c.putValue(bucketDegraded, e.GetId(), nil); err != nil {
			return err
		}
	} else if err := c.remove(bucketDegraded, e.GetId()); err != nil {
		return err
	}
	return c.put(bucketExtents, e.GetId(), record)
}

// addShard notes that a node holds a shard. Without a holder it does nothing.
func (c *change) addShard(e *proto.Extent, number int, holder string) error {
	if holder == "" {
		return nil
	}
	value := binary.BigEndian.AppendUint32(nil, uint32(number))
	if err := c.putValue(bucketShardsByNode, keyOf(holder, string(e.GetId())), value); err != nil {
		return err
	}
	c.countShard(e, holder, 1)
	return nil
}

// dropShard is the inverse of addShard.
func (c *change) dropShard(e *proto.Extent, holder string) error {
	if holder == "" {
		return nil
	}
	if err := c.remove(bucketShardsByNode, keyOf(holder, string(e.GetId()))); err != nil {
		return err
	}
	c.countShard(e, holder, -1)
	return nil
}

// countShard adds a shard to what a node holds, or takes one off. The records
// change once for each command: see saveUsage.
func (c *change) countShard(e *proto.Extent, holder string, shards int) {
	difference := c.usage[holder]
	difference.shards += int64(shards)
	difference.bytes += int64(shards) * int64(shardBytes(e))
	c.usage[holder] = difference
}

// usageDifference is by how much a command has changed what a node holds.
type usageDifference struct{ shards, bytes int64 }

// saveUsage takes the differences over into the records.
func (c *change) saveUsage() error {
	for _, holder := range slices.Sorted(maps.Keys(c.usage)) {
		var usage proto.ShardUsage
		if _, err := c.record(bucketShardUsage, keyOf(holder), &usage); err != nil {
			return err
		}
		shards := int64(usage.GetShards()) + c.usage[holder].shards
		bytes := int64(usage.GetBytes()) + c.usage[holder].bytes
		if shards < 0 || bytes < 0 {
			return fmt.Errorf("%w: node %s holds %d shards of %d bytes", ErrCorrupt, holder, shards, bytes)
		}
		usage.Shards, usage.Bytes = uint64(shards), uint64(bytes)
		if shards == 0 {
			if err := c.remove(bucketShardUsage, keyOf(holder)); err != nil {
				return err
			}
		} else if err := c.put(bucketShardUsage, keyOf(holder), &usage); err != nil {
			return err
		}
	}
	return nil
}

// shardBytes returns the size of each shard of an extent: its cells together,
// which are shorter in the last stripe (blobstore/layout.go).
func shardBytes(e *proto.Extent) uint64 {
	data, cell := uint64(e.GetLayout().GetDataShards()), uint64(e.GetLayout().GetCellBytes())
	full, rest := e.GetSize()/(data*cell), e.GetSize()%(data*cell)
	return full*cell + (rest+data-1)/data
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
			if err := c.dropShard(record.GetExtent(), holder); err != nil {
				return err
			}
		}
		if err := errors.Join(c.remove(bucketDegraded, id), c.remove(bucketExtents, id)); err != nil {
			return err
		}
		if err := c.dropContent(record.GetExtent()); err != nil {
			return err
		}
	}
	return nil
}

// isDamaged reports whether a shard was reported damaged.
func isDamaged(e *proto.Extent, number int) bool {
	return slices.Contains(e.GetDamagedShards(), uint32(number))
}

// areLost is isLost for recorded extents.
func (v view) areLost(ids [][]byte) (bool, error) {
	extents, err := v.bareExtents(ids)
	if err != nil {
		return false, err
	}
	return v.isLost(extents)
}

// isLost reports whether one of the extents has, by the records, fewer sound shards
// than it can be read from. A shard does not count if it is damaged, on no node, or
// on one that was removed or is down. That one may come back with it, and what was
// pushed again meanwhile then costs some room. What does not answer somebody now is
// no reason: that is back soon, or is nobody else's trouble. An inline extent needs no
// shards.
func (v view) isLost(extents []*proto.Extent) (bool, error) {
	counts := map[string]bool{"": false}
	for _, e := range extents {
		held := 0
		for number, holder := range e.GetHolders() {
			if _, known := counts[holder]; !known {
				there, err := v.isThere(holder)
				if err != nil {
					return false, err
				}
				counts[holder] = there
			}
			if counts[holder] && !isDamaged(e, number) {
				held++
			}
		}
		if held < int(e.GetLayout().GetDataShards()) {
			return true, nil
		}
	}
	return false, nil
}

// extents returns the extents with the given ids, in that order, inline ones with
// their bytes.
func (v view) extents(ids [][]byte) ([]*proto.Extent, error) {
	extents, err := v.bareExtents(ids)
	if err != nil {
		return nil, err
	}
	for _, e := range extents {
		if err := v.fillContent(e); err != nil {
			return nil, err
		}
	}
	return extents, nil
}

// bareExtents is extents without the bytes of inline ones.
func (v view) bareExtents(ids [][]byte) ([]*proto.Extent, error) {
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

// LiveShards tells for each shard whether the records say that it is where the
// reference says, and in which era that is so. A shard that was found not to be live
// two eras ago, and is not live now, never will be: it is garbage. Error:
// ErrUnavailable.
func (s *Store) LiveShards(ctx context.Context, shards []*proto.ShardRef) (live []bool, era uint64, err error) {
	live = make([]bool, len(shards))
	err = s.read(ctx, func(v view) error {
		if era, err = v.era(); err != nil {
			return err
		}
		for i, shard := range shards {
			if len(shard.GetExtentId()) != extentIDBytes {
				return fmt.Errorf("%w: extent id of %d bytes", ErrInvalid, len(shard.GetExtentId()))
			}
			var record proto.ExtentRecord
			if _, err := v.record(bucketExtents, shard.GetExtentId(), &record); err != nil {
				return err
			}
			holders := record.GetExtent().GetHolders()
			number := int(shard.GetShardNumber())
			live[i] = number < len(holders) && holders[number] == shard.GetNodeId() && shard.GetNodeId() != ""
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return live, era, nil
}
