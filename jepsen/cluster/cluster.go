// Package cluster runs a cluster of real processes that can be killed, paused, cut off
// and damaged, each on a disk of its own. It knows atoll only by its command line, its ports
// and its files.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	registryPort   = "5000"
	clusterPort    = "5100"
	operationsPort = "5200"
	// folders is how many data folders a node has: one with the metadata, and one with nothing but shards,
	// where no log keeps making what was done before durable.
	folders = 2
	// FormTimeout bounds the time until a new cluster is ready.
	FormTimeout = 60 * time.Second
	// pollInterval is the pause between two looks at a condition: a look may start processes.
	pollInterval = 250 * time.Millisecond
)

// Host is where a node runs: an address, and perhaps a network of its own.
type Host interface {
	// Address is the IP address of the host.
	Address() string
	// Do runs f so that processes which it starts run on the host.
	Do(f func() error) error
	// DialContext connects from the host.
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Config says what cluster to run.
type Config struct {
	// Program is the path of atoll.
	Program string
	// Dir is the folder for logs, certificates and data. Images is the folder for the
	// images of disks; empty for data in plain folders, which can't lose power or be full.
	Dir, Images string
	// DiskBytes is the size of each disk; a node has two.
	DiskBytes int64
	// Nodes is how many nodes the cluster has, Spares how many more there may be.
	Nodes, Spares int
	// Settings are further flags of serve.
	Settings []string
	// Env are further variables of the nodes' environment, as NAME=VALUE; {node} stands for the
	// node's name.
	Env []string
	// Host makes the host of a node; Client is the one that requests come from.
	Host   func(name string) (Host, error)
	Client Host
	// Log tells the user something.
	Log func(format string, args ...any)
}

// Cluster is a cluster under test.
type Cluster struct {
	cfg   Config
	probe *http.Client

	mu    sync.Mutex // guards nodes, and which of them are members
	nodes []*Node

	stop context.CancelFunc
	all  sync.WaitGroup
}

// Start forms a cluster and waits until all nodes are ready. The caller must Close it,
// also after an error.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	c := &Cluster{cfg: cfg}
	c.probe = &http.Client{Timeout: probeTimeout, Transport: &http.Transport{DialContext: cfg.Client.DialContext, DisableKeepAlives: true}}
	background, stop := context.WithCancel(context.Background())
	c.stop = stop
	names := make([]string, cfg.Nodes+cfg.Spares)
	for i := range names {
		names[i] = "n" + strconv.Itoa(i+1)
	}
	if err := c.makeCertificates(names); err != nil {
		return c, err
	}
	for i, name := range names {
		node, err := c.newNode(name)
		if node != nil {
			node.member = i < cfg.Nodes
			c.nodes = append(c.nodes, node)
		}
		if err != nil {
			return c, err
		}
	}
	for _, node := range c.Members() {
		if err := node.Start(); err != nil {
			return c, err
		}
	}
	for _, node := range c.nodes {
		c.all.Go(func() { c.watch(background, node) })
	}
	return c, c.form(ctx)
}

// ErrEnded is that a node has ended by itself before there was a cluster.
var ErrEnded = errors.New("node does not run")

// form waits until all nodes of a new cluster are ready.
func (c *Cluster) form(ctx context.Context) error {
	return c.Eventually(ctx, FormTimeout, "a cluster is formed", func() error {
		for _, n := range c.Members() {
			if exits := n.Exits(); len(exits) > 0 {
				return fmt.Errorf("%w: %s: %s: %s", ErrEnded, n.Name, exits[0].How, exits[0].Tail)
			}
			if !c.readyz(ctx, n) {
				return fmt.Errorf("%s is not ready: %s", n.Name, n.State())
			}
		}
		return nil
	})
}

// Close kills all processes and unmounts their disks.
func (c *Cluster) Close() error {
	c.stop()
	var faults []error
	for _, node := range c.nodes {
		faults = append(faults, node.close())
	}
	c.all.Wait()
	c.probe.CloseIdleConnections()
	return errors.Join(faults...)
}

func (c *Cluster) makeCertificates(names []string) error {
	argv := append([]string{"certs", "--dir", c.certificates()}, names...)
	if out, err := exec.Command(c.cfg.Program, argv...).CombinedOutput(); err != nil {
		return fmt.Errorf("make certificates: %w: %s", err, out)
	}
	return nil
}

func (c *Cluster) certificates() string { return filepath.Join(c.cfg.Dir, "certificates") }

// Dir returns the folder for logs and the like.
func (c *Cluster) Dir() string { return c.cfg.Dir }

// Parity returns how many nodes may lose all that they have at once: with --parity left alone,
// it follows the number of nodes.
func (c *Cluster) Parity() int {
	switch {
	case c.cfg.Nodes >= 5:
		return 2
	case c.cfg.Nodes >= 3:
		return 1
	}
	return 0
}

// Members returns the nodes that are in the cluster, whether or not they run.
func (c *Cluster) Members() []*Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.nodes), func(n *Node) bool { return !n.member })
}

// Spares returns the nodes that are not in the cluster.
func (c *Cluster) Spares() []*Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.nodes), func(n *Node) bool { return n.member })
}

// SetMember says whether a node is meant to be in the cluster.
func (c *Cluster) SetMember(n *Node, member bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n.member = member
}

// Pick returns some members in a random order, at most count.
func (c *Cluster) Pick(random *rand.Rand, count int) []*Node {
	members := c.Members()
	random.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	return members[:min(count, len(members))]
}

// Ready returns the members that have said lately that they can serve everything: those that
// a balancer sends clients to.
func (c *Cluster) Ready() []*Node {
	return slices.DeleteFunc(c.Members(), func(n *Node) bool { return !n.ready.Load() })
}

// ErrNotSo is that a condition did not come to hold in time.
var ErrNotSo = errors.New("it is not so")

// Eventually waits until a condition holds, which it tells by nil, or never will.
func (c *Cluster) Eventually(ctx context.Context, timeout time.Duration, what string, condition func() error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		err := condition()
		if err == nil || errors.Is(err, ErrDiverged) || errors.Is(err, ErrEnded) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w, after %s, that %s: %w", ErrNotSo, timeout, what, err)
		case <-ticker.C:
		}
	}
}

// newNode makes a node's host and disks.
func (c *Cluster) newNode(name string) (*Node, error) {
	n := &Node{Name: name, cluster: c, program: c.cfg.Program, exited: make(chan struct{})}
	close(n.exited) // no process yet
	host, err := c.cfg.Host(name)
	if err != nil {
		return nil, fmt.Errorf("host of %s: %w", name, err)
	}
	n.host = host
	for i := range folders {
		mount := filepath.Join(c.cfg.Dir, "disks", fmt.Sprintf("%s-%d", name, i))
		n.Folders = append(n.Folders, filepath.Join(mount, "data"))
		if c.cfg.Images == "" {
			if err := os.MkdirAll(mount, 0o700); err != nil {
				return n, err
			}
			continue
		}
		disk, err := newDisk(filepath.Join(c.cfg.Images, fmt.Sprintf("%s-%d.ext4", name, i)), mount, c.cfg.DiskBytes)
		if err != nil {
			return n, err
		}
		n.Disks = append(n.Disks, disk)
	}
	return n, nil
}
