package nodetest

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/node"
	atoll "github.com/atollregistry/atoll/proto"
)

const (
	// settleTimeout bounds the time in which a healed cluster comes to rest.
	settleTimeout = 60 * time.Second
	// checkSweepInterval makes the sweep of the closing checks quick. Nothing is
	// being written then, so that it needs no grace.
	checkSweepInterval = 500 * time.Millisecond
)

// Check ends every test: all nodes run, have all shards that they should, the same
// state, and serve every acknowledged blob and manifest byte for byte; then all of them stop and start
// again, the same still holds, and after a sweep no shard is on a disk that no
// record names.
func (c *Cluster) Check() {
	c.t.Helper()
	// Shards that are being moved would not survive a sweep without a grace.
	c.WaitWhole()
	c.checkState()
	c.sampleContent()
	for _, m := range c.Members {
		m.Stop()
	}
	for _, m := range c.Members {
		before := m.Tune
		m.Tune = func(cfg *blobstore.Config) {
			if before != nil {
				before(cfg)
			}
			cfg.SweepInterval, cfg.SweepGrace = checkSweepInterval, 0
		}
		m.Start()
	}
	for _, m := range c.Members {
		m.WaitReady()
	}
	c.checkShards()
	c.checkState()
	c.checkContent()
}

// WaitWhole waits until all nodes are well and every recorded shard is on the disk of
// the node that the records name.
func (c *Cluster) WaitWhole() {
	c.t.Helper()
	c.waitWhole(settleTimeout)
}

func (c *Cluster) waitWhole(timeout time.Duration) {
	c.t.Helper()
	c.Eventually(timeout, "every shard is where it should be", func() error {
		for _, m := range c.Members {
			status, err := m.Status()
			if err != nil {
				return err
			}
			if status.Health != node.HealthOK || len(status.Nodes) != len(c.Members) {
				return fmt.Errorf("%s says of %d nodes: %s %v", m.Config.Name, len(status.Nodes), status.Health, status.Problems)
			}
		}
		for _, m := range c.Members {
			if err := m.hasItsShards(); err != nil {
				return err
			}
		}
		return nil
	})
}

// hasItsShards says which of the shards that the records say are on a member is not
// there; nil if all are.
func (m *Member) hasItsShards() error {
	const page = 1000
	id, store := m.running().ID(), m.running().Metadata()
	if id == "" {
		return errors.New(m.Config.Name + " is not open yet")
	}
	for after := []byte(nil); ; {
		extents, err := store.ExtentsOn(id, after, page)
		if err != nil {
			return err
		}
		for _, e := range extents {
			after = e.GetId()
			if err := m.hasShard(e, slices.Index(e.GetHolders(), id)); err != nil {
				return err
			}
		}
		if len(extents) < page {
			return nil
		}
	}
}

// hasShard says why a shard's file is not on a member's disk; nil if it is.
func (m *Member) hasShard(e *atoll.Extent, number int) error {
	if _, err := os.Stat(m.shardFile(e, number)); err != nil {
		return fmt.Errorf("%s: recorded shard: %w", m.Config.Name, err)
	}
	return nil
}

// shardFile is where a member has a shard, or, if it has not, where it would in its
// first data folder.
func (m *Member) shardFile(e *atoll.Extent, number int) string {
	name := filepath.Join("shards", fmt.Sprintf("%02x", e.GetId()[0]), fmt.Sprintf("%x.%d", e.GetId(), number))
	for _, folder := range m.Config.Data[1:] {
		if _, err := os.Stat(filepath.Join(folder, name)); err == nil {
			return filepath.Join(folder, name)
		}
	}
	return filepath.Join(m.Config.Home(), name)
}

// checkState waits until all nodes have applied the same log and compares what
// came of it.
func (c *Cluster) checkState() {
	c.t.Helper()
	c.Eventually(settleTimeout, "all nodes have the same state", func() error {
		states := make(map[string][]string)
		for _, m := range c.Members {
			status, err := m.Status()
			if err != nil {
				return err
			}
			state := fmt.Sprintf("%d/%s", status.StateIndex, status.StateHash)
			states[state] = append(states[state], m.Config.Name)
		}
		if len(states) == 1 {
			return nil
		}
		byIndex := make(map[string]string)
		for state := range states {
			index, _, _ := strings.Cut(state, "/")
			if other, ok := byIndex[index]; ok {
				c.t.Fatalf("nodes have different states at log index %s: %s and %s: %v", index, other, state, states)
			}
			byIndex[index] = state
		}
		return fmt.Errorf("they differ in how far they are: %v", states)
	})
}

// checkContent reads everything that was acknowledged from every node.
func (c *Cluster) checkContent() {
	c.t.Helper()
	for _, m := range c.Members {
		for _, acked := range c.Acked() {
			if err := m.Read(acked); err != nil {
				c.t.Errorf("acknowledged content is not there: %v", err)
			}
		}
	}
}

// sampleContent is checkContent with each content read from one node, in turns.
func (c *Cluster) sampleContent() {
	c.t.Helper()
	for i, acked := range c.Acked() {
		if err := c.Members[i%len(c.Members)].Read(acked); err != nil {
			c.t.Errorf("acknowledged content is not there: %v", err)
		}
	}
}

// checkShards waits until every shard file on every disk belongs to a recorded
// extent.
func (c *Cluster) checkShards() {
	c.t.Helper()
	for _, m := range c.Members {
		c.Eventually(settleTimeout, "node "+m.Config.Name+" has no shard that no record names", func() error {
			files := m.ShardFiles()
			shards := make([]*atoll.ShardRef, len(files))
			for i, file := range files {
				shard, err := shardOf(file)
				if err != nil {
					return err
				}
				shard.NodeId = m.running().ID()
				shards[i] = shard
			}
			live, _, err := m.running().Metadata().LiveShards(context.Background(), shards)
			if err != nil {
				return err
			}
			for i := range live {
				if !live[i] {
					return errors.New("no record says that here is " + files[i])
				}
			}
			return nil
		})
	}
}

// shardOf takes a shard's extent and number from its file's name.
func shardOf(file string) (*atoll.ShardRef, error) {
	name, number, _ := strings.Cut(filepath.Base(file), ".")
	id, err := hex.DecodeString(name)
	if err != nil {
		return nil, fmt.Errorf("shard file %s: its name has no extent id: %w", file, err)
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("shard file %s: its name has no shard number: %w", file, err)
	}
	return &atoll.ShardRef{ExtentId: id, ShardNumber: uint32(n)}, nil
}
