package blobstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/atollregistry/atoll/proto"
)

const (
	// maxRebalanceScan bounds the extents of one node that one look for shards to move
	// takes in.
	maxRebalanceScan = 5000
	// improveRest is for how long nothing is looked for after a look at everything has
	// found that nothing can be done about what could be better.
	improveRest = 20 * time.Second
)

// planImprovement looks for what could be better although nothing is wrong:
// extents in a layout that new ones would not get any more, if that is wanted, and
// nodes that are fuller than others.
func (r *repairer) planImprovement(ctx context.Context, v *survey, idle map[string]bool) (map[string][]job, error) {
	settings := r.store.catalog.LocalSettings()
	if settings.GetReencode() && r.mayLook(reencodeList) {
		planned, done, err := r.planReencode(v, idle)
		if done {
			r.log.Info().Msg("every extent has the layout that a new one would get")
			err = r.store.catalog.ChangeSettings(ctx, func(s *proto.Settings) { s.Reencode = false })
		}
		if err != nil || len(planned) > 0 {
			return planned, err
		}
	}
	if settings.GetRebalancePaused() || !r.mayLook(rebalanceLists) {
		return nil, nil
	}
	return r.planRebalance(v, idle)
}

// reencodeList is the name of the list of all extents, rebalanceLists how those of
// rebalance begin.
const reencodeList, rebalanceLists = "reencode", "rebalance "

// mayLook says that it is time for a look of this kind.
func (r *repairer) mayLook(kind string) bool { return !r.now().Before(r.vain[kind]) }

// lookLater is called when a look of this kind was in vain.
func (r *repairer) lookLater(kind string) { r.vain[kind] = r.now().Add(improveRest) }

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
			todo, why := v.improve(extent, r.failed[keyOfExtent(extent)])
			r.improvable = r.improvable || todo != nil || why != nil
			if todo != nil && r.mayTry(extent) {
				b.add(*todo)
				r.improving = true
			}
			if after = extent.GetId(); b.full() {
				break
			}
		}
		if len(extents) < scanPage && !b.full() {
			if r.improvable && !r.improving {
				r.lookLater(reencodeList)
			}
			done, r.improvable, r.improving = !r.improvable, false, false
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

func byFill(x, y *load) int {
	return cmp.Or(cmp.Compare(x.fill(), y.fill()), cmp.Compare(x.node.ID, y.node.ID))
}

// planRebalance looks for shards to move from nodes that are fuller than others, the
// fullest first.
func (r *repairer) planRebalance(v *survey, idle map[string]bool) (map[string][]job, error) {
	usage, err := r.store.catalog.ShardUsage()
	if err != nil {
		return nil, fmt.Errorf("ask what nodes hold: %w", err)
	}
	loads := make([]*load, 0, len(v.nodes))
	for _, node := range v.nodes {
		loads = append(loads, &load{node: node, bytes: float64(usage[node.ID].GetBytes())})
	}
	slices.SortFunc(loads, byFill)
	stuck, sawAll := false, true
	for _, from := range slices.Backward(loads) {
		if !r.unbalanced(from, loads[0]) {
			continue
		}
		b := newBatches(idle)
		looked, err := r.planMoves(v, from, loads, b)
		if planned := b.cut(); err != nil || len(planned) > 0 {
			return planned, err
		}
		// All that this node has may be where it has to be.
		stuck, sawAll = true, sawAll && looked < maxRebalanceScan
	}
	if stuck && sawAll {
		r.lookLater(rebalanceLists)
	}
	return nil, nil
}

// planMoves looks for shards to move from one node, and says at how many it has
// looked.
func (r *repairer) planMoves(v *survey, from *load, loads []*load, b *batches) (looked int, err error) {
	list := extentList{name: rebalanceLists + from.node.ID, page: func(after []byte, limit int) ([]*proto.Extent, error) {
		return r.store.catalog.ExtentsOn(from.node.ID, after, limit)
	}}
	err = r.scan(list, func(extent *proto.Extent) bool {
		if j := r.planMove(v, extent, from, loads); j != nil {
			b.add(*j)
		}
		looked++
		return looked < maxRebalanceScan && r.unbalanced(from, slices.MinFunc(loads, byFill))
	})
	return looked, err
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
	failed := r.failed[keyOfExtent(extent)].nodes
	for _, candidate := range loads {
		node := candidate.node
		crowded := node.Zone != from.node.Zone && inZone[node.Zone] >= inZone[from.node.Zone]
		if slices.Contains(extent.GetHolders(), node.ID) || crowded || !hasRoom(node, l.shardBytes()) {
			continue
		}
		if to == nil || cmp.Or(cmpFailed(failed, node.ID, to.node.ID), cmp.Compare(candidate.fill(), to.fill())) < 0 {
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
