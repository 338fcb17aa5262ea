package blobstore

import (
	"slices"
	"testing"
)

// A reader asks the same shards for every group of an extent, and so every disk for one part after the next; another
// reader may ask others.
func TestReaderStaysWithItsShards(t *testing.T) {
	c := startCluster(t, 3, nil)
	b := c.nodes[0].push(250_000, 1)
	e := b.extents[0]
	l, err := readableLayout(e)
	if err != nil {
		t.Fatal(err)
	}
	parity := c.node(e.GetHolders()[2])
	seen := make(map[int]bool)
	for range 64 {
		source := parity.store.newExtentSource(e, l)
		first, _ := source.choose(0, 1)
		if !slices.Contains(first, 2) {
			t.Fatalf("shards %v are asked for, and not the one that is here", first)
		}
		for range 16 {
			if next, _ := source.choose(0, 1); !slices.Equal(next, first) {
				t.Fatalf("shards %v are asked for after %v", next, first)
			}
		}
		seen[first[0]+first[1]] = true
	}
	if len(seen) != 2 {
		t.Errorf("64 readers asked for the same shards")
	}
}
