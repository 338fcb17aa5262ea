package gateway

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// noteInterval is how often it is logged, at most, that connections are refused, or that
// clients speak TLS to a port that does not.
const noteInterval = time.Minute

// ListenerConfig is what a listener bounds and looks out for.
type ListenerConfig struct {
	// MaxConnections is how many connections may be open at a time; more are closed at
	// once. Each has a file descriptor, of which a process has so many, and without one
	// a node can neither open a shard nor reach the others.
	MaxConnections int
	// PlainHTTP is set for a port that does not speak TLS.
	PlainHTTP bool
	Logger    zerolog.Logger
	// Metrics is where the listener's metrics are registered; nil for nowhere.
	Metrics prometheus.Registerer
}

// NewListener bounds the connections of a TCP listener. On a port for plain HTTP it logs
// when a client tries TLS: net/http answers that with a 400 in plain text, which Go's
// clients, like docker's, show as "server gave HTTP response to HTTPS client".
func NewListener(listener net.Listener, cfg ListenerConfig) net.Listener {
	l := &boundListener{Listener: listener, cfg: cfg}
	l.refused = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "atoll_gateway_connections_refused_total", Help: "Connections to the registry port that were closed at once, since there were too many.",
	})
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(l.refused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "atoll_gateway_connections", Help: "Connections that clients have open to the registry port.",
		}, func() float64 { return float64(l.open.Load()) }))
	}
	return l
}

type boundListener struct {
	net.Listener
	cfg     ListenerConfig
	open    atomic.Int64
	refused prometheus.Counter
	// fullNoted and plainNoted are when something was last logged, Unix nanoseconds.
	fullNoted, plainNoted atomic.Int64
}

// Accept implements net.Listener.
func (l *boundListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		tcp, ok := conn.(*net.TCPConn)
		if err != nil || !ok {
			return conn, err
		}
		if l.open.Add(1) <= int64(l.cfg.MaxConnections) {
			return &boundConn{TCPConn: tcp, listener: l}, nil
		}
		l.open.Add(-1)
		l.refused.Inc()
		// With a reset, so that not even the end of the connection has to be kept.
		_ = tcp.SetLinger(0)
		tcp.Close()
		if isDue(&l.fullNoted) {
			l.cfg.Logger.Warn().Int("connections", l.cfg.MaxConnections).Stringer("remote", tcp.RemoteAddr()).
				Msg("connections are refused: there are as many as limits.connections allows")
		}
	}
}

// isDue says whether something may be logged again, and takes note that it is.
func isDue(noted *atomic.Int64) bool {
	now, last := time.Now().UnixNano(), noted.Load()
	return now-last >= int64(noteInterval) && noted.CompareAndSwap(last, now)
}

// boundConn is one of the connections. It keeps everything that a TCP connection can do,
// as sending files.
type boundConn struct {
	*net.TCPConn
	listener *boundListener
	// looked is net/http's, which reads from one goroutine at a time.
	looked bool
	closed sync.Once
}

// Read implements net.Conn.
func (c *boundConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if !c.looked && n > 0 {
		c.looked = true
		if c.listener.cfg.PlainHTTP && isClientHello(p[:n]) && isDue(&c.listener.plainNoted) {
			c.listener.cfg.Logger.Warn().Stringer("remote", c.RemoteAddr()).
				Msg("a client speaks TLS to the registry port, which speaks plain HTTP: tell it that the registry is insecure, or give the node a certificate")
		}
	}
	return n, err
}

// Close implements net.Conn.
func (c *boundConn) Close() error {
	c.closed.Do(func() { c.listener.open.Add(-1) })
	return c.TCPConn.Close()
}

// isClientHello says whether a connection begins as TLS does: a handshake record (22)
// of version 3.x, with a ClientHello (1) in it (RFC 8446 sections 4 and 5.1).
func isClientHello(first []byte) bool {
	return len(first) >= 6 && first[0] == 22 && first[1] == 3 && first[5] == 1
}
