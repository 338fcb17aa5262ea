package blobstore

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

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
	defer func() {
		if why != nil {
			c.t.Logf("last seen: %v", why)
		}
	}()
	eventually(c.t, waitLimit, "all blobs are whole", func() bool {
		why = nil
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

// TestDrainDoesNotWaitForTheHopeless: a node gives away the shard of an extent whose
// others are lost for good.
func TestDrainDoesNotWaitForTheHopeless(t *testing.T) {
	c := startCluster(t, 5, func(cfg *Config) { cfg.MaxDataShards, cfg.Parity = 2, 1 })
	e := c.nodes[0].push(50_000, 1).extents[0]
	for _, number := range []int{1, 2} {
		c.remove(e, number)
		c.report(e, number)
	}
	leaving := c.holderOf(e, 0)
	leaving.setDraining(true)
	defer leaving.lead()()
	eventually(t, waitLimit, "the node is empty", func() bool {
		usage, err := c.ShardUsage()
		return err == nil && usage[leaving.id].GetShards() == 0
	})
	l, err := extentLayout(e)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.holderOf(c.now([]*proto.Extent{e})[0], 0).store.checkShard(t.Context(), e.GetId(), l, 0); err != nil {
		t.Error(err)
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

// TestLeadershipEndsUnderAHungDisk: the leader's own disk hangs in the middle of its
// repair, and its duties end all the same.
func TestLeadershipEndsUnderAHungDisk(t *testing.T) {
	c := startCluster(t, 3, func(cfg *Config) { cfg.StallTimeout = time.Hour })
	e := c.nodes[0].push(50_000, 1).extents[0]
	c.remove(e, 0)
	c.report(e, 0)
	leader := c.holderOf(e, 0)
	release := leader.hang()
	stop := leader.lead()
	eventually(t, waitLimit, "the leader repairs", func() bool {
		status, leads := leader.store.RepairStatus()
		return leads && status.Running[leader.id] > 0
	})
	stopped := make(chan struct{})
	go func() { defer close(stopped); stop() }()
	select {
	case <-stopped:
	case <-time.After(waitLimit):
		t.Error("the leader repairs on although it leads no more")
	}
	release()
	<-stopped
}

// TestRepairMostUrgentFirst: of what a node is given, the extents with the fewest
// shards to spare come first, and those that can't be read last.
func TestRepairMostUrgentFirst(t *testing.T) {
	b := newBatches(map[string]bool{"a": true})
	for _, spare := range []int{2, -2, 0, -1, 1} {
		b.add(job{node: "a", spare: spare, bytes: batchBytes / 4})
	}
	b.add(job{node: "busy", spare: 0})
	planned := b.cut()
	var order []int
	for _, j := range planned["a"] {
		order = append(order, j.spare)
	}
	if !slices.Equal(order, []int{0, 1, 2, -1}) || len(planned) != 1 {
		t.Errorf("planned %v", planned)
	}
}

// pagedRecords are records whose lists are given, in order, so that long ones take
// no time.
type pagedRecords struct {
	*records
	degraded []*proto.Extent
	on       map[string][]*proto.Extent
}

func pageOf(all []*proto.Extent, after []byte, limit int) ([]*proto.Extent, error) {
	at, found := slices.BinarySearchFunc(all, after, func(e *proto.Extent, id []byte) int { return bytes.Compare(e.GetId(), id) })
	if found {
		at++
	}
	return all[at:min(len(all), at+limit)], nil
}

// DegradedExtents is Catalog's.
func (p *pagedRecords) DegradedExtents(after []byte, limit int) ([]*proto.Extent, error) {
	return pageOf(p.degraded, after, limit)
}

// ExtentsOn is Catalog's.
func (p *pagedRecords) ExtentsOn(node string, after []byte, limit int) ([]*proto.Extent, error) {
	return pageOf(p.on[node], after, limit)
}

// mirrored makes extents in two copies, whose ids begin with a word of four letters.
func mirrored(word string, count int, holders ...string) (extents []*proto.Extent) {
	for i := range count {
		extents = append(extents, &proto.Extent{
			Id: fmt.Appendf(nil, "%s%012d", word, i), Size: 100, Layout: &proto.Layout{DataShards: 1, ParityShards: 1, CellBytes: 4096}, Holders: holders,
		})
	}
	return extents
}

// plannedRepairer is a repairer of a cluster of four nodes, the last of which is
// down, with a clock of its own.
func plannedRepairer(t *testing.T, lists *pagedRecords) (r *repairer, clock *time.Time) {
	c := startCluster(t, 4, nil)
	c.nodes[3].setSick(true)
	c.nodes[3].setDown(true)
	lists.records = c.records
	r = newRepairer(c.nodes[0].store)
	r.store.catalog = lists
	now := time.Now()
	r.now = func() time.Time { return now }
	return r, &now
}

// TestRepairOfTheHopelessKeepsNobodyWaiting: extents that can't be read are many,
// and trying them costs whole batches their time. What can be saved is saved at once,
// and the others still have their turn.
func TestRepairOfTheHopelessKeepsNobodyWaiting(t *testing.T) {
	const hopeless = scanExtents + 1000
	on := append(mirrored("dead", hopeless, "", "node-3"), mirrored("save", 1, "node-0", "node-3")...)
	r, clock := plannedRepairer(t, &pagedRecords{on: map[string][]*proto.Extent{"node-3": on}})
	saved, tried := 0, make(map[extentKey]bool)
	const rounds = 5
	for range rounds {
		for node, jobs := range r.plan(t.Context()) {
			bad := 0
			for _, j := range jobs {
				tried[keyOfExtent(j.task.GetExtent())] = true
				if j.hopeless() {
					bad++
				} else {
					saved++
				}
			}
			if bad > batchHopeless {
				t.Fatalf("%s gets %d extents that can't be read", node, bad)
			}
			*clock = clock.Add(batchTimeout)
			r.settle(batchResult{node: node, err: context.DeadlineExceeded})
		}
		*clock = clock.Add(nodeRest + time.Second)
	}
	if saved == 0 {
		t.Error("the extent with one copy left was given to nobody")
	}
	if len(tried) < rounds*batchHopeless {
		t.Errorf("%d extents were tried in all: those of a batch that failed as a whole do not rest", len(tried))
	}
}

// TestRepairAsksEveryNode: a task that fails goes round among those who could do it.
func TestRepairAsksEveryNode(t *testing.T) {
	r, clock := plannedRepairer(t, &pagedRecords{degraded: mirrored("lone", 1, "node-0", "")})
	for round := range 3 {
		asked := make(map[string]bool)
		for range 2 { // node-0 has a shard, node-3 is down
			for node, jobs := range r.plan(t.Context()) {
				asked[node] = true
				r.settle(batchResult{node: node, errs: slices.Repeat([]error{ErrDisk}, len(jobs))})
			}
			*clock = clock.Add(extentRestMax)
		}
		if len(asked) != 2 {
			t.Errorf("round %d: %v were asked, and two nodes could do it", round, asked)
		}
	}
}

// TestRepairLooksAtAllLists: a list that is full of what can't be helped keeps
// nobody from the lists behind it.
func TestRepairLooksAtAllLists(t *testing.T) {
	const count = 1000
	r, clock := plannedRepairer(t, &pagedRecords{
		degraded: mirrored("lost", 3*scanVain, "", ""),
		on:       map[string][]*proto.Extent{"node-3": mirrored("save", count, "node-0", "node-3")},
	})
	for _, resting := range []bool{false, true} {
		if resting {
			for _, e := range r.store.catalog.(*pagedRecords).degraded {
				r.failed[keyOfExtent(e)] = failure{attempts: 10, until: clock.Add(extentRestMax)}
			}
		}
		saved := 0
		for node, jobs := range r.plan(t.Context()) {
			for _, j := range jobs {
				delete(r.inWork, keyOfExtent(j.task.GetExtent()))
				if !j.hopeless() {
					saved++
				}
			}
			delete(r.busy, node)
		}
		if saved != count {
			t.Errorf("of %d extents with one copy left %d are given out, the others resting: %v", count, saved, resting)
		}
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

// TestRebalanceGoesRoundTheFullest: a node that is the fullest, and has nothing that
// another could take, does not keep the others from being balanced.
func TestRebalanceGoesRoundTheFullest(t *testing.T) {
	c := startCluster(t, 4, func(cfg *Config) { cfg.RebalanceMinBytes = 1 })
	for i := range 100 {
		c.put(&proto.Extent{
			Id: fmt.Appendf(nil, "wide%012d", i), Size: 200_000, Layout: &proto.Layout{DataShards: 2, ParityShards: 2, CellBytes: 4096},
			Holders: []string{"node-0", "node-1", "node-2", "node-3"},
		})
	}
	r := newRepairer(c.nodes[0].store)
	nodes, idle := c.nodes[0].Nodes(), make(map[string]bool)
	for i := range nodes {
		nodes[i].CapacityBytes = 40_000_000
		idle[nodes[i].ID] = true
	}
	nodes[0].CapacityBytes = 11_000_000 // A small, old disk: 90 % of it are full.
	look := func() map[string][]job {
		planned, err := r.planRebalance(newSurvey(r.store.cfg, nodes), idle)
		if err != nil {
			t.Fatal(err)
		}
		return planned
	}
	if planned := look(); len(planned) > 0 || r.mayLook(rebalanceLists) {
		t.Errorf("planned %v; looks again at once: %v", planned, r.mayLook(rebalanceLists))
	}
	for _, e := range mirrored("pair", 100, "node-1", "node-2") {
		e.Size = 200_000
		c.put(e)
	}
	if planned := look(); len(planned["node-3"]) == 0 {
		t.Errorf("nothing moves to the emptiest node: %v", planned)
	}
}

// TestReencodeWaitsForRoom: a request is not over while there is only no room for the
// better layout.
func TestReencodeWaitsForRoom(t *testing.T) {
	c := startCluster(t, 5, nil)
	extent := extentOn(t, "1+1 a b")
	extent.Size = 500_000
	c.put(extent)
	r := newRepairer(c.nodes[0].store)
	v := surveyOf(t, "a b c d e")
	idle := make(map[string]bool)
	for i := range v.nodes {
		idle[v.nodes[i].ID] = true
		v.nodes[i].FreeBytes = 10_000
	}
	if planned, done, err := r.planReencode(v, idle); len(planned) > 0 || done || err != nil || r.mayLook(reencodeList) {
		t.Errorf("without room: planned %v, done %v (%v); looks again at once: %v", planned, done, err, r.mayLook(reencodeList))
	}
	for i := range v.nodes {
		v.nodes[i].FreeBytes = 1 << 30
	}
	if planned, done, err := r.planReencode(v, idle); len(planned) != 1 || done || err != nil {
		t.Errorf("with room: planned %v, done %v (%v)", planned, done, err)
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
