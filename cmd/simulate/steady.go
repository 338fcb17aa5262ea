package main

import (
	"math/rand/v2"
	"time"
)

// Day to day: clients pull images, some far more often than others, and have none of the layers.
const (
	steadyPulls = 100_000 // of images; as many again, before, fill the caches
	steadyEvery = 50 * time.Millisecond
	cacheBytes  = 32 << 30 // a node's, the default of cache-bytes
	linkBytes   = 1.25e9   // what a node's network carries in a second, each way: 10 Gbit/s
	diskBytes   = 1e9      // what a node's disk reads in a second
)

// policy is what a cluster does with pulls.
type policy struct {
	name string
	// redirect sends a pull to the blob's home, hot serves and keeps what is popular where it is asked for, and
	// eager has a home keep what it is asked for once.
	redirect, hot, eager bool
}

// steadyResult is what came of it, in the half that counts.
type steadyResult struct {
	// hit is the part of bytes that came from a cache, away the part of
	// pulls that were redirected.
	hit, away float64
	// between are bytes that went from node to node, disk those read of shards and kept those written to caches, for each byte that a client got.
	between, disk, kept float64
	// imbalance is what the busiest node sent, over the mean.
	imbalance float64
	// ceiling is how many bytes a second clients can get before some node's network or disk
	// is full.
	ceiling float64
}

// steady has clients pull images from a cluster.
func steady(random *rand.Rand, count int, p policy) (steadyResult, error) {
	c := newCluster(count, cacheBytes)
	cat, err := newCatalog(random, c.infos, images)
	if err != nil {
		return steadyResult{}, err
	}
	pick := newZipf(len(cat.images), popularity)
	pulls, away := 0, 0
	for i := range 2 * steadyPulls {
		if i == steadyPulls {
			for _, n := range c.nodes {
				n.load = load{}
			}
			pulls, away = 0, 0
		}
		now := time.Duration(i) * steadyEvery
		for _, l := range cat.images[pick.next(random)] {
			pulls++
			if c.pull(random.IntN(count), l, p, now) {
				away++
			}
		}
	}
	r := c.sum()
	r.away = float64(away) / float64(pulls)
	return r, nil
}

// pull has a client ask a node for a blob, and says whether it was redirected.
func (c *cluster) pull(at int, l *layer, p policy, now time.Duration) (redirected bool) {
	worthy := false
	if p.redirect {
		var to int
		to, worthy = c.redirects(at, l, now, p)
		redirected = to != at
		at = to
	}
	c.serve(at, l, worthy, p.eager, now)
	return redirected
}

// sum is the result of the nodes' loads.
func (c *cluster) sum() steadyResult {
	var all load
	most, busiest := uint64(0), 0.0
	for _, n := range c.nodes {
		all.add(n.load)
		most = max(most, n.load.toClients+n.load.toNodes)
		busiest = max(busiest, n.load.seconds())
	}
	got := float64(all.toClients)
	return steadyResult{
		hit:       float64(all.cached) / got,
		between:   float64(all.toNodes) / got,
		disk:      float64(all.disk) / got,
		kept:      float64(all.kept) / got,
		imbalance: float64(most) * float64(len(c.nodes)) / float64(all.toClients+all.toNodes),
		ceiling:   got / busiest,
	}
}

func (l *load) add(o load) {
	l.toClients += o.toClients
	l.toNodes += o.toNodes
	l.fromNodes += o.fromNodes
	l.disk += o.disk
	l.cached += o.cached
	l.kept += o.kept
}

// seconds is how long the node's network and disk need at least. Nothing is in memory.
func (l *load) seconds() float64 {
	return max(
		float64(l.toClients+l.toNodes)/linkBytes,
		float64(l.fromNodes)/linkBytes,
		float64(l.disk+l.cached+l.kept)/diskBytes,
	)
}
