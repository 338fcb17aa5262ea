package cache

import (
	"context"
	"errors"
	"os"
	"time"
)

const (
	// blobShare is the part of the cache, one in so many bytes, that one blob may take, and that all blobs
	// together may take that came in for one reader and may not stay.
	blobShare = 4
	// roomShare is the part of what is free, the cache included, that the cache may take: one in
	// so many bytes. So it gives way to shards as the disk fills up.
	roomShare = 2
	// roomInterval is how often the cache looks how much room there is.
	roomInterval = 10 * time.Second
)

// errNoRoom is that the cache holds as much as it may.
var errNoRoom = errors.New("no room in the cache")

// space is what a cache has on the disk, in bytes.
type space struct {
	// limit is what it may have now. Nothing comes in while paused: from when the disk took something no more, or did not
	// say how much room there is, until the next look.
	limit  uint64
	paused bool
	// kept is of blobs, and of fills that stay; passing of the other fills; and pinned of files that have no name any
	// more, but readers.
	kept, passing, pinned uint64
	// toKeep is what the fills that stay will have at their end, and toPass what the others will.
	toKeep, toPass uint64
}

func (s *space) stored() uint64 { return s.kept + s.passing + s.pinned }

// keepLimit is what blobs that stay may take.
func (s *space) keepLimit() uint64 {
	return s.limit - min(s.limit, max(s.limit/blobShare, s.toPass+s.pinned))
}

// keeps says whether there is room for a blob of so many bytes to stay, and passes whether there is for one that
// does not.
func (s *space) keeps(size uint64) bool  { return s.toKeep+size <= s.keepLimit() }
func (s *space) passes(size uint64) bool { return s.toPass+s.pinned+size <= s.limit/blobShare }

// Run keeps the cache within its bounds until ctx ends. It leaves behind what hangs in a disk.
func (c *Cache) Run(ctx context.Context) {
	ticker := time.NewTicker(roomInterval)
	defer ticker.Stop()
	idle := make(chan struct{}, 1)
	idle <- struct{}{}
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		select {
		case <-idle:
			go func() { c.adapt(); idle <- struct{}{} }()
		default: // The last look goes on.
		}
	}
}

// adapt finds out how much the cache may hold, and drops what is more. It makes the folder again if somebody has
// removed it.
func (c *Cache) adapt() {
	room, err := c.cfg.Room()
	if err == nil {
		err = os.MkdirAll(c.cfg.Dir, 0o700)
	}
	c.mu.Lock()
	if c.space.paused = err != nil; c.space.paused {
		c.mu.Unlock()
		return
	}
	c.space.limit = min(c.cfg.Bytes, (room+c.space.stored())/roomShare)
	dropped := c.makeRoom(true)
	c.mu.Unlock()
	c.unlink(dropped...)
}

// makeRoom forgets blobs until those that stay have no more than they may, and returns their paths. What is being
// sent stays unless it must go: its bytes don't come free before that is over. The caller holds the lock, and removes
// the files when it does not.
func (c *Cache) makeRoom(must bool) (dropped []string) {
	most := c.space.keepLimit()
	if must { // What is pinned goes by itself, and no more has to go for it.
		most = c.space.limit - c.space.limit/blobShare
	}
	for passed := 0; c.space.kept > most; {
		_, oldest, ok := c.blobs.GetOldest()
		switch {
		case !ok, !must && passed >= c.blobs.Len():
			return dropped
		case !must && oldest.users > 0:
			passed++
			c.blobs.Get(oldest.name) // Now it was used last.
			continue
		}
		c.blobs.RemoveOldest()
		c.space.kept -= oldest.held
		c.retire(oldest)
		c.status.Evicted++
		dropped = append(dropped, oldest.path)
	}
	return dropped
}

// charge makes room for bytes that a fill is about to write. It fails with errNoRoom if there is none.
func (c *Cache) charge(f *fill, bytes uint64) error {
	c.mu.Lock()
	f.blob.held += bytes
	if f.keep {
		c.space.kept += bytes
	} else {
		c.space.passing += bytes
	}
	dropped := c.makeRoom(false)
	full := c.space.stored() > c.space.limit
	c.mu.Unlock()
	c.unlink(dropped...)
	if full {
		return errNoRoom
	}
	return nil
}

// keep has a fill stay if there is room. The caller holds the lock.
func (c *Cache) keep(f *fill) {
	if f.keep {
		return
	}
	c.space.toPass -= f.blob.size
	if !c.space.keeps(f.blob.size) {
		c.space.toPass += f.blob.size
		return
	}
	f.keep = true
	c.space.toKeep += f.blob.size
	c.space.passing -= f.blob.held
	c.space.kept += f.blob.held
}

// discard takes off what a fill has that failed. The caller holds the lock.
func (c *Cache) discard(f *fill) {
	if f.keep {
		c.space.kept -= f.blob.held
		c.space.toKeep -= f.blob.size
	} else {
		c.space.passing -= f.blob.held
		c.space.toPass -= f.blob.size
	}
	c.retire(f.blob)
}

// retire notes that a blob's file has no name any more, or is about to lose it. The caller holds the lock.
func (c *Cache) retire(b *blob) {
	b.gone = true
	if b.users > 0 {
		c.space.pinned += b.held
	}
}

// release takes a reader off a blob.
func (c *Cache) release(b *blob) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.users--; b.users == 0 && b.gone {
		c.space.pinned -= b.held
	}
}
