package metadata

import (
	"bytes"
	"context"
	"slices"

	"github.com/atollregistry/atoll/proto"
)

// maxMoves bounds the shards that one command moves or reports.
const maxMoves = 1000

// moveShards records where shards are now. A move that came too late is left out:
// the extent may have been deleted meanwhile, another node may have been faster, or
// the mover was held up for so long that its shard may be gone.
func (c *change) moveShards(command *proto.MoveShards) error {
	if len(command.GetMoves()) > maxMoves {
		return invalid("%d moves in one command, more than %d", len(command.GetMoves()), maxMoves)
	}
	era, err := c.era()
	if err != nil {
		return err
	}
	for _, move := range command.GetMoves() {
		if move.GetEra() > era || era-move.GetEra() >= erasUntilLate {
			continue // the sweep may have taken the shard
		}
		var record proto.ExtentRecord
		found, err := c.record(bucketExtents, move.GetExtentId(), &record)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		allowed, err := c.mayMove(record.GetExtent(), move)
		if err != nil {
			return err
		}
		if !allowed {
			continue
		}
		if err := c.moveShard(&record, int(move.GetShardNumber()), move.GetTo()); err != nil {
			return err
		}
		c.result.Moved++
	}
	return nil
}

// mayMove reports whether the shard is where the mover saw it, and whether the
// new holder may have it: a node has at most one shard of an extent, and one that
// is being emptied gets no new ones.
func (c *change) mayMove(e *proto.Extent, move *proto.ShardMove) (bool, error) {
	number := int(move.GetShardNumber())
	if number >= len(e.GetHolders()) || e.GetHolders()[number] != move.GetFrom() || move.GetTo() == "" {
		return false, nil
	}
	if move.GetTo() == move.GetFrom() {
		return true, nil
	}
	var node proto.Node
	found, err := c.record(bucketNodes, keyOf(move.GetTo()), &node)
	return found && node.GetState() == proto.NodeState_NODE_STATE_ACTIVE && !slices.Contains(e.GetHolders(), move.GetTo()), err
}

// moveShard gives a shard to another node, or to none. What was reported of the
// shard is over with that.
func (c *change) moveShard(record *proto.ExtentRecord, number int, to string) error {
	e := record.GetExtent()
	if from := e.GetHolders()[number]; from != to {
		if err := c.dropShard(e, from); err != nil {
			return err
		}
		e.Holders[number] = to
		if err := c.addShard(e, number, to); err != nil {
			return err
		}
	}
	e.DamagedShards = slices.DeleteFunc(e.GetDamagedShards(), func(damaged uint32) bool { return damaged == uint32(number) })
	return c.putExtent(record)
}

// reportShards marks shards as damaged.
func (c *change) reportShards(command *proto.ReportShards) error {
	if len(command.GetShards()) > maxMoves {
		return invalid("%d shards in one command, more than %d", len(command.GetShards()), maxMoves)
	}
	for _, shard := range command.GetShards() {
		var record proto.ExtentRecord
		found, err := c.record(bucketExtents, shard.GetExtentId(), &record)
		if err != nil {
			return err
		}
		e, number := record.GetExtent(), int(shard.GetShardNumber())
		if !found || number >= len(e.GetHolders()) || shard.GetNodeId() == "" || e.GetHolders()[number] != shard.GetNodeId() {
			continue
		}
		if place, known := slices.BinarySearch(e.GetDamagedShards(), shard.GetShardNumber()); !known {
			e.DamagedShards = slices.Insert(e.GetDamagedShards(), place, shard.GetShardNumber())
		}
		if err := c.putExtent(&record); err != nil {
			return err
		}
	}
	return nil
}

// replaceExtent puts extents with the same bytes in the place of another one.
func (c *change) replaceExtent(command *proto.ReplaceExtent) error {
	id := command.GetExtentId()
	var old proto.ExtentRecord
	found, err := c.record(bucketExtents, id, &old)
	if err != nil {
		return err
	}
	if !found {
		return refuse(proto.Refusal_REFUSAL_EXTENT_UNKNOWN, "extent %x", id)
	}
	if size, ok := sizeOf(0, command.GetExtents()); !ok || size != old.GetExtent().GetSize() {
		return invalid("extent %x of %d bytes is to be replaced by %d", id, old.GetExtent().GetSize(), size)
	}
	// Where in the blob they are nobody looks up: what is stored anew is in shards.
	if err := c.checkExtents(command.GetExtents(), MaxInlineExtentEnd); err != nil {
		return err
	}
	if err := c.exchangeExtent(&old, id, idsOf(command.GetExtents())); err != nil {
		return err
	}
	if err := c.dropExtents([][]byte{id}); err != nil {
		return err
	}
	return c.recordExtents(command.GetExtents(), &proto.ExtentRecord{Owner: old.GetOwner()})
}

// exchangeExtent puts other extents in an extent's place in the record that names
// it.
func (c *change) exchangeExtent(old *proto.ExtentRecord, id []byte, next [][]byte) error {
	if old.GetBlobDigest() != "" {
		var blob proto.BlobRecord
		if err := c.mustRecord(bucketBlobs, keyOf(old.GetBlobDigest()), &blob); err != nil {
			return err
		}
		exchanged, err := exchange(blob.GetExtentIds(), id, next)
		if err != nil {
			return err
		}
		blob.ExtentIds = exchanged
		return c.put(bucketBlobs, keyOf(old.GetBlobDigest()), &blob)
	}
	var upload proto.UploadRecord
	if err := c.mustRecord(bucketUploads, keyOf(old.GetUploadId()), &upload); err != nil {
		return err
	}
	exchanged, err := exchange(upload.GetExtentIds(), id, next)
	if err != nil {
		return err
	}
	upload.ExtentIds = exchanged
	return c.put(bucketUploads, keyOf(old.GetUploadId()), &upload)
}

// exchange returns the ids with others in the place of one.
func exchange(ids [][]byte, id []byte, next [][]byte) ([][]byte, error) {
	at := slices.IndexFunc(ids, func(other []byte) bool { return bytes.Equal(other, id) })
	if at < 0 {
		return nil, ErrCorrupt
	}
	if len(ids)+len(next) > maxExtents {
		return nil, invalid("extent %x: its owner gets more than %d extents", id, maxExtents)
	}
	return slices.Concat(ids[:at], next, ids[at+1:]), nil
}

// MoveShards records where shards are now, at most 1000 of them, and returns how
// many of the moves were still good. Those that were not have left garbage behind.
// Errors: ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) MoveShards(ctx context.Context, moves []*proto.ShardMove) (moved int, err error) {
	result, err := s.propose(ctx, &proto.Command{Body: &proto.Command_MoveShards{MoveShards: &proto.MoveShards{Moves: moves}}})
	return int(result.GetMoved()), err
}

// ReportShards marks shards as damaged, at most 1000 of them, if they are where
// the references say. Errors: ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) ReportShards(ctx context.Context, shards []*proto.ShardRef) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_ReportShards{ReportShards: &proto.ReportShards{Shards: shards}}})
	return err
}

// ReplaceExtent puts durable extents in the place of one with the same bytes,
// whose shards become garbage. Errors: ErrExtentUnknown, ErrHolderUnknown,
// ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) ReplaceExtent(ctx context.Context, id []byte, extents []*proto.Extent) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_ReplaceExtent{ReplaceExtent: &proto.ReplaceExtent{
		ExtentId: id, Extents: extents,
	}}})
	return err
}

// Extents returns up to limit extents of this node's state in the order of their
// ids, those behind after, which is nil for the first ones. Fewer than limit are
// the last. Inline ones are among them, without their bytes. Errors: ErrCorrupt, ErrClosed.
func (s *Store) Extents(after []byte, limit int) ([]*proto.Extent, error) {
	return s.extentsListed(bucketExtents, span{after: after}, limit)
}

// DegradedExtents is Extents for those that miss a shard or have a damaged one.
func (s *Store) DegradedExtents(after []byte, limit int) ([]*proto.Extent, error) {
	return s.extentsListed(bucketDegraded, span{after: after}, limit)
}

// CountDegraded counts the extents of this node's state that miss a shard or have a
// damaged one. Errors: ErrCorrupt, ErrClosed.
func (s *Store) CountDegraded() (extents uint64, err error) {
	for after, more := []byte(nil), true; more && err == nil; {
		err = s.machine.view(func(v view) error {
			var ids []string
			ids, more, err = v.rests(bucketDegraded, span{after: after}, censusPage)
			if len(ids) > 0 {
				after = []byte(ids[len(ids)-1])
			}
			extents += uint64(len(ids))
			return err
		})
	}
	return extents, err
}

// ExtentsOn is Extents for those that have a shard on a node.
func (s *Store) ExtentsOn(nodeID string, after []byte, limit int) ([]*proto.Extent, error) {
	return s.extentsListed(bucketShardsByNode, span{prefix: keyOf(nodeID, ""), after: after}, limit)
}

// extentsListed returns extents whose ids are the rests of a bucket's keys.
func (s *Store) extentsListed(b bucket, keys span, limit int) (extents []*proto.Extent, err error) {
	err = s.machine.view(func(v view) error {
		ids, _, err := v.rests(b, keys, limit)
		if err != nil {
			return err
		}
		extents = make([]*proto.Extent, len(ids))
		for i, id := range ids {
			var record proto.ExtentRecord
			if err := v.mustRecord(bucketExtents, []byte(id), &record); err != nil {
				return err
			}
			extents[i] = record.GetExtent()
		}
		return nil
	})
	return extents, err
}

// ShardUsage returns what each node holds according to this node's state, by node
// id. Errors: ErrCorrupt, ErrClosed.
func (s *Store) ShardUsage() (usage map[string]*proto.ShardUsage, err error) {
	usage = make(map[string]*proto.ShardUsage)
	err = s.machine.view(func(v view) error {
		return v.scan(bucketShardUsage, span{}, func(node, value []byte) error {
			of := &proto.ShardUsage{}
			usage[string(node)] = of
			return decode(bucketShardUsage, node, value, of)
		})
	})
	return usage, err
}
