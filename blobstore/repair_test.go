package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

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
	"bit flip":  func(path string, content []byte) error { return flip(path, content, 1) },
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

// TestRebuildFindsTheShardOfADeadProcess: a shard that is there already, since whoever
// wrote it died before it was recorded, is used, once its name is durable: the dead
// one may not have come to that.
func TestRebuildFindsTheShardOfADeadProcess(t *testing.T) {
	var mu sync.Mutex
	synced := make(map[string]bool)
	c := startCluster(t, 4, func(cfg *Config) {
		cfg.MaxDataShards = 2
		cfg.WatchSteps = func(step Step) {
			mu.Lock()
			defer mu.Unlock()
			if step.Op == OpSyncFolder && step.Done {
				synced[step.Path] = true
			}
		}
	})
	e := c.nodes[0].push(90_000, 1).extents[0]
	content, err := os.ReadFile(c.shardPath(e, 1))
	if err != nil {
		t.Fatal(err)
	}
	to := c.others(c.holderOf(e, 0), c.holderOf(e, 1), c.holderOf(e, 2))[0]
	left := to.store.disks.all[0].path(shardID{extent: [ExtentIDBytes]byte(e.GetId()), number: 1})
	if err := os.WriteFile(left, content, 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(left)
	if err != nil {
		t.Fatal(err)
	}
	clear(synced)
	to.mustRepair(&proto.RepairTask{Extent: e, ShardNumber: 1})
	if after, err := os.Stat(left); err != nil || !os.SameFile(before, after) {
		t.Errorf("a sound shard was written anew (%v)", err)
	}
	if !synced[filepath.Dir(left)] {
		t.Errorf("a shard was recorded whose name was not durable; synced are %v", synced)
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
		if err := flip(path, content, number*testConfig().CellBytes*5); err != nil {
			t.Fatal(err)
		}
		c.holderOf(e, number).store.disks.all[0].handles.forgetAll()
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

// TestRebuildDoesNotWaitForTheDead: what fails at once does not keep the others of
// its batch waiting.
func TestRebuildDoesNotWaitForTheDead(t *testing.T) {
	c := startCluster(t, 4, nil)
	e := c.nodes[0].push(100, 1).extents[0]
	for _, holder := range e.GetHolders() {
		c.node(holder).kill()
	}
	worker := c.nodes[slices.IndexFunc(c.nodes, func(n *testNode) bool { return n.store != nil })]
	worker.store.reconnectWait = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
	defer cancel()
	errs, err := worker.store.Repair(ctx, []*proto.RepairTask{{Extent: e}})
	if err != nil || !errors.Is(errs[0], ErrTooFewShards) {
		t.Errorf("repair: %v, %v", errs, err)
	}
}

// TestRepairLeavesAHungDisk: what hangs in a disk is given up after a while, and the
// disk gets no more of it.
func TestRepairLeavesAHungDisk(t *testing.T) {
	c := startCluster(t, 3, nil)
	e := c.nodes[0].push(50_000, 1).extents[0]
	c.remove(e, 0)
	c.report(e, 0)
	holder := c.holderOf(e, 0)
	holder.store.cfg.StallTimeout = testStall
	release := holder.hang()
	task := &proto.RepairTask{Extent: c.now([]*proto.Extent{e})[0]}
	for _, why := range []error{errStalled, ErrDisk} {
		errs, err := holder.store.Repair(t.Context(), []*proto.RepairTask{task})
		if err != nil || !errors.Is(errs[0], ErrDisk) || !errors.Is(errs[0], why) {
			t.Errorf("repair: %v, %v; want %v", errs, err, why)
		}
	}
	if free, _ := holder.store.Space(); free > 0 {
		t.Errorf("the disk takes %d bytes more", free)
	}
	release()
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
			gone.setDown(true)
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
			gone.setDown(false)
			if size < 3000 {
				return // It is mirrored on two nodes in any case.
			}
			for _, e := range narrow.extents {
				gone.mustRepair(&proto.RepairTask{Extent: e, Reencode: true})
			}
			wide := &blob{content: b.content, extents: c.now(b.extents)}
			if k := wide.extents[0].GetLayout().GetDataShards(); k != 2 {
				t.Errorf("k on three nodes is %d", k)
			}
			gone.checkPull(wide)
		})
	}
}

// TestSweepSparesWhatRepairReuses: a shard that came back with its node, and that the
// sweep has met long ago, is taken for the record's before that is made.
func TestSweepSparesWhatRepairReuses(t *testing.T) {
	c := startCluster(t, 4, func(cfg *Config) { cfg.MaxDataShards, cfg.SweepGrace = 2, time.Hour })
	e := c.nodes[0].push(90_000, 1).extents[0]
	to := c.nodes[slices.IndexFunc(c.nodes, func(n *testNode) bool { return !slices.Contains(e.GetHolders(), n.id) })]
	content, err := os.ReadFile(c.shardPath(e, 1))
	if err != nil {
		t.Fatal(err)
	}
	id, err := newShardID(e.GetId(), 1)
	if err != nil {
		t.Fatal(err)
	}
	disk := to.store.disks.all[0]
	if err := os.WriteFile(disk.path(id), content, 0o600); err != nil {
		t.Fatal(err)
	}
	clock := time.Now()
	sweep := newSweep(to.cfg, to.id, disk, to.store.disks, c)
	sweep.now = func() time.Time { return clock }
	if done, err := sweep.round(t.Context()); err != nil || done.suspects != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	moves := &moveBatch{catalog: c}
	if err := to.store.repairOne(t.Context(), &proto.RepairTask{Extent: e, ShardNumber: 1}, moves); err != nil {
		t.Fatal(err)
	}
	clock = clock.Add(time.Hour)
	if done, err := sweep.round(t.Context()); err != nil || done.removed > 0 {
		t.Errorf("%+v, %v", done, err)
	}
	if err := moves.record(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !disk.has(id) || c.now([]*proto.Extent{e})[0].GetHolders()[1] != to.id {
		t.Errorf("the shard is recorded on %s, and there: %v", c.now([]*proto.Extent{e})[0].GetHolders()[1], disk.has(id))
	}
}

// TestReencodeWaitsForASlowNode: storing an extent again is not given up because one
// holder is later than the others.
func TestReencodeWaitsForASlowNode(t *testing.T) {
	c := startCluster(t, 5, func(cfg *Config) { cfg.LateDelay = testHedge })
	e := c.nodes[0].push(90_000, 1).extents[0]
	c.nodes[3].kill() // Four are left, which 2+2 needs all.
	c.nodes[3].setDown(true)
	slow := c.nodes[4].store.disks.all[0]
	sync := slow.calls.sync
	slow.calls.sync = func(f *os.File) error {
		time.Sleep(20 * testHedge) // A busy hard disk among flash.
		return sync(f)
	}
	c.nodes[0].mustRepair(&proto.RepairTask{Extent: e, Reencode: true})
}

// TestRepairKeepsTheParity: where a dead node was removed and none has come in its
// place, extents are cut into fewer data shards, and keep what they can lose.
func TestRepairKeepsTheParity(t *testing.T) {
	c := startCluster(t, 5, nil)
	b := c.nodes[0].push(90_000, 1)
	removed := c.nodes[4]
	removed.kill()
	c.nodes = c.nodes[:4]
	c.drop(removed.id)
	defer c.nodes[0].lead()()
	eventually(t, waitLimit, "nothing is degraded", func() bool {
		degraded, err := c.DegradedExtents(nil, 10)
		return err == nil && len(degraded) == 0
	})
	for _, e := range c.now(b.extents) {
		if l := e.GetLayout(); l.GetDataShards() != 2 || l.GetParityShards() != 2 {
			t.Errorf("an extent of 3+2 became %d+%d", l.GetDataShards(), l.GetParityShards())
		}
	}
	removed.close()
}

// TestReencodeOnlyForTheBetter: a node that does not reach all that the leader reaches
// does not store a whole extent again in the layout that it has.
func TestReencodeOnlyForTheBetter(t *testing.T) {
	c := startCluster(t, 5, nil)
	c.nodes[4].setSick(true)
	e := c.nodes[0].push(90_000, 1).extents[0]
	c.nodes[4].setSick(false)
	c.nodes[1].Suspect(c.nodes[4].id, errors.New("no route"))
	task := &proto.RepairTask{Extent: e, Reencode: true}
	errs, err := c.nodes[1].store.Repair(t.Context(), []*proto.RepairTask{task})
	if err != nil || !errors.Is(errs[0], ErrInsufficientNodes) {
		t.Errorf("repair: %v, %v", errs, err)
	}
	if now := c.now([]*proto.Extent{e})[0]; !bytes.Equal(now.GetId(), e.GetId()) {
		t.Errorf("layout %v was replaced by %v", e.GetLayout(), now.GetLayout())
	}
	c.nodes[0].mustRepair(task)
	if now := c.now([]*proto.Extent{e})[0]; !betterLayout(now.GetLayout(), e.GetLayout()) {
		t.Errorf("layout %v was replaced by %v", e.GetLayout(), now.GetLayout())
	}
}
