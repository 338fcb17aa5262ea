package blobstore

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/atollregistry/atoll/proto"
)

// takesShards says whether new shards may be placed on a node.
func takesShards(n NodeInfo) bool { return n.Healthy && !n.Draining && n.FreeBytes > 0 }

// place chooses different nodes for the shards of one extent and returns their
// ids in the order of the shard numbers. It is a pure function of its input, not
// of the order of the nodes.
//
// Nodes are ranked by weighted rendezvous hashing: with u uniform in (0,1) from
// the hash of key and node, the score w / -ln(u) makes each node come first with
// a probability in proportion to its weight w (Schindelhauer and Schomaker,
// "Weighted distributed hash tables", SPAA 2005). Among these, the next shard
// goes to the zone that has the fewest so far.
//
// It fails with ErrInsufficientNodes, or with ErrNoSpace if room is all that
// is missing.
func place(nodes []NodeInfo, key string, wanted int) ([]string, error) {
	if err := checkNodes(nodes, wanted); err != nil {
		return nil, fmt.Errorf("place %d shards: %w", wanted, err)
	}
	type candidate struct {
		NodeInfo
		score float64
	}
	candidates := make([]candidate, 0, len(nodes))
	for _, n := range nodes {
		if takesShards(n) {
			candidates = append(candidates, candidate{NodeInfo: n, score: rendezvous(n, key)})
		}
	}
	slices.SortFunc(candidates, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.ID, b.ID))
	})
	placed := make([]string, 0, wanted)
	inZone := make(map[string]int)
	for len(placed) < wanted {
		best := 0
		for i := range candidates {
			if inZone[candidates[i].Zone] < inZone[candidates[best].Zone] {
				best = i
			}
		}
		placed = append(placed, candidates[best].ID)
		inZone[candidates[best].Zone]++
		candidates = slices.Delete(candidates, best, best+1)
	}
	return placed, nil
}

// rendezvous returns a node's score for a key.
func rendezvous(n NodeInfo, key string) float64 {
	hash := sha256.New()
	hash.Write([]byte(key))
	hash.Write([]byte{0})
	hash.Write([]byte(n.ID))
	bits := binary.BigEndian.Uint64(hash.Sum(nil)) >> 11 // As many as a float64 holds exactly.
	u := (float64(bits) + 0.5) / (1 << 53)
	return float64(max(n.CapacityBytes, 1)) / -math.Log(u)
}

// nodesPerHome is how many nodes share a home. With one home for all, a large cluster would send more
// clients there than it can serve; with more homes, caches have more of the same (docs/scale.md).
const nodesPerHome = 10

// Home returns the id of the node that is the blob's home for clients that ask a node; empty if no holder is healthy.
//
// Homes are the healthy nodes, among those that hold a shard of it, that rendezvous hashing ranks first for
// its digest, one for every nodesPerHome nodes, and no more than it has holders. All weigh the same, so that each node is the home of as many blobs as
// another that holds as many. A home is its own; the others are spread over the homes, by rendezvous hashing as well.
func Home(nodes []NodeInfo, digest string, extents []*proto.Extent, asked string) string {
	homes := make([]NodeInfo, 0, MaxDataShards+MaxParityShards)
	for _, n := range nodes {
		if n.Healthy && holds(n.ID, extents) {
			n.CapacityBytes = 1
			homes = append(homes, n)
		}
	}
	if len(homes) == 0 {
		return ""
	}
	rank(homes, digest)
	homes = homes[:min(len(homes), (len(nodes)+nodesPerHome-1)/nodesPerHome)]
	if slices.ContainsFunc(homes, func(n NodeInfo) bool { return n.ID == asked }) {
		return asked
	}
	rank(homes, digest+" "+asked)
	return homes[0].ID
}

// rank orders nodes as rendezvous hashing does for a key.
func rank(nodes []NodeInfo, key string) {
	if len(nodes) < 2 {
		return
	}
	scores := make(map[string]float64, len(nodes))
	for _, n := range nodes {
		scores[n.ID] = rendezvous(n, key)
	}
	slices.SortFunc(nodes, func(a, b NodeInfo) int {
		return cmp.Or(cmp.Compare(scores[b.ID], scores[a.ID]), cmp.Compare(a.ID, b.ID))
	})
}

// holds says whether a node has a shard of one of the extents.
func holds(nodeID string, extents []*proto.Extent) bool {
	return slices.ContainsFunc(extents, func(e *proto.Extent) bool { return slices.Contains(e.GetHolders(), nodeID) })
}

// checkNodes says whether so many nodes take shards, and if not, why. Room is all
// that is missing only if no node that has some may come back.
func checkNodes(nodes []NodeInfo, wanted int) error {
	healthy, roomy, away := 0, 0, 0
	for _, n := range nodes {
		switch {
		case n.Draining:
		case takesShards(n):
			healthy, roomy = healthy+1, roomy+1
		case n.Healthy:
			healthy++
		case !n.Down && n.FreeBytes > 0:
			away++
		}
	}
	if healthy < wanted {
		return fmt.Errorf("%d of %d nodes are healthy, %d are needed: %w", healthy, len(nodes), wanted, ErrInsufficientNodes)
	}
	if roomy < wanted && roomy+away >= wanted {
		return fmt.Errorf("%d of %d nodes have room and are healthy, %d are needed: %w", roomy, len(nodes), wanted, ErrInsufficientNodes)
	}
	if roomy < wanted {
		return fmt.Errorf("%d of %d nodes have room, %d are needed: %w", roomy, len(nodes), wanted, ErrNoSpace)
	}
	return nil
}

// chooseLayout returns the layout of a new extent. m depends on how many nodes
// the cluster has, so that a node that is down lowers k and never the redundancy;
// k is as many data shards as the nodes left can take. A small blob is mirrored.
//
// An extent that is stored again had parity before, and keeps it as long as that
// does not take whole copies: while a dead node is removed and its successor is not
// there yet, the cluster is smaller, and no blob is to suffer from that.
//
// It fails with ErrInsufficientNodes, or with ErrNoSpace if room is all that is
// missing.
func chooseLayout(nodes []NodeInfo, small bool, parity int, cfg Config) (*proto.Layout, error) {
	m := parityShards(len(nodes), cfg.Parity)
	if err := checkNodes(nodes, m+1); err != nil {
		return nil, fmt.Errorf("choose layout: %w", err)
	}
	takers := 0
	for _, n := range nodes {
		if takesShards(n) {
			takers++
		}
	}
	k := 1
	if small {
		m = max(m, min(parity, takers-1))
	} else {
		m = max(m, min(parity, takers-2))
		k = min(cfg.MaxDataShards, takers-m)
	}
	return &proto.Layout{DataShards: uint32(k), ParityShards: uint32(m), CellBytes: uint32(cfg.CellBytes)}, nil
}

// parityShards returns m for a cluster of so many nodes.
func parityShards(nodes, configured int) int {
	switch {
	case configured >= 0:
		return configured
	case nodes <= 1:
		return 0
	case nodes <= 4:
		return 1
	}
	return 2
}
