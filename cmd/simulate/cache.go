package main

import (
	"container/list"
	"time"
)

// cacheModel is what a node's cache keeps, by the rules of blobstore/cache: a blob stays if it is
// worth it, or asked for a second time within a while; what was not used for longest goes first. It
// knows of one pull at a time, which is all that these rules need.
type cacheModel struct {
	limit, held uint64
	byDigest    map[string]*list.Element
	order       *list.List // of cachedBlob, the one used last in front
	asked       map[string]time.Duration
}

type cachedBlob struct {
	digest string
	size   uint64
}

// The bounds of blobstore/cache that matter here.
const (
	cacheShare  = 4                // one blob takes at most so much of a cache, and so much is left to what does not stay
	cacheWindow = 10 * time.Minute // between two questions that count as a second one
)

func newCacheModel(limit uint64) *cacheModel {
	return &cacheModel{limit: limit, byDigest: make(map[string]*list.Element), order: list.New(), asked: make(map[string]time.Duration)}
}

// has says whether a blob is there.
func (c *cacheModel) has(digest string) bool { return c.byDigest[digest] != nil }

// takes says whether a blob of so many bytes could come in.
func (c *cacheModel) takes(size uint64) bool { return size <= c.limit/cacheShare }

// pull has a blob read through the cache, and says whether it was there.
func (c *cacheModel) pull(digest string, size uint64, worthy bool, now time.Duration) (hit bool) {
	if element := c.byDigest[digest]; element != nil {
		c.order.MoveToFront(element)
		return true
	}
	if !c.takes(size) {
		return false
	}
	last, known := c.asked[digest]
	c.asked[digest] = now
	if worthy || known && now-last < cacheWindow {
		c.keep(digest, size)
	}
	return false
}

// keep has a blob stay, and drops others for it.
func (c *cacheModel) keep(digest string, size uint64) {
	c.byDigest[digest] = c.order.PushFront(cachedBlob{digest, size})
	c.held += size
	for c.held > c.limit-c.limit/cacheShare {
		gone := c.order.Remove(c.order.Back()).(cachedBlob)
		delete(c.byDigest, gone.digest)
		c.held -= gone.size
	}
}
