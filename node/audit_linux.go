package node

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// peerOf returns the user whose process is at the other end of a socket, as the kernel
// saw it when it connected; empty if the kernel does not tell.
func peerOf(conn net.Conn) string {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return ""
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return ""
	}
	var credentials *unix.Ucred
	if raw.Control(func(fd uintptr) {
		credentials, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}) != nil || err != nil {
		return ""
	}
	return fmt.Sprintf("uid %d", credentials.Uid)
}
