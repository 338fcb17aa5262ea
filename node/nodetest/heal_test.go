package nodetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/node"
	atoll "github.com/atollregistry/atoll/proto"
)

// load pushes and pulls at a steady pace through members that it is allowed, until it
// is stopped. Any failed request fails the test.
type load struct {
	cluster *Cluster
	stop    context.CancelFunc
	running sync.WaitGroup

	mu      sync.RWMutex // held for reading during each request
	allowed []*Member
	done    int
}

const (
	// loaders is how many clients a load has.
	loaders = 2
	// loadPace is how often each of them pushes. Without one, the load would use up
	// what the cluster has to heal with, and leave all the more to heal and to check.
	loadPace = 500 * time.Millisecond
)

func (c *Cluster) startLoad() *load {
	ctx, stop := context.WithCancel(context.Background())
	l := &load{cluster: c, stop: stop, allowed: slices.Clone(c.Members)}
	for i := range loaders {
		l.running.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 0))
			ticker := time.NewTicker(loadPace)
			defer ticker.Stop()
			for n := 0; ctx.Err() == nil; n++ {
				l.once(i, n, random)
				select {
				case <-ctx.Done():
				case <-ticker.C:
				}
			}
		})
	}
	return l
}

// once pushes a small image and reads something that was pushed before.
func (l *load) once(client, n int, random *rand.Rand) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	on := l.allowed[random.IntN(len(l.allowed))]
	size := 1 + random.IntN(400<<10)
	layers := [][]byte{Bytes(uint64(client<<20+n), size)}
	if _, err := l.cluster.PushImage(fmt.Sprint("load", client), fmt.Sprint("v", n%5), layers, on); err != nil {
		l.cluster.t.Errorf("push under load: %v", err)
	}
	acked := l.cluster.Acked()
	something := acked[random.IntN(len(acked))]
	something.Tag = "" // it may have moved on
	if err := on.Read(something); err != nil {
		l.cluster.t.Errorf("pull under load: %v", err)
	}
	l.cluster.forgetTags()
	l.cluster.mu.Lock()
	l.done++
	l.cluster.mu.Unlock()
}

// forgetTags is for tests whose tags move.
func (c *Cluster) forgetTags() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.acked {
		c.acked[i].Tag = ""
	}
}

// without keeps clients off some members, as a balancer does with nodes that are
// not ready, and waits for requests under way.
func (l *load) without(members ...*Member) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.allowed = slices.DeleteFunc(slices.Clone(l.cluster.Members), func(m *Member) bool { return slices.Contains(members, m) })
}

func (l *load) end() (requests int) {
	l.stop()
	l.running.Wait()
	return l.done
}

// quickExpiry makes the records of a replaced node's shards go at once.
func quickExpiry(cfg *node.Config) { cfg.Collect.Interval = time.Second }

// Round the ring, each node loses its disk and is started again with the same command
// line, while clients push and pull. No request fails, and each time the
// redundancy is whole again without anybody doing anything.
func TestWipedNodesRoundTheRing(t *testing.T) {
	t.Parallel()
	const rounds = 10
	c := Start(t, 3, quickExpiry)
	push(t, c, "a/image", "v1", 1, c.Members...)
	l := c.startLoad()
	for round := range rounds {
		victim := c.Members[round%3]
		before := victim.running().ID()
		l.without(victim)
		victim.Crash()
		victim.Wipe()
		victim.Start()
		victim.WaitReady()
		c.WaitWhole()
		if after := victim.running().ID(); after == before {
			t.Errorf("round %d: the wiped node came back as %s", round, after)
		}
		l.without()
	}
	t.Logf("%d images pushed and pulled meanwhile", l.end())
	c.Check()
}

// Of five nodes, any two lose their disks at once.
func TestTwoOfFiveWiped(t *testing.T) {
	t.Parallel()
	c := Start(t, 5, quickExpiry)
	push(t, c, "a/image", "v1", 1, c.Members...)
	l := c.startLoad()
	for round := range 2 {
		victims := []*Member{c.Members[round], c.Members[(round+2)%5]}
		l.without(victims...)
		for _, victim := range victims {
			victim.Crash()
			victim.Wipe()
		}
		for _, victim := range victims {
			victim.Start()
		}
		for _, victim := range victims {
			victim.WaitReady()
		}
		c.WaitWhole()
		l.without()
	}
	t.Logf("%d images pushed and pulled meanwhile", l.end())
	c.Check()
}

// A cluster grows from three nodes to six, whose share of the shards they get, and
// shrinks to three again, under load. No request fails, and at no time does a
// blob have fewer shards than it should.
func TestGrowAndShrink(t *testing.T) {
	t.Parallel()
	c, spares := StartWithSpares(t, 3, 3, quickExpiry)
	all := append(slices.Clone(c.Members), spares...)
	for _, m := range all {
		m.Tune = func(cfg *blobstore.Config) { cfg.RebalanceThreshold, cfg.RebalanceMinBytes = 1e-12, 4<<20 }
	}
	for seed := range uint64(4) {
		push(t, c, "a/image", fmt.Sprint("v", seed), seed, c.Members...)
	}
	l := c.startLoad()
	watch := watchRedundancy(t, all)
	c.Add(spares...)
	l.without()
	for _, m := range spares {
		c.Eventually(settleTimeout, m.Config.Name+" has its share", func() error {
			if len(m.ShardFiles()) == 0 {
				return errors.New("it has no shard")
			}
			return nil
		})
	}
	push(t, c, "a/image", "wide", 10, c.Members...)
	for _, m := range spares {
		store, id := c.Members[0].running().Metadata(), m.running().ID()
		if err := store.SetNodeState(t.Context(), id, atoll.NodeState_NODE_STATE_DRAINING); err != nil {
			t.Fatal(err)
		}
		c.Eventually(settleTimeout, m.Config.Name+" is empty", func() error {
			usage, err := store.ShardUsage()
			if err == nil && usage[id] != nil {
				err = fmt.Errorf("it holds %v", usage[id])
			}
			return err
		})
		l.without(m)
		if err := store.SetNodeState(t.Context(), id, atoll.NodeState_NODE_STATE_REMOVED); err != nil {
			t.Fatal(err)
		}
		c.Drop(m)
		l.without()
	}
	t.Logf("%d images pushed and pulled meanwhile", l.end())
	watch()
	c.Check()
}

// watchRedundancy looks again and again whether all shards of all extents are on
// record, and their files where the records say, until the function returned is
// called. Members may start and end meanwhile, but for the first.
func watchRedundancy(t *testing.T, members []*Member) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	looks, extents := 0, 0
	go func() {
		defer close(done)
		ticker := time.NewTicker(pollInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			looks++
			extents += lookAtRedundancy(t, members)
		}
	}()
	return func() {
		cancel()
		<-done
		t.Logf("looked %d times, at %d extents", looks, extents)
	}
}

func lookAtRedundancy(t *testing.T, members []*Member) (extents int) {
	byID := map[string]*Member{}
	for _, m := range members {
		if n := m.running(); n != nil {
			byID[n.ID()] = m
		}
	}
	all, err := members[0].running().Metadata().Extents(nil, 1<<20)
	if err != nil {
		t.Error(err)
	}
	for _, e := range all {
		if e.GetLayout() == nil {
			continue // It is inline.
		}
		if slices.Contains(e.GetHolders(), "") || e.GetLayout().GetParityShards() == 0 {
			t.Errorf("extent %x has the layout %v and is on %v", e.GetId(), e.GetLayout(), e.GetHolders())
		}
		for number, holder := range e.GetHolders() {
			if err := byID[holder].hasShard(e, number); err != nil {
				t.Errorf("extent %x: %v", e.GetId(), err)
			}
		}
	}
	return len(all)
}

// A node is away for so long that its shards are rebuilt elsewhere, while content is
// pushed and deleted. It comes back with shards that are nobody's any more, and
// is a node like all others again.
func TestStaleNodeReturns(t *testing.T) {
	t.Parallel()
	c := Start(t, 4, quickExpiry, func(cfg *node.Config) { cfg.DownAfter, cfg.Collect.Grace = 15*time.Second, 20*time.Second })
	for seed := range uint64(5) {
		push(t, c, fmt.Sprint("r", seed), "v1", seed, c.Members...)
	}
	away, there := c.Members[3], c.Members[:3]
	id, stale := away.running().ID(), len(away.ShardFiles())
	away.Crash()
	store := there[0].running().Metadata()
	c.Eventually(settleTimeout, "the node's shards are elsewhere", func() error {
		usage, err := store.ShardUsage()
		if err == nil && usage[id] != nil {
			err = fmt.Errorf("it holds %v", usage[id])
		}
		return err
	})
	for seed := range uint64(5) {
		push(t, c, "new", fmt.Sprint("v", seed), 10+seed, there...)
	}
	for _, acked := range c.Acked() {
		if acked.Repository != "r0" || acked.Tag == "" {
			continue
		}
		if _, _, err := there[1].expect(http.StatusAccepted, "DELETE", "/v2/r0/manifests/"+acked.Digest, nil); err != nil {
			t.Fatal(err)
		}
	}
	c.forgetRepository("r0")
	away.Start()
	away.WaitReady()
	if files := len(away.ShardFiles()); stale == 0 || files < stale {
		t.Errorf("the node came back with %d of %d shards", files, stale)
	}
	c.Check()
}

// forgetRepository drops all acknowledged content of a repository.
func (c *Cluster) forgetRepository(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acked = slices.DeleteFunc(c.acked, func(acked Acked) bool { return acked.Repository == name })
}

// TestWipedNodeTakesNoShardsInItsOldName: before the others have noticed that a node
// lost its data, a push that goes to its address is refused there.
func TestWipedNodeTakesNoShardsInItsOldName(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	push(t, c, "a", "v1", 1, c.Members...)
	victim, via := c.Members[2], c.Members[0]
	if c.Leader() == victim {
		victim, via = via, victim
	}
	old := victim.running().ID()
	victim.Crash()
	victim.Wipe()
	victim.Start()
	c.Eventually(5*time.Second, "its port is open", func() error {
		conn, err := net.Dial("tcp", victim.Config.Cluster.Listen)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	digest, err := c.PushBlob("a", Bytes(99, 700<<10), via)
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := via.running().Metadata().Blobs("", 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, blob := range blobs {
		for _, e := range blob.GetExtents() {
			if blob.GetDigest() == digest && slices.Contains(e.GetHolders(), old) {
				t.Errorf("201 for an extent on %v: node %s lost its disk before the push", e.GetHolders(), old)
			}
		}
	}
}
