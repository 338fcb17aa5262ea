package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

const (
	// handshakeTimeout bounds the time that a stranger can hold a connection to
	// the cluster port.
	handshakeTimeout = 5 * time.Second
	// maxHandshakes bounds the connections that have not shown a certificate yet.
	maxHandshakes = 128
	// acceptBacklog is how many connections of one protocol may wait for their
	// server.
	acceptBacklog = 64
	// acceptRetryDelay is the pause after a failed accept, as when the process is
	// out of file descriptors.
	acceptRetryDelay = 50 * time.Millisecond
)

// Dialer opens a TCP connection. Tests cut links with one of their own.
type Dialer func(ctx context.Context, network, address string) (net.Conn, error)

// clusterListener serves Raft and gRPC on one port. Every connection shows a
// certificate before either of them sees a byte of it.
type clusterListener struct {
	tcp  net.Listener
	tls  *clusterTLS
	dial Dialer
	log  zerolog.Logger

	raft, grpc protocolListener
	closing    chan struct{}
	closeOnce  sync.Once
}

func newClusterListener(tcp net.Listener, identity *clusterTLS, dial Dialer, log zerolog.Logger) *clusterListener {
	l := &clusterListener{tcp: tcp, tls: identity, dial: dial, log: log, closing: make(chan struct{})}
	l.raft = protocolListener{owner: l, conns: make(chan net.Conn, acceptBacklog)}
	l.grpc = protocolListener{owner: l, conns: make(chan net.Conn, acceptBacklog)}
	return l
}

// Run accepts connections until the listener is closed.
func (l *clusterListener) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	handshakes := make(chan struct{}, maxHandshakes)
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
		select {
		case handshakes <- struct{}{}:
		default:
			conn.Close() // the other side retries; strangers must not pile up
			continue
		}
		running.Go(func() {
			defer func() { <-handshakes }()
			l.admit(tls.Server(conn, config))
		})
	}
}

func (l *clusterListener) admit(conn *tls.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		l.log.Debug().Err(err).Stringer("remote", conn.RemoteAddr()).Msg("refused connection to cluster port")
		conn.Close()
		return
	}
	var target *protocolListener
	switch conn.ConnectionState().NegotiatedProtocol {
	case protocolRaft:
		target = &l.raft
	case protocolGRPC:
		target = &l.grpc
	default: // crypto/tls lets clients in that offer nothing, or only http/1.1
		conn.Close()
		return
	}
	select {
	case target.conns <- conn:
	case <-ctx.Done():
		conn.Close()
	case <-l.closing:
		conn.Close()
	}
}

// Close ends the listener for both protocols.
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
	secured := tls.Client(conn, p.owner.tls.client(protocolRaft))
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("secure connection to %s: %w", address, err)
	}
	return secured, nil
}
