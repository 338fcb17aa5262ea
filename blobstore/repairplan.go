package blobstore

import (
	"cmp"
	"fmt"
	"slices"

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
	// spare is how many shards more could be lost now; below 0 so many are missing to
	// read the extent.
	spare int
	// bytes is how much is written.
	bytes int64
}

// hopeless says that the extent can't be read now, by what is known of it. It is
// tried all the same: a node may be reached by others, and a damaged shard may have
// just the cells that are wanted.
func (j *job) hopeless() bool { return j.spare < 0 }

// rank is the lower the sooner the job is to be done: first what has the fewest
// shards to spare, and last what can't be read, by how many shards it misses.
func (j *job) rank() int {
	if j.hopeless() {
		return MaxParityShards - j.spare
	}
	return j.spare
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
// be done, other nodes than those that have failed if there are any. why says in
// words what is missing if nothing can.
func (v *survey) plan(extent *proto.Extent, past failure) (need need, todo *job, why error) {
	l, err := extentLayout(extent)
	if err != nil {
		return needNode, nil, err
	}
	c := v.condition(extent, l)
	order := c.order(past.attempts)
	if len(order) == 0 {
		return needNothing, nil, nil
	}
	todo = &job{task: &proto.RepairTask{Extent: extent, ShardNumber: uint32(order[0])}, spare: c.urgency(order[0], l)}
	for _, number := range order {
		if todo.node = v.taker(extent, l, number, past.nodes); todo.node != "" {
			todo.task.ShardNumber, todo.spare, todo.bytes = uint32(number), c.urgency(number, l), l.shardBytes()
			return needShard, todo, nil
		}
	}
	if todo.node, why = v.reencoder(extent, l, past.nodes); why != nil {
		return needNode, nil, why
	}
	todo.task.Reencode, todo.bytes = true, int64(l.size)
	return needLayout, todo, nil
}

// order returns the shards that are lost or leaving in the order in which to see to
// them: what is lost comes first, unless it can't be had, while what leaves can be
// copied. After each attempt in vain it begins with the next one, since it may be
// just this shard that fails.
func (c *condition) order(attempts int) []int {
	order := slices.Concat(c.lost, c.leaving)
	if c.spare < 0 {
		order = slices.Concat(c.leaving, c.lost)
	}
	if len(order) < 2 {
		return order
	}
	first := attempts % len(order)
	return slices.Concat(order[first:], order[:first])
}

// urgency is job.spare for one of the shards. To copy one that leaves takes no
// others, and has time when none is lost.
func (c *condition) urgency(number int, l layout) int {
	if len(c.lost) == 0 || c.spare < 0 && slices.Contains(c.leaving, number) {
		return l.parity
	}
	return c.spare
}

// hasRoom says whether a node can take a shard of so many bytes.
func hasRoom(node NodeInfo, bytes int64) bool {
	return takesShards(node) && node.FreeBytes > uint64(bytes)
}

// taker returns the node that is to have a shard: its holder, if it has lost it and
// is well, or else one without a shard of the extent, from the zone with the fewest;
// empty if there is none. Nodes that have failed are asked again only if there is no
// other: who has failed once may do so every time.
func (v *survey) taker(extent *proto.Extent, l layout, number int, failed []string) string {
	holder := v.byID[extent.GetHolders()[number]]
	inPlace := holder != nil && !holder.Down && hasRoom(*holder, l.shardBytes())
	if inPlace && !slices.Contains(failed, holder.ID) {
		return holder.ID
	}
	other := v.newHolder(extent, l, number, failed)
	if inPlace && (other == "" || slices.Contains(failed, other)) {
		return holder.ID
	}
	return other
}

// newHolder is taker without the holder that there is.
func (v *survey) newHolder(extent *proto.Extent, l layout, number int, failed []string) string {
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
		if holders[node.ID] || node.Down || !hasRoom(node, l.shardBytes()) {
			continue
		}
		score := rendezvous(node, string(extent.GetId()))
		if best == "" || cmp.Or(
			cmpFailed(failed, node.ID, best), cmp.Compare(inZone[node.Zone], inZone[v.byID[best].Zone]), cmp.Compare(bestScore, score),
		) < 0 {
			best, bestScore = node.ID, score
		}
	}
	return best
}

// cmpFailed puts nodes that have failed behind the others.
func cmpFailed(failed []string, a, b string) int {
	switch inA, inB := slices.Contains(failed, a), slices.Contains(failed, b); {
	case inA == inB:
		return 0
	case inB:
		return -1
	}
	return 1
}

// reencoder returns the node that is to store an extent again, with the layout that
// the nodes left allow, one that has failed only if there is no other. It fails with
// ErrInsufficientNodes, or with ErrNoSpace.
func (v *survey) reencoder(extent *proto.Extent, l layout, failed []string) (string, error) {
	fresh, err := v.layoutNow(l)
	if err != nil {
		return "", err
	}
	perNode := l.size / uint64(fresh.GetDataShards())
	best, bestScore, roomy := "", 0.0, 0
	for _, node := range v.nodes {
		if node.Down || !hasRoom(node, int64(perNode)) {
			continue
		}
		roomy++
		score := rendezvous(node, string(extent.GetId()))
		if best == "" || cmp.Or(cmpFailed(failed, node.ID, best), cmp.Compare(bestScore, score)) < 0 {
			best, bestScore = node.ID, score
		}
	}
	if wanted := int(fresh.GetDataShards() + fresh.GetParityShards()); roomy < wanted {
		return "", fmt.Errorf("%d of %d nodes have room for %d bytes each: %w", roomy, wanted, perNode, ErrNoSpace)
	}
	return best, nil
}

// layoutNow returns the layout that an extent would get if it was stored again.
func (v *survey) layoutNow(l layout) (*proto.Layout, error) {
	return chooseLayout(v.nodes, l.size <= uint64(v.cfg.SmallBlobBytes), l.parity, v.cfg)
}

// improve returns the job that brings a whole extent into a better layout, or nil if
// it has it. It fails with ErrInsufficientNodes, or ErrNoSpace, if there is a better
// one, or it can't be told, and no job.
func (v *survey) improve(extent *proto.Extent, past failure) (*job, error) {
	if isInline(extent) {
		return nil, nil
	}
	l, err := extentLayout(extent)
	if err != nil {
		return nil, nil //nolint:nilerr // A record that makes no sense does not get better.
	}
	fresh, err := v.layoutNow(l)
	if err != nil {
		return nil, err
	}
	if !betterLayout(fresh, extent.GetLayout()) {
		return nil, nil
	}
	node, err := v.reencoder(extent, l, past.nodes)
	if err != nil {
		return nil, err
	}
	return &job{task: &proto.RepairTask{Extent: extent, Reencode: true}, node: node, spare: l.parity, bytes: int64(l.size)}, nil
}

// betterLayout says whether an extent is worth storing again: in a layout that
// survives more losses, or as many and takes less room.
func betterLayout(fresh, old *proto.Layout) bool {
	return cmp.Or(
		cmp.Compare(fresh.GetParityShards(), old.GetParityShards()), cmp.Compare(fresh.GetDataShards(), old.GetDataShards()),
	) > 0
}
