package gateway

import (
	"fmt"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// hotAsks is how many clients that ask a node for a blob within hotWindow are sent to its home. Those
	// after them are served there, and the blob is kept: what one popular image weighs, all nodes carry.
	hotAsks   = 8
	hotWindow = 10 * time.Minute
	// maxHot bounds the blobs that are counted.
	maxHot = 4096
)

// popularity counts how often blobs are asked for. Safe for concurrent use.
type popularity struct {
	mu   sync.Mutex // guards asks
	asks *lru.LRU[string, *asking]
}

// asking is how often a blob was asked for since a time.
type asking struct {
	since time.Time
	times int
}

func newPopularity() *popularity {
	asks, err := lru.NewLRU[string, *asking](maxHot, nil)
	if err != nil {
		panic(fmt.Errorf("popularity: %w", err)) // Unreachable: the size is positive.
	}
	return &popularity{asks: asks}
}

// note counts one more question for a blob, and says whether it is hot.
func (p *popularity) note(digest string, now time.Time) (hot bool) {
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
