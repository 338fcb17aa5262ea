package blobstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/atollregistry/atoll/proto"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
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
	cfg.MaxExtentBytes = 100_000
	cfg.BufferBytes = 4 << 20
	// Long, since a busy machine is slow; tests of what is slow have shorter ones.
	cfg.HedgeDelay = waitLimit
	cfg.StallTimeout = waitLimit
	cfg.ReserveBytes = 1
	return cfg
}

// testCluster is a cluster of stores in this process, with real folders and real
// connections between them.
type testCluster struct {
	t     testing.TB
	nodes []*testNode
	live  sync.Map // extent ids that the catalog calls live
}

// testNode is one node. It implements Cluster as this node sees it.
type testNode struct {
	cluster  *testCluster
	id, zone string
	cfg      Config
	store    *Store
	server   *grpc.Server
	address  string
	served   chan struct{}

	mu       sync.Mutex
	sick     bool // answers no heartbeats
	draining bool
	full     bool             // and its disk refuses every write
	hung     chan struct{}    // if not nil, its disk's writes hang until it is closed
	suspects map[string]error // by id, as this node sees them
	conns    map[string]*grpc.ClientConn
	// frozen, if not nil, lets nothing through to this node until it is closed.
	frozen chan struct{}
}

func startCluster(t testing.TB, count int, change func(*Config)) *testCluster {
	t.Helper()
	c := &testCluster{t: t}
	for i := range count {
		n := &testNode{
			cluster: c, id: fmt.Sprintf("node-%d", i), cfg: testConfig(),
			suspects: make(map[string]error), conns: make(map[string]*grpc.ClientConn),
		}
		n.cfg.Dir = filepath.Join(t.TempDir(), "shards")
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
		n.mu.Lock()
		for _, conn := range n.conns {
			_ = conn.Close()
		}
		n.mu.Unlock()
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
	store.nodeWait = 200 * time.Millisecond
	n.spoil(store.disk)
	address := n.address
	if address == "" {
		address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	n.store, n.address, n.served = store, listener.Addr().String(), make(chan struct{})
	n.server = grpc.NewServer(
		grpc.ForceServerCodecV2(Codec()), grpc.MaxRecvMsgSize(8<<20), grpc.MaxSendMsgSize(8<<20),
		grpc.InitialWindowSize(2<<20), grpc.InitialConnWindowSize(16<<20),
	)
	store.Register(n.server)
	server, served := n.server, n.served
	go func() {
		defer close(served)
		_ = server.Serve(listener)
	}()
}

// spoil puts the node's faults before its disk.
func (n *testNode) spoil(d *Disk) {
	space, write := d.calls.space, d.calls.write
	d.calls.space = func(dir string) (free, total uint64, err error) {
		if n.isFull() {
			return 0, 1 << 40, nil
		}
		return space(dir)
	}
	d.calls.write = func(f *os.File, pieces [][]byte) error {
		n.mu.Lock()
		hung := n.hung
		n.mu.Unlock()
		if hung != nil {
			<-hung
		}
		return write(f, pieces)
	}
}

func (n *testNode) isFull() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.full
}

func (n *testNode) setFull(full bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.full = full
}

// hang makes the disk's writes hang until release is called.
func (n *testNode) hang() (release func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hung = make(chan struct{})
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		close(n.hung)
		n.hung = nil
	}
}

// kill ends the node: its connections break, its transfers end.
func (n *testNode) kill() {
	if n.store == nil {
		return
	}
	n.setSick(true)
	n.server.Stop()
	<-n.served
	if err := n.store.Close(); err != nil {
		n.cluster.t.Errorf("close %s: %v", n.id, err)
	}
	n.store = nil
}

// cut ends only the node's connections and server.
func (n *testNode) cut() {
	n.setSick(true)
	n.server.Stop()
	<-n.served
}

// heal makes a node well again whatever was done to it.
func (n *testNode) heal() {
	n.thaw()
	n.setFull(false)
	n.kill()
	n.start()
	n.setSick(false)
	for _, other := range n.cluster.nodes {
		other.forgive()
		if other != n {
			other.waitConnected(n)
		}
	}
}

// waitConnected waits until a node can talk to another one again.
func (n *testNode) waitConnected(to *testNode) {
	n.cluster.t.Helper()
	run := shardRun{extentID: newExtentID(), layout: layout{data: 1, cell: 1, size: 1}, cells: 1}
	eventually(n.cluster.t, waitLimit, "connection is back", func() bool {
		err := n.store.readRun(context.Background(), to.id, run, make([]byte, 1))
		return errors.Is(err, ErrShardUnknown)
	})
}

// freeze lets no byte through to the node or from it, as if it was stopped.
func (n *testNode) freeze() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.frozen == nil {
		n.frozen = make(chan struct{})
	}
}

func (n *testNode) thaw() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.frozen != nil {
		close(n.frozen)
		n.frozen = nil
	}
}

func (n *testNode) setSick(sick bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sick = sick
}

func (n *testNode) setDraining(draining bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.draining = draining
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
		info := NodeInfo{ID: other.id, Zone: other.zone, Healthy: !other.sick, Draining: other.draining, FreeBytes: 1 << 40, CapacityBytes: 1 << 40}
		if other.full && other != n { // Its own disk is asked when it writes.
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
	conn, err := grpc.NewClient("passthrough:///"+target.address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(Codec()), grpc.MaxCallRecvMsgSize(8<<20), grpc.MaxCallSendMsgSize(8<<20)),
		grpc.WithInitialWindowSize(2<<20), grpc.WithInitialConnWindowSize(16<<20),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, MaxDelay: 50 * time.Millisecond}, MinConnectTimeout: waitLimit,
		}),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err != nil {
				return nil, err
			}
			return &frozenConn{Conn: conn, target: target, closed: make(chan struct{})}, nil
		}))
	if err == nil {
		n.conns[nodeID] = conn
	}
	return conn, err
}

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

// frozenConn is a connection that holds bytes back while its target is frozen.
type frozenConn struct {
	net.Conn
	target *testNode
	once   sync.Once
	closed chan struct{}
}

func (f *frozenConn) wait() {
	for {
		f.target.mu.Lock()
		frozen := f.target.frozen
		f.target.mu.Unlock()
		if frozen == nil {
			return
		}
		select {
		case <-frozen:
		case <-f.closed:
			return
		}
	}
}

func (f *frozenConn) Write(p []byte) (int, error) {
	f.wait()
	return f.Conn.Write(p)
}

func (f *frozenConn) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	f.wait()
	return n, err
}

func (f *frozenConn) Close() error {
	f.once.Do(func() { close(f.closed) })
	return f.Conn.Close()
}

func (c *testCluster) node(id string) *testNode {
	for _, n := range c.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// LiveExtents is Catalog's.
func (c *testCluster) LiveExtents(_ context.Context, ids [][]byte) ([]bool, error) {
	live := make([]bool, len(ids))
	for i, id := range ids {
		_, live[i] = c.live.Load(string(id))
	}
	return live, nil
}

// blob is a blob that was stored.
type blob struct {
	content []byte
	extents []*proto.Extent
}

func randomBytes(size int, seed uint64) []byte {
	content := make([]byte, size)
	source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = source.Read(content)
	return content
}

func sha256Digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// appendAll stores what r returns and checks everything that Append promises of
// its result. It returns the extents, recorded ones and tail together.
func (n *testNode) appendAll(from Progress, r io.Reader) (Progress, []*proto.Extent, error) {
	t := n.cluster.t
	t.Helper()
	var extents []*proto.Extent
	size := from.Size
	sum := func(more []*proto.Extent) (bytes uint64) {
		for _, e := range more {
			bytes += e.GetSize()
		}
		return bytes
	}
	to, tail, tailFrom, err := n.store.Append(context.Background(), from, r, func(_ context.Context, done Recorded) error {
		if done.ExpectedSize != size || len(done.Extents) == 0 {
			t.Errorf("record of %d extents at %d, expected at %d", len(done.Extents), done.ExpectedSize, size)
		}
		size += sum(done.Extents)
		if done.Progress.Size != size {
			t.Errorf("recorded progress is %d, extents end at %d", done.Progress.Size, size)
		}
		extents = append(extents, done.Extents...)
		return nil
	})
	if err != nil {
		return to, extents, err
	}
	if tailFrom != size || to.Size != size+sum(tail) {
		t.Errorf("tail from %d, expected %d; progress %d, expected %d", tailFrom, size, to.Size, size+sum(tail))
	}
	extents = append(extents, tail...)
	for _, e := range extents {
		n.cluster.live.Store(string(e.GetId()), true)
		n.cluster.checkExtent(e)
	}
	return to, extents, nil
}

// checkExtent checks that an extent is as redundant as promised: its shards are on
// different nodes, there, and at least k+1.
func (c *testCluster) checkExtent(e *proto.Extent) {
	c.t.Helper()
	l, err := extentLayout(e)
	if err != nil {
		c.t.Error(err)
		return
	}
	durable, seen := 0, make(map[string]bool)
	for number, holder := range e.GetHolders() {
		if holder == "" {
			continue
		}
		if seen[holder] {
			c.t.Errorf("extent %x has two shards on %s", e.GetId(), holder)
		}
		seen[holder] = true
		if _, err := os.Stat(c.shardPath(e, number)); err == nil {
			durable++
		}
	}
	if durable < l.data+min(1, l.parity) {
		c.t.Errorf("extent %x: %d of %d shards are durable", e.GetId(), durable, l.shards())
	}
}

func (c *testCluster) shardPath(e *proto.Extent, number int) string {
	id, err := newShardID(e.GetId(), uint32(number))
	if err != nil {
		c.t.Fatal(err)
	}
	return filepath.Join(c.node(e.GetHolders()[number]).cfg.Dir, folderName(id.extent[0]), id.String())
}

// push stores random bytes through a node.
func (n *testNode) push(size int, seed uint64) *blob {
	t := n.cluster.t
	t.Helper()
	content := randomBytes(size, seed)
	to, extents, err := n.appendAll(Progress{UploadID: fmt.Sprint("upload-", seed)}, bytes.NewReader(content))
	if err != nil {
		t.Fatalf("append %d bytes: %v", size, err)
	}
	if digest, err := to.Digest("sha256"); err != nil || digest != sha256Digest(content) {
		t.Fatalf("digest of %d bytes: %s, %v", size, digest, err)
	}
	return &blob{content: content, extents: extents}
}

// pull reads a range of a blob through a node.
func (n *testNode) pull(b *blob, offset, length uint64) ([]byte, error) {
	reader, err := n.store.Read(context.Background(), b.extents, offset, length)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	return io.ReadAll(reader)
}

// checkPull reads a whole blob through a node and compares.
func (n *testNode) checkPull(b *blob) {
	t := n.cluster.t
	t.Helper()
	got, err := n.pull(b, 0, uint64(len(b.content)))
	if err != nil {
		t.Fatalf("%s: read %d bytes: %v", n.id, len(b.content), err)
	}
	if !bytes.Equal(got, b.content) {
		t.Fatalf("%s: read other bytes than were written", n.id)
	}
}

// checkRanges reads random ranges of a blob and compares.
func (n *testNode) checkRanges(b *blob, random *rand.Rand, count int) {
	t := n.cluster.t
	t.Helper()
	for range count {
		offset := random.IntN(len(b.content))
		length := 1 + random.IntN(len(b.content)-offset)
		if random.IntN(2) == 0 {
			length = 1 + random.IntN(min(length, 50))
		}
		got, err := n.pull(b, uint64(offset), uint64(length))
		if err != nil {
			t.Fatalf("%s: read %d bytes at %d: %v", n.id, length, offset, err)
		}
		if !bytes.Equal(got, b.content[offset:offset+length]) {
			t.Fatalf("%s: %d bytes at %d are others than were written", n.id, length, offset)
		}
	}
}

// damage makes a shard unusable in one of several ways.
func (c *testCluster) damage(e *proto.Extent, number int, random *rand.Rand) {
	c.t.Helper()
	if e.GetHolders()[number] == "" {
		return
	}
	path := c.shardPath(e, number)
	c.node(e.GetHolders()[number]).store.disk.handles.forgetAll()
	var err error
	switch random.IntN(4) {
	case 0:
		err = os.Remove(path)
	case 1:
		info, statErr := os.Stat(path)
		err = errors.Join(statErr, os.Truncate(path, info.Size()/2))
	default: // Flips a bit of every cell.
		l, layoutErr := extentLayout(e)
		file, readErr := os.ReadFile(path)
		if err = errors.Join(layoutErr, readErr); err != nil {
			break
		}
		for stripe := range l.stripes() {
			file[headerBytes+int(l.cellOffset(stripe))+random.IntN(l.cellBytes(stripe))] ^= 1 << random.IntN(8)
		}
		err = os.WriteFile(path, file, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// holderOf returns the node that holds a shard.
func (c *testCluster) holderOf(e *proto.Extent, number int) *testNode {
	return c.node(e.GetHolders()[number])
}

// others returns the nodes but these.
func (c *testCluster) others(not ...*testNode) []*testNode {
	return slices.DeleteFunc(slices.Clone(c.nodes), func(n *testNode) bool { return slices.Contains(not, n) })
}

// gateReader returns its bytes up to gate, then calls reached once, and goes on.
type gateReader struct {
	content []byte
	at      int
	gate    int
	reached func()
}

func (g *gateReader) Read(p []byte) (int, error) {
	if g.at >= g.gate && g.reached != nil {
		g.reached()
		g.reached = nil
	}
	if g.at == len(g.content) {
		return 0, io.EOF
	}
	end := len(g.content)
	if g.at < g.gate {
		end = g.gate
	}
	n := copy(p, g.content[g.at:end])
	g.at += n
	return n, nil
}
