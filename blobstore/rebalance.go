package blobstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/atollregistry/atoll/proto"
)

// maxRebalanceScan bounds the extents that one look for shards to move takes in.
const maxRebalanceScan = 5000

// planImprovement looks for what could be better although nothing is wrong:
// extents in a layout that new ones would not get any more, if that is wanted, and
// nodes that are fuller than others.
func (r *repairer) planImprovement(ctx context.Context, v *survey, idle map[string]bool) (map[string][]job, error) {
	settings := r.store.catalog.LocalSettings()
	if settings.GetReencode() {
		planned, done, err := r.planReencode(v, idle)
		if done {
			r.log.Info().Msg("every extent has the layout that a new one would get")
			err = r.store.catalog.ChangeSettings(ctx, func(s *proto.Settings) { s.Reencode = false })
		}
		if err != nil || len(planned) > 0 {
			return planned, err
		}
	}
	if settings.GetRebalancePaused() {
		return nil, nil
	}
	return r.planRebalance(v, idle)
}

// reencodeList is the name of the list of all extents.
const reencodeList = "reencode"

// planReencode looks for extents that could have a better layout. done says that a
// whole pass has found none.
func (r *repairer) planReencode(v *survey, idle map[string]bool) (planned map[string][]job, done bool, err error) {
	b := newBatches(idle)
	after := r.cursors[reencodeList]
	for looked := 0; looked < scanExtents && !b.full(); {
		extents, err := r.store.catalog.Extents(after, scanPage)
		if err != nil {
			return nil, false, fmt.Errorf("list extents: %w", err)
		}
		for _, extent := range extents {
			looked++
			if todo := v.improve(extent); todo != nil {
				r.improvable = true
				if r.mayTry(extent) {
					b.add(*todo)
				}
			}
			if after = extent.GetId(); b.full() {
				break
			}
		}
		if len(extents) < scanPage && !b.full() {
			done, r.improvable = !r.improvable, false
			delete(r.cursors, reencodeList)
			return b.cut(), done, nil
		}
	}
	r.cursors[reencodeList] = after
	return b.cut(), false, nil
}

// load is how full a node is, as a plan sees it.
type load struct {
	node  NodeInfo
	bytes float64
}

// fill is the part of its capacity that a node holds.
func (l *load) fill() float64 { return l.bytes / float64(max(l.node.CapacityBytes, 1)) }

// planRebalance looks for shards to move from nodes that are fuller than others.
func (r *repairer) planRebalance(v *survey, idle map[string]bool) (map[string][]job, error) {
	usage, err := r.store.catalog.ShardUsage()
	if err != nil {
		return nil, fmt.Errorf("ask what nodes hold: %w", err)
	}
	loads := make([]*load, 0, len(v.nodes))
	for _, node := range v.nodes {
		loads = append(loads, &load{node: node, bytes: float64(usage[node.ID].GetBytes())})
	}
	byFill := func(x, y *load) int {
		return cmp.Or(cmp.Compare(x.fill(), y.fill()), cmp.Compare(x.node.ID, y.node.ID))
	}
	slices.SortFunc(loads, byFill)
	b := newBatches(idle)
	if len(loads) < 2 {
		return nil, nil
	}
	fullest := loads[len(loads)-1]
	if !r.unbalanced(fullest, loads[0]) {
		return nil, nil
	}
	looked := 0
	list := extentList{name: "rebalance " + fullest.node.ID, page: func(after []byte, limit int) ([]*proto.Extent, error) {
		return r.store.catalog.ExtentsOn(fullest.node.ID, after, limit)
	}}
	err = r.scan(list, func(extent *proto.Extent) bool {
		if j := r.planMove(v, extent, fullest, loads); j != nil {
			b.add(*j)
		}
		looked++
		return looked < maxRebalanceScan && r.unbalanced(fullest, slices.MinFunc(loads, byFill))
	})
	return b.cut(), err
}

// unbalanced says whether it pays to move shards from one node to another: only
// while both would be nearer to each other by it.
func (r *repairer) unbalanced(from, to *load) bool {
	difference := from.fill() - to.fill()
	return difference > r.store.cfg.RebalanceThreshold &&
		difference*float64(max(from.node.CapacityBytes, 1)) > float64(r.store.cfg.RebalanceMinBytes)
}

// planMove returns the job that moves a node's shard of an extent to the emptiest
// node that may have it, and takes that into the loads, or nil.
func (r *repairer) planMove(v *survey, extent *proto.Extent, from *load, loads []*load) *job {
	l, err := extentLayout(extent)
	number := slices.Index(extent.GetHolders(), from.node.ID)
	if err != nil || number < 0 || !r.mayTry(extent) {
		return nil
	}
	inZone := make(map[string]int)
	for _, holder := range extent.GetHolders() {
		if node := v.byID[holder]; node != nil {
			inZone[node.Zone]++
		}
	}
	var to *load
	for _, candidate := range loads {
		node := candidate.node
		crowded := node.Zone != from.node.Zone && inZone[node.Zone] >= inZone[from.node.Zone]
		if slices.Contains(extent.GetHolders(), node.ID) || crowded || !takesShards(node) || node.FreeBytes <= uint64(l.shardBytes()) {
			continue
		}
		if to == nil || candidate.fill() < to.fill() {
			to = candidate
		}
	}
	if to == nil || !r.unbalanced(from, to) {
		return nil
	}
	from.bytes -= float64(l.shardBytes())
	to.bytes += float64(l.shardBytes())
	return &job{task: &proto.RepairTask{Extent: extent, ShardNumber: uint32(number)}, node: to.node.ID, spare: l.parity, bytes: l.shardBytes()}
}
