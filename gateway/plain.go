package gateway

import (
	"net"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// plainNoteInterval is how often it is logged, at most, that clients speak TLS to a
// port that does not.
const plainNoteInterval = time.Minute

// PlainListener is a listener for plain HTTP that logs when a client tries TLS on it.
// net/http answers such a client with a 400 in plain text, which Go's clients, like
// docker's, show as "server gave HTTP response to HTTPS client".
func PlainListener(listener net.Listener, logger zerolog.Logger) net.Listener {
	return &plainListener{Listener: listener, log: logger}
}

type plainListener struct {
	net.Listener
	log zerolog.Logger
	// noted is when it was last logged, Unix nanoseconds.
	noted atomic.Int64
}

// Accept implements net.Listener.
func (l *plainListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if tcp, ok := conn.(*net.TCPConn); ok && err == nil {
		return &plainConn{TCPConn: tcp, listener: l}, nil
	}
	return conn, err
}

func (l *plainListener) note(remote net.Addr) {
	now, last := time.Now().UnixNano(), l.noted.Load()
	if now-last < int64(plainNoteInterval) || !l.noted.CompareAndSwap(last, now) {
		return
	}
	l.log.Warn().Stringer("remote", remote).
		Msg("a client speaks TLS to the registry port, which speaks plain HTTP: tell it that the registry is insecure, or give the node a certificate")
}

// plainConn looks at the first bytes that a client sends. It keeps everything else that
// a TCP connection can do, as sending files.
type plainConn struct {
	*net.TCPConn
	listener *plainListener
	// looked is net/http's, which reads from one goroutine at a time.
	looked bool
}

// Read implements net.Conn.
func (c *plainConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if !c.looked && n > 0 {
		c.looked = true
		if isClientHello(p[:n]) {
			c.listener.note(c.RemoteAddr())
		}
	}
	return n, err
}

// isClientHello says whether a connection begins as TLS does: a handshake record (22)
// of version 3.x, with a ClientHello (1) in it (RFC 8446 sections 4 and 5.1).
func isClientHello(first []byte) bool {
	return len(first) >= 6 && first[0] == 22 && first[1] == 3 && first[5] == 1
}
