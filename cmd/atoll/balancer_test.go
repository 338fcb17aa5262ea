package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// echo is a TCP server that names itself, and then returns what it gets until
// the client has said its last word.
func echo(t *testing.T, name string) (address string) {
	t.Helper()
	return serveTCP(t, func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, name)
		_, _ = io.Copy(conn, conn)
	})
}

func serveTCP(t *testing.T, serve func(*net.TCPConn)) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				serve(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { listener.Close(); running.Wait() })
	return listener.Addr().String()
}

// refusing is an address where nothing listens, and nothing else can: its socket is bound and does not listen. A port
// that was only let go again could become the balancer's own.
func refusing(t *testing.T) string {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(socket) })
	if err := syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := syscall.Getsockname(socket)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", at.(*syscall.SockaddrInet4).Port)
}

func startBalancer(t *testing.T, targets ...*target) (address string, listener net.Listener, end func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- newBalancer(targets).Run(ctx, listener) }()
	end = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("balancer: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the balancer does not end")
		}
	})
	t.Cleanup(end)
	return listener.Addr().String(), listener, end
}

func targetAt(address string, level readiness) *target {
	t := &target{address: address}
	t.set(level)
	return t
}

func dialTCP(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// talk says something through the balancer and returns who answered what.
func talk(t *testing.T, address, text string) string {
	t.Helper()
	conn := dialTCP(t, address)
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("read answer: %v", err)
	}
	return string(answer)
}

func TestBalancerTakesTurns(t *testing.T) {
	address, _, _ := startBalancer(t,
		targetAt(echo(t, "a"), readinessFull), targetAt(echo(t, "b"), readinessFull),
		targetAt(echo(t, "c"), readinessFull), targetAt(echo(t, "d"), readinessRead))
	counts := map[string]int{}
	for range 12 {
		counts[talk(t, address, "!")]++
	}
	if counts["a!"] != 4 || counts["b!"] != 4 || counts["c!"] != 4 {
		t.Errorf("12 connections went to %v, want 4 for each of a, b, c", counts)
	}
}

func TestBalancerPassesOverNodes(t *testing.T) {
	down := func() *target { return targetAt(refusing(t), readinessFull) }
	tests := []struct {
		name    string
		targets []*target
		want    string
	}{
		{"one refuses", []*target{down(), targetAt(echo(t, "b"), readinessFull)}, "b"},
		{"two refuse", []*target{down(), down(), targetAt(echo(t, "c"), readinessFull)}, "c"},
		{"none is ready for pushes", []*target{targetAt(echo(t, "a"), readinessAlive), targetAt(echo(t, "b"), readinessRead)}, "b"},
		{"none is ready", []*target{targetAt(echo(t, "a"), readinessNone), targetAt(refusing(t), readinessAlive)}, "a"},
		{"the ready one refuses", []*target{targetAt(echo(t, "a"), readinessNone), down()}, "a"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			address, _, _ := startBalancer(t, test.targets...)
			for range 4 {
				if got := talk(t, address, ""); got != test.want {
					t.Errorf("%s answers, want %s", got, test.want)
				}
			}
		})
	}
}

// With no node at all the client gets a reset, not an empty answer.
func TestBalancerWithoutNodes(t *testing.T) {
	dead := targetAt(refusing(t), readinessFull)
	address, _, _ := startBalancer(t, dead)
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err == nil { // otherwise the reset was faster than connect(2)
		defer conn.Close()
		_, err = io.ReadAll(conn)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v, want connection reset", err)
	}
	if dead.get() != readinessNone {
		t.Error("the node still counts as ready")
	}
}

func TestBalancerPassesMuch(t *testing.T) {
	address, _, _ := startBalancer(t, targetAt(echo(t, ""), readinessFull))
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB
	conn := dialTCP(t, address)
	go func() {
		_, _ = conn.Write(sent)
		_ = conn.CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("got %d bytes, %v, want the %d that were sent", len(got), err, len(sent))
	}
}

// A node that breaks off must not look like one that has finished.
func TestBalancerPassesResetsOn(t *testing.T) {
	broken := serveTCP(t, func(conn *net.TCPConn) {
		_, _ = io.ReadFull(conn, make([]byte, 1))
		abort(conn)
	})
	address, _, _ := startBalancer(t, targetAt(broken, readinessFull))
	conn := dialTCP(t, address)
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read says %v, want connection reset", err)
	}
}

// A closed listener lets connections finish; the end of the context does not.
func TestBalancerEnds(t *testing.T) {
	node := targetAt(echo(t, "a"), readinessFull)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	address, listener, end := startBalancer(t, node)
	conn := dialTCP(t, address)
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	listener.Close()
	if _, err := net.DialTimeout("tcp", address, time.Second); err == nil {
		t.Error("the balancer still accepts")
	}
	if _, err := conn.Write([]byte("b")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 1)
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "b" {
		t.Fatalf("a running connection answers %q, %v", answer, err)
	}
	end()
	if _, err := conn.Read(answer); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("after the end a read says %v, want a broken connection", err)
	}
	conn.Close()
}

func TestProbe(t *testing.T) {
	var ready, read atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status := map[string]int32{"/readyz": ready.Load(), "/readyz/read": read.Load()}[r.URL.Path]
		w.WriteHeader(int(status))
	}))
	defer server.Close()
	watched := &target{operations: server.URL}
	gone := &target{operations: "http://" + refusing(t)}
	gone.set(readinessFull)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	ready.Store(503)
	read.Store(503)
	go func() { defer close(ended); probeAll(ctx, []*target{watched, gone}) }()
	for _, step := range []struct {
		ready, read int32
		want        readiness
	}{{503, 503, readinessAlive}, {503, 200, readinessRead}, {200, 200, readinessFull}, {503, 200, readinessRead}} {
		ready.Store(step.ready)
		read.Store(step.read)
		eventually(t, 10*time.Second, "node is "+step.want.String(), func() bool { return watched.get() == step.want })
	}
	eventually(t, 10*time.Second, "the other one is gone", func() bool { return gone.get() == readinessNone })
	cancel()
	<-ended
}

func TestCandidatesInTurn(t *testing.T) {
	b := newBalancer([]*target{
		{address: "a"}, {address: "b"}, {address: "c"}, {address: "d"},
	})
	for i, level := range []readiness{readinessRead, readinessFull, readinessFull, readinessNone} {
		b.targets[i].set(level)
	}
	var first []string
	for range 6 {
		var order []string
		for _, c := range b.candidates() {
			order = append(order, c.address)
		}
		first = append(first, order[0])
		if got := strings.Join(order[2:], ""); got != "ad" {
			t.Errorf("after the ready ones come %s, want a and d", got)
		}
	}
	if b, c := slices.Index(first, "b"), slices.Index(first, "c"); b < 0 || c < 0 || b-c != 1 && c-b != 1 {
		t.Errorf("first in turn: %v, want b and c alternating", first)
	}
}
