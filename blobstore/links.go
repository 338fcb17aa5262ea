package blobstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/atollregistry/atoll/proto"
)

const (
	// idleLinks is how many links to a node are kept for the next calls, and linkIdle for how long.
	idleLinks = 16
	linkIdle  = time.Minute
	// linkAge is how long a link is used before calls go over another one, which shows the certificates of that time.
	linkAge = 10 * time.Minute
	// maxDials bounds the links to a node that are being opened. A node takes only so many connections of one host that have
	// not shown a certificate, and breaks others.
	maxDials = 4
	// dialPause is how long after a node could not be reached nobody tries again, at least; longer if that took longer to find out, up to
	// dialPauseMost.
	dialPause, dialPauseMost = 100 * time.Millisecond, time.Second
)

// links are this node's links to the others. Safe for concurrent use.
type links struct {
	cluster Cluster

	mu sync.Mutex // guards the fields below
	// idle are those that no call is on, by node, the one used last at the end.
	idle   map[string][]*idleLink
	failed map[string]dialFailure
	// dials has, for each node, room for each link that is being opened.
	dials  map[string]chan struct{}
	closed bool
	// sweep closes what was idle for long when no call comes any more.
	sweep *time.Timer
}

// idleLink is a link with the time when it was opened, and when it was used last.
type idleLink struct {
	*link
	opened, used time.Time
}

type dialFailure struct {
	err   error
	until time.Time
}

func newLinks(cluster Cluster) *links {
	return &links{
		cluster: cluster, idle: make(map[string][]*idleLink), failed: make(map[string]dialFailure), dials: make(map[string]chan struct{}),
	}
}

// take returns a link to a node for one call, and whether one was made on it before.
func (p *links) take(ctx context.Context, node string) (l *idleLink, reused bool, err error) {
	if l, err := p.takeIdle(node); l != nil || err != nil {
		return l, true, err
	}
	dials := p.dialsOf(node)
	select {
	case dials <- struct{}{}:
		defer func() { <-dials }()
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	// A call may have ended meanwhile, or another dial failed.
	if l, err := p.takeIdle(node); l != nil || err != nil {
		return l, true, err
	}
	began := time.Now()
	conn, err := p.cluster.Dial(ctx, node)
	if err == nil {
		return &idleLink{link: newLink(conn), opened: time.Now()}, false, nil
	}
	// In words only: that the dial's own time was over is the node's fault, not the caller's.
	err = unreachableError{errors.New("connect to node " + node + ": " + err.Error())}
	if ctx.Err() == nil { // else it says nothing of the node
		p.noteFailure(node, err, time.Since(began))
	}
	return nil, false, err
}

// takeIdle returns a link that no call is on, if there is one, and an error if there can't be another now.
func (p *links) takeIdle(node string) (*idleLink, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	p.prune(time.Now())
	if kept := p.idle[node]; len(kept) > 0 {
		p.idle[node] = kept[:len(kept)-1]
		return kept[len(kept)-1], nil
	}
	return nil, p.failed[node].err
}

func (p *links) dialsOf(node string) chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dials[node] == nil {
		p.dials[node] = make(chan struct{}, maxDials)
	}
	return p.dials[node]
}

func (p *links) noteFailure(node string, err error, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed[node] = dialFailure{err, time.Now().Add(max(dialPause, min(took, dialPauseMost)))}
}

// put keeps a link for the next call.
func (p *links) put(node string, l *idleLink) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.used = time.Now()
	if p.closed || len(p.idle[node]) >= idleLinks {
		l.abort()
		return
	}
	p.idle[node] = append(p.idle[node], l)
	if p.sweep == nil {
		p.sweep = time.AfterFunc(linkIdle, p.sweepIdle)
	}
	p.sweep.Reset(linkIdle + time.Second)
}

func (p *links) sweepIdle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prune(time.Now())
}

// prune closes what was idle for long, or is old, and forgets failures that are. p.mu is held.
func (p *links) prune(now time.Time) {
	for node, failure := range p.failed {
		if !now.Before(failure.until) {
			delete(p.failed, node)
		}
	}
	for node, kept := range p.idle {
		if len(kept) == 0 {
			delete(p.idle, node)
			continue
		}
		p.idle[node] = slices.DeleteFunc(kept, func(l *idleLink) bool {
			over := now.Sub(l.used) > linkIdle || now.Sub(l.opened) > linkAge
			if over {
				l.abort()
			}
			return over
		})
	}
}

// forget closes the idle links to a node: one of them was broken.
func (p *links) forget(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.idle[node] {
		l.abort()
	}
	delete(p.idle, node)
}

// close closes the idle links, and keeps none any more.
func (p *links) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.sweep != nil {
		p.sweep.Stop()
	}
	for _, kept := range p.idle {
		for _, l := range kept {
			l.abort()
		}
	}
	clear(p.idle)
}

// shardCall is a call under way. It ends with its context: then the link breaks.
type shardCall struct {
	ctx   context.Context
	links *links
	node  string
	link  *idleLink
	stop  func() bool
	// answer is the first one, bulkBytes what of it is still to be read.
	answer    *proto.ShardAnswer
	bulkBytes int
}

// call makes a call to a node and returns when that has agreed to it. The caller ends it.
func (p *links) call(ctx context.Context, node string, call *proto.ShardCall) (*shardCall, error) {
	call.ClusterId, call.NodeId = p.cluster.ClusterID(), node
	if deadline, ok := ctx.Deadline(); ok {
		call.TimeoutMs = uint64(max(time.Until(deadline).Milliseconds(), 1))
	}
	for {
		l, reused, err := p.take(ctx, node)
		if err != nil {
			return nil, callError(ctx, err)
		}
		c := &shardCall{ctx: ctx, links: p, node: node, link: l, answer: &proto.ShardAnswer{}}
		c.stop = context.AfterFunc(ctx, l.abort)
		if err = l.send(call); err == nil {
			_, c.bulkBytes, err = l.receive(c.answer, maxHeadBytes)
		}
		refused := c.answer.GetCode() != 0
		if err == nil && c.bulkBytes > 0 && (refused || call.GetRead() == nil) {
			err = fmt.Errorf("%w: %d bytes that nobody asked for", errLink, c.bulkBytes)
		}
		switch {
		case err == nil && !refused:
			return c, nil
		case err == nil:
			c.end()
			return nil, answerError(c.answer)
		}
		c.abort()
		if !reused || ctx.Err() != nil {
			return nil, callError(ctx, unreachableError{fmt.Errorf("call to node %s: %w", node, err)})
		}
		// The node may have closed the link while nobody looked: what was asked reached nobody, or somebody who is gone.
		p.forget(node)
	}
}

// end ends a call whose last answer was read to its end.
func (c *shardCall) end() {
	if c.stop() {
		c.links.put(c.node, c.link)
	}
}

// abort ends a call anywhere.
func (c *shardCall) abort() {
	c.stop()
	c.link.abort()
}

// fault is what an error of the link means to the caller.
func (c *shardCall) fault(err error) error {
	return callError(c.ctx, unreachableError{fmt.Errorf("call to node %s: %w", c.node, err)})
}

// callError tells the end of the caller's context from a fault of the node: the one looks like the other.
func callError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

// answerError is the error that a node has answered with.
func answerError(answer *proto.ShardAnswer) error {
	return fromStatus(status.Error(codes.Code(answer.GetCode()), answer.GetError()))
}

// unreachableError says that a node can't be talked to. It has the code that gRPC has for that.
type unreachableError struct{ error }

// GRPCStatus makes it an error with a code.
func (u unreachableError) GRPCStatus() *status.Status {
	return status.New(codes.Unavailable, u.Error())
}

// Unwrap is for errors.Is.
func (u unreachableError) Unwrap() error { return errors.Unwrap(u.error) }
