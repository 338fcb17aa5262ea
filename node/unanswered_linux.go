package node

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// boundUnanswered breaks a connection whose other end acknowledges nothing of what was sent for so long (tcp(7), TCP_USER_TIMEOUT).
func boundUnanswered(conn *net.TCPConn, limit time.Duration) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	if err := raw.Control(func(fd uintptr) {
		setErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
	}); err != nil {
		return err
	}
	return setErr
}
