package gateway

import (
	"fmt"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// hotAsks is how many clients that ask a node for a blob within hotWindow are sent to its home. Those
	// after them are served there, and the blob is kept: what one popular image weighs, all nodes carry. With
	// more, a home is the slowest part of a roll-out; with fewer, caches have more of the same (docs/scale.md).
	hotAsks   = 2
	hotWindow = 10 * time.Minute
	// maxHot bounds the blobs that are counted.
	maxHot = 4096
)

// Popularity counts how often blobs are asked for at a node. Safe for concurrent use.
type Popularity struct {
	mu   sync.Mutex // guards asks
	asks *lru.LRU[string, *asking]
}

// asking is how often a blob was asked for since a time.
type asking struct {
	since time.Time
	times int
}

// NewPopularity returns one that has counted nothing.
func NewPopularity() *Popularity {
	asks, err := lru.NewLRU[string, *asking](maxHot, nil)
	if err != nil {
		panic(fmt.Errorf("popularity: %w", err)) // Unreachable: the size is positive.
	}
	return &Popularity{asks: asks}
}

// Note counts one more question for a blob, and says whether it is hot: to be served where it is asked for.
func (p *Popularity) Note(digest string, now time.Time) (hot bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.asks.Get(digest)
	if !ok || now.Sub(a.since) > hotWindow {
		a = &asking{since: now}
		p.asks.Add(digest, a)
	}
	a.times++
	return a.times > hotAsks
}
