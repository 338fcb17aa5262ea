package nemesis

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"github.com/atollregistry/atoll/jepsen/cluster"
)

// awayLow and awayHigh are how long a node is away that is to be recorded as down meanwhile, which
// takes about 20 s, and to find its shards rebuilt elsewhere when it comes back.
const (
	awayLow  = 25 * time.Second
	awayHigh = 40 * time.Second
)

// processes are faults of processes: they end, stand still, or are other programs.
func processes() []Nemesis {
	return []Nemesis{
		{Name: "kill", Does: "kill -9 of a follower, and restart", Group: Processes, Strike: func(ctx context.Context, f *Field) error {
			return kill(ctx, f, "kill", f.follower(ctx))
		}},
		{Name: "kill-leader", Does: "kill -9 of the leader, and restart", Group: Processes, Strike: onLeader(func(ctx context.Context, f *Field, leader *cluster.Node) error {
			return kill(ctx, f, "kill-leader", leader)
		})},
		{Name: "kill-all", Does: "kill -9 of all nodes at once, and restart", Group: Processes, Strike: func(ctx context.Context, f *Field) error {
			return kill(ctx, f, "kill-all", f.Cluster.Members()...)
		}},
		{Name: "away", Does: "a node is killed for 25 to 40 s, so that its shards are rebuilt elsewhere, and comes back with its old data", Group: Processes, Strike: func(ctx context.Context, f *Field) error {
			n := f.leaderOrOne(ctx)
			return away(ctx, f, "away", n, n.Kill, func(*fault) error { return n.Start() })
		}},
		{Name: "pause", Does: "SIGSTOP of a follower for 1 to 12 s", Group: Processes, Strike: func(ctx context.Context, f *Field) error {
			return pause(ctx, f, "pause", f.follower(ctx))
		}},
		{Name: "pause-leader", Does: "SIGSTOP of the leader for 1 to 12 s", Group: Processes, Strike: onLeader(func(ctx context.Context, f *Field, leader *cluster.Node) error {
			return pause(ctx, f, "pause-leader", leader)
		})},
		{Name: "rolling", Does: "every node is stopped (SIGTERM) and started again, one after the other", Group: Processes, Strike: func(ctx context.Context, f *Field) error {
			return f.roll(ctx, "rolling", f.Current, f.Cluster.Members())
		}},
		{Name: "mixed-versions", Does: "some nodes run the program of the commit before for a while", Group: Processes, Needs: []Need{NeedPrevious}, Strike: mixedVersions},
	}
}

func kill(ctx context.Context, f *Field, kind string, nodes ...*cluster.Node) error {
	t := f.begin(kind, nodes...)
	defer t.end()
	before := pids(nodes)
	err := each(nodes, (*cluster.Node).Kill)
	t.sawGone(before, nodes)
	f.last(ctx, time.Second, 8*time.Second)
	return errors.Join(err, each(nodes, (*cluster.Node).Start))
}

func pause(ctx context.Context, f *Field, kind string, n *cluster.Node) error {
	t := f.begin(kind, n)
	defer t.end()
	err := n.Pause()
	f.last(ctx, time.Second, 11*time.Second)
	if _, silent := f.Cluster.ClockOffset(context.WithoutCancel(ctx), n); silent != nil && err == nil {
		t.saw("process %d of %s does not answer", n.Pid(), n.Name)
	}
	return errors.Join(err, n.Resume())
}

// away has a node go for so long that it is recorded as down, and come back.
func away(ctx context.Context, f *Field, kind string, n *cluster.Node, leave func() error, comeBack func(*fault) error) error {
	before := f.view(ctx)
	t := f.begin(kind, n)
	defer t.end()
	err := leave()
	f.last(ctx, awayLow, awayHigh)
	if during := f.view(ctx, n); before != nil && during != nil {
		was, is := before.Find(n.Name), during.Find(n.Name)
		if was != nil && is != nil && is.Down() {
			t.saw("%s is recorded as down, and has %d shards by the records, which were %d", n.Name, is.Shards, was.Shards)
		}
	}
	return errors.Join(err, comeBack(t))
}

// roll restarts nodes one after the other with a program, each when the others are ready.
func (f *Field) roll(ctx context.Context, kind, program string, nodes []*cluster.Node) error {
	ctx, cancel := healing(ctx)
	defer cancel()
	for _, n := range nodes {
		if err := f.restart(ctx, kind, program, n); err != nil {
			return err
		}
	}
	return nil
}

func (f *Field) restart(ctx context.Context, kind, program string, n *cluster.Node) error {
	t := f.begin(kind, n)
	defer t.end()
	before := n.Pid()
	err := n.Terminate()
	t.sawGone([]int{before}, []*cluster.Node{n})
	n.SetProgram(program)
	if err := errors.Join(err, n.Start(), f.Cluster.WaitReady(ctx, recoverTimeout)); err != nil {
		return err
	}
	if program != f.Current {
		t.saw("it runs %s", filepath.Base(program))
	}
	return nil
}

func mixedVersions(ctx context.Context, f *Field) error {
	some := f.Cluster.Pick(f.Rand, 1+f.Rand.IntN(len(f.Cluster.Members())))
	if err := f.roll(ctx, "mixed-versions", f.Previous, some); err != nil {
		return err
	}
	f.last(ctx, 3*time.Second, 10*time.Second)
	return f.roll(ctx, "mixed-versions", f.Current, some)
}

// each does something to all nodes at once.
func each(nodes []*cluster.Node, do func(*cluster.Node) error) error {
	faults := make([]error, len(nodes))
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() { faults[i] = do(n) })
	}
	all.Wait()
	return errors.Join(faults...)
}
