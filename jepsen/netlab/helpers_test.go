//go:build linux

package netlab

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for what has to come.
const patience = 20 * time.Second

// skip skips a test for which this machine lacks something. In CI that is a fault.
func skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("can't be skipped in CI: %s", reason)
	}
	t.Skip(reason)
}

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "network namespaces need root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		skip(t, "there is no /dev/net/tun: "+err.Error())
	}
}

func newNetwork(t testing.TB, names ...string) (*Network, []*Host) {
	t.Helper()
	requireRoot(t)
	network, err := New(netip.MustParsePrefix("10.77.0.0/24"), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	var hosts []*Host
	for _, name := range names {
		host, err := network.Add(name)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, host)
	}
	return network, hosts
}

// serve accepts connections on a host until the test ends and returns the address.
func serve(t testing.TB, h *Host, handle func(net.Conn)) string {
	t.Helper()
	listener, err := h.Listen(t.Context(), "tcp", net.JoinHostPort(h.Address().String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	work.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			work.Go(func() {
				defer stop()
				defer conn.Close()
				handle(conn)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		listener.Close()
		work.Wait()
	})
	return listener.Addr().String()
}

func echo(conn net.Conn) { _, _ = io.Copy(conn, conn) }

func dial(t testing.TB, h *Host, address string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := h.DialContext(ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(3 * patience))
	t.Cleanup(func() { conn.Close() })
	return conn
}

// listenPacket opens a UDP socket on a host.
func listenPacket(t testing.TB, h *Host) net.PacketConn {
	t.Helper()
	var conn net.PacketConn
	err := h.Do(func() error {
		var err error
		conn, err = net.ListenPacket("udp4", net.JoinHostPort(h.Address().String(), "0"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// roundTrip sends a buffer to an echo and fills it with the answer.
func roundTrip(t testing.TB, conn net.Conn, buffer []byte) {
	t.Helper()
	if _, err := conn.Write(buffer); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, buffer); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain: %s", patience, what)
		}
	}
}

func setLink(t testing.TB, n *Network, from, to string, link Link) {
	t.Helper()
	if err := n.SetLink(from, to, link); err != nil {
		t.Fatal(err)
	}
}

// datagrams is a pair of UDP sockets on two hosts.
type datagrams struct {
	from, to net.PacketConn
}

func newDatagrams(t testing.TB, from, to *Host) datagrams {
	return datagrams{from: listenPacket(t, from), to: listenPacket(t, to)}
}

// send sends datagrams of a size, each with its number.
func (d datagrams) send(t testing.TB, count, size int) {
	t.Helper()
	for i := range count {
		packet := binary.BigEndian.AppendUint32(nil, uint32(i))
		packet = append(packet, make([]byte, size-len(packet))...)
		if _, err := d.from.WriteTo(packet, d.to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
}

// receive returns the numbers of the datagrams that come.
func (d datagrams) receive(t testing.TB, count int) []int {
	t.Helper()
	buffer := make([]byte, deviceMTU)
	d.to.SetReadDeadline(time.Now().Add(patience))
	var numbers []int
	for range count {
		if _, _, err := d.to.ReadFrom(buffer); err != nil {
			t.Fatalf("after %d datagrams: %v", len(numbers), err)
		}
		numbers = append(numbers, int(binary.BigEndian.Uint32(buffer)))
	}
	return numbers
}
