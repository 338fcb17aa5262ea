package nemesis

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/atollregistry/atoll/jepsen/cluster"
)

// disks are faults of disks that are gone with them: nothing that was durable is lost.
func disks() []Nemesis {
	return []Nemesis{
		{Name: "slow-disk", Does: "each fsync of one node takes 0.1 to 1 s longer", Group: Disks, Needs: []Need{NeedTrace}, Exits: true, Strike: func(ctx context.Context, f *Field) error {
			delay := f.between(100*time.Millisecond, time.Second)
			return f.traceOne(ctx, "slow-disk", "fsync,fdatasync", fmt.Sprintf("delay_enter=%d", delay.Microseconds()))
		}},
		{Name: "eio-read", Does: "every third pread of one node fails with EIO", Group: Disks, Needs: []Need{NeedTrace}, Exits: true, Strike: func(ctx context.Context, f *Field) error {
			return f.traceOne(ctx, "eio-read", "pread64,preadv", "error=EIO:when=2+3")
		}},
		{Name: "eio-sync", Does: "fsyncs of one node fail with EIO, and then what was not durable is gone", Group: Disks, Needs: []Need{NeedTrace, NeedDisks}, Exits: true, Strike: func(ctx context.Context, f *Field) error {
			n := f.leaderOrOne(ctx)
			t := f.begin("eio-sync", n)
			defer t.end()
			err := f.trace(ctx, t, n, "fsync,fdatasync", fmt.Sprintf("error=EIO:when=%d+%d", 1+f.Rand.IntN(20), 1+f.Rand.IntN(5)))
			return errors.Join(err, n.LosePower(), n.Start())
		}},
		{Name: "full-disk", Does: "the disks of one node, or of all, are full", Group: Disks, Needs: []Need{NeedDisks}, Exits: true, Strike: fullDisk},
		{Name: "power-one", Does: "one node loses power: what it has not fsynced is gone", Group: Disks, Needs: []Need{NeedDisks}, Strike: func(ctx context.Context, f *Field) error {
			return power(ctx, f, "power-one", f.leaderOrOne(ctx))
		}},
		{Name: "power-some", Does: "two nodes lose power at once", Group: Disks, Needs: []Need{NeedDisks}, Strike: func(ctx context.Context, f *Field) error {
			return power(ctx, f, "power-some", f.Cluster.Pick(f.Rand, 2)...)
		}},
		{Name: "power-all", Does: "all nodes lose power at once", Group: Disks, Needs: []Need{NeedDisks}, Strike: func(ctx context.Context, f *Field) error {
			return power(ctx, f, "power-all", f.Cluster.Members()...)
		}},
	}
}

func (f *Field) traceOne(ctx context.Context, kind, calls, how string) error {
	n := f.leaderOrOne(ctx)
	t := f.begin(kind, n)
	defer t.end()
	return f.trace(ctx, t, n, calls, how)
}

func power(ctx context.Context, f *Field, kind string, nodes ...*cluster.Node) error {
	t := f.begin(kind, nodes...)
	defer t.end()
	before := pids(nodes)
	if err := each(nodes, (*cluster.Node).LosePower); err != nil {
		return err
	}
	t.sawGone(before, nodes)
	f.last(ctx, time.Second, 6*time.Second)
	return each(nodes, (*cluster.Node).Start)
}

func fullDisk(ctx context.Context, f *Field) error {
	nodes := f.Cluster.Pick(f.Rand, 1)
	if f.Rand.IntN(3) == 0 {
		nodes = f.Cluster.Members()
	}
	// Into the reserve, or to the last byte.
	leave := int64(f.Rand.IntN(2)) * (8 << 20)
	t := f.begin("full-disk", nodes...)
	defer t.end()
	before, errBefore := free(nodes)
	err := eachDisk(nodes, func(d *cluster.Disk) error { return d.Fill(leave) })
	after, errAfter := free(nodes)
	if after < before {
		t.saw("%d MiB are free on all disks, which were %d", after>>20, before>>20)
	}
	f.last(ctx, 4*time.Second, 15*time.Second)
	return errors.Join(err, errBefore, errAfter, eachDisk(nodes, (*cluster.Disk).Drain))
}

// free returns how many bytes are free on the disks of some nodes together.
func free(nodes []*cluster.Node) (bytes int64, err error) {
	for _, n := range nodes {
		for _, disk := range n.Disks {
			left, fault := disk.Free()
			bytes, err = bytes+left, errors.Join(err, fault)
		}
	}
	return bytes, err
}

// eachDisk does something to all disks of some nodes.
func eachDisk(nodes []*cluster.Node, do func(*cluster.Disk) error) error {
	return each(nodes, func(n *cluster.Node) error {
		var faults []error
		for _, disk := range n.Disks {
			faults = append(faults, do(disk))
		}
		return errors.Join(faults...)
	})
}
