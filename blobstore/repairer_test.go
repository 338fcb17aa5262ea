package blobstore

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

// lead has a node lead the repair until the function returned is called.
func (n *testNode) lead() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	store := n.store
	go func() {
		defer close(done)
		store.RepairCluster(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// setDown makes a node count as down, or not.
func (n *testNode) setDown(down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = down
}

// whole says why an extent does not have all its shards, sound, on different nodes
// that stay, as redundant as the cluster's size wants it; nil if it has.
func (c *testCluster) whole(e *proto.Extent) error {
	l, err := extentLayout(e)
	if err != nil {
		return err
	}
	if l.parity < parityShards(len(c.nodes), -1) {
		return fmt.Errorf("extent %x has %d parity shards on %d nodes", e.GetId(), l.parity, len(c.nodes))
	}
	for number, holder := range e.GetHolders() {
		n := c.node(holder)
		if n == nil || n.store == nil || slices.Contains(e.GetHolders()[:number], holder) {
			return fmt.Errorf("extent %x has shard %d on %q", e.GetId(), number, holder)
		}
		n.mu.Lock()
		gone := n.down || n.draining
		n.mu.Unlock()
		if gone {
			return fmt.Errorf("extent %x has shard %d on %s, which goes", e.GetId(), number, holder)
		}
		if err := n.store.checkShard(context.Background(), e.GetId(), l, number); err != nil {
			return err
		}
	}
	if len(e.GetDamagedShards()) > 0 {
		return fmt.Errorf("extent %x counts as damaged", e.GetId())
	}
	return nil
}

// waitWhole waits until all blobs are whole, and reads them.
func (c *testCluster) waitWhole(reader *testNode, blobs ...*blob) {
	c.t.Helper()
	var why error
	eventually(c.t, waitLimit, "all blobs are whole", func() bool {
		for _, b := range blobs {
			for _, e := range c.now(b.extents) {
				if why = c.whole(e); why != nil {
					return false
				}
			}
		}
		return true
	})
	for _, b := range blobs {
		reader.checkPull(&blob{content: b.content, extents: c.now(b.extents)})
	}
}

// pushMany stores blobs of many sizes through all nodes.
func (c *testCluster) pushMany() (blobs []*blob) {
	for i, size := range []int{1, 100, 2999, 3001, 20_000, 90_000, 250_000} {
		blobs = append(blobs, c.nodes[i%len(c.nodes)].push(size, uint64(i+1)))
	}
	return blobs
}

// TestRepairAfterNodeLoss: whatever of its nodes a cluster loses, up to its
// redundancy, all blobs are whole again on the others. If they are too few for the
// layout, that changes.
func TestRepairAfterNodeLoss(t *testing.T) {
	for _, test := range []struct{ nodes, lost int }{{3, 1}, {4, 1}, {5, 1}, {5, 2}, {6, 2}} {
		t.Run(fmt.Sprintf("%d of %d", test.lost, test.nodes), func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, test.nodes, nil)
			blobs := c.pushMany()
			for _, n := range c.nodes[:test.lost] {
				n.kill()
				n.setDown(true)
			}
			leader := c.nodes[test.lost]
			defer leader.lead()()
			c.waitWhole(leader, blobs...)
		})
	}
}

// TestRepairWaitsForANode: nothing is copied while a node may come back, nor after
// it has.
func TestRepairWaitsForANode(t *testing.T) {
	c := startCluster(t, 4, nil)
	b := c.nodes[0].push(250_000, 1)
	c.nodes[3].setSick(true)
	r := newRepairer(c.nodes[0].store)
	if planned := r.plan(context.Background()); len(planned) > 0 {
		t.Errorf("planned %v while a node is away", planned)
	}
	c.nodes[3].setDown(true)
	if planned := r.plan(context.Background()); len(planned) == 0 {
		t.Error("planned nothing although a node is down")
	}
	c.nodes[3].setSick(false)
	c.nodes[3].setDown(false)
	if planned := newRepairer(c.nodes[0].store).plan(context.Background()); len(planned) > 0 {
		t.Errorf("planned %v although the node is back", planned)
	}
	c.waitWhole(c.nodes[0], b)
}

// TestRepairOfDamage: reported shards are mended in their place.
func TestRepairOfDamage(t *testing.T) {
	c := startCluster(t, 3, nil)
	blobs := c.pushMany()
	for _, b := range blobs {
		for i, e := range b.extents {
			number := i % len(e.GetHolders())
			c.remove(e, number)
			c.report(e, number)
		}
	}
	defer c.nodes[1].lead()()
	c.waitWhole(c.nodes[0], blobs...)
}

// TestDrain: a node that is being emptied holds nothing in the end, and no extent
// has fewer shards than it should on the way.
func TestDrain(t *testing.T) {
	for _, nodes := range []int{3, 4, 6} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, nodes, nil)
			blobs := c.pushMany()
			c.nodes[0].setDraining(true)
			defer c.nodes[0].lead()()
			eventually(t, waitLimit, "the node is empty", func() bool {
				for _, b := range blobs {
					for _, e := range c.now(b.extents) {
						if slices.Contains(e.GetHolders(), "") {
							t.Errorf("extent %x is on %v", e.GetId(), e.GetHolders())
						}
						for number := range e.GetHolders() {
							if _, err := os.Stat(c.shardPath(e, number)); err != nil {
								t.Error(err)
							}
						}
					}
				}
				usage, err := c.ShardUsage()
				return err == nil && usage[c.nodes[0].id].GetShards() == 0
			})
			c.waitWhole(c.nodes[1], blobs...)
		})
	}
}

// TestRepairGoesOnUnderTheNextLeader: leaders come and go in the middle.
func TestRepairGoesOnUnderTheNextLeader(t *testing.T) {
	c := startCluster(t, 5, nil)
	var blobs []*blob
	for i := range 20 {
		blobs = append(blobs, c.nodes[i%5].push(100_000, uint64(i+1)))
	}
	c.nodes[4].kill()
	c.nodes[4].setDown(true)
	for i := range 10 {
		stop := c.nodes[i%4].lead()
		eventually(t, waitLimit, "the leader has begun", func() bool {
			_, leads := c.nodes[i%4].store.RepairStatus()
			return leads
		})
		stop()
	}
	defer c.nodes[0].lead()()
	c.waitWhole(c.nodes[1], blobs...)
}

// TestRepairMostUrgentFirst: of what a node is given, the extents with the fewest
// shards to spare come first.
func TestRepairMostUrgentFirst(t *testing.T) {
	b := newBatches(map[string]bool{"a": true})
	for _, spare := range []int{2, 0, 1, -1, 0} {
		b.add(job{node: "a", spare: spare, bytes: batchBytes / 3})
	}
	b.add(job{node: "busy", spare: -2})
	planned := b.cut()
	var order []int
	for _, j := range planned["a"] {
		order = append(order, j.spare)
	}
	if !slices.Equal(order, []int{-1, 0, 0}) || len(planned) != 1 {
		t.Errorf("planned %v", planned)
	}
}

// TestRebalance: a node that joins gets its share, and then nothing moves any more.
func TestRebalance(t *testing.T) {
	c := startCluster(t, 4, func(cfg *Config) { cfg.RebalanceThreshold, cfg.RebalanceMinBytes = 1e-12, 40_000 })
	c.nodes[3].setSick(true)
	var blobs []*blob
	for i := range 30 {
		blobs = append(blobs, c.nodes[i%3].push(50_000, uint64(i+1)))
	}
	c.nodes[3].setSick(false)
	defer c.nodes[0].lead()()
	eventually(t, waitLimit, "the new node has its share", func() bool {
		usage, err := c.ShardUsage()
		if err != nil {
			t.Fatal(err)
		}
		least, most := usage["node-3"].GetBytes(), uint64(0)
		for _, of := range usage {
			least, most = min(least, of.GetBytes()), max(most, of.GetBytes())
		}
		return least > 0 && most-least <= 40_000
	})
	c.waitWhole(c.nodes[1], blobs...)
	if planned, err := newRepairer(c.nodes[1].store).planRebalance(newSurvey(c.nodes[1].cfg, c.nodes[1].Nodes()), map[string]bool{"node-0": true}); err != nil || len(planned) > 0 {
		t.Errorf("moves on: %v (%v)", planned, err)
	}
}

// TestReencodeOnRequest: what was stored on few nodes is brought into the layout of
// many, and the request is over then.
func TestReencodeOnRequest(t *testing.T) {
	c := startCluster(t, 5, nil)
	for _, n := range c.nodes[3:] {
		n.setSick(true)
	}
	blobs := c.pushMany()
	for _, n := range c.nodes[3:] {
		n.setSick(false)
	}
	c.settings.RebalancePaused, c.settings.Reencode = true, true
	defer c.nodes[0].lead()()
	eventually(t, waitLimit, "the request is over", func() bool { return !c.LocalSettings().GetReencode() })
	for _, b := range blobs {
		for _, e := range c.now(b.extents) {
			if l := e.GetLayout(); e.GetSize() > 3000 && l.GetDataShards() != 3 || l.GetParityShards() != 2 {
				t.Errorf("extent of %d bytes has layout %v", e.GetSize(), l)
			}
		}
	}
	c.waitWhole(c.nodes[1], blobs...)
}
