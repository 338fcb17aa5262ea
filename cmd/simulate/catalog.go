package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/proto"
)

// What images are like. Sizes of layers are log-normal, as those of files and of downloads are (Downey, "The
// structural cause of file size distributions", MASCOTS 2001); the medians are a guess for images of services.
const (
	images     = 10_000
	bases      = 200 // stacks of layers that images have in common
	baseLayers = 3
	ownLayers  = 3
	baseMedian = 30 << 20 // bytes
	ownMedian  = 8 << 20  // bytes
	layerSigma = 1.5      // of the logarithm
	layerLeast = 4 << 10  // bytes
	layerMost  = 2 << 30  // bytes
	popularity = 1.0      // exponent of the law by which images are asked for, and bases used (Zipf)
	nodeBytes  = 4 << 40  // capacity of a node
)

// layer is a blob with where its shards are.
type layer struct {
	digest  string
	size    uint64
	extents []*proto.Extent
	// homes are the numbers of the nodes that are the blob's homes for clients that ask each node,
	// as far as that was asked; -1 where it was not.
	homes []int
}

// catalog is what a cluster holds.
type catalog struct {
	images [][]*layer
}

// newCatalog makes images and places their layers on nodes.
func newCatalog(random *rand.Rand, nodes []blobstore.NodeInfo, count int) (*catalog, error) {
	c := &catalog{}
	stacks := make([][]*layer, max(1, count*bases/images))
	for i := range stacks {
		var err error
		if stacks[i], err = newLayers(random, nodes, baseLayers, baseMedian); err != nil {
			return nil, err
		}
	}
	pick := newZipf(len(stacks), popularity)
	for range count {
		own, err := newLayers(random, nodes, ownLayers, ownMedian)
		if err != nil {
			return nil, err
		}
		c.images = append(c.images, append(own, stacks[pick.next(random)]...))
	}
	return c, nil
}

func newLayers(random *rand.Rand, nodes []blobstore.NodeInfo, count int, median float64) ([]*layer, error) {
	made := make([]*layer, count)
	for i := range made {
		l, err := newLayer(random, nodes, layerBytes(random, median))
		if err != nil {
			return nil, err
		}
		made[i] = l
	}
	return made, nil
}

// layerBytes draws a size.
func layerBytes(random *rand.Rand, median float64) uint64 {
	size := math.Exp(math.Log(median) + layerSigma*random.NormFloat64())
	return uint64(min(max(size, layerLeast), layerMost))
}

// newLayer places a layer as a push does: all extents of an upload prefer the same nodes.
func newLayer(random *rand.Rand, nodes []blobstore.NodeInfo, size uint64) (*layer, error) {
	cfg := blobstore.DefaultConfig()
	l := &layer{digest: fmt.Sprintf("sha256:%016x%016x", random.Uint64(), random.Uint64()), size: size}
	upload := fmt.Sprintf("%016x", random.Uint64())
	for left := size; left > 0; {
		bytes := min(left, uint64(cfg.MaxExtentBytes))
		layout, holders, err := blobstore.PlanExtent(cfg, nodes, upload, size <= uint64(cfg.SmallBlobBytes))
		if err != nil {
			return nil, err
		}
		id := make([]byte, blobstore.ExtentIDBytes)
		for i := range id {
			id[i] = byte(random.Uint32())
		}
		l.extents = append(l.extents, &proto.Extent{Id: id, Size: bytes, Layout: layout, Holders: holders})
		left -= bytes
	}
	l.homes = slices.Repeat([]int{-1}, len(nodes))
	return l, nil
}

// newNodes returns the nodes of a cluster: alike, well, and empty.
func newNodes(count int) []blobstore.NodeInfo {
	nodes := make([]blobstore.NodeInfo, count)
	for i := range nodes {
		nodes[i] = blobstore.NodeInfo{ID: fmt.Sprintf("node-%03d", i), Healthy: true, FreeBytes: nodeBytes, CapacityBytes: nodeBytes}
	}
	return nodes
}

// zipf draws numbers from 0 on, number i with a probability in proportion to (i+1)^-exponent.
type zipf struct{ below []float64 }

func newZipf(count int, exponent float64) *zipf {
	z := &zipf{}
	sum := 0.0
	for i := range count {
		sum += math.Pow(float64(i+1), -exponent)
		z.below = append(z.below, sum)
	}
	return z
}

func (z *zipf) next(random *rand.Rand) int {
	at := random.Float64() * z.below[len(z.below)-1]
	low, high := 0, len(z.below)-1
	for low < high {
		if middle := (low + high) / 2; z.below[middle] > at {
			high = middle
		} else {
			low = middle + 1
		}
	}
	return low
}
