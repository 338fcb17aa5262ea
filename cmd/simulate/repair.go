package main

import (
	"math/rand/v2"

	"github.com/atollregistry/atoll/blobstore"
)

// A node is lost for good. The others rebuild what it had, each at its pace.
const (
	heldBytes  = 1e12     // of shards on each node
	repairPace = 64 << 20 // bytes a second, the default of Settings.repair_bytes_per_second
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

func repair(random *rand.Rand, count int) (repairResult, error) {
	cfg := blobstore.DefaultConfig()
	nodes := newNodes(count)
	cat, err := newCatalog(random, nodes, images)
	if err != nil {
		return repairResult{}, err
	}
	const dead = 0
	nodes[dead].Healthy, nodes[dead].Down = false, true
	plan := blobstore.PlanRepair(cfg, nodes)
	byID := make(map[string]int)
	for i, n := range nodes {
		byID[n.ID] = i
	}
	work, loads := make([]float64, count), make([]load, count)
	lost, anew, read := 0.0, 0.0, 0.0
	for _, l := range cat.layers {
		for _, extent := range l.extents {
			number := holderNumber(extent.GetHolders(), nodes[dead].ID)
			if number < 0 {
				continue
			}
			k := float64(extent.GetLayout().GetDataShards())
			shard := float64(extent.GetSize()) / k
			lost += shard
			id, bytes, whole, err := plan(extent)
			if err != nil {
				return repairResult{}, err
			}
			if whole {
				anew += shard
			}
			at := byID[id]
			work[at] += float64(bytes)
			read += k * shard
			loads[at].fromNodes += uint64(k * shard)
			from := 0
			for _, holder := range extent.GetHolders() {
				if i := byID[holder]; i != dead && from < int(k) {
					from++
					loads[i].disk += uint64(shard)
					loads[i].toNodes += uint64(shard)
				}
			}
			loads[at].kept += uint64(bytes)
		}
	}
	scale := heldBytes / lost
	r := repairResult{read: read / lost, anew: anew / lost}
	total := 0.0
	for i := range work {
		total += work[i]
		r.paced = max(r.paced, work[i]*scale/repairPace)
		r.free = max(r.free, loads[i].seconds()*scale)
		r.imbalance = max(r.imbalance, work[i])
	}
	r.imbalance *= float64(count-1) / total
	return r, nil
}

func holderNumber(holders []string, id string) int {
	for i, holder := range holders {
		if holder == id {
			return i
		}
	}
	return -1
}
