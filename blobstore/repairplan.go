package blobstore

import (
	"fmt"

	"github.com/atollregistry/atoll/proto"
)

// This file decides what an extent needs. It is arithmetic: the same nodes and
// the same extent give the same answer, and nothing is asked.

// need is what an extent needs.
type need int

const (
	// needNothing: every shard is on a node that is not down and not being emptied.
	needNothing need = iota
	// needShard: a shard has to be rebuilt, or to move.
	needShard
	// needLayout: a shard has to be rebuilt or to move, and no node is left to take
	// it: with fewer nodes the extent has to be cut into fewer shards.
	needLayout
	// needNode: neither is possible with the nodes that there are.
	needNode
)

// job is one task and who is to carry it out.
type job struct {
	task *proto.RepairTask
	// node carries it out.
	node string
	// spare is how many shards more could be lost now: the fewer, the sooner.
	spare int
	// bytes is how much is written.
	bytes int64
}

// survey is the cluster as a plan sees it.
type survey struct {
	cfg   Config
	nodes []NodeInfo
	byID  map[string]*NodeInfo
}

func newSurvey(cfg Config, nodes []NodeInfo) *survey {
	v := &survey{cfg: cfg, nodes: nodes, byID: make(map[string]*NodeInfo, len(nodes))}
	for i := range nodes {
		v.byID[nodes[i].ID] = &nodes[i]
	}
	return v
}

// condition is the condition of an extent's shards, by shard number.
type condition struct {
	// lost shards are on no node, or on one that is down, or damaged.
	lost []int
	// leaving shards are on nodes that are being emptied.
	leaving []int
	// spare is how many of the shards that can be read now are not needed to read the
	// extent; below 0 it can't be read.
	spare int
}

// condition tells what has become of an extent's shards. A node that does not
// answer and is not down yet is waited for: its shards are not lost.
func (v *survey) condition(extent *proto.Extent, l layout) condition {
	c := condition{spare: -l.data}
	damaged := make([]bool, l.shards())
	for _, number := range extent.GetDamagedShards() {
		if int(number) < len(damaged) {
			damaged[number] = true
		}
	}
	for number, holder := range extent.GetHolders() {
		node := v.byID[holder]
		if node == nil || node.Down || damaged[number] {
			c.lost = append(c.lost, number)
			continue
		}
		if node.Healthy {
			c.spare++
		}
		if node.Draining {
			c.leaving = append(c.leaving, number)
		}
	}
	return c
}

// plan returns what an extent needs, and the job that comes first if something can
// be done. why says in words what is missing if nothing can.
func (v *survey) plan(extent *proto.Extent) (need need, todo *job, why error) {
	l, err := extentLayout(extent)
	if err != nil {
		return needNode, nil, err
	}
	c := v.condition(extent, l)
	number := 0
	switch {
	case len(c.lost) > 0:
		number = c.lost[0]
	case len(c.leaving) > 0:
		number = c.leaving[0]
	default:
		return needNothing, nil, nil
	}
	todo = &job{spare: c.spare, task: &proto.RepairTask{Extent: extent, ShardNumber: uint32(number)}, bytes: l.shardBytes()}
	if len(c.lost) == 0 { // Nothing is missing: it has time.
		todo.spare = l.parity
	}
	if todo.node = v.taker(extent, l, number); todo.node != "" {
		return needShard, todo, nil
	}
	if todo.node, why = v.reencoder(extent, l); why != nil {
		return needNode, nil, why
	}
	todo.task.Reencode, todo.bytes = true, int64(l.size)
	return needLayout, todo, nil
}

// taker returns the node that is to have a shard: its holder, if it has lost it and
// is well, or else one without a shard of the extent, from the zone with the fewest;
// empty if there is none.
func (v *survey) taker(extent *proto.Extent, l layout, number int) string {
	if holder := v.byID[extent.GetHolders()[number]]; holder != nil && !holder.Down && takesShards(*holder) {
		return holder.ID
	}
	inZone := make(map[string]int)
	holders := make(map[string]bool)
	for other, id := range extent.GetHolders() {
		node := v.byID[id]
		if node == nil {
			continue
		}
		holders[id] = true
		if other != number && !node.Down {
			inZone[node.Zone]++
		}
	}
	best, bestScore := "", 0.0
	for _, node := range v.nodes {
		if holders[node.ID] || node.Down || !takesShards(node) || node.FreeBytes <= uint64(l.shardBytes()) {
			continue
		}
		score := rendezvous(node, string(extent.GetId()))
		better := best == "" || inZone[node.Zone] < inZone[v.byID[best].Zone] ||
			inZone[node.Zone] == inZone[v.byID[best].Zone] && score > bestScore
		if better {
			best, bestScore = node.ID, score
		}
	}
	return best
}

// reencoder returns the node that is to store an extent again, with the layout that
// the nodes left allow. It fails with ErrInsufficientNodes, or with ErrNoSpace.
func (v *survey) reencoder(extent *proto.Extent, l layout) (string, error) {
	fresh, err := v.layoutNow(l.size)
	if err != nil {
		return "", err
	}
	perNode := l.size / uint64(fresh.GetDataShards())
	best, bestScore, roomy := "", 0.0, 0
	for _, node := range v.nodes {
		if node.Down || !takesShards(node) || node.FreeBytes <= perNode {
			continue
		}
		roomy++
		if score := rendezvous(node, string(extent.GetId())); best == "" || score > bestScore {
			best, bestScore = node.ID, score
		}
	}
	if wanted := int(fresh.GetDataShards() + fresh.GetParityShards()); roomy < wanted {
		return "", fmt.Errorf("%d of %d nodes have room for %d bytes each: %w", roomy, wanted, perNode, ErrNoSpace)
	}
	return best, nil
}

// layoutNow returns the layout that a new extent of so many bytes would get.
func (v *survey) layoutNow(size uint64) (*proto.Layout, error) {
	return chooseLayout(v.nodes, size <= uint64(v.cfg.SmallBlobBytes), v.cfg)
}

// improve returns the job that brings a whole extent into a better layout, one
// that survives more losses or takes less room, or nil if it has it.
func (v *survey) improve(extent *proto.Extent) *job {
	l, err := extentLayout(extent)
	if err != nil {
		return nil
	}
	fresh, err := v.layoutNow(l.size)
	if err != nil {
		return nil
	}
	data, parity := int(fresh.GetDataShards()), int(fresh.GetParityShards())
	if parity < l.parity || parity == l.parity && data <= l.data {
		return nil
	}
	node, err := v.reencoder(extent, l)
	if err != nil {
		return nil
	}
	return &job{task: &proto.RepairTask{Extent: extent, Reencode: true}, node: node, spare: l.parity, bytes: int64(l.size)}
}
