package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/atollregistry/atoll/cmd/bench"
)

// cluster is atoll: nodes on this machine, with TLS between them, and plain HTTP for clients.
type cluster struct {
	at    place
	nodes []*node
}

// node is one of them.
type node struct {
	// url is where clients reach it; operations where its readiness and metrics are.
	url, operations string
	argv            []string
	log             string
	// process is nil while it does not run. One that is dead is not started any more.
	process *process
	dead    bool
}

// nodePorts is how many addresses a node listens at: for clients, other nodes and operators.
const nodePorts = 3

// newCluster makes certificates in a folder, which must be there, and starts nothing. It has a
// node for each nodePorts of the addresses.
func newCluster(ctx context.Context, program, folder string, addresses []string) (*cluster, error) {
	nodes := len(addresses) / nodePorts
	c := &cluster{at: place{folder: folder, pids: filepath.Join(folder, "pids")}}
	certs := filepath.Join(folder, "certs")
	command := []string{"certs", "--dir=" + certs}
	var joins []string
	for i := range nodes {
		name := fmt.Sprintf("n%d", i+1)
		registry, peers, operations := addresses[nodePorts*i], addresses[nodePorts*i+1], addresses[nodePorts*i+2]
		data := filepath.Join(folder, name)
		c.at.data, c.at.caches = append(c.at.data, data), append(c.at.caches, filepath.Join(data, "cache"))
		n := &node{url: "http://" + registry, operations: "http://" + operations, log: data + ".log"}
		n.argv = []string{
			program, "serve", "--name=" + name, "--data=" + data,
			"--registry-listen=" + registry, "--registry-url=" + n.url, "--registry-plain-http", "--auth-enabled=false",
			"--cluster-listen=" + peers, "--cluster-address=" + peers,
			"--cluster-ca=" + filepath.Join(certs, name, "ca.crt"),
			"--cluster-cert=" + filepath.Join(certs, name, "node.crt"), "--cluster-key=" + filepath.Join(certs, name, "node.key"),
			"--operations-listen=" + operations,
			// What one row loses stays lost: the time of its turns must not decide what is measured.
			"--down-after=24h",
		}
		c.nodes = append(c.nodes, n)
		command, joins = append(command, name), append(joins, "--join="+peers)
	}
	for _, n := range c.nodes {
		n.argv = append(n.argv, joins...)
	}
	if nodes == 1 {
		c.nodes[0].argv = append(c.nodes[0].argv, "--bootstrap") // nobody else is there to ask for the cluster
	}
	if out, err := exec.CommandContext(ctx, program, command...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make certificates: %w: %s", err, out)
	}
	return c, nil
}

func (c *cluster) place() *place { return &c.at }

// start starts all nodes but the dead.
func (c *cluster) start(ctx context.Context) (err error) {
	var pids []int
	for _, n := range c.living() {
		if n.process, err = startProcess(n.log, n.argv...); err != nil {
			return err
		}
		pids = append(pids, n.process.pid())
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range c.living() {
		group.Go(func() error { return await(ctx, n.process, n.operations+"/readyz") })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return c.at.writePIDs(pids)
}

// living are the nodes that are not dead.
func (c *cluster) living() (living []*node) {
	for _, n := range c.nodes {
		if !n.dead {
			living = append(living, n)
		}
	}
	return living
}

// stop has all nodes end at once.
func (c *cluster) stop() error {
	var group errgroup.Group
	for _, n := range c.nodes {
		if n.process != nil {
			group.Go(n.process.stop)
		}
	}
	return group.Wait()
}

// killLast has the last node die, for good.
func (c *cluster) killLast() error {
	last := c.nodes[len(c.nodes)-1]
	last.dead = true
	return last.process.kill()
}

func (c *cluster) registry() bench.Registry {
	r := bench.Registry{Name: string(atoll), Processes: []string{c.at.pids}}
	for _, n := range c.nodes {
		r.URLs = append(r.URLs, n.url)
	}
	return r
}

// missSeries counts the reads of blobs that were not in a node's cache, nor just coming in:
// each reads the shards, and all others wait for that or need none.
const missSeries = `atoll_cache_reads_total{result="miss"}`

// mostReads is how often one of the nodes has read shards for a client since it started, of
// all nodes the most.
func (c *cluster) mostReads(ctx context.Context) (most float64, err error) {
	for _, n := range c.living() {
		page, err := ask(ctx, n.operations+"/metrics")
		if err != nil {
			return 0, err
		}
		reads, err := seriesValue(string(page), missSeries)
		if err != nil {
			return 0, fmt.Errorf("metrics of %s: %w", n.url, err)
		}
		most = max(most, reads)
	}
	return most, nil
}
