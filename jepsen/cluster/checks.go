package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// SettleTimeout bounds the time in which a healed cluster comes to rest: nodes that were
// wiped get all their shards back, and what no record names is swept.
const SettleTimeout = 180 * time.Second

// WaitHealthy waits until every member says that all is well: all nodes answer, and every blob has
// all its shards.
func (c *Cluster) WaitHealthy(ctx context.Context) error {
	return c.Eventually(ctx, SettleTimeout, "every node says that all is well", func() error { return c.healthy(ctx) })
}

// WaitSame waits until all members have the same state.
func (c *Cluster) WaitSame(ctx context.Context) error {
	return c.Eventually(ctx, SettleTimeout, "all nodes have the same state", func() error { return c.same(ctx) })
}

// WaitSwept waits until each member has as many shard files as the records say. Nobody lists which
// those are: one file that no record names and another one that is not there would make up for
// each other. So ScrubClean comes before: once it finds none missing, equal counts are equal sets.
func (c *Cluster) WaitSwept(ctx context.Context) error {
	return c.Eventually(ctx, SettleTimeout, "the shards on the disks are those of the records", func() error { return c.shards(ctx) })
}

func (c *Cluster) healthy(ctx context.Context) error {
	members := c.Members()
	for _, n := range members {
		status, err := n.Status(ctx)
		if err != nil {
			return err
		}
		if status.Health != "ok" || len(status.Nodes) != len(members) {
			return fmt.Errorf("%s says of %d nodes: %s %v", n.Name, len(status.Nodes), status.Health, status.Problems)
		}
	}
	return nil
}

// ErrDiverged is that two nodes have different states at the same log index, which never heals.
var ErrDiverged = errors.New("states differ")

// same compares the states of all members, asked at once: an idle cluster writes every few seconds,
// too.
func (c *Cluster) same(ctx context.Context) error {
	members := c.Members()
	told, faults := statuses(ctx, members)
	hashes, names := make(map[uint64]string), make(map[uint64]string)
	for i, n := range members {
		status := told[i]
		if status == nil {
			continue
		}
		if other, ok := hashes[status.StateIndex]; ok && other != status.StateHash {
			return fmt.Errorf("%w at log index %d: %s has %s, %s has %s", ErrDiverged, status.StateIndex, names[status.StateIndex], other, n.Name, status.StateHash)
		}
		hashes[status.StateIndex], names[status.StateIndex] = status.StateHash, n.Name
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	if len(hashes) > 1 {
		return fmt.Errorf("they differ in how far they are: %v", names)
	}
	return nil
}

// shards compares how many shard files each node has with what the records say.
func (c *Cluster) shards(ctx context.Context) error {
	members := c.Members()
	status, err := members[0].Status(ctx)
	if err != nil {
		return err
	}
	for _, n := range members {
		files, err := n.ShardFiles()
		if err != nil {
			return err
		}
		told := status.Find(n.Name)
		if told == nil {
			return fmt.Errorf("%s does not know of %s", members[0].Name, n.Name)
		}
		if told.Shards != len(files) {
			return fmt.Errorf("%s has %d shard files, and the records say %d", n.Name, len(files), told.Shards)
		}
	}
	return nil
}

// ShardFiles returns the paths of a node's shards.
func (n *Node) ShardFiles() ([]string, error) {
	var shards []string
	for _, folder := range n.Folders {
		files, err := filepath.Glob(filepath.Join(folder, "shards", "??", "*"))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
				shards = append(shards, file)
			}
		}
	}
	return shards, nil
}

// Verify has the cluster read everything back without as many nodes as may be lost at once. They
// are killed for it, and are members like before when it returns.
func (c *Cluster) Verify(ctx context.Context) error {
	members := c.Members()
	without := members[len(members)-c.Parity():]
	for _, n := range without {
		if err := n.Kill(); err != nil {
			return err
		}
	}
	_, err := members[0].command(ctx, dataTimeout, "verify")
	if err != nil {
		err = fmt.Errorf("without %v: %w", namesOf(without), err)
	}
	for _, n := range without {
		err = errors.Join(err, n.Start())
	}
	return errors.Join(err, c.WaitReady(ctx, SettleTimeout), c.WaitHealthy(ctx))
}

// names are what nodes are called.
func namesOf(nodes []*Node) []string {
	called := make([]string, len(nodes))
	for i, n := range nodes {
		called[i] = n.Name
	}
	return called
}
