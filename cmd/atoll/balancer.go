package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxBalancedConns bounds the connections that pass through the balancer at a
	// time; more wait in the listener's queue.
	maxBalancedConns = 4096
	// dialTimeout is how long one node may take to accept a connection before the
	// next is tried.
	dialTimeout = time.Second
	// clientLinger is how long a client may go on sending to a node that has said
	// its last word. Closing at once could cost the client that last word.
	clientLinger = 2 * time.Second
	// passPiece is how many bytes are passed on between two notes that a connection
	// is alive.
	passPiece = 64 << 10
	// acceptPause keeps a failing accept, as without file descriptors, from
	// spinning.
	acceptPause = 50 * time.Millisecond
)

// balancer spreads TCP connections over the nodes, round robin: first over those
// that are ready, then over those that can only be read from, and if there is
// neither, over any that accepts. It knows nothing of HTTP, so what a client
// sends reaches a node as it is.
type balancer struct {
	targets []*target
	turn    atomic.Uint64

	mu     sync.Mutex // guards relays
	relays map[*relay]struct{}
}

// relay is one client's connection and the node's that it is passed on to.
type relay struct {
	client, node *net.TCPConn
	// moved is when bytes last passed, Unix nanoseconds.
	moved atomic.Int64
	// answered is set once the node has said its last word and it was passed on.
	answered atomic.Bool
}

func newBalancer(targets []*target) *balancer {
	return &balancer{targets: targets, relays: map[*relay]struct{}{}}
}

// Run passes connections on until the listener is closed and the last of them has
// ended. The end of ctx closes the listener and breaks all connections.
func (b *balancer) Run(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		listener.Close()
		b.abortAll()
	})
	defer stop()
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, maxBalancedConns)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			running.Wait()
			return nil
		}
		if err != nil {
			<-slots
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		running.Go(func() {
			defer func() { <-slots }()
			b.serve(ctx, conn.(*net.TCPConn))
		})
	}
}

// serve connects a client with a node until both have said their last word.
func (b *balancer) serve(ctx context.Context, client *net.TCPConn) {
	defer client.Close()
	node, err := b.dial(ctx)
	if err != nil {
		abort(client) // a client takes a reset for a failure that may pass
		return
	}
	defer node.Close()
	r := &relay{client: client, node: node}
	r.moved.Store(time.Now().UnixNano())
	b.mu.Lock()
	b.relays[r] = struct{}{}
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.relays, r)
	}()
	if ctx.Err() != nil { // abortAll may have come too early for this one
		abort(client)
		return
	}
	var both sync.WaitGroup
	both.Go(r.upstream)
	both.Go(r.downstream)
	both.Wait()
}

func (r *relay) upstream() {
	if err := r.pass(r.node, r.client); err != nil && !r.answered.Load() {
		abort(r.client, r.node)
	}
}

func (r *relay) downstream() {
	if err := r.pass(r.client, r.node); err != nil {
		abort(r.client, r.node)
		return
	}
	r.answered.Store(true)
	_ = r.client.SetReadDeadline(time.Now().Add(clientLinger)) // fails only if it is closed already
}

// pass copies until the source has said its last word, and passes that on too.
func (r *relay) pass(to, from *net.TCPConn) error {
	for {
		n, err := io.CopyN(to, from, passPiece) // inside the kernel, splice(2)
		if n > 0 {
			r.moved.Store(time.Now().UnixNano())
		}
		if errors.Is(err, io.EOF) {
			return to.CloseWrite()
		}
		if err != nil {
			return err
		}
	}
}

// busy counts the connections on which something has moved lately.
func (b *balancer) busy(lately time.Duration) (count int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for r := range b.relays {
		if time.Since(time.Unix(0, r.moved.Load())) < lately {
			count++
		}
	}
	return count
}

// dial connects to the next node in turn, and if that does not accept, at once
// to the one after it.
func (b *balancer) dial(ctx context.Context) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	var failures []error
	for _, t := range b.candidates() {
		conn, err := dialer.DialContext(ctx, "tcp", t.address)
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		t.set(readinessNone)
		failures = append(failures, err)
	}
	return nil, fmt.Errorf("no node accepts: %w", errors.Join(failures...))
}

// candidates lists all nodes, the readier ones first, those that are equally
// ready in turn.
func (b *balancer) candidates() []*target {
	turn := b.turn.Add(1)
	ordered := make([]*target, 0, len(b.targets))
	for _, level := range []readiness{readinessFull, readinessRead, readinessAlive, readinessNone} {
		var equal []*target
		for _, t := range b.targets {
			if t.get() == level {
				equal = append(equal, t)
			}
		}
		for i := range equal {
			ordered = append(ordered, equal[(turn+uint64(i))%uint64(len(equal))])
		}
	}
	return ordered
}

func (b *balancer) abortAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for r := range b.relays {
		abort(r.client, r.node)
	}
}

// abort closes connections with a reset, so that neither side takes what it has
// got for all there is.
func abort(conns ...*net.TCPConn) {
	for _, conn := range conns {
		_ = conn.SetLinger(0) // fails only on a connection that is closed already
		conn.Close()
	}
}
