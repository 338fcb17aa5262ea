package main

import (
	"slices"
	"time"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/gateway"
)

// redirectLeast is the default of registry.redirect-min-bytes: below it, a pull is served where it arrives.
const redirectLeast = 1 << 20 // bytes

// cluster is nodes with what they have sent, received and read.
type cluster struct {
	infos []blobstore.NodeInfo
	nodes []*node
}

type node struct {
	info       blobstore.NodeInfo
	cache      *cacheModel
	popularity *gateway.Popularity
	load       load
}

// load is what a node has done, in bytes.
type load struct {
	// toClients left for clients, toNodes for other nodes; fromNodes came from those.
	toClients, toNodes, fromNodes uint64
	// disk was read of shards, cached was read of the cache, kept was written to it.
	disk, cached, kept uint64
}

func newCluster(count int, cacheBytes uint64) *cluster {
	c := &cluster{infos: newNodes(count)}
	for _, info := range c.infos {
		c.nodes = append(c.nodes, &node{info: info, cache: newCacheModel(cacheBytes), popularity: gateway.NewPopularity()})
	}
	return c
}

// redirects returns the node that serves a pull: the one that is asked, or the blob's home. hot says that the one that
// is asked keeps it. The order of the questions is the gateway's.
func (c *cluster) redirects(at int, l *layer, now time.Duration, p policy) (to int, hot bool) {
	n, home := c.nodes[at], c.home(at, l)
	switch {
	case l.size < redirectLeast, home == at, n.cache.has(l.digest), mirroredAt(l, n.info.ID):
		return at, false
	}
	if p.hot && n.cache.takes(l.size) && n.popularity.Note(l.digest, time.Unix(0, 0).Add(now)) {
		return at, true
	}
	return home, false
}

// home returns the blob's home for clients that ask a node.
func (c *cluster) home(asked int, l *layer) int {
	if l.homes[asked] < 0 {
		l.homes[asked] = c.number(blobstore.Home(c.infos, l.digest, l.extents, c.infos[asked].ID))
	}
	return l.homes[asked]
}

// serve has a node send a blob to a client, from its cache or through it, where it stays at once if it is worthy or, with
// eager, this is a home.
func (c *cluster) serve(at int, l *layer, worthy, eager bool, now time.Duration) {
	n := c.nodes[at]
	n.load.toClients += l.size
	if mirroredAt(l, n.info.ID) {
		n.load.disk += l.size
		return
	}
	if l.size <= uint64(blobstore.DefaultConfig().SmallBlobBytes) {
		c.fetch(at, l)
		return
	}
	if n.cache.pull(l.digest, l.size, worthy || eager && c.home(at, l) == at, now) {
		n.load.cached += l.size
		return
	}
	if n.cache.has(l.digest) {
		n.load.kept += l.size
	}
	c.fetch(at, l)
}

// fetch has a node read k shards of each extent: its own, whichever it has, and data shards of others. It returns the
// bytes that each node was asked for, by node.
func (c *cluster) fetch(at int, l *layer) map[int]uint64 {
	asked := make(map[int]uint64)
	for _, extent := range l.extents {
		k := int(extent.GetLayout().GetDataShards())
		each := extent.GetSize() / uint64(k)
		own := slices.Index(extent.GetHolders(), c.nodes[at].info.ID)
		wanted := k
		if own >= 0 {
			c.nodes[at].load.disk += each
			asked[at] += each
			wanted--
		}
		for number := 0; wanted > 0; number++ {
			if number == own {
				continue
			}
			from := c.number(extent.GetHolders()[number])
			c.nodes[from].load.disk += each
			c.nodes[from].load.toNodes += each
			c.nodes[at].load.fromNodes += each
			asked[from] += each
			wanted--
		}
	}
	return asked
}

// number returns the number of a node. Ids are in order.
func (c *cluster) number(id string) int {
	i, _ := slices.BinarySearchFunc(c.infos, id, func(n blobstore.NodeInfo, id string) int {
		switch {
		case n.ID < id:
			return -1
		case n.ID > id:
			return 1
		}
		return 0
	})
	return i
}

// mirroredAt says whether a node has a whole copy of all extents.
func mirroredAt(l *layer, id string) bool {
	for _, extent := range l.extents {
		if extent.GetLayout().GetDataShards() > 1 || !slices.Contains(extent.GetHolders(), id) {
			return false
		}
	}
	return true
}
