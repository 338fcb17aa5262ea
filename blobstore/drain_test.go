package blobstore

import (
	"errors"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

// A drain is planned with the room that there is, which each extent takes from the
// next. The extents of these tests have 50,000 bytes, and so many of them are on node a.
func TestDrainNeedsRoom(t *testing.T) {
	for _, test := range []struct {
		nodes, extent string
		extents       int
		free          uint64 // on each node
		want          error
	}{
		{nodes: "a:draining b c d", extent: "2+1 a b c", extents: 10, free: 260_000},
		{nodes: "a:draining b c d", extent: "2+1 a b c", extents: 11, free: 260_000, want: ErrNoSpace},
		{nodes: "a:draining b c d:full", extent: "2+1 a b c", extents: 1, free: 60_000},
		// No other node is left: what is on b and c is stored anew, and grows by half.
		{nodes: "a:draining b c", extent: "2+1 a b c", extents: 8, free: 260_000},
		{nodes: "a:draining b c", extent: "2+1 a b c", extents: 11, free: 260_000, want: ErrNoSpace},
		{nodes: "a:draining b c:away", extent: "2+1 a b c", extents: 1, free: 1 << 30, want: ErrInsufficientNodes},
		{nodes: "a:draining b c:full", extent: "2+1 a b c", extents: 1, free: 1 << 30, want: ErrNoSpace},
		// What is on no node that leaves takes no room.
		{nodes: "a:draining b c d", extent: "2+1 d b c", extents: 100, free: 10},
	} {
		v := surveyOf(t, test.nodes)
		for i := range v.nodes {
			v.nodes[i].FreeBytes = min(v.nodes[i].FreeBytes, test.free)
		}
		var err error
		for i := 0; i < test.extents && err == nil; i++ {
			extent := extentOn(t, test.extent)
			extent.Id[0] = byte(i)
			err = v.book(extent)
		}
		if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
			t.Errorf("%s, %d extents on %s: %v, want %v", test.nodes, test.extents, test.extent, err, test.want)
		}
	}
}

func TestCheckDrain(t *testing.T) {
	c := startCluster(t, 3, nil)
	leaving := c.nodes[1]
	check := func() error { return c.nodes[0].store.CheckDrain(t.Context(), leaving.id) }
	for i := range scanPage + 10 { // more than a page
		c.put(&proto.Extent{
			Id: []byte{byte(i), byte(i >> 8), 15: 0}, Size: 10, Layout: &proto.Layout{DataShards: 1, ParityShards: 1, CellBytes: 4096},
			Holders: []string{leaving.id, c.nodes[0].id},
		})
	}
	if err := check(); err != nil {
		t.Errorf("with two other nodes: %v", err)
	}
	c.nodes[2].mu.Lock()
	c.nodes[2].sick = true
	c.nodes[2].mu.Unlock()
	if err := check(); !errors.Is(err, ErrInsufficientNodes) {
		t.Errorf("with one other node: %v", err)
	}
}
