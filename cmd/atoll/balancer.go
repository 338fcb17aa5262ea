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
	// its last word.
	clientLinger = 10 * time.Second
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

	mu    sync.Mutex
	conns map[*net.TCPConn]struct{}
}

func newBalancer(targets []*target) *balancer {
	return &balancer{targets: targets, conns: map[*net.TCPConn]struct{}{}}
}

// Run passes connections on until ctx ends, which breaks those that are left.
// Closing the listener before lets them end by themselves.
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
			<-ctx.Done()
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
			b.relay(ctx, conn.(*net.TCPConn))
		})
	}
}

// relay connects a client with a node until both have said their last word.
func (b *balancer) relay(ctx context.Context, client *net.TCPConn) {
	defer b.track(client)()
	node, err := b.dial(ctx)
	if err != nil {
		abort(client) // a client takes a reset for a failure that may pass
		return
	}
	defer b.track(node)()
	if ctx.Err() != nil { // abortAll may have come before track
		return
	}
	var both sync.WaitGroup
	both.Go(func() {
		if _, err := io.Copy(node, client); err != nil || node.CloseWrite() != nil {
			abort(client, node)
		}
	})
	both.Go(func() {
		if _, err := io.Copy(client, node); err != nil || client.CloseWrite() != nil {
			abort(client, node)
			return
		}
		// The client learns that nothing more comes; most then hang up.
		if err := client.SetReadDeadline(time.Now().Add(clientLinger)); err != nil {
			abort(client, node)
		}
	})
	both.Wait()
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

// track makes abortAll reach the connection until the returned function closes it.
func (b *balancer) track(conn *net.TCPConn) (done func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conns[conn] = struct{}{}
	return func() {
		conn.Close()
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.conns, conn)
	}
}

func (b *balancer) abortAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for conn := range b.conns {
		abort(conn)
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
