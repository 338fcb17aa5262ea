package main

import (
	"math/rand/v2"
	"time"
)

// A roll-out: many clients pull one image at the same time, from a cluster that has none of it
// in a cache, by a balancer that asks nodes at random.
const (
	rolloutClients  = 500
	rolloutParallel = 3 // layers that a client pulls at once, docker's default
)

// rolloutLayers are the sizes of the image's layers, 1 GB in all, in the order in which they are pulled.
var rolloutLayers = []uint64{500e6, 200e6, 150e6, 100e6, 40e6, 10e6}

// rolloutResult is what came of it.
type rolloutResult struct {
	// seconds until the last client was done, least what the links of clients, or of all nodes together, need.
	seconds, least float64
	// reads is how many nodes read the shards of a layer, in the mean of all layers.
	reads float64
	// between are bytes from node to node for each byte that a client got; imbalance as in steadyResult.
	between, imbalance float64
}

// add adds a part of another result.
func (r *rolloutResult) add(other rolloutResult, part float64) {
	r.seconds += part * other.seconds
	r.least += part * other.least
	r.reads += part * other.reads
	r.between += part * other.between
	r.imbalance += part * other.imbalance
}

// rollout is one under way.
type rollout struct {
	*cluster
	world  fluid
	out    []*link // of nodes
	in     []*link
	disks  []*link
	layers []*layer
	fills  map[place]*filling
	random *rand.Rand
	policy policy
}

// place is a blob on a node.
type place struct {
	node  int
	layer *layer
}

// filling is a blob that comes into a node's cache.
type filling struct {
	parts   int
	whole   bool
	waiting []func()
}

func roll(random *rand.Rand, count int, p policy) (rolloutResult, error) {
	r := &rollout{cluster: newCluster(count, cacheBytes), fills: make(map[place]*filling), policy: p, random: random}
	for range count {
		r.out, r.in = append(r.out, &link{capacity: linkBytes}), append(r.in, &link{capacity: linkBytes})
		r.disks = append(r.disks, &link{capacity: diskBytes})
	}
	total := uint64(0)
	for _, size := range rolloutLayers {
		l, err := newLayer(random, r.infos, size)
		if err != nil {
			return rolloutResult{}, err
		}
		r.layers = append(r.layers, l)
		total += size
	}
	for range rolloutClients {
		r.client()
	}
	r.world.run()
	sum := r.sum()
	result := rolloutResult{
		seconds: r.world.now, between: sum.between, imbalance: sum.imbalance,
		least: float64(total) / linkBytes * max(1, float64(rolloutClients)/float64(count)),
	}
	result.reads = float64(len(r.fills)) / float64(len(r.layers))
	return result, nil
}

// client has one more client pull the image.
func (r *rollout) client() {
	in := &link{capacity: linkBytes}
	layers := r.layers
	var one func()
	one = func() {
		if len(layers) > 0 {
			l := layers[0]
			layers = layers[1:]
			r.pull(l, in, one)
		}
	}
	for range rolloutParallel {
		one()
	}
}

// pull has a client get a layer through its link.
func (r *rollout) pull(l *layer, in *link, done func()) {
	at := r.random.IntN(len(r.nodes))
	now := time.Duration(r.world.now * float64(time.Second))
	if r.policy.redirect {
		at, _ = r.redirects(at, l, now, r.policy)
	}
	r.nodes[at].load.toClients += l.size
	if mirroredAt(l, r.nodes[at].info.ID) {
		r.world.start(l.size, done, r.disks[at], r.out[at], in)
		return
	}
	f := r.fills[place{at, l}]
	if f == nil {
		f = r.fill(at, l)
	}
	// Who follows a fill is done when both are.
	r.world.start(l.size, func() {
		if f.whole {
			done()
			return
		}
		f.waiting = append(f.waiting, done)
	}, r.out[at], in)
}

// fill has a node read a blob's shards, once for all that ask meanwhile; they ask while it comes in, so it stays.
func (r *rollout) fill(at int, l *layer) *filling {
	f := &filling{}
	r.fills[place{at, l}] = f
	asked := r.fetch(at, l)
	f.parts = len(asked)
	end := func() {
		if f.parts--; f.parts > 0 {
			return
		}
		f.whole = true
		r.nodes[at].cache.keep(l.digest, l.size)
		for _, done := range f.waiting {
			done()
		}
	}
	for from := range len(r.nodes) { // In order, so that the same seed gives the same.
		bytes, ok := asked[from]
		switch {
		case !ok:
		case from == at:
			r.world.start(bytes, end, r.disks[at])
		default:
			r.world.start(bytes, end, r.disks[from], r.out[from], r.in[at])
		}
	}
	return f
}
