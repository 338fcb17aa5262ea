package nemesis

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/atollregistry/atoll/jepsen/cluster"
)

const (
	// rotShards is how many shards of a node rot at most in one strike.
	rotShards = 30
	// wipeTimeout bounds the wait until it is known whether two nodes may be wiped.
	wipeTimeout = 20 * time.Second
)

// data are faults that lose or damage what was durable on one node, or, for shards, on as
// many as may be lost.
func data() []Nemesis {
	return []Nemesis{
		{Name: "rot-shards", Does: "shards of one or two nodes get flipped bits, lose their ends, or change places", Group: Data, Destroys: true, Strike: strikeShards},
		{Name: "rot-log", Does: "flipped bits in one node's Raft log, or its end is cut off, while it is down", Group: Data, Exits: true, Destroys: true, Strike: func(ctx context.Context, f *Field) error {
			return f.rotFile(ctx, "rot-log", filepath.Join("raft", "raft.db"))
		}},
		{Name: "rot-state", Does: "flipped bits in one node's state, while it runs or is down, or its end is cut off", Group: Data, Exits: true, Destroys: true, Strike: func(ctx context.Context, f *Field) error {
			return f.rotFile(ctx, "rot-state", statePath)
		}},
		{Name: "rot-snapshot", Does: "flipped bits in the state of the leader, while a node that was wiped, or away, gets it as a snapshot", Group: Data, Exits: true, Destroys: true, Strike: onLeader(strikeSnapshot)},
		{Name: "wipe", Does: "one node loses all its data, and comes back empty", Group: Data, Destroys: true, Strike: func(ctx context.Context, f *Field) error {
			n := f.leaderOrOne(ctx)
			t := f.begin("wipe", n)
			defer t.end()
			before := f.identities(ctx, n)
			err := n.Kill()
			f.last(ctx, time.Second, 4*time.Second)
			err = errors.Join(err, f.renew(ctx, n))
			t.sawNew(before, f.identities(ctx, n))
			return err
		}},
		{Name: "disk-dies", Does: "a disk with nothing but shards fails for good while its node runs, and is put in again, as it was, with a restart", Group: Data, Needs: []Need{NeedDisks}, Destroys: true, Strike: diskDies},
		{Name: "wipe-two", Does: "two nodes, if as many may be lost, lose all their data at once, and come back empty", Group: Data, Destroys: true, Strike: wipeTwo},
	}
}

// diskDies has the last disk of a node fail: the node has to live on without it.
func diskDies(ctx context.Context, f *Field) error {
	n := f.leaderOrOne(ctx)
	t := f.begin("disk-dies", n)
	defer t.end()
	if err := n.Disks[len(n.Disks)-1].LosePower(); err != nil {
		return err
	}
	f.last(ctx, 12*time.Second, 20*time.Second)
	if status := f.view(ctx, n); status != nil && status.Find(n.Name) != nil {
		for _, disk := range status.Find(n.Name).Disks {
			if disk.Fault != "" {
				t.saw("a disk of %s is out of service: %s", n.Name, disk.Fault)
			}
		}
	}
	if err := errors.Join(n.Reattach(), n.Start()); err != nil {
		return err
	}
	return f.recovered(ctx, true)
}

// wipeTwo ends two nodes at the same time, and wipes them. It is one if another fault is around, since
// what was acknowledged meanwhile may have one shard to spare, or if the cluster promises no
// more. So may a blob have that was acknowledged right before: the others tell.
func wipeTwo(ctx context.Context, f *Field) error {
	nodes := f.Cluster.Pick(f.Rand, f.spare())
	t := f.begin("wipe-two", nodes...)
	defer t.end()
	before := f.identities(ctx, nodes...)
	if err := each(nodes, (*cluster.Node).Kill); err != nil {
		return err
	}
	f.last(ctx, time.Second, 4*time.Second)
	wiped := nodes
	if err := f.readableWithout(ctx, wipeTimeout, nodes...); err != nil && len(nodes) > 1 {
		t.saw("only %s is wiped: %v", nodes[0].Name, err)
		wiped = nodes[:1]
		if err := each(nodes[1:], (*cluster.Node).Start); err != nil {
			return err
		}
	}
	if err := f.readableWithout(ctx, spareTimeout, wiped...); err != nil {
		return errors.Join(err, each(nodes, (*cluster.Node).Start))
	}
	if err := errors.Join(each(wiped, (*cluster.Node).Wipe), each(nodes, (*cluster.Node).Start)); err != nil {
		return err
	}
	err := f.recovered(ctx, true)
	t.sawNew(before, f.identities(ctx, wiped...))
	return err
}

// spare returns how many nodes may lose data at once. With another fault around it is one.
func (f *Field) spare() int {
	if !f.Alone {
		return 1
	}
	return max(1, f.Cluster.Parity())
}

// renew has a node begin anew with an empty folder, once the others can do without what it has, and
// waits until it has what it should.
func (f *Field) renew(ctx context.Context, n *cluster.Node) error {
	if err := n.Kill(); err != nil {
		return err
	}
	if err := f.readableWithout(ctx, spareTimeout, n); err != nil {
		return errors.Join(err, n.Start())
	}
	if err := errors.Join(n.Wipe(), n.Start()); err != nil {
		return err
	}
	return f.recovered(ctx, true)
}

// strikeShards damages shards, all of blobs that were whole afterwards, of as many nodes as may be lost.
func strikeShards(ctx context.Context, f *Field) error {
	nodes := f.Cluster.Pick(f.Rand, 1+f.Rand.IntN(f.spare()))
	files := make([][]string, len(nodes))
	for i, n := range nodes {
		var err error
		if files[i], err = n.ShardFiles(); err != nil {
			return err
		}
	}
	heal, cancel := healing(ctx)
	defer cancel()
	if err := f.Cluster.WaitHealthy(heal); err != nil {
		return err
	}
	if err := f.damageShards(ctx, nodes, files); err != nil {
		return err
	}
	// It is healed. But whether all of it was found is known only if nothing is found any more.
	return f.Cluster.ScrubClean(heal)
}

// damageShards damages some of the files of nodes, and has the cluster find that.
func (f *Field) damageShards(ctx context.Context, nodes []*cluster.Node, files [][]string) error {
	t := f.begin("rot-shards", nodes...)
	defer t.end()
	heal, cancel := healing(ctx)
	defer cancel()
	var words string
	for i, n := range nodes {
		done, err := f.rotShards(n, files[i])
		if err != nil {
			return err
		}
		if done.count() > 0 {
			words += fmt.Sprintf("of %s %s; ", n.Name, done)
		}
	}
	f.last(ctx, 3*time.Second, 8*time.Second)
	found, err := f.Cluster.Scrub(heal)
	if err != nil {
		return err
	}
	if words != "" {
		t.saw("%sof %d shards a scrub found %d damaged and %d missing", words, found.Shards, found.Damaged, found.Missing)
	}
	return f.Cluster.WaitHealthy(heal)
}

// rotFile damages a file of one node. The node may go on for a while, but its operator sees to
// it that it begins anew.
func (f *Field) rotFile(ctx context.Context, kind, name string) error {
	n := f.leaderOrOne(ctx)
	t := f.begin(kind, n)
	defer t.end()
	file := filepath.Join(n.Folders[0], name)
	live := kind == "rot-state" && f.Rand.IntN(2) == 0
	if !live {
		if err := n.Kill(); err != nil {
			return err
		}
	}
	before := ends(n)
	var words string
	var err error
	if !live && f.Rand.IntN(4) == 0 {
		words, err = f.cutTree(file)
	} else {
		words, err = f.rot(file)
	}
	err = errors.Join(err, n.Start())
	f.last(ctx, 5*time.Second, 10*time.Second)
	if err == nil {
		t.saw("%s while it runs: %v", words, live)
		if !t.sawEnd(n, before) {
			t.saw("%s has not noticed", n.Name)
		}
	}
	return errors.Join(err, f.renew(ctx, n))
}
