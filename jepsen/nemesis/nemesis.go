// Package nemesis breaks a cluster on purpose, and makes it whole again. What it does stays
// within what atoll promises to survive, so that every anomaly is a bug.
package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/atollregistry/atoll/jepsen/cluster"
	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/netlab"
)

const (
	// calm is about how long the cluster is left alone between two faults.
	calm = 4 * time.Second
	// recoverTimeout bounds the time until all nodes are ready once a fault is healed.
	recoverTimeout = 60 * time.Second
	// healTimeout bounds what an operator does to heal.
	healTimeout = 5 * time.Minute
	// leaderTimeout bounds the wait for a leader to strike.
	leaderTimeout = 10 * time.Second
	// spareTimeout bounds the wait until a node's data may be lost: another fault may be around.
	spareTimeout = 90 * time.Second
)

// Field is what a nemesis has at hand.
type Field struct {
	Cluster *cluster.Cluster
	// Network is nil where links can't be cut; Hosts are the nodes' names on it.
	Network *netlab.Network
	Rand    *rand.Rand
	History *history.Log
	Log     func(format string, args ...any)
	// ClockFile returns the file with the offset of a node's clock; nil where clocks can't jump.
	ClockFile func(node string) string
	// Current is the program under test, Previous that of the commit before, if there is one.
	Current, Previous string
	// Alone says that no other fault happens at the same time.
	Alone bool
}

// Need is something that not every machine has.
type Need string

// What nemeses need.
const (
	NeedNetwork  Need = "a network of its own (root on Linux)"
	NeedDisks    Need = "disks of its own (root on Linux)"
	NeedTrace    Need = "strace, as root on Linux"
	NeedSpare    Need = "a spare node"
	NeedPrevious Need = "the program of the commit before (--previous)"
	NeedClock    Need = "a program whose clock can jump"
)

// Group says what a nemesis works on. Two at a time are of different groups, and one
// of them is of the network or the clock.
type Group string

// The groups.
const (
	Processes Group = "processes"
	Links     Group = "links"
	Disks     Group = "disks"
	Data      Group = "data"
	Clocks    Group = "clocks"
	Members   Group = "members"
)

// Nemesis is one way to break a cluster.
type Nemesis struct {
	Name string
	// Does says it in words.
	Does  string
	Group Group
	Needs []Need
	// Exits says that nodes may end by themselves: they should rather do that than go on.
	Exits bool
	// Destroys says that data of a node is lost or damaged, so that the cluster has to be whole again
	// before this fault, and before the next.
	Destroys bool
	// Unmixed says that a mix is without it: what it does lasts longer than the fault.
	Unmixed bool
	// Strike breaks something, and heals it before it returns, also when ctx has ended
	// meanwhile. It records what was seen to come of it. It fails if it can't, or if the cluster does
	// not let it heal.
	Strike func(ctx context.Context, f *Field) error
}

// All returns all nemeses.
func All() []Nemesis {
	var all []Nemesis
	for _, group := range [][]Nemesis{processes(), links(), disks(), data(), clocks(), members()} {
		all = append(all, group...)
	}
	return all
}

// Find returns the nemeses with the given names; "mix" stands for all that are not Unmixed.
func Find(names string) ([]Nemesis, error) {
	if names == "none" {
		return nil, nil
	}
	all := All()
	if names == "mix" {
		return slices.DeleteFunc(all, func(n Nemesis) bool { return n.Unmixed }), nil
	}
	var found []Nemesis
	var known []string
	for _, n := range all {
		known = append(known, n.Name)
	}
	for name := range strings.SplitSeq(names, ",") {
		i := slices.Index(known, name)
		if i < 0 {
			return nil, fmt.Errorf("no nemesis is called %q: there are none, mix, %s", name, strings.Join(known, ", "))
		}
		found = append(found, all[i])
	}
	return found, nil
}

// Missing returns what a nemesis needs and the field has not.
func (f *Field) Missing(n Nemesis) []Need {
	var missing []Need
	for _, need := range n.Needs {
		if !f.has(need) {
			missing = append(missing, need)
		}
	}
	return missing
}

func (f *Field) has(need Need) bool {
	switch need {
	case NeedNetwork:
		return f.Network != nil
	case NeedDisks:
		return len(f.Cluster.Members()[0].Disks) > 0
	case NeedTrace:
		_, err := exec.LookPath("strace")
		return err == nil && os.Getuid() == 0
	case NeedSpare:
		return len(f.Cluster.Spares()) > 0
	case NeedPrevious:
		return f.Previous != ""
	case NeedClock:
		return f.ClockFile != nil
	}
	return false
}

// Run strikes, one of the nemeses after the other in a random order, until ctx ends. Between
// two faults all nodes get ready again, and before and after one that destroys data, all blobs whole.
// With two at a time, a second one strikes during the first. It fails when a nemesis does, or
// the cluster does not recover.
func Run(ctx context.Context, f *Field, nemeses []Nemesis, two bool) error {
	var order []Nemesis
	for f.hold(ctx, calm/2, calm*3/2) {
		if len(nemeses) == 0 {
			continue
		}
		if len(order) == 0 {
			order = append(order, nemeses...)
			f.Rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		}
		first := order[0]
		order = order[1:]
		second := f.partner(first, nemeses, two)
		destroys := first.Destroys || second != nil && second.Destroys
		if destroys {
			if err := f.Cluster.WaitHealthy(ctx); ctx.Err() != nil {
				return nil
			} else if err != nil {
				return fmt.Errorf("before %s: %w", first.Name, err)
			}
		}
		if err := f.strike(ctx, first, second); err != nil {
			return err
		}
		if err := f.recovered(ctx, destroys); err != nil {
			return fmt.Errorf("after %s: %w", first.Name, err)
		}
	}
	return nil
}

// recovered waits until all nodes are ready, and with whole until all is well, also when
// ctx has ended.
func (f *Field) recovered(ctx context.Context, whole bool) error {
	ctx = context.WithoutCancel(ctx)
	if err := f.Cluster.WaitReady(ctx, recoverTimeout); err != nil || !whole {
		return err
	}
	return f.Cluster.WaitHealthy(ctx)
}

// partner chooses a nemesis that may strike at the same time as another one.
func (f *Field) partner(first Nemesis, nemeses []Nemesis, two bool) *Nemesis {
	if !two {
		return nil
	}
	gentle := func(n Nemesis) bool { return n.Group == Links || n.Group == Clocks }
	var fit []Nemesis
	for _, n := range nemeses {
		if n.Group != first.Group && (gentle(n) || gentle(first)) {
			fit = append(fit, n)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	return &fit[f.Rand.IntN(len(fit))]
}

// strike lets one or two nemeses strike.
func (f *Field) strike(ctx context.Context, first Nemesis, second *Nemesis) error {
	run := func(n Nemesis, alone bool, seed uint64) error {
		own := *f
		own.Alone, own.Rand = alone, rand.New(rand.NewPCG(seed, 1))
		if err := n.Strike(ctx, &own); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		return nil
	}
	if second == nil {
		return run(first, true, f.Rand.Uint64())
	}
	other := make(chan error, 1)
	seeds := [2]uint64{f.Rand.Uint64(), f.Rand.Uint64()}
	go func() { other <- run(*second, false, seeds[1]) }()
	return errors.Join(run(first, false, seeds[0]), <-other)
}

// hold waits between low and high, and says whether ctx has not ended.
func (f *Field) hold(ctx context.Context, low, high time.Duration) bool {
	timer := time.NewTimer(f.between(low, high))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}

// last lets a fault last between low and high; low also when ctx ends meanwhile, so that
// something comes of it.
func (f *Field) last(ctx context.Context, low, high time.Duration) {
	f.lastUnless(ctx, nil, low, high)
}

// lastUnless is last, unless something ends before; it returns false then.
func (f *Field) lastUnless(ctx context.Context, ended <-chan struct{}, low, high time.Duration) bool {
	least := time.NewTimer(low)
	defer least.Stop()
	select {
	case <-ended:
		return false
	case <-least.C:
	}
	rest := time.NewTimer(f.between(0, high-low))
	defer rest.Stop()
	select {
	case <-ended:
		return false
	case <-ctx.Done():
	case <-rest.C:
	}
	return true
}

func (f *Field) between(low, high time.Duration) time.Duration {
	return low + time.Duration(f.Rand.Int64N(int64(high-low)+1))
}

// one returns any member.
func (f *Field) one() *cluster.Node { return f.Cluster.Pick(f.Rand, 1)[0] }

// errNoLeader is that nobody was known to lead for leaderTimeout.
var errNoLeader = errors.New("nobody leads")

// leader returns the member that leads. It waits until one is known to, and returns nil if none is.
func (f *Field) leader(ctx context.Context) *cluster.Node {
	var leader *cluster.Node
	ctx = context.WithoutCancel(ctx)
	err := f.Cluster.Eventually(ctx, leaderTimeout, "somebody leads", func() error {
		if leader = f.Cluster.Leader(ctx); leader == nil {
			return errNoLeader
		}
		return nil
	})
	if err != nil {
		f.Log("%v", err)
	}
	return leader
}

// onLeader has a nemesis strike the leader. If nobody is known to lead it does not strike:
// another fault may be around.
func onLeader(strike func(ctx context.Context, f *Field, leader *cluster.Node) error) func(context.Context, *Field) error {
	return func(ctx context.Context, f *Field) error {
		leader := f.leader(ctx)
		if leader == nil {
			return nil
		}
		return strike(ctx, f, leader)
	}
}

// leaderOrOne returns the leader half of the time, if there is one, and any member otherwise.
func (f *Field) leaderOrOne(ctx context.Context) *cluster.Node {
	if f.Rand.IntN(2) == 0 {
		if leader := f.leader(ctx); leader != nil {
			return leader
		}
	}
	return f.one()
}

// follower returns any member that does not lead.
func (f *Field) follower(ctx context.Context) *cluster.Node {
	if leader := f.leader(ctx); leader != nil {
		others := f.others(leader)
		return others[f.Rand.IntN(len(others))]
	}
	return f.one()
}

// readableWithout waits until a node that is ready has noticed that some nodes are down, and says that
// all blobs can be read without them, so that what they have may be lost.
func (f *Field) readableWithout(ctx context.Context, timeout time.Duration, nodes ...*cluster.Node) error {
	ctx = context.WithoutCancel(ctx)
	return f.Cluster.Eventually(ctx, timeout, fmt.Sprintf("all blobs can be read without %v", namesOf(nodes)), func() error {
		status, err := f.Cluster.View(ctx, nodes...)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if told := status.Find(n.Name); told != nil && !told.Away() {
				return fmt.Errorf("%s still counts as %s", n.Name, told.State)
			}
		}
		if status.Blobs.Lost > 0 {
			return fmt.Errorf("%d blobs would be lost", status.Blobs.Lost)
		}
		return nil
	})
}

// healing returns a context for healing, which goes on when a run has come to its end.
func healing(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), healTimeout)
}
