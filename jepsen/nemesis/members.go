package nemesis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/atollregistry/atoll/jepsen/cluster"
)

// endTimeout bounds how long a removed node goes on: it may be cut off meanwhile.
const endTimeout = 90 * time.Second

// members are changes of who is in the cluster.
func members() []Nemesis {
	return []Nemesis{
		{Name: "membership", Does: "a node joins, and another one is drained and removed", Group: Members, Needs: []Need{NeedSpare}, Destroys: true, Strike: func(ctx context.Context, f *Field) error {
			return f.exchange(ctx, "membership", true)
		}},
		{Name: "replace", Does: "a node dies for good; another one joins in its place, and the dead one is removed", Group: Members, Needs: []Need{NeedSpare}, Destroys: true, Strike: func(ctx context.Context, f *Field) error {
			return f.exchange(ctx, "replace", false)
		}},
		{Name: "drain", Does: "a node is emptied, and takes shards again", Group: Members, Destroys: true, Strike: drain},
	}
}

// exchange has one node join, and another one, alive or dead, leave.
func (f *Field) exchange(ctx context.Context, kind string, alive bool) error {
	n := f.leaderOrOne(ctx)
	t := f.begin(kind, n)
	defer t.end()
	before := f.view(ctx, n)
	if !alive {
		if err := n.Kill(); err != nil {
			return err
		}
		f.last(ctx, time.Second, 4*time.Second)
	}
	if err := f.join(ctx); err != nil {
		return err
	}
	if alive {
		f.last(ctx, time.Second, 4*time.Second)
	}
	if err := f.leave(ctx, n, alive); err != nil {
		return err
	}
	if after := f.view(ctx, n); before != nil && after != nil && after.Find(n.Name) == nil {
		t.saw("the nodes are %v, and were %v", after.Names(), before.Names())
	}
	return nil
}

// drain has a node be emptied, to the end or not.
func drain(ctx context.Context, f *Field) error {
	n := f.one()
	t := f.begin("drain", n)
	defer t.end()
	heal, cancel := healing(ctx)
	defer cancel()
	argv := []string{"drain", n.Name}
	if f.Rand.IntN(2) == 0 {
		argv = append(argv, "--wait")
	}
	before := f.view(ctx, n)
	err := f.command(heal, f.others(n)[0], argv...)
	f.last(ctx, time.Second, 6*time.Second)
	if during := f.view(ctx, n); before != nil && during != nil {
		was, is := before.Find(n.Name), during.Find(n.Name)
		if was != nil && is != nil && is.Draining {
			t.saw("%s drains, and has %d shards by the records, which were %d", n.Name, is.Shards, was.Shards)
		}
	}
	return errors.Join(err, f.command(heal, f.others(n)[0], "drain", n.Name, "--cancel"))
}

// command has a node do something, again and again until it does: another fault may be around.
func (f *Field) command(ctx context.Context, n *cluster.Node, args ...string) error {
	return f.Cluster.Eventually(ctx, healTimeout, fmt.Sprintf("'atoll %s' is done", strings.Join(args, " ")), func() error {
		_, err := n.Command(ctx, args...)
		return err
	})
}

// join has a spare node join.
func (f *Field) join(ctx context.Context) error {
	ctx, cancel := healing(ctx)
	defer cancel()
	spare := f.Cluster.Spares()[0]
	f.Cluster.SetMember(spare, true)
	if err := errors.Join(spare.Wipe(), spare.Start()); err != nil {
		return err
	}
	return f.Cluster.WaitJoined(ctx, spare)
}

// leave takes a node out of the cluster, an empty one if it is to be drained before.
func (f *Field) leave(ctx context.Context, n *cluster.Node, drain bool) error {
	ctx, cancel := healing(ctx)
	defer cancel()
	asked := f.others(n)[0]
	if drain {
		if err := f.command(ctx, asked, "drain", n.Name, "--wait"); err != nil {
			return err
		}
		n.LetGo()
	}
	if err := f.remove(ctx, asked, n); err != nil {
		return err
	}
	f.Cluster.SetMember(n, false)
	if err := n.AwaitEnd(endTimeout); err != nil {
		return err
	}
	return errors.Join(n.Kill(), n.Wipe())
}

// remove has a node be removed, again and again until it is: an answer may have been lost.
func (f *Field) remove(ctx context.Context, asked, n *cluster.Node) error {
	return f.Cluster.Eventually(ctx, healTimeout, n.Name+" is removed", func() error {
		_, err := asked.Command(ctx, "remove", n.Name)
		if err == nil {
			return nil
		}
		if status, statusErr := asked.Status(ctx); statusErr == nil && status.Find(n.Name) == nil {
			return nil
		}
		return err
	})
}
