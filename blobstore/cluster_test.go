package blobstore

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(dropFolders))
}

const (
	waitLimit = 30 * time.Second
	// testStall and testHedge are short times for tests of what is slow.
	testStall = time.Second
	testHedge = 50 * time.Millisecond
)

// eventually waits until done returns true.
func eventually(t testing.TB, limit time.Duration, what string, done func() bool) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %s", what, limit)
		}
	}
}

// testConfig has small sizes, so that little data makes many stripes and extents.
func testConfig() Config {
	cfg := DefaultConfig()
	cfg.CellBytes = 4 << 10
	cfg.SmallBlobBytes = 3000
	cfg.InlineBlobBytes = 0 // Most tests are about shards.
	cfg.MaxExtentBytes = 100_000
	cfg.BufferBytes = 4 << 20
	// Long, since a busy machine is slow; tests of what is slow have shorter ones.
	cfg.HedgeDelay, cfg.LateDelay = waitLimit, waitLimit
	cfg.StallTimeout = waitLimit
	cfg.ReserveBytes = 1
	return cfg
}

// testCluster is a cluster of stores in this process, with real folders and real
// connections between them.
type testCluster struct {
	t     testing.TB
	nodes []*testNode
	*records
}

// testNode is one node. It implements Cluster as this node sees it.
type testNode struct {
	cluster  *testCluster
	id, zone string
	cfg      Config
	store    *Store
	server   *grpc.Server // of what is no shard
	calls    string       // its address
	links    *LinkServer
	address  string
	listener net.Listener
	served   sync.WaitGroup

	mu       sync.Mutex
	sick     bool // answers no heartbeats
	down     bool // and has not for long
	draining bool
	full     bool             // and its disk refuses every write
	stale    bool             // and the others do not know it yet
	hung     chan struct{}    // if not nil, its disk's writes hang until it is closed
	suspects map[string]error // by id, as this node sees them
	conns    map[string]*grpc.ClientConn
	// frozen, if not nil, lets nothing through to this node until it is closed.
	frozen chan struct{}
}

func startCluster(t testing.TB, count int, change func(*Config)) *testCluster {
	t.Helper()
	c := &testCluster{t: t, records: newRecords()}
	for i := range count {
		n := &testNode{
			cluster: c, id: fmt.Sprintf("node-%d", i), cfg: testConfig(),
			suspects: make(map[string]error), conns: make(map[string]*grpc.ClientConn),
		}
		n.cfg.Dir = newShardsDir(t)
		if change != nil {
			change(&n.cfg)
		}
		c.nodes = append(c.nodes, n)
	}
	for _, n := range c.nodes {
		n.start()
	}
	t.Cleanup(c.stop)
	return c
}

// stop ends all nodes after the checks that hold after every test: no memory of
// the budget is missing, and no unfinished shard was left.
func (c *testCluster) stop() {
	for _, n := range c.nodes {
		n.thaw()
	}
	for _, n := range c.nodes {
		if n.store != nil {
			n.checkIdle()
		}
	}
	for _, n := range c.nodes {
		n.kill()
		n.close()
	}
}

// close closes the node's connections to others.
func (n *testNode) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, conn := range n.conns {
		_ = conn.Close()
	}
}

func (n *testNode) checkIdle() {
	t := n.cluster.t
	t.Helper()
	eventually(t, waitLimit, n.id+" has its budget back", func() bool {
		if !n.store.buffers.budget.TryAcquire(n.cfg.BufferBytes) {
			return false
		}
		n.store.buffers.budget.Release(n.cfg.BufferBytes)
		return n.store.reading.Load() == 0 && n.store.readers.Load() == 0 && n.store.appends.Load() == 0
	})
	eventually(t, waitLimit, n.id+" has no unfinished shards", func() bool {
		left, err := os.ReadDir(filepath.Join(n.cfg.Dir, unfinishedFolder))
		return err == nil && len(left) == 0
	})
}

// start opens the node's store and its server, on the address it had before.
func (n *testNode) start() {
	t := n.cluster.t
	t.Helper()
	store, err := Open(n.cfg, n, n.cluster)
	if err != nil {
		t.Fatal(err)
	}
	store.nodeWait, store.memoryWait = 200*time.Millisecond, waitLimit
	n.spoil(store.disks.all[0])
	listener, err := net.Listen("tcp", cmp.Or(n.address, "127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	calls, err := net.Listen("tcp", cmp.Or(n.calls, "127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.address, n.calls = listener.Addr().String(), calls.Addr().String()
	n.mu.Unlock()
	n.store, n.listener = store, listener
	n.server, n.links = grpc.NewServer(), store.LinkServer(func(net.Conn, string) error { return nil })
	store.Register(n.server)
	server, links := n.server, n.links
	n.served.Go(func() { _ = server.Serve(calls) })
	n.served.Go(func() { _ = links.Serve(listener) })
}

// kill ends the node: its connections break, its transfers end.
func (n *testNode) kill() {
	if n.store == nil {
		return
	}
	n.cut()
	if err := n.store.Close(); err != nil {
		n.cluster.t.Errorf("close %s: %v", n.id, err)
	}
	n.store = nil
}

// cut ends only the node's connections and server.
func (n *testNode) cut() {
	n.setSick(true)
	n.server.Stop()
	_ = n.listener.Close()
	hardStop(n.links)
	n.served.Wait()
}

// Self is Cluster's.
func (n *testNode) Self() string { return n.id }

// Nodes is Cluster's.
func (n *testNode) Nodes() []NodeInfo {
	n.mu.Lock()
	suspects := make(map[string]error)
	for id, err := range n.suspects {
		suspects[id] = err
	}
	n.mu.Unlock()
	var infos []NodeInfo
	for _, other := range n.cluster.nodes {
		other.mu.Lock()
		info := NodeInfo{ID: other.id, Zone: other.zone, Healthy: !other.sick, Down: other.down, Draining: other.draining, FreeBytes: 1 << 40, CapacityBytes: 1 << 40}
		if other.full && !other.stale && other != n { // Its own disk is asked when it writes.
			info.FreeBytes = 0
		}
		other.mu.Unlock()
		if suspects[other.id] != nil {
			info.Healthy = false
		}
		infos = append(infos, info)
	}
	return infos
}

// Conn is Cluster's.
func (n *testNode) Conn(nodeID string) (grpc.ClientConnInterface, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if conn := n.conns[nodeID]; conn != nil {
		return conn, nil
	}
	target := n.cluster.node(nodeID)
	if target == nil {
		return nil, fmt.Errorf("no node %s", nodeID)
	}
	conn, err := grpc.NewClient("passthrough:///"+target.calls,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, MaxDelay: 50 * time.Millisecond}, MinConnectTimeout: waitLimit,
		}),
		grpc.WithContextDialer(target.dial))
	if err == nil {
		n.conns[nodeID] = conn
	}
	return conn, err
}

// dial connects to the node, as others do.
func (n *testNode) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &frozenConn{Conn: conn, target: n, closed: make(chan struct{})}, nil
}

// Dial is Cluster's.
func (n *testNode) Dial(ctx context.Context, nodeID string) (net.Conn, error) {
	target := n.cluster.node(nodeID)
	if target == nil {
		return nil, fmt.Errorf("no node %s", nodeID)
	}
	target.mu.Lock()
	address := target.address
	target.mu.Unlock()
	return target.dial(ctx, address)
}

// ClusterID is Cluster's.
func (n *testNode) ClusterID() string { return "" }

// Suspect is Cluster's.
func (n *testNode) Suspect(nodeID string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.suspects[nodeID] = err
}

func (n *testNode) suspected(nodeID string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.suspects[nodeID] != nil
}

func (n *testNode) forgive() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.suspects)
}

func (c *testCluster) node(id string) *testNode {
	for _, n := range c.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}
