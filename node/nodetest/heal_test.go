package nodetest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/atollregistry/atoll/node"
)

// load pushes and pulls without a pause through members that it is allowed, until it
// is stopped. Any failed request fails the test.
type load struct {
	cluster *Cluster
	stop    context.CancelFunc
	running sync.WaitGroup

	mu      sync.RWMutex // held for reading during each request
	allowed []*Member
	done    int
}

// loaders is how many clients a load has.
const loaders = 2

func (c *Cluster) startLoad() *load {
	ctx, stop := context.WithCancel(context.Background())
	l := &load{cluster: c, stop: stop, allowed: slices.Clone(c.Members)}
	for i := range loaders {
		l.running.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 0))
			for n := 0; ctx.Err() == nil; n++ {
				l.once(i, n, random)
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
