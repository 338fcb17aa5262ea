package blobstore

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

// countingConn counts the writes that get to it, and fails them from failAt on.
type countingConn struct {
	net.Conn
	writes atomic.Int64
	failAt int64
}

var errCut = errors.New("cut")

func (c *countingConn) Write(p []byte) (int, error) {
	if n := c.writes.Add(1); c.failAt > 0 && n >= c.failAt {
		return 0, errCut
	}
	return c.Conn.Write(p)
}

// securedLinks returns both ends of a link by TLS over a TCP connection, and what counts the writes of the first.
func securedLinks(t *testing.T) (from, to *link, count *countingConn) {
	t.Helper()
	authority := httptest.NewTLSServer(nil)
	config := authority.TLS.Clone()
	authority.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialed, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	count = &countingConn{Conn: dialed}
	client := tls.Client(NewCorkedConn(count), &tls.Config{InsecureSkipVerify: true})
	server := tls.Server(NewCorkedConn(accepted), config)
	shaken := make(chan error, 1)
	go func() { shaken <- server.Handshake() }()
	if err := errors.Join(client.Handshake(), <-shaken); err != nil {
		t.Fatal(err)
	}
	from, to = newLink(client), newLink(server)
	t.Cleanup(func() { from.abort(); to.abort() })
	return from, to, count
}

// TestCorkedLink: what comes is what was sent, whatever its size, and a large message is few writes.
func TestCorkedLink(t *testing.T) {
	from, to, count := securedLinks(t)
	for _, sizes := range [][]int{{1 << 20}, {0}, {1}, {recordBytes - 9}, {recordBytes}, {100_000, 1, 0, 300_000}, {corkBytes, corkBytes}, {5}} {
		var pieces [][]byte
		var want []byte
		for i, size := range sizes {
			pieces = append(pieces, randomBytes(size, uint64(i)))
			want = append(want, pieces[i]...)
		}
		sent := make(chan error, 1)
		count.writes.Store(0)
		go func() { sent <- from.send(&proto.ShardAnswer{FileBytes: 7}, pieces...) }()
		answer := &proto.ShardAnswer{}
		hasHead, bulk, err := to.receive(answer, maxHeadBytes)
		if err != nil || !hasHead || answer.GetFileBytes() != 7 || bulk != len(want) {
			t.Fatalf("%v: received %v, bulk of %d bytes, %v", sizes, answer, bulk, err)
		}
		got := make([]byte, bulk)
		if err := errors.Join(to.receiveBulk(got), <-sent); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%v: other bytes came", sizes)
		}
		if writes, most := count.writes.Load(), int64(2+len(want)/(corkBytes*3/4)); writes > most {
			t.Errorf("%v: %d writes, want at most %d", sizes, writes, most)
		}
	}
}

// TestCorkedLinkBreaks: an error of the connection is one of the message.
func TestCorkedLinkBreaks(t *testing.T) {
	for failAt := range int64(9) {
		from, to, count := securedLinks(t)
		count.writes.Store(0)
		count.failAt = failAt + 1
		go func() { _, _ = io.Copy(io.Discard, to.conn) }() // ends with the link
		if err := from.send(nil, randomBytes(1<<20, 1)); !errors.Is(err, errCut) {
			t.Errorf("write %d failed, and send returns %v", failAt, err)
		}
		from.abort()
		to.abort()
	}
}
