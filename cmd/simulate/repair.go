package main

import (
	"math/rand/v2"
	"slices"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/proto"
)

// A node is lost for good. The others rebuild what it had, each at its pace.
const (
	heldBytes  = 1e12     // of shards on each node
	repairPace = 64 << 20 // bytes a second, the default of Settings.repair_bytes_per_second
	// lostShards is how many shards the lost node has before its bytes are scaled to that: enough for the sizes of
	// layers, which differ much, to even out.
	lostShards = 50_000
)

// repairResult is what came of it, scaled to heldBytes on the lost node.
type repairResult struct {
	// paced is how long it takes at the default pace, free what networks and disks need without one. Seconds.
	paced, free float64
	// read are bytes read for each byte that was lost.
	read float64
	// imbalance is what the node with the most to rebuild has, over the mean.
	imbalance float64
	// anew is the part of the lost bytes whose extents are stored anew, in fewer shards.
	anew float64
}

func repair(random *rand.Rand, count, shards int) (repairResult, error) {
	cfg := blobstore.DefaultConfig()
	w := &wreck{nodes: newNodes(count), numbers: make(map[string]int), work: make([]float64, count), loads: make([]load, count)}
	for i, n := range w.nodes {
		w.numbers[n.ID] = i
	}
	full := slices.Clone(w.nodes)
	w.nodes[dead].Healthy, w.nodes[dead].Down = false, true
	plan := blobstore.PlanRepair(cfg, w.nodes)
	for had := 0; had < shards; {
		l, err := newLayer(random, full, layerBytes(random, ownMedian))
		if err != nil {
			return repairResult{}, err
		}
		for _, extent := range l.extents {
			if !slices.Contains(extent.GetHolders(), w.nodes[dead].ID) {
				continue
			}
			had++
			by, bytes, anew, err := plan(extent)
			if err == nil {
				err = w.mend(cfg, extent, w.numbers[by], float64(bytes), anew)
			}
			if err != nil {
				return repairResult{}, err
			}
		}
	}
	return w.result(), nil
}

// dead is the node that is lost.
const dead = 0

// wreck is a cluster without a node, and what the others do about it.
type wreck struct {
	nodes   []blobstore.NodeInfo
	numbers map[string]int
	// work is what each node has to spend of its pace, and loads what it does to networks and disks.
	work  []float64
	loads []load
	// lost, anew and read are in bytes, as in repairResult.
	lost, anew, read float64
}

// mend has a node rebuild the lost shard of an extent, or store the extent anew.
func (w *wreck) mend(cfg blobstore.Config, extent *proto.Extent, by int, bytes float64, anew bool) error {
	k := int(extent.GetLayout().GetDataShards())
	shard := extent.GetSize() / uint64(k)
	w.lost += float64(shard)
	w.read += float64(k) * float64(shard)
	w.work[by] += bytes
	from := 0
	for _, holder := range extent.GetHolders() {
		if i := w.numbers[holder]; i != dead && from < k {
			from++
			w.loads[i].disk += shard
			w.send(i, by, shard)
		}
	}
	if !anew {
		w.loads[by].kept += shard
		return nil
	}
	w.anew += float64(shard)
	layout, holders, err := blobstore.PlanExtent(cfg, w.nodes, string(extent.GetId()), extent.GetSize() <= uint64(cfg.SmallBlobBytes))
	if err != nil {
		return err
	}
	shard = extent.GetSize() / uint64(layout.GetDataShards())
	for _, holder := range holders {
		w.loads[w.numbers[holder]].kept += shard
		w.send(by, w.numbers[holder], shard)
	}
	return nil
}

// send takes bytes from one node to another, if it is another.
func (w *wreck) send(from, to int, bytes uint64) {
	if from != to {
		w.loads[from].toNodes += bytes
		w.loads[to].fromNodes += bytes
	}
}

// result scales what was done to heldBytes.
func (w *wreck) result() repairResult {
	scale, total := heldBytes/w.lost, 0.0
	r := repairResult{read: w.read / w.lost, anew: w.anew / w.lost}
	for i, work := range w.work {
		total += work
		r.paced = max(r.paced, work*scale/repairPace)
		r.free = max(r.free, w.loads[i].seconds()*scale)
		r.imbalance = max(r.imbalance, work)
	}
	r.imbalance *= float64(len(w.work)-1) / total
	return r
}
