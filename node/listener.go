package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/blobstore"
)

const (
	// handshakeTimeout bounds the time that a stranger can hold a connection to
	// the cluster port.
	handshakeTimeout = 5 * time.Second
	// maxHandshakes bounds the connections that have not shown yet what they are for, by
	// a certificate or by asking for one, and maxHandshakesOfHost those of one host. Where
	// there are so many, any one of them gives way to the next: so whoever floods the port
	// with connections that say nothing keeps no node out, which is through in an instant.
	maxHandshakes       = 128
	maxHandshakesOfHost = 64
	// acceptBacklog is how many connections of one protocol may wait for their
	// server.
	acceptBacklog = 64
	// acceptRetryDelay is the pause after a failed accept, as when the process is
	// out of file descriptors.
	acceptRetryDelay = 50 * time.Millisecond
)

// Dialer opens a TCP connection. Tests cut links with one of their own.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// clusterListener serves Raft, gRPC and links for shards on one port. Every connection shows a
// certificate before any of them sees a byte of it. What has none may only enrol.
type clusterListener struct {
	tcp  net.Listener
	tls  *clusterTLS
	dial Dialer
	log  zerolog.Logger
	// enroll answers a connection of protocolEnroll, and closes it; nil to refuse them. It
	// calls begin once there is a question, and goes no further if that returns false.
	enroll func(conn net.Conn, begin func() bool)
	// gate says what a node may do; nil for all.
	gate *gate

	raft, grpc, shards protocolListener
	closing            chan struct{}
	closeOnce          sync.Once

	mu         sync.Mutex // guards the fields below
	conns      map[*nodeConn]struct{}
	handshakes []*newcomer // under way
}

// newcomer is a connection that has not shown yet what it is for.
type newcomer struct {
	host netip.Addr
	conn net.Conn
}

// nodeConn is a connection that another node has opened.
type nodeConn struct {
	*tls.Conn
	owner    *clusterListener
	protocol string
	// node is whose certificate it has shown, and issuer who has signed that; the zero
	// hash for a certificate from a file.
	node   certified
	issuer authorityHash
	// told says that the node was removed before, and has the connection to be told so.
	told bool
}

// Close forgets the connection and closes it.
func (c *nodeConn) Close() error {
	c.owner.mu.Lock()
	delete(c.owner.conns, c)
	c.owner.mu.Unlock()
	return c.Conn.Close()
}

func newClusterListener(tcp net.Listener, identity *clusterTLS, dial Dialer, log zerolog.Logger) *clusterListener {
	l := &clusterListener{
		tcp: tcp, tls: identity, dial: dial, log: log, closing: make(chan struct{}),
		conns: make(map[*nodeConn]struct{}),
	}
	l.raft = protocolListener{owner: l, conns: make(chan net.Conn, acceptBacklog)}
	l.grpc = protocolListener{owner: l, conns: make(chan net.Conn, acceptBacklog)}
	l.shards = protocolListener{owner: l, conns: make(chan net.Conn, acceptBacklog)}
	return l
}

// Run accepts connections until the listener is closed.
func (l *clusterListener) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	enrollments := make(chan struct{}, maxEnrollments)
	var running sync.WaitGroup
	defer running.Wait()
	config := l.tls.server()
	for {
		conn, err := l.tcp.Accept()
		if err != nil {
			select {
			case <-l.closing:
				return nil
			default:
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept on cluster port: %w", err)
			}
			select {
			case <-time.After(acceptRetryDelay):
			case <-l.closing:
			}
			continue
		}
		begun := l.begin(conn)
		running.Go(func() {
			defer l.end(begun)
			if secured := tls.Server(blobstore.NewCorkedConn(conn), config); l.shake(secured) == nil {
				l.admit(secured, begun, enrollments)
			}
		})
	}
}

// begin takes down that a handshake begins. If there are too many already, one of them is
// broken: one of the same host if that has too many.
func (l *clusterListener) begin(conn net.Conn) *newcomer {
	begun := &newcomer{host: hostOf(conn), conn: conn}
	l.mu.Lock()
	var same, broken []*newcomer
	for _, h := range l.handshakes {
		if h.host == begun.host {
			same = append(same, h)
		}
	}
	switch {
	case len(same) >= maxHandshakesOfHost:
		broken = append(broken, same[rand.IntN(len(same))])
	case len(l.handshakes) >= maxHandshakes:
		broken = append(broken, l.handshakes[rand.IntN(len(l.handshakes))])
	}
	l.handshakes = slices.DeleteFunc(l.handshakes, func(h *newcomer) bool { return slices.Contains(broken, h) })
	l.handshakes = append(l.handshakes, begun)
	l.mu.Unlock()
	for _, h := range broken {
		_ = h.conn.Close() // whoever is at work on it ends; a node tries again
	}
	return begun
}

// end takes down that a handshake is over. It may be called again.
func (l *clusterListener) end(begun *newcomer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.handshakes = slices.DeleteFunc(l.handshakes, func(h *newcomer) bool { return h == begun })
}

// shake does the handshake, and closes the connection if that fails.
func (l *clusterListener) shake(conn *tls.Conn) error {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.NetConn().Close() })
	defer stop()
	err := conn.HandshakeContext(ctx)
	if err != nil {
		l.tls.complain(err)
		l.log.Debug().Err(err).Stringer("remote", conn.RemoteAddr()).Msg("refused connection to cluster port")
		conn.Close()
	}
	return err
}

// admit hands a connection to whom it is for.
func (l *clusterListener) admit(conn *tls.Conn, begun *newcomer, enrollments chan struct{}) {
	state := conn.ConnectionState()
	var target *protocolListener
	switch state.NegotiatedProtocol {
	case protocolRaft:
		target = &l.raft
	case protocolGRPC:
		target = &l.grpc
	case protocolShards:
		target = &l.shards
		keepAlive(conn.NetConn())
	case protocolEnroll:
		l.admitStranger(conn, begun, enrollments)
		return
	default: // crypto/tls lets clients in that offer nothing, or only http/1.1
		conn.Close()
		return
	}
	l.end(begun)
	admitted, err := l.track(conn, state)
	if err != nil {
		l.log.Info().Err(err).Stringer("remote", conn.RemoteAddr()).Msg("refused connection to cluster port")
		_ = admitted.Close() // it was refused
		return
	}
	timer := time.NewTimer(handshakeTimeout)
	defer timer.Stop()
	select {
	case target.conns <- admitted:
	case <-timer.C:
		_ = admitted.Close() // nobody takes it
	case <-l.closing:
		_ = admitted.Close() // nor then
	}
}

// admitStranger serves a node that has no certificate yet, if there are not too many that
// have asked.
func (l *clusterListener) admitStranger(conn *tls.Conn, begun *newcomer, enrollments chan struct{}) {
	if l.enroll == nil {
		conn.Close()
		return
	}
	taken := false
	l.enroll(conn, func() bool {
		l.end(begun)
		select {
		case enrollments <- struct{}{}:
			taken = true
		default: // it asks again
		}
		return taken
	})
	if taken {
		<-enrollments
	}
}

// track takes a connection down by whose it is. The connection is returned in any case.
func (l *clusterListener) track(conn *tls.Conn, state tls.ConnectionState) (*nodeConn, error) {
	admitted := &nodeConn{Conn: conn, owner: l, protocol: state.NegotiatedProtocol}
	node, err := certifiedNode(state.PeerCertificates[0]) // verified in the handshake
	if err != nil {
		return admitted, err
	}
	admitted.node = node
	if issuer, ok := l.tls.issuer(state.PeerCertificates[0]); ok {
		admitted.issuer = hashOf(issuer)
	}
	if l.gate != nil {
		admitted.told = l.gate.standing(node) == standingRemoved
	}
	l.mu.Lock()
	l.conns[admitted] = struct{}{}
	l.mu.Unlock()
	// A node that is removed between the two is found by cut.
	if admitted.told && admitted.protocol == protocolRaft {
		return admitted, fmt.Errorf("node %s was removed from the cluster", node)
	}
	return admitted, nil
}

// cut breaks the connections that other nodes have opened and that are chosen.
func (l *clusterListener) cut(which func(*nodeConn) bool) (broken int) {
	l.mu.Lock()
	var chosen []*nodeConn
	for conn := range l.conns {
		if which(conn) {
			chosen = append(chosen, conn)
		}
	}
	l.mu.Unlock()
	for _, conn := range chosen {
		_ = conn.NetConn().Close() // without TLS's goodbye, for which it may have to wait
	}
	return len(chosen)
}

// Close ends the listener for all protocols.
func (l *clusterListener) Close() error {
	var err error
	l.closeOnce.Do(func() {
		close(l.closing)
		err = l.tcp.Close()
	})
	return err
}

// protocolListener is one protocol's share of the cluster port. With Dial it is
// what Raft calls a stream layer.
type protocolListener struct {
	owner *clusterListener
	conns chan net.Conn
}

func (p *protocolListener) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.owner.closing:
		return nil, net.ErrClosed
	}
}

func (p *protocolListener) Close() error   { return nil }
func (p *protocolListener) Addr() net.Addr { return p.owner.tcp.Addr() }

// Dial opens a connection that carries Raft's own messages.
func (p *protocolListener) Dial(address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := p.owner.dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	// Whose certificate it should be, consensus asks (parts.holdsConn): it knows the id.
	secured := tls.Client(conn, p.owner.tls.client(protocolRaft, certified{}))
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("secure connection to %s: %w", address, err)
	}
	return secured, nil
}
