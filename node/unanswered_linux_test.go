package node

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel is to tell of a peer of a link that is gone.
func TestLinksAreKeptAlive(t *testing.T) {
	server := startListener(t, testIdentities(t, "", "n1")["n1"])
	conn, err := net.Dial("tcp", server.tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	keepAlive(conn)
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		for option, want := range map[int]int{unix.TCP_USER_TIMEOUT: 8000, unix.TCP_KEEPIDLE: 5, unix.TCP_KEEPINTVL: 1, unix.TCP_KEEPCNT: 3} {
			if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option); err != nil || got != want {
				t.Errorf("option %d is %d, want %d: %v", option, got, want, err)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
}
