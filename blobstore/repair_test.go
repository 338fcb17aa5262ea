package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

// mustRepair has a node carry out one task.
func (n *testNode) mustRepair(task *proto.RepairTask) {
	t := n.cluster.t
	t.Helper()
	errs, err := n.store.Repair(context.Background(), []*proto.RepairTask{task})
	if err == nil {
		err = errs[0]
	}
	if err != nil {
		t.Fatalf("repair on %s: %v", n.id, err)
	}
}

// harms are what can become of a shard's file.
var harms = map[string]func(path string, content []byte) error{
	"gone":      func(path string, _ []byte) error { return os.Remove(path) },
	"empty":     func(path string, _ []byte) error { return os.WriteFile(path, nil, 0o600) },
	"cut off":   func(path string, content []byte) error { return os.WriteFile(path, content[:len(content)/2], 0o600) },
	"bit flip":  func(path string, content []byte) error { return flip(path, content, headerBytes+1) },
	"no header": func(path string, content []byte) error { return flip(path, content, 0) },
	"no end":    func(path string, content []byte) error { return flip(path, content, len(content)-1) },
}

func flip(path string, content []byte, at int) error {
	harmed := bytes.Clone(content)
	harmed[at] ^= 1
	return os.WriteFile(path, harmed, 0o600)
}

// TestRebuildInPlace harms each shard of a blob in each way. What its holder makes
// of it is the very file that was there.
func TestRebuildInPlace(t *testing.T) {
	for _, nodes := range []int{2, 3, 5} {
		for _, size := range []int{1, 2999, 50_000, 250_000} {
			t.Run(fmt.Sprintf("%d bytes on %d nodes", size, nodes), func(t *testing.T) {
				c := startCluster(t, nodes, nil)
				b := c.nodes[0].push(size, 1)
				for _, e := range b.extents {
					for number := range e.GetHolders() {
						c.rebuildInPlace(e, number)
					}
				}
				c.nodes[0].checkPull(b)
			})
		}
	}
}

func (c *testCluster) rebuildInPlace(e *proto.Extent, number int) {
	t, path, holder := c.t, c.shardPath(e, number), c.holderOf(e, number)
	t.Helper()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, harm := range harms {
		if err := harm(path, before); err != nil {
			t.Fatal(err)
		}
		holder.store.disk.handles.forgetAll()
		c.report(e, number)
		holder.mustRepair(&proto.RepairTask{Extent: c.now([]*proto.Extent{e})[0], ShardNumber: uint32(number)})
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
			t.Errorf("shard %d was harmed (%s): it is another file now (%v)", number, name, err)
		}
		if damaged := c.now([]*proto.Extent{e})[0].GetDamagedShards(); len(damaged) > 0 {
			t.Errorf("shard %d was rebuilt, and is recorded as damaged still: %v", number, damaged)
		}
	}
}

// TestRebuildLeavesASoundShardAlone: a report may be wrong, or late.
func TestRebuildLeavesASoundShardAlone(t *testing.T) {
	c := startCluster(t, 3, nil)
	e := c.nodes[0].push(50_000, 1).extents[0]
	before, err := os.Stat(c.shardPath(e, 2))
	if err != nil {
		t.Fatal(err)
	}
	c.report(e, 2)
	c.holderOf(e, 2).mustRepair(&proto.RepairTask{Extent: c.now([]*proto.Extent{e})[0], ShardNumber: 2})
	if after, err := os.Stat(c.shardPath(e, 2)); err != nil || !os.SameFile(before, after) {
		t.Errorf("a sound shard was written anew (%v)", err)
	}
}

// TestRebuildElsewhere: a shard of a dead node is rebuilt on another one, and one of
// a node that is there is copied.
func TestRebuildElsewhere(t *testing.T) {
	for _, dead := range []bool{true, false} {
		t.Run(fmt.Sprint("dead ", dead), func(t *testing.T) {
			c := startCluster(t, 4, func(cfg *Config) { cfg.MaxDataShards = 2 })
			b := c.nodes[0].push(90_000, 1)
			e := b.extents[0]
			from, to := c.holderOf(e, 1), c.nodes[0]
			for _, n := range c.nodes {
				if n != c.holderOf(e, 0) && n != from && n != c.holderOf(e, 2) {
					to = n
				}
			}
			before, err := os.ReadFile(c.shardPath(e, 1))
			if err != nil {
				t.Fatal(err)
			}
			if dead {
				from.kill()
			}
			to.mustRepair(&proto.RepairTask{Extent: e, ShardNumber: 1})
			moved := c.now([]*proto.Extent{e})[0]
			if moved.GetHolders()[1] != to.id {
				t.Fatalf("holders are %v, shard 1 should be on %s", moved.GetHolders(), to.id)
			}
			if after, err := os.ReadFile(c.shardPath(moved, 1)); err != nil || !bytes.Equal(after, before) {
				t.Errorf("the shard is another one (%v)", err)
			}
			to.checkPull(&blob{content: b.content, extents: c.now(b.extents)})
		})
	}
}

// TestRebuildOfTheLastGoodCells: two shards of three are damaged, in different
// stripes. Neither shard is whole, and all can be rebuilt.
func TestRebuildOfTheLastGoodCells(t *testing.T) {
	c := startCluster(t, 3, nil)
	b := c.nodes[0].push(90_000, 1)
	e := b.extents[0]
	for number := range 2 {
		path := c.shardPath(e, number)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := flip(path, content, headerBytes+number*testConfig().CellBytes*5); err != nil {
			t.Fatal(err)
		}
		c.holderOf(e, number).store.disk.handles.forgetAll()
		c.report(e, number)
	}
	c.nodes[0].checkPull(b)
	for number := range 2 {
		c.holderOf(e, number).mustRepair(&proto.RepairTask{Extent: c.now([]*proto.Extent{e})[0], ShardNumber: uint32(number)})
	}
	for number := range 3 {
		l, err := extentLayout(e)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.holderOf(e, number).store.checkShard(context.Background(), e.GetId(), l, number); err != nil {
			t.Errorf("shard %d: %v", number, err)
		}
	}
	c.nodes[0].checkPull(b)
}

// TestRebuildImpossible: with too few shards nothing is written and nothing recorded.
func TestRebuildImpossible(t *testing.T) {
	c := startCluster(t, 3, nil)
	e := c.nodes[0].push(50_000, 1).extents[0]
	c.remove(e, 0)
	c.remove(e, 1)
	holder := c.holderOf(e, 0)
	c.report(e, 0)
	errs, err := holder.store.Repair(context.Background(), []*proto.RepairTask{{Extent: c.now([]*proto.Extent{e})[0]}})
	if err != nil || !errors.Is(errs[0], ErrTooFewShards) {
		t.Errorf("repair: %v, %v", errs, err)
	}
	if _, err := os.Stat(c.shardPath(e, 0)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the shard's file is there: %v", err)
	}
	if damaged := c.now([]*proto.Extent{e})[0].GetDamagedShards(); len(damaged) != 1 {
		t.Errorf("damaged are %v", damaged)
	}
}

// TestReencode: an extent is stored anew in the layout that the nodes left allow,
// and back.
func TestReencode(t *testing.T) {
	for _, size := range []int{1, 2999, 50_000, 250_000} {
		t.Run(fmt.Sprint(size, " bytes"), func(t *testing.T) {
			c := startCluster(t, 3, nil)
			b := c.nodes[0].push(size, 1)
			gone := c.holderOf(b.extents[0], 1)
			gone.kill()
			worker := c.others(gone)[0]
			for _, e := range b.extents {
				worker.mustRepair(&proto.RepairTask{Extent: e, Reencode: true})
			}
			narrow := &blob{content: b.content, extents: c.now(b.extents)}
			for _, e := range narrow.extents {
				if e.GetLayout().GetDataShards() != 1 || e.GetLayout().GetParityShards() != 1 {
					t.Errorf("layout on two nodes is %v", e.GetLayout())
				}
				c.checkExtent(e)
			}
			worker.checkPull(narrow)
			gone.heal()
			for _, e := range narrow.extents {
				gone.mustRepair(&proto.RepairTask{Extent: e, Reencode: true})
			}
			wide := &blob{content: b.content, extents: c.now(b.extents)}
			if k := wide.extents[0].GetLayout().GetDataShards(); size > 3000 && k != 2 {
				t.Errorf("k on three nodes is %d", k)
			}
			gone.checkPull(wide)
		})
	}
}
