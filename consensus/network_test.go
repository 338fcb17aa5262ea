package consensus

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// testNetwork is the wires between the nodes of a test: real TCP, with cuts that
// behave like lost packets. Nothing is refused; what is sent disappears.
type testNetwork struct {
	mu    sync.Mutex
	cut   map[[2]string]bool // by node ids
	wires map[*wire]struct{}
	// addresses maps a node's Raft address to its id and gRPC address.
	nodes map[string]testAddress
}

type testAddress struct{ id, grpc string }

func newTestNetwork() *testNetwork {
	return &testNetwork{cut: make(map[[2]string]bool), wires: make(map[*wire]struct{}), nodes: make(map[string]testAddress)}
}

func link(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

// partition cuts all links between the given sides; a node in none of them is cut
// off from everybody.
func (n *testNetwork) partition(all []string, sides ...[]string) {
	side := make(map[string]int)
	for i, nodes := range sides {
		for _, node := range nodes {
			side[node] = i + 1
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = make(map[[2]string]bool)
	for _, a := range all {
		for _, b := range all {
			if a != b && (side[a] == 0 || side[a] != side[b]) {
				n.cut[link(a, b)] = true
			}
		}
	}
	n.apply()
}

// heal mends all links. Connections over a mended link break, as they would after
// so many losses.
func (n *testNetwork) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = make(map[[2]string]bool)
	n.apply()
}

// apply brings all wires in line with the cuts. n.mu is held.
func (n *testNetwork) apply() {
	for w := range n.wires {
		switch lost := n.cut[w.link]; {
		case lost:
			w.lose()
		case w.isLost():
			delete(n.wires, w)
			go w.Close()
		}
	}
}

// dial connects a node to an address of another.
func (n *testNetwork) dial(ctx context.Context, from, to, address string) (net.Conn, error) {
	n.mu.Lock()
	cut := n.cut[link(from, to)]
	n.mu.Unlock()
	if cut {
		<-ctx.Done() // the SYN is lost
		return nil, ctx.Err()
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: conn, network: n, link: link(from, to), lost: make(chan struct{}), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wires[w] = struct{}{}
	if n.cut[w.link] {
		w.lose()
	}
	return w, nil
}

// wire is a connection that can fall silent: then writes disappear and reads wait
// for their deadline. It is on the dialling side, which governs both directions.
type wire struct {
	net.Conn
	network *testNetwork
	link    [2]string

	mu       sync.Mutex
	deadline time.Time
	lost     chan struct{}
	closed   chan struct{}
}

func (w *wire) lose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !isClosed(w.lost) {
		close(w.lost)
		w.Conn.SetReadDeadline(time.Unix(1, 0)) // wakes a read that is under way
	}
}

func (w *wire) isLost() bool { return isClosed(w.lost) }

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (w *wire) Read(p []byte) (int, error) {
	if !w.isLost() {
		n, err := w.Conn.Read(p)
		if !w.isLost() {
			return n, err
		}
	}
	w.mu.Lock()
	deadline := w.deadline
	w.mu.Unlock()
	var timeout <-chan time.Time
	if !deadline.IsZero() {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-timeout:
		return 0, os.ErrDeadlineExceeded
	case <-w.closed:
		return 0, net.ErrClosed
	}
}

func (w *wire) Write(p []byte) (int, error) {
	if w.isLost() && !isClosed(w.closed) {
		return len(p), nil
	}
	return w.Conn.Write(p)
}

func (w *wire) SetDeadline(t time.Time) error {
	return errors.Join(w.SetReadDeadline(t), w.SetWriteDeadline(t))
}

func (w *wire) SetReadDeadline(t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deadline = t
	if isClosed(w.lost) {
		return nil
	}
	return w.Conn.SetReadDeadline(t)
}

func (w *wire) Close() error {
	w.mu.Lock()
	if !isClosed(w.closed) {
		close(w.closed)
	}
	w.mu.Unlock()
	w.network.mu.Lock()
	delete(w.network.wires, w)
	w.network.mu.Unlock()
	return w.Conn.Close()
}

// endpoint is one node's Network.
type endpoint struct {
	id       string
	group    func() string
	network  *testNetwork
	listener net.Listener

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn
}

func (e *endpoint) Accept() (net.Conn, error) { return e.listener.Accept() }

func (e *endpoint) Dial(address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	e.network.mu.Lock()
	to := e.network.nodes[address]
	e.network.mu.Unlock()
	return e.network.dial(ctx, e.id, to.id, address)
}

func (e *endpoint) Conn(address string) (grpc.ClientConnInterface, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if conn := e.conns[address]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			e.network.mu.Lock()
			to := e.network.nodes[address]
			e.network.mu.Unlock()
			return e.network.dial(ctx, e.id, to.id, to.grpc)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(metadata.AppendToOutgoingContext(ctx, "group", e.group()), method, request, reply, conn, opts...)
		}),
	)
	if err == nil {
		e.conns[address] = conn
	}
	return conn, err
}

func (e *endpoint) close() {
	e.listener.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, conn := range e.conns {
		conn.Close()
	}
}
