package blobstore

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/proto"
)

// records are the records of extents that tests keep, with the rules of the state
// machine (metadata/repair.go). What was put in place of an extent is remembered,
// so that a blob can be read by what it was recorded with first.
type records struct {
	mu       sync.Mutex
	extents  map[string]*proto.Extent
	replaced map[string][]*proto.Extent
	settings proto.Settings
	era      uint64
}

func newRecords() *records {
	return &records{
		extents: make(map[string]*proto.Extent), replaced: make(map[string][]*proto.Extent),
		settings: proto.Settings{RepairConcurrency: 4},
	}
}

func (r *records) put(e *proto.Extent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	stored := pb.Clone(e).(*proto.Extent)
	stored.Content = nil // Lists are without.
	r.extents[string(e.GetId())] = stored
}

// now returns what has become of extents.
func (r *records) now(extents []*proto.Extent) (current []*proto.Extent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var follow func(e *proto.Extent)
	follow = func(e *proto.Extent) {
		if next := r.replaced[string(e.GetId())]; next != nil {
			for _, e := range next {
				follow(e)
			}
			return
		}
		current = append(current, pb.Clone(r.extents[string(e.GetId())]).(*proto.Extent))
	}
	for _, e := range extents {
		follow(e)
	}
	return current
}

// drop takes a node that was removed off the records.
func (r *records) drop(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.extents {
		for number, holder := range e.GetHolders() {
			if holder == node {
				e.Holders[number] = ""
			}
		}
	}
}

// LiveShards is Catalog's.
func (r *records) LiveShards(_ context.Context, shards []*proto.ShardRef) ([]bool, uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	live := make([]bool, len(shards))
	for i, shard := range shards {
		live[i] = r.holder(shard.GetExtentId(), shard.GetShardNumber()) == shard.GetNodeId()
	}
	return live, r.era, nil
}

// Era is Catalog's.
func (r *records) Era() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.era
}

// beginEra begins the next era.
func (r *records) beginEra() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.era++
}

// record is put for an extent that a writer hands over, unless it comes too late.
func (r *records) record(e *proto.Extent) error {
	if r.Era()-e.GetEra() >= erasToGarbage {
		return errors.New("extent is recorded too late")
	}
	r.put(e)
	return nil
}

func (r *records) holder(id []byte, number uint32) string {
	if e := r.extents[string(id)]; int(number) < len(e.GetHolders()) {
		return e.GetHolders()[number]
	}
	return ""
}

// MoveShards is Catalog's.
func (r *records) MoveShards(_ context.Context, moves []*proto.ShardMove) (moved int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, move := range moves {
		e := r.extents[string(move.GetExtentId())]
		if e == nil || r.holder(move.GetExtentId(), move.GetShardNumber()) != move.GetFrom() {
			continue
		}
		if move.GetTo() != move.GetFrom() && slices.Contains(e.GetHolders(), move.GetTo()) {
			continue
		}
		e.Holders[move.GetShardNumber()] = move.GetTo()
		e.DamagedShards = slices.DeleteFunc(e.GetDamagedShards(), func(number uint32) bool { return number == move.GetShardNumber() })
		moved++
	}
	return moved, nil
}

// ReplaceExtent is Catalog's.
func (r *records) ReplaceExtent(_ context.Context, id []byte, extents []*proto.Extent) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.extents[string(id)]
	size := uint64(0)
	for _, e := range extents {
		size += e.GetSize()
	}
	if old == nil || size != old.GetSize() {
		return errors.New("extent is not what it was")
	}
	delete(r.extents, string(id))
	for _, e := range extents {
		e := pb.Clone(e).(*proto.Extent)
		r.extents[string(e.GetId())] = e
		r.replaced[string(id)] = append(r.replaced[string(id)], e)
	}
	return nil
}

// CatchUp is Catalog's.
func (r *records) CatchUp(context.Context) error { return nil }

// ReportShards is Catalog's.
func (r *records) ReportShards(_ context.Context, shards []*proto.ShardRef) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, shard := range shards {
		e := r.extents[string(shard.GetExtentId())]
		if shard.GetNodeId() != "" && r.holder(shard.GetExtentId(), shard.GetShardNumber()) == shard.GetNodeId() {
			e.DamagedShards = slices.Compact(slices.Sorted(slices.Values(append(e.GetDamagedShards(), shard.GetShardNumber()))))
		}
	}
	return nil
}

// report marks a shard as damaged.
func (r *records) report(e *proto.Extent, number int) {
	ref := &proto.ShardRef{ExtentId: e.GetId(), ShardNumber: uint32(number), NodeId: r.now([]*proto.Extent{e})[0].GetHolders()[number]}
	_ = r.ReportShards(context.Background(), []*proto.ShardRef{ref}) // never fails
}

// list returns the extents of a kind behind one of them.
func (r *records) list(after []byte, limit int, of func(*proto.Extent) bool) (listed []*proto.Extent, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(r.extents)) {
		e := r.extents[id]
		if bytes.Compare(e.GetId(), after) > 0 && of(e) && len(listed) < limit {
			listed = append(listed, pb.Clone(e).(*proto.Extent))
		}
	}
	return listed, nil
}

// Extents is Catalog's.
func (r *records) Extents(after []byte, limit int) ([]*proto.Extent, error) {
	return r.list(after, limit, func(*proto.Extent) bool { return true })
}

// DegradedExtents is Catalog's.
func (r *records) DegradedExtents(after []byte, limit int) ([]*proto.Extent, error) {
	return r.list(after, limit, func(e *proto.Extent) bool {
		return slices.Contains(e.GetHolders(), "") || len(e.GetDamagedShards()) > 0
	})
}

// ExtentsOn is Catalog's.
func (r *records) ExtentsOn(node string, after []byte, limit int) ([]*proto.Extent, error) {
	return r.list(after, limit, func(e *proto.Extent) bool { return slices.Contains(e.GetHolders(), node) })
}

// ShardUsage is Catalog's.
func (r *records) ShardUsage() (map[string]*proto.ShardUsage, error) {
	usage := make(map[string]*proto.ShardUsage)
	all, err := r.Extents(nil, 1<<30)
	for _, e := range all {
		if isInline(e) {
			continue
		}
		l, err := extentLayout(e)
		if err != nil {
			return nil, err
		}
		for _, holder := range e.GetHolders() {
			if usage[holder] == nil {
				usage[holder] = &proto.ShardUsage{}
			}
			usage[holder].Shards++
			usage[holder].Bytes += uint64(l.shardBytes())
		}
	}
	return usage, err
}

// LocalSettings is Catalog's.
func (r *records) LocalSettings() *proto.Settings {
	r.mu.Lock()
	defer r.mu.Unlock()
	return pb.Clone(&r.settings).(*proto.Settings)
}

// ChangeSettings is Catalog's.
func (r *records) ChangeSettings(_ context.Context, edit func(*proto.Settings)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	edit(&r.settings)
	return nil
}
