// Package nodetest runs whole clusters in one process for tests: real nodes with
// real disks, TLS and ports on loopback, whose links can be cut and whose shards
// can be damaged. Every test ends with the same closing checks (Check).
package nodetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/node"
)

const (
	// FormTimeout bounds the forming of a cluster on a slow machine.
	FormTimeout = 60 * time.Second
	// pollInterval is the pause between two looks at a condition.
	pollInterval = 100 * time.Millisecond
)

// Cluster is a cluster of in-process nodes.
type Cluster struct {
	t       testing.TB
	Members []*Member
	links   links

	mu    sync.Mutex // guards acked
	acked []Acked
}

// Member is one node of the cluster, running or not.
type Member struct {
	cluster *Cluster
	// Config is what the node is started with; it may be changed while stopped.
	Config node.Config
	// Tune changes the blob store's configuration; it may be changed while stopped.
	Tune func(*blobstore.Config)
	// User, if not nil, is whom requests to the node log in as.
	User *url.Userinfo
	// Options are for node.New; they may be changed while stopped.
	Options []node.Option
	// Log, if not nil, gets what the node logs; it may be changed while stopped.
	Log io.Writer

	mu     sync.Mutex // guards the fields below
	node   *node.Node
	cancel context.CancelFunc
	done   chan struct{} // closed when the node has ended
	err    error         // what Run returned
}

// Start forms a cluster of n nodes and waits until all of them can serve
// everything. It is stopped when the test ends.
func Start(t testing.TB, n int, configure ...func(*node.Config)) *Cluster {
	t.Helper()
	c, _ := StartWithSpares(t, n, 0, configure...)
	return c
}

// StartWithSpares is Start with nodes that are not started yet, for Cluster.Add.
func StartWithSpares(t testing.TB, n, spares int, configure ...func(*node.Config)) (*Cluster, []*Member) {
	t.Helper()
	c := &Cluster{t: t}
	members := c.configure(n, n+spares, configure)
	c.Members = members[:n:n]
	t.Cleanup(c.stopAll)
	for _, m := range c.Members {
		m.Start()
	}
	for _, m := range c.Members {
		m.WaitReady()
	}
	return c, members[n:]
}

// StartWithTokens is Start for nodes that have their certificates from the cluster: the
// first one makes it, the others have a join token. change may change a member before it
// is started.
func StartWithTokens(t testing.TB, n int, change func(*Member)) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	c.Members = c.configure(n, n, nil)
	for i, m := range c.Members {
		m.Config.Cluster.CA, m.Config.Cluster.Cert, m.Config.Cluster.Key = "", "", ""
		m.Config.Bootstrap = i == 0
		if change != nil {
			change(m)
		}
	}
	t.Cleanup(c.stopAll)
	first := c.Members[0]
	first.Start()
	first.WaitReady()
	token := ""
	if n > 1 {
		token = c.Token(n - 1)
	}
	for _, m := range c.Members[1:] {
		m.Config.Token = token
		m.Start()
	}
	for _, m := range c.Members[1:] {
		m.WaitReady()
	}
	return c
}

// Token makes a join token for so many nodes, on the first member that runs.
func (c *Cluster) Token(uses int) string {
	c.t.Helper()
	return c.token(uses, "")
}

// token makes one for a member, or for new nodes.
func (c *Cluster) token(uses int, member string) string {
	c.t.Helper()
	var faults []error
	for _, m := range c.Members {
		token, err := node.CreateJoinToken(context.Background(), m.Config.Home(), node.JoinTokenRequest{TTL: time.Hour, Uses: uses, Member: member})
		if err == nil {
			return token.Token
		}
		faults = append(faults, err)
	}
	c.t.Fatalf("no node makes a join token: %v", errors.Join(faults...))
	return ""
}

// Add starts nodes that were spares, and waits until they are members.
func (c *Cluster) Add(members ...*Member) {
	c.t.Helper()
	c.Members = append(c.Members, members...)
	for _, m := range members {
		m.Start()
	}
	for _, m := range members {
		m.WaitReady()
	}
}

// Drop takes nodes that have left the cluster off its members, and ends them.
func (c *Cluster) Drop(members ...*Member) {
	for _, m := range members {
		m.cancelRun()
		_ = m.wait() // a node that was removed may well complain
	}
	c.Members = slices.DeleteFunc(slices.Clone(c.Members), func(m *Member) bool { return slices.Contains(members, m) })
}

// configure makes members that know the first of them.
func (c *Cluster) configure(first, n int, configure []func(*node.Config)) (members []*Member) {
	t := c.t
	t.Helper()
	dir := t.TempDir()
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("n%d", i+1)
	}
	certificates, err := node.MakeCertificates(node.CertificatesConfig{Dir: filepath.Join(dir, "certs"), Nodes: names})
	if err != nil {
		t.Fatal(err)
	}
	addresses := freeAddresses(t, clusterHost(), 3*n)
	for i, name := range names {
		cfg := node.DefaultConfig()
		cfg.Name, cfg.Data = name, []string{filepath.Join(dir, name)}
		cfg.Registry.Listen, cfg.Cluster.Listen, cfg.Operations.Listen = addresses[i], addresses[n+i], addresses[2*n+i]
		cfg.Cluster.Address = cfg.Cluster.Listen
		cfg.Join, cfg.Bootstrap = addresses[n:n+first], n == 1
		cfg.Cluster.CA, cfg.Cluster.Cert, cfg.Cluster.Key = certificates[i].CA, certificates[i].Cert, certificates[i].Key
		cfg.CacheBytes = 0 // Most tests are about what is read from shards.
		cfg.ShutdownTimeout, cfg.Registry.PlainHTTP, cfg.Auth.Enabled = 10*time.Second, true, false
		for _, change := range configure {
			change(&cfg)
		}
		members = append(members, &Member{cluster: c, Config: cfg})
	}
	return members
}

// clusters counts the clusters that this process has made.
var clusters atomic.Uint32

// clusterHost returns a loopback address for one cluster alone. A node that is started
// again needs its ports again, and nobody else may have got them meanwhile: neither
// another cluster, nor a connection, whose own end is on 127.0.0.1.
func clusterHost() string {
	pid := os.Getpid()
	return netip.AddrFrom4([4]byte{127, byte(1 + pid>>8&0x7f), byte(pid), byte(1 + clusters.Add(1)%250)}).String()
}

// freeAddresses finds ports of a loopback address that nobody listens on.
func freeAddresses(t testing.TB, host string, n int) []string {
	t.Helper()
	addresses := make([]string, n)
	for i := range addresses {
		listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close() // all at the end, so that no two are the same
		addresses[i] = listener.Addr().String()
	}
	return addresses
}

func (c *Cluster) stopAll() {
	for _, m := range c.Members {
		m.cancelRun()
	}
	for _, m := range c.Members {
		_ = m.wait() // tests that care how a node ends call Stop
	}
}

// Start runs the node on its data folder, which may be empty.
func (m *Member) Start() {
	m.cluster.t.Helper()
	options := append([]node.Option{node.WithDialer(m.cluster.links.dialer(m)), node.WithBlobstore(m.tune)}, m.Options...)
	n, err := node.New(m.Config, m.logger(), options...)
	if err != nil {
		m.cluster.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	m.mu.Lock()
	m.node, m.cancel, m.done, m.err = n, cancel, done, nil
	m.mu.Unlock()
	go func() { // wait() waits for it
		defer close(done)
		err := n.Run(ctx)
		m.mu.Lock()
		m.err = err
		m.mu.Unlock()
	}()
}

func (m *Member) tune(cfg *blobstore.Config) {
	if m.Tune != nil {
		m.Tune(cfg)
	}
}

func (m *Member) logger() zerolog.Logger {
	if m.Log != nil {
		return zerolog.New(zerolog.SyncWriter(m.Log))
	}
	if os.Getenv("ATOLL_TEST_LOG") == "" {
		return zerolog.Nop()
	}
	return zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr, TimeFormat: "15:04:05.000"}).With().Timestamp().Logger()
}

func (m *Member) cancelRun() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cancel != nil {
		m.cancel()
	}
}

// wait returns what the node's Run returned.
func (m *Member) wait() error {
	m.mu.Lock()
	done := m.done
	m.mu.Unlock()
	if done == nil {
		return nil
	}
	select {
	case <-done:
	case <-time.After(FormTimeout):
		m.cluster.t.Errorf("node %s does not stop", m.Config.Name)
		return errors.New("node does not stop")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Stop ends the node in order and fails the test if that is not clean.
func (m *Member) Stop() {
	m.cluster.t.Helper()
	m.cancelRun()
	if err := m.wait(); err != nil {
		m.cluster.t.Errorf("stop node %s: %v", m.Config.Name, err)
	}
}

// WaitEnd waits until the node ended by itself and returns why.
func (m *Member) WaitEnd() error { return m.wait() }

// Crash cuts the node off from everybody in the middle of what it does, as its
// death would look to them, and then ends it. Only a child process can die more
// truly; cmd/atoll has those tests.
func (m *Member) Crash() {
	m.cluster.Isolate(m)
	m.cancelRun()
	_ = m.wait() // it can't say goodbye, so it may well complain
	m.cluster.Rejoin(m)
}

// Wipe empties the data folder of a stopped node.
func (m *Member) Wipe() {
	m.cluster.t.Helper()
	if err := os.RemoveAll(m.Config.Home()); err != nil {
		m.cluster.t.Fatal(err)
	}
}

// URL is the base URL of the node's registry port.
func (m *Member) URL() string {
	if m.Config.Registry.PlainHTTP {
		return "http://" + m.Config.Registry.Listen
	}
	return "https://" + m.Config.Registry.Listen
}

// WaitReady waits until the node can serve everything.
func (m *Member) WaitReady() {
	m.cluster.t.Helper()
	m.cluster.Eventually(FormTimeout, fmt.Sprintf("node %s is ready", m.Config.Name), func() error {
		select {
		case <-m.ended():
			return fmt.Errorf("it ended: %w", m.wait())
		default:
		}
		return getOK("http://" + m.Config.Operations.Listen + "/readyz")
	})
}

func (m *Member) running() *node.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.node
}

func (m *Member) ended() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.done
}

// Status asks the node for its view of the cluster.
func (m *Member) Status() (*node.Status, error) {
	return node.FetchStatus(context.Background(), m.Config.Home())
}

// Eventually waits until check returns nil and fails the test if that takes
// longer than the timeout.
func (c *Cluster) Eventually(timeout time.Duration, what string, check func() error) {
	c.t.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			c.t.Fatalf("not within %s: %s: %v", timeout, what, err)
		case <-ticker.C:
		}
	}
}

// Leader returns the running member that leads, and waits for one.
func (c *Cluster) Leader() *Member {
	c.t.Helper()
	var leader *Member
	c.Eventually(FormTimeout, "there is a leader", func() error {
		for _, m := range c.Members {
			status, err := m.Status()
			if err != nil {
				continue
			}
			for _, n := range status.Nodes {
				if n.Leader && n.ID == m.Config.Name {
					leader = m
					return nil
				}
			}
		}
		return errors.New("no node says that it leads")
	})
	return leader
}
