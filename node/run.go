package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/atollregistry/atoll/gateway"
)

const (
	// handOverTimeout bounds the search for a new leader when this one stops.
	handOverTimeout = 5 * time.Second
	// farewellTimeout bounds how long a node that stops still takes clients in for
	// the sake of nodes that may be sending some: all should ask how it is by then.
	farewellTimeout = heartbeatInterval + heartbeatTimeout
	// followTime is how long clients that were sent here may take to arrive.
	followTime = 500 * time.Millisecond
	// farewellPoll is the pause between two looks at who has asked.
	farewellPoll = 20 * time.Millisecond
	// graceTimeout bounds the end of what is left once clients are served.
	graceTimeout = 5 * time.Second
	// headerTimeout bounds the header of a request to the operations port and the
	// operator's socket.
	headerTimeout = 10 * time.Second
)

// run serves until ctx ends or a part fails, then stops in order: clients first,
// then what they need.
func (p *parts) run(ctx context.Context) error {
	// The parts outlive ctx, so that running transfers can finish.
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	group, work := errgroup.WithContext(work)

	operations := newOperationsServer(p.ready, p.metrics)
	socket, err := listenSocket(p.folder.path)
	if err != nil {
		return fmt.Errorf("open operator's socket: %w", err)
	}
	operator := &admin{self: p.self, machine: p.machine, store: p.store, replica: p.replica, blobs: p.blobs, peers: p.peers, ready: p.ready, registry: gateway.AsOperator(p.handler), certificates: p.certificates, downAfter: p.cfg.DownAfter, log: p.component("operator"), audit: p.audit}
	adminServer := &http.Server{Handler: operator.handler(), ReadHeaderTimeout: headerTimeout, ConnContext: withOperator}

	group.Go(func() error { return p.gate.Run(work) })
	group.Go(func() error { return p.cluster.Run(work) })
	group.Go(func() error { return serveUntilClosed(p.rpc.Serve(&p.cluster.grpc)) })
	group.Go(func() error { return serveUntilClosed(p.links.Serve(&p.cluster.shards)) })
	group.Go(func() error { return p.replica.Run(work) })
	group.Go(func() error { return p.peers.Run(work) })
	group.Go(func() error { return p.ready.Run(work) })
	group.Go(func() error { return p.verifyState(work) })
	group.Go(func() error { return serveUntilClosed(operations.Serve(p.operationsListener())) })
	group.Go(func() error { return serveUntilClosed(adminServer.Serve(socket)) })
	p.serveClients(work, group)
	p.followAuth(work, group)
	group.Go(func() error { return p.join(ctx, work) })
	group.Go(func() error { return p.awaitSuperseded(work) })
	group.Go(func() error {
		if p.awaitRemoval(work) {
			leave(ErrRemoved)
		}
		return nil
	})

	select {
	case <-ctx.Done():
		p.log.Info().Msg("stopping")
	case <-work.Done(): // a part failed; Wait tells which
	}
	p.stop(work, cancel, operations, adminServer)
	err = group.Wait()
	if errors.Is(context.Cause(ctx), ErrRemoved) {
		return errors.Join(ErrRemoved, err)
	}
	return err
}

// serveClients serves the registry port, by TLS unless plain HTTP is wanted.
func (p *parts) serveClients(work context.Context, group *errgroup.Group) {
	listener := p.clientListener()
	if p.certificates == nil {
		group.Go(func() error { return serveUntilClosed(p.registry.Serve(listener)) })
		return
	}
	group.Go(func() error { return p.certificates.Run(work) })
	if p.clientAuthority != nil {
		group.Go(func() error { return p.clientAuthority.Run(work) })
	}
	group.Go(func() error { return serveUntilClosed(p.registry.ServeTLS(listener, "", "")) })
}

// join brings the node into its cluster and then starts what only a member does.
func (p *parts) join(ctx, work context.Context) error {
	f := &formation{
		cfg: &p.cfg, folder: p.folder, self: p.self,
		store: p.store, replica: p.replica, pool: p.pool, keys: p.keys, log: p.component("formation"),
	}
	if err := f.Run(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // told to stop before it was a member
		}
		return err
	}
	p.ready.joined.Store(true)
	p.log.Info().Str("cluster", p.store.ClusterID()).Str("registry", p.listeners.registry.Addr().String()).Msg("node is a member of the cluster")

	duties := &leadership{
		store: p.store, replica: p.replica, peers: p.peers, blobs: p.blobs, acme: p.acme,
		downAfter: p.cfg.DownAfter, eraLength: p.eraLength, log: p.component("leadership"),
	}
	group, work := errgroup.WithContext(work)
	if p.keys != nil {
		r := &renewal{self: p.self, keys: p.keys, store: p.store, peers: p.peers, lifetime: p.lifetime, log: p.component("cluster")}
		group.Go(func() error { return r.Run(work) })
	}
	group.Go(func() error { return p.blobs.Run(work) })
	group.Go(func() error { return p.replica.WhileLeader(work, duties.Run) })
	return group.Wait()
}

// stop ends the service in order. Each step has a bound, so that the whole has.
func (p *parts) stop(work context.Context, cancel context.CancelFunc, operations, adminServer *http.Server) {
	p.ready.closing.Store(true)
	since := time.Now()
	if p.replica.IsLeader() {
		ctx, done := context.WithTimeout(context.Background(), handOverTimeout)
		if err := p.replica.TransferLeadership(ctx); err != nil {
			p.log.Info().Err(err).Msg("leadership not handed over; the others will elect")
		}
		done()
	}
	p.farewell(work, since)
	ctx, done := context.WithTimeout(context.Background(), p.cfg.ShutdownTimeout)
	defer done()
	if err := p.registry.Shutdown(ctx); err != nil {
		p.log.Warn().Dur("after", p.cfg.ShutdownTimeout).Msg("transfers cut off: they took longer than the shutdown timeout")
		p.registry.Close()
	}
	cancel()
	operations.Close()
	adminServer.Close()
	p.stopRPC()
}

// farewell waits until no other node sends clients here any more, if any may: until
// they all have asked since this node began to say that it is closing. Those that
// it sent before still have to arrive. It ends at once if a part has failed, since
// there may be nothing left to serve with.
func (p *parts) farewell(work context.Context, since time.Time) {
	asked, missing := p.peers.askedSince(since)
	if p.cfg.Registry.URL == "" || asked+missing == 0 {
		return
	}
	ctx, done := context.WithTimeout(work, farewellTimeout)
	defer done()
	for missing > 0 {
		if pause(ctx, farewellPoll) != nil {
			return
		}
		_, missing = p.peers.askedSince(since)
	}
	_ = pause(ctx, followTime) // if that ends early, so does all
}

// stopRPC ends the calls of other nodes.
func (p *parts) stopRPC() {
	ctx, done := context.WithTimeout(context.Background(), graceTimeout)
	defer done()
	var links sync.WaitGroup
	links.Go(func() { p.links.Shutdown(ctx) })
	defer links.Wait()
	stopped := make(chan struct{})
	go func() { // ends with Stop at the latest
		p.rpc.GracefulStop()
		close(stopped)
	}()
	timer := time.NewTimer(graceTimeout)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
		p.rpc.Stop()
		<-stopped
	}
}

// serveUntilClosed makes the orderly end of a server no error.
func serveUntilClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
