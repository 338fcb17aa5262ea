package blobstore

import (
	"math"
	"os"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// recentBytes is how much of what was written to a disk the kernel is left to keep in memory: what was pushed
	// is pulled soon.
	recentBytes = 64 << 20
	// recentLeast is the size of the smallest shard that is counted. All others are the kernel's business.
	recentLeast = 1 << 20
	// recentOfShard is how much of a shard that is being written it is left to keep.
	recentOfShard = 16 << 20
)

// recent has the kernel forget large shards some time after they were written, the oldest first; for what is read
// from then on see passage. Bytes that go by once would drive out what is needed again, and
// memory that is used again and again costs less than such that is new: a virtual machine gets that from its host
// page by page, which took half of the processor time of a push.
type recent struct {
	// drop has the kernel forget a shard.
	drop func(shardID)
	// limit is recentBytes, less in tests.
	limit int64

	mu    sync.Mutex                     // guards what follows
	order *simplelru.LRU[shardID, int64] // by shard, its bytes
	bytes int64
}

func newRecent(drop func(shardID)) *recent {
	order, err := simplelru.NewLRU[shardID, int64](math.MaxInt, nil)
	if err != nil {
		panic(err) // Unreachable: the size is positive.
	}
	return &recent{drop: drop, limit: recentBytes, order: order}
}

// add takes note of a shard that was written.
func (r *recent) add(id shardID, bytes int64) {
	if bytes < recentLeast {
		return
	}
	for _, old := range r.note(id, bytes) {
		r.drop(old)
	}
}

// note returns the shards whose time is over.
func (r *recent) note(id shardID, bytes int64) (over []shardID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if had, ok := r.order.Get(id); ok {
		r.bytes -= had
	}
	r.order.Add(id, bytes)
	r.bytes += bytes
	for r.bytes > r.limit {
		old, had, _ := r.order.RemoveOldest()
		r.bytes -= had
		over = append(over, old)
	}
	return over
}

// forgetPages has the kernel drop a shard of this disk from memory, unless what was read of it lately is to stay.
func (d *Disk) forgetPages(id shardID) {
	if d.handles.wants(id) {
		return
	}
	file, err := os.Open(d.path(id))
	if err != nil {
		return // It is gone, and its pages with it; or they stay.
	}
	defer file.Close()
	dropFromCache(file, 0, 0)
}
