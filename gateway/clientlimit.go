package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// clientLimit bounds the requests that one client address has running. The next one
// waits for its turn, since few clients can send a body twice.
type clientLimit struct {
	atOnce  int64
	wait    time.Duration
	metrics limitMetrics

	mu sync.Mutex // guards clients
	// clients has those with requests that run or wait, and so no more than there are
	// requests.
	clients map[netip.Prefix]*clientTurns
}

type clientTurns struct {
	turns *limiter
	// requests is how many run or wait; the last one takes the entry away.
	requests int
}

// newClientLimit returns the limit; nil, which limits nothing, when atOnce is 0.
func newClientLimit(atOnce int, wait time.Duration, m limitMetrics) *clientLimit {
	if atOnce <= 0 {
		return nil
	}
	return &clientLimit{atOnce: int64(atOnce), wait: wait, metrics: m, clients: make(map[netip.Prefix]*clientTurns)}
}

// enter waits for the client's turn. It fails with errClientBusy when that takes too
// long or too many wait already. The caller must call leave once.
func (l *clientLimit) enter(ctx context.Context, client netip.Addr) (leave func(), err error) {
	key := clientPrefix(client)
	l.mu.Lock()
	of := l.clients[key]
	if of == nil {
		of = &clientTurns{turns: newLimiter(l.atOnce, l.wait, errClientBusy, l.metrics)}
		l.clients[key] = of
	}
	of.requests++
	l.mu.Unlock()

	gone := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if of.requests--; of.requests == 0 {
			delete(l.clients, key)
		}
	}
	release, err := of.turns.acquire(ctx, 1)
	if err != nil {
		gone()
		return nil, err
	}
	return func() { release(); gone() }, nil
}

// enterClient waits until the client may have one more request running. The question
// whether this is a registry does not count: balancers ask it.
func (g *gateway) enterClient(ctx context.Context, x *exchange) (leave func(), err error) {
	if g.clients == nil || x.operation == opBase || isOperator(x.r) {
		return func() {}, nil
	}
	leave, err = g.clients.enter(ctx, x.origin.client)
	if errors.Is(err, errClientBusy) && (!x.body.ended() || x.operation == opUpload) {
		// On a 429 clients give up what they are sending.
		return nil, fmt.Errorf("%w: %w", errUploadsBusy, err)
	}
	return leave, err
}
