package consensus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// testTimeout is how long a test waits for anything.
const testTimeout = 20 * time.Second

// eventually waits for a condition.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(testTimeout)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not in %s: %s", testTimeout, what)
		}
		<-tick.C
	}
}

// cluster is some replicas in this process, on real disks and TCP.
type cluster struct {
	t       testing.TB
	dir     string
	network *testNetwork
	nodes   map[string]*testNode
	// configure, if set, changes each node's configuration.
	configure func(cfg *Config)
	// wrapMachine, if set, changes each node's state machine.
	wrapMachine func(j *diary)
}

// testNode is a node that can be killed and started again.
type testNode struct {
	*Replica
	id      string
	address string
	machine *diary
	network *endpoint
	server  *grpc.Server
	group   func() string // what it says of its group, and wants to hear
	stop    context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex
	failed error // what Fatal was called with
}

func newCluster(t testing.TB, configure func(cfg *Config)) *cluster {
	c := &cluster{t: t, dir: t.TempDir(), network: newTestNetwork(), nodes: make(map[string]*testNode), configure: configure}
	t.Cleanup(func() {
		for _, node := range c.nodes {
			node.kill()
		}
	})
	return c
}

// testLogger logs to stderr if ATOLL_TEST_LOG is set.
func testLogger(id string) zerolog.Logger {
	if os.Getenv("ATOLL_TEST_LOG") == "" {
		return zerolog.Nop()
	}
	return zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, TimeFormat: "05.000"}).With().Timestamp().Str("node", id).Logger()
}

// config is quick enough for tests, and patient enough for two busy cores under
// the race detector.
func (c *cluster) config(id string) Config {
	cfg := DefaultConfig()
	cfg.NodeID, cfg.Dir, cfg.Logger = id, filepath.Join(c.dir, id, "raft"), testLogger(id)
	cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaderLease = 500*time.Millisecond, 500*time.Millisecond, 400*time.Millisecond
	cfg.CommitTimeout = 10 * time.Millisecond
	cfg.NetworkTimeout, cfg.ConfirmTimeout = time.Second, time.Second
	cfg.AutopilotInterval, cfg.StabilizationTime = 50*time.Millisecond, 100*time.Millisecond
	if c.configure != nil {
		c.configure(&cfg)
	}
	return cfg
}

// open starts a node on what its folder holds.
func (c *cluster) open(id string) (*testNode, error) {
	n := &testNode{id: id}
	machine, err := openDiary(filepath.Join(c.dir, id, "state"))
	if err != nil {
		return nil, err
	}
	n.machine = machine
	if c.wrapMachine != nil {
		c.wrapMachine(machine)
	}
	old := c.nodes[id]
	listen := "127.0.0.1:0"
	if old != nil {
		listen = old.address
	}
	var listener net.Listener
	eventually(c.t, "listen on "+listen, func() bool {
		listener, err = net.Listen("tcp", listen)
		return err == nil
	})
	services, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	n.address = listener.Addr().String()
	c.network.mu.Lock()
	c.network.nodes[n.address] = testAddress{id: id, grpc: services.Addr().String()}
	c.network.mu.Unlock()
	cfg := c.config(id)
	if n.group = cfg.GroupID; n.group == nil {
		n.group = func() string { return "" }
	}
	n.network = &endpoint{id: id, group: n.group, network: c.network, listener: listener, conns: make(map[string]*grpc.ClientConn)}
	cfg.Address, cfg.Fatal = n.address, n.fatal
	if n.Replica, err = Open(cfg, machine, n.network); err != nil {
		n.network.close()
		services.Close()
		return nil, errors.Join(err, machine.Close())
	}
	n.server = grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if own, callers := n.group(), metadata.ValueFromIncomingContext(ctx, "group"); !slices.Equal(callers, []string{own}) {
			return nil, status.Errorf(codes.PermissionDenied, "the caller is of group %q, this node of %q", callers, own)
		}
		return next(ctx, request)
	}))
	n.Register(n.server)
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	n.running.Go(func() { _ = n.server.Serve(services) })
	n.running.Go(func() { _ = n.Run(ctx) })
	c.nodes[id] = n
	return n, nil
}

func (c *cluster) start(id string) *testNode {
	c.t.Helper()
	node, err := c.open(id)
	if err != nil {
		c.t.Fatalf("open node %s: %v", id, err)
	}
	return node
}

// fatal is Config.Fatal of a test: the node is as good as dead.
func (n *testNode) fatal(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failed = err
}

func (n *testNode) failure() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.failed
}

// kill ends the node as kill -9 does, as far as others can see and its disk is
// concerned: nothing is handed over.
func (n *testNode) kill() {
	if n.stop == nil {
		return
	}
	n.streams.Close()
	n.server.Stop()
	n.stop()
	n.life.end()
	n.running.Wait()
	_ = n.raft.Shutdown().Error()
	n.network.close()
	n.localReads.close()
	n.leaderReads.close()
	n.storage.disk.Close()
	n.machine.Close()
	n.stop = nil
}

// form starts n nodes as one cluster and waits until all that may vote do.
func form(t testing.TB, n int, configure func(cfg *Config)) *cluster {
	t.Helper()
	c := newCluster(t, configure)
	for i := range n {
		c.start(fmt.Sprintf("n%d", i+1))
	}
	if err := c.nodes["n1"].Bootstrap(); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < n; i++ {
		c.add(fmt.Sprintf("n%d", i+1))
	}
	voters := min(n, c.nodes["n1"].cfg.MaxVoters)
	// Until every node has the last change in its log, the voters before it decide.
	eventually(t, "all voters vote", func() bool {
		for _, node := range c.nodes {
			if node.voters() != voters {
				return false
			}
		}
		return true
	})
	return c
}

// add lets a running node in.
func (c *cluster) add(id string) {
	c.t.Helper()
	eventually(c.t, "add "+id, func() bool {
		leader := c.leader()
		return leader.AddNode(c.ctx(), id, c.nodes[id].address) == nil
	})
}

func (c *cluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	c.t.Cleanup(cancel)
	return ctx
}

// leader waits for the one leader that more than half of the running nodes take
// for it.
func (c *cluster) leader() *testNode {
	c.t.Helper()
	var leader *testNode
	eventually(c.t, "a leader", func() bool {
		votes, running := make(map[string]int), 0
		for _, node := range c.nodes {
			if node.stop == nil || node.failure() != nil || len(node.servers()) == 0 {
				continue // dead, or not let in yet
			}
			running++
			id, _ := node.Leader()
			votes[id]++
		}
		for id, n := range votes {
			if node := c.nodes[id]; node != nil && node.stop != nil && 2*n > running && node.IsLeader() {
				leader = node
				return true
			}
		}
		return false
	})
	return leader
}

// follower is a running voter that does not lead.
func (c *cluster) followers() []*testNode {
	leader := c.leader()
	var followers []*testNode
	for _, id := range c.ids() {
		if node := c.nodes[id]; node != leader && node.stop != nil {
			followers = append(followers, node)
		}
	}
	return followers
}

func (c *cluster) ids() []string {
	var ids []string
	for id := range c.nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (n *testNode) voters() int {
	count := 0
	for _, server := range n.servers() {
		if server.Suffrage == raft.Voter {
			count++
		}
	}
	return count
}

// propose must succeed.
func (c *cluster) propose(n *testNode, command string) string {
	c.t.Helper()
	result, _, err := n.Propose(c.ctx(), []byte(command))
	if err != nil {
		c.t.Fatalf("propose %q on %s: %v", command, n.id, err)
	}
	return string(result)
}

// insist proposes a command until it is acknowledged, perhaps more than once: an
// election may be on.
func (c *cluster) insist(n *testNode, command string) {
	c.t.Helper()
	eventually(c.t, "propose on "+n.id, func() bool {
		_, _, err := n.Propose(c.ctx(), []byte(command))
		return err == nil
	})
}

// agree waits until all running nodes have the same state, and returns it.
func (c *cluster) agree() string {
	c.t.Helper()
	var state string
	eventually(c.t, "all nodes have the same state", func() bool {
		leader := c.leader()
		state = leader.machine.dump()
		for _, node := range c.nodes {
			if node.stop != nil && node.failure() == nil && node.machine.dump() != state {
				return false
			}
		}
		return true
	})
	return state
}

// mustFail waits for a node's Fatal.
func (n *testNode) mustFail(t *testing.T, target error) {
	t.Helper()
	eventually(t, "node "+n.id+" fails", func() bool { return n.failure() != nil })
	if err := n.failure(); target != nil && !errors.Is(err, target) {
		t.Fatalf("node %s failed with %v, want %v", n.id, err, target)
	}
	if _, _, err := n.Propose(context.Background(), []byte("x")); !errors.Is(err, ErrClosed) {
		t.Fatalf("a failed node proposes: %v", err)
	}
}
