package blobstore

import (
	"slices"
	"testing"
)

// The oldest go first, what was written again is new, and small shards are not counted.
func TestRecent(t *testing.T) {
	var dropped []uint32
	r := newRecent(func(id shardID) { dropped = append(dropped, id.number) })
	r.limit = 10 << 20
	expect := func(want ...uint32) {
		t.Helper()
		if !slices.Equal(dropped, want) {
			t.Errorf("dropped %v, want %v", dropped, want)
		}
		dropped = nil
	}
	shard := func(number uint32) shardID { return shardID{number: number} }
	for number := range uint32(5) {
		r.add(shard(number), 2<<20)
	}
	r.add(shard(0), 2<<20)
	for number := range uint32(100) {
		r.add(shard(100+number), recentLeast-1)
	}
	expect()
	r.add(shard(5), 3<<20)
	expect(1, 2)
	r.add(shard(6), 11<<20) // more than all
	expect(3, 4, 0, 5, 6)
	if r.bytes != 0 || r.order.Len() != 0 {
		t.Errorf("%d bytes of %d shards are left", r.bytes, r.order.Len())
	}
}
