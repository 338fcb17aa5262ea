package blobstore

import (
	"net"
	"sync"
)

// corkBytes is how much a CorkedConn keeps back at most.
const corkBytes = 128 << 10

// CorkedConn is what TLS for a link writes to. TLS writes each record of 16 KiB by itself; while a message with bulk is sent, a
// CorkedConn makes one write of several, so that the kernel has fewer packets to send, and the other end is woken less often.
type CorkedConn struct {
	net.Conn

	mu sync.Mutex // TLS writes for its reader, too, if the other end asks for new keys
	// held is what was not written yet, nil while not corked.
	held *[]byte
}

// NewCorkedConn returns a connection that is not corked.
func NewCorkedConn(conn net.Conn) *CorkedConn { return &CorkedConn{Conn: conn} }

var corkMemory = sync.Pool{New: func() any {
	memory := make([]byte, 0, corkBytes)
	return &memory
}}

// Write implements net.Conn.
func (c *CorkedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		return c.Conn.Write(p)
	}
	if len(*c.held)+len(p) > corkBytes {
		if err := c.flush(); err != nil {
			return 0, err
		}
		if len(p) > corkBytes {
			return c.Conn.Write(p)
		}
	}
	*c.held = append(*c.held, p...)
	return len(p), nil
}

// flush writes what is held. c.mu is held.
func (c *CorkedConn) flush() error {
	_, err := c.Conn.Write(*c.held)
	*c.held = (*c.held)[:0]
	return err
}

// cork keeps back what is written from here on.
func (c *CorkedConn) cork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = corkMemory.Get().(*[]byte)
}

// uncork writes what was kept back.
func (c *CorkedConn) uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.flush()
	corkMemory.Put(c.held)
	c.held = nil
	return err
}
