package nemesis

import (
	"context"
	"errors"
	"time"

	"github.com/atollregistry/atoll/jepsen/cluster"
	"github.com/atollregistry/atoll/jepsen/netlab"
)

// links are faults of the network between the nodes. Clients reach all nodes all the time.
func links() []Nemesis {
	need := []Need{NeedNetwork}
	cut := netlab.Link{Cut: true}
	return []Nemesis{
		{Name: "halves", Does: "two nodes and three don't reach each other", Group: Links, Needs: need, Strike: func(ctx context.Context, f *Field) error {
			few, many := f.split()
			return f.heal(ctx, "halves", few, func() error { return f.both(few, many, cut) })
		}},
		{Name: "isolate-leader", Does: "the leader reaches nobody", Group: Links, Needs: need, Strike: onLeader(func(ctx context.Context, f *Field, leader *cluster.Node) error {
			only := []*cluster.Node{leader}
			return f.heal(ctx, "isolate-leader", only, func() error { return f.both(only, f.others(leader), cut) })
		})},
		{Name: "one-way", Does: "one node can send and not receive, or receive and not send", Group: Links, Needs: need, Strike: func(ctx context.Context, f *Field) error {
			n := f.leaderOrOne(ctx)
			from, to := []*cluster.Node{n}, f.others(n)
			if f.Rand.IntN(2) == 0 {
				from, to = to, from
			}
			return f.heal(ctx, "one-way", []*cluster.Node{n}, func() error { return f.direct(from, to, cut) })
		}},
		{Name: "bridge", Does: "two halves that only one node sees both of", Group: Links, Needs: need, Strike: func(ctx context.Context, f *Field) error {
			few, many := f.split()
			return f.heal(ctx, "bridge", many[:1], func() error { return f.both(few, many[1:], cut) })
		}},
		{Name: "cut-off", Does: "one node reaches nobody for 25 to 40 s, so that its shards are rebuilt elsewhere, and comes back", Group: Links, Needs: need, Strike: func(ctx context.Context, f *Field) error {
			n := f.leaderOrOne(ctx)
			before := f.Network.Counters()
			return away(ctx, f, "cut-off", n, func() error { return f.both([]*cluster.Node{n}, f.others(n), cut) }, func(t *fault) error {
				f.Network.Heal()
				t.sawPackets(before)
				return nil
			})
		}},
		{Name: "flap", Does: "the links of one node come and go every half second", Group: Links, Needs: need, Strike: flap},
		{Name: "latency", Does: "every packet between nodes takes 20 to 200 ms longer, in order", Group: Links, Needs: need, Strike: func(ctx context.Context, f *Field) error {
			all := f.Cluster.Members()
			return f.heal(ctx, "latency", all, func() error {
				return f.both(all, all, netlab.Link{Delay: f.between(20*time.Millisecond, 200*time.Millisecond)})
			})
		}},
		{Name: "reorder", Does: "packets between nodes overtake each other, and some come twice", Group: Links, Needs: need, Strike: func(ctx context.Context, f *Field) error {
			all := f.Cluster.Members()
			return f.heal(ctx, "reorder", all, func() error {
				return f.both(all, all, netlab.Link{Delay: time.Millisecond, Jitter: 30 * time.Millisecond, Duplicate: 0.05})
			})
		}},
		{Name: "loss", Does: "1 to 15 % of the packets between nodes are lost", Group: Links, Needs: need, Strike: func(ctx context.Context, f *Field) error {
			all := f.Cluster.Members()
			return f.heal(ctx, "loss", all, func() error { return f.both(all, all, netlab.Link{Loss: 0.01 + 0.14*f.Rand.Float64()}) })
		}},
		{Name: "bandwidth", Does: "one node has 0.1 to 1 MB/s to and from the others", Group: Links, Needs: need, Strike: func(ctx context.Context, f *Field) error {
			n := f.one()
			slow := netlab.Link{BytesPerSecond: 100_000 + f.Rand.Int64N(900_000)}
			return f.heal(ctx, "bandwidth", []*cluster.Node{n}, func() error { return f.both([]*cluster.Node{n}, f.others(n), slow) })
		}},
	}
}

// heal records a fault of the links, lets it begin and last, and heals the whole network.
func (f *Field) heal(ctx context.Context, kind string, nodes []*cluster.Node, begin func() error) error {
	t := f.begin(kind, nodes...)
	defer t.end()
	before := f.Network.Counters()
	err := begin()
	if err == nil {
		f.last(ctx, 3*time.Second, 15*time.Second)
	}
	f.Network.Heal()
	t.sawPackets(before)
	return err
}

func flap(ctx context.Context, f *Field) error {
	n := f.one()
	t := f.begin("flap", n)
	defer t.end()
	before := f.Network.Counters()
	defer func() {
		f.Network.Heal()
		t.sawPackets(before)
	}()
	for range 10 {
		if err := f.both([]*cluster.Node{n}, f.others(n), netlab.Link{Cut: true}); err != nil {
			return err
		}
		f.last(ctx, 200*time.Millisecond, 800*time.Millisecond)
		f.Network.Heal()
		f.last(ctx, 200*time.Millisecond, 800*time.Millisecond)
	}
	return nil
}

// split returns a minority and a majority of the members.
func (f *Field) split() (few, many []*cluster.Node) {
	all := f.Cluster.Pick(f.Rand, len(f.Cluster.Members()))
	return all[:(len(all)-1)/2], all[(len(all)-1)/2:]
}

// others returns the members but one.
func (f *Field) others(but *cluster.Node) []*cluster.Node {
	var found []*cluster.Node
	for _, n := range f.Cluster.Members() {
		if n != but {
			found = append(found, n)
		}
	}
	return found
}

// both changes the links between two sets of nodes in both directions.
func (f *Field) both(a, b []*cluster.Node, link netlab.Link) error {
	return errors.Join(f.direct(a, b, link), f.direct(b, a, link))
}

// direct changes the links from one set of nodes to another.
func (f *Field) direct(from, to []*cluster.Node, link netlab.Link) error {
	for _, a := range from {
		for _, b := range to {
			if a == b {
				continue
			}
			if err := f.Network.SetLink(a.Name, b.Name, link); err != nil {
				return err
			}
		}
	}
	return nil
}
