package blobstore

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// A blob of a few KiB is not worth its shards: a stream, a file and two fsyncs on each
// holder. Its bytes go into the command that records its extent, which is durable on most
// nodes as it is, and are in each node's records from then on. Such an extent is inline.
// It has neither layout nor holders, so that nothing is there to scrub, repair, move or
// sweep.

// isInline says that an extent's bytes are in its record.
func isInline(e *proto.Extent) bool { return e.GetLayout() == nil }

// areInline says that nothing of a blob is in shards.
func areInline(extents []*proto.Extent) bool {
	return !slices.ContainsFunc(extents, func(e *proto.Extent) bool { return !isInline(e) })
}

// endsInline says whether all that is left of the source goes into an inline extent. The
// intake has more room than that takes, so that it has seen the end.
func (a *appender) endsInline() bool {
	return a.intake.ended && a.offset+uint64(a.intake.to-a.intake.from) <= a.inlineEnd && a.store.roomOnAll()
}

// roomOnAll says whether no node has nothing left but its reserve, which is for the records: what is inline is on each of
// them. A node that does not answer may have said so before.
func (s *Store) roomOnAll() bool {
	return !slices.ContainsFunc(s.cluster.Nodes(), func(n NodeInfo) bool { return n.Healthy && n.FreeBytes == 0 })
}

// appendInline makes an inline extent of all that is left. No node has to take
// anything, but a cluster that would refuse a shard, having too few nodes, refuses this as well.
func (a *appender) appendInline(ctx context.Context) ([]*proto.Extent, error) {
	if _, _, err := a.store.planExtent(ctx, a.plan(true)); err != nil {
		return nil, err
	}
	content := make([]byte, a.intake.to-a.intake.from)
	a.intake.take(content)
	a.ended = a.intake.exhausted()
	a.hasher.writeBytes(content)
	return []*proto.Extent{{Id: newInlineID(time.Now()), Size: uint64(len(content)), Content: content, Era: a.store.catalog.Era()}}, nil
}

// inlineTimeBytes is how much of an inline extent's id is the time, in Unix milliseconds, as in a UUIDv7 (RFC 9562); the rest is random.
const inlineTimeBytes = 6

// newInlineID returns an id for an inline extent. The state keeps the bytes of those in the order of their
// ids: what is pushed at about the same time is then written to the same pages. Shards are spread over folders by their ids, and need random ones.
func newInlineID(now time.Time) []byte {
	id := newExtentID()
	copy(id, binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli()))[8-inlineTimeBytes:])
	return id
}

// readableLayout is extentLayout for whoever reads an extent. An inline one has none, but
// must have all of its bytes.
func readableLayout(e *proto.Extent) (layout, error) {
	if !isInline(e) {
		return extentLayout(e)
	}
	if uint64(len(e.GetContent())) != e.GetSize() {
		return layout{}, fmt.Errorf("inline extent %x has %d bytes of %d: %w", e.GetId(), len(e.GetContent()), e.GetSize(), ErrInvalid)
	}
	return layout{}, nil
}

// inlineGroup is the group of all that is wanted of an inline extent: fetched, and without
// memory of its own.
func inlineGroup(p part) *group {
	done := make(chan struct{})
	close(done)
	return &group{offset: p.offset, done: done, pieces: [][]byte{p.extent.GetContent()[p.offset : p.offset+p.length]}}
}
