package nemesis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/atollregistry/atoll/jepsen/cluster"
)

// What is kept for a time is kept by the state's clock, which follows the leader's and never goes
// back. So one long jump ahead of a leader's clock lets time stand still until the other clocks have
// caught up: nothing is collected any more for the rest of a run; far is for a nemesis of its own. Of the
// 15 s for which uncollected things are kept near takes away so little that what clients count on (5 s, of
// 7.5 that are promised) still holds. Clocks that are behind do no harm at all.
var (
	near   = []time.Duration{time.Second, 2 * time.Second}
	behind = []time.Duration{-2 * time.Second, -8 * time.Second, -90 * time.Second, -10 * time.Minute, -50 * time.Minute}
	far    = []time.Duration{90 * time.Second, 10 * time.Minute, 50 * time.Minute}
)

// clockSlack is how far a clock may seem to be from where it was set.
const clockSlack = 900 * time.Millisecond

// clocks are faults of wall clocks.
func clocks() []Nemesis {
	return []Nemesis{
		{
			Name: "clock", Does: "the clocks of some nodes jump ahead by 1 or 2 s, or back by 2 s to 50 minutes, and return",
			Group: Clocks, Needs: []Need{NeedClock}, Strike: func(ctx context.Context, f *Field) error {
				return f.jump(ctx, "clock", near, behind)
			},
		},
		{
			Name: "clock-far", Does: "the clocks of some nodes jump ahead by 90 s to 50 minutes, and return; nothing is collected for as long after that, so a mix is without it",
			Group: Clocks, Needs: []Need{NeedClock}, Unmixed: true, Strike: func(ctx context.Context, f *Field) error {
				return f.jump(ctx, "clock-far", far, far)
			},
		},
	}
}

// jump has the clocks of some nodes jump, half of them as far as one of a, half as one of b.
func (f *Field) jump(ctx context.Context, kind string, a, b []time.Duration) error {
	nodes := f.Cluster.Pick(f.Rand, 1+f.Rand.IntN(3))
	if one := f.leaderOrOne(ctx); !slices.Contains(nodes, one) {
		nodes[0] = one
	}
	t := f.begin(kind, nodes...)
	defer t.end()
	for _, n := range nodes {
		by := drawn(f.Rand, a, b)
		if err := f.setClock(n, by); err != nil {
			return err
		}
		if seen, err := f.clockIs(ctx, n, by); err == nil {
			t.saw("the clock of %s is %s ahead, and was set to %s", n.Name, seen.Round(time.Second/2), by)
		}
	}
	f.last(ctx, 4*time.Second, 12*time.Second)
	return each(nodes, func(n *cluster.Node) error { return f.setClock(n, 0) })
}

func drawn(random *rand.Rand, a, b []time.Duration) time.Duration {
	if random.IntN(2) == 0 {
		return a[random.IntN(len(a))]
	}
	return b[random.IntN(len(b))]
}

func (f *Field) setClock(n *cluster.Node, offset time.Duration) error {
	// A reader must not see half of it.
	file := f.ClockFile(n.Name)
	return errors.Join(os.WriteFile(file+".new", []byte(offset.String()), 0o600), os.Rename(file+".new", file))
}

// clockIs waits until a node tells a time that is off by about so much.
func (f *Field) clockIs(ctx context.Context, n *cluster.Node, offset time.Duration) (seen time.Duration, err error) {
	ctx = context.WithoutCancel(ctx)
	err = f.Cluster.Eventually(ctx, lookTimeout/3, "the clock of "+n.Name+" has jumped", func() error {
		var err error
		if seen, err = f.Cluster.ClockOffset(ctx, n); err != nil {
			return err
		}
		if (seen - offset).Abs() > clockSlack {
			return fmt.Errorf("it is %s ahead", seen)
		}
		return nil
	})
	return seen, err
}
