//go:build linux

package netlab

import (
	"io"
	"net"
	"testing"
)

// BenchmarkStream measures a TCP stream between two hosts over a perfect link.
func BenchmarkStream(b *testing.B) {
	_, hosts := newNetwork(b, "n1", "n2")
	address := serve(b, hosts[1], func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	conn := dial(b, hosts[0], address)
	chunk := make([]byte, 256<<10)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if _, err := conn.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRoundTrip measures one byte there and back.
func BenchmarkRoundTrip(b *testing.B) {
	_, hosts := newNetwork(b, "n1", "n2")
	conn := dial(b, hosts[0], serve(b, hosts[1], echo))
	buffer := make([]byte, 1)
	for b.Loop() {
		roundTrip(b, conn, buffer)
	}
}

// BenchmarkDial measures a connection made and closed.
func BenchmarkDial(b *testing.B) {
	_, hosts := newNetwork(b, "n1", "n2")
	address := serve(b, hosts[1], func(net.Conn) {})
	for b.Loop() {
		conn, err := hosts[0].DialContext(b.Context(), "tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		conn.Close()
	}
}
