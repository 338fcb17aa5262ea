package blobstore

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/atollregistry/atoll/proto"
)

// replace ends a node and starts another one at its address, before anybody has
// noticed: what a machine does that was wiped.
func (n *testNode) replace() *testNode {
	c, t := n.cluster, n.cluster.t
	t.Helper()
	n.kill()
	n.setSick(false)
	fresh := &testNode{
		cluster: c, id: n.id + "-new", cfg: n.cfg, address: n.address, calls: n.calls,
		suspects: make(map[string]error), conns: make(map[string]*grpc.ClientConn),
	}
	fresh.cfg.Dir = filepath.Join(t.TempDir(), "shards")
	fresh.start()
	t.Cleanup(fresh.kill)
	return fresh
}

// TestReplacedNodeTakesNothingInItsOldName: a shard that an extent's record has on a
// node that lost its data would be swept by the one that took it.
func TestReplacedNodeTakesNothingInItsOldName(t *testing.T) {
	c := startCluster(t, 3, nil)
	n, gone := c.nodes[0], c.nodes[2]
	n.push(50_000, 1) // The connections stand.
	fresh := gone.replace()
	for i := range 5 {
		n.forgive()
		b := n.push(50_000, uint64(i))
		for _, e := range b.extents {
			if slices.Contains(e.GetHolders(), gone.id) {
				t.Fatalf("push %d: a shard is recorded on %s, which is gone", i, gone.id)
			}
		}
		n.checkPull(b)
	}
	for folder := range shardFolders {
		err := fresh.store.disks.all[0].list(byte(folder), func(ids []shardID) error {
			return fmt.Errorf("%s holds %v, meant for %s", fresh.id, ids, gone.id)
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// TestOnlyTheNodeThatIsMeantAnswers: every call names the node, and others refuse it
// as if they were not there.
func TestOnlyTheNodeThatIsMeantAnswers(t *testing.T) {
	c := startCluster(t, 3, nil)
	n, gone := c.nodes[0], c.nodes[2]
	b := n.push(50_000, 1)
	e := b.extents[0]
	number := slices.Index(e.GetHolders(), gone.id)
	gone.replace()
	conn, err := n.store.connTo(gone.id)
	if err != nil {
		t.Fatal(err)
	}
	shards := proto.NewShardsClient(conn)
	ctx := testContext(t)
	for name, call := range map[string]func() error{
		"write": func() error {
			shard := newShardContent(t, 1, 256<<10, 1000)
			_, err := send(t, n.store.links, gone.id, shard.header, shard.messages(1<<20)...)
			return err
		},
		"read": func() error {
			_, err := n.store.links.call(ctx, gone.id, &proto.ShardCall{Read: &proto.ReadShardRequest{ExtentId: e.GetId(), ShardNumber: uint32(number), Cells: 1}})
			return err
		},
		"Repair": func() error {
			_, err := shards.Repair(ctx, &proto.RepairRequest{})
			return err
		},
		"Scrub": func() error {
			_, err := shards.Scrub(ctx, &proto.ScrubRequest{})
			return err
		},
		"without a name": func() error {
			plain, err := n.Conn(c.nodes[1].id)
			if err != nil {
				return fmt.Errorf("connect: %w", err)
			}
			_, err = proto.NewShardsClient(plain).Scrub(ctx, &proto.ScrubRequest{})
			return err
		},
	} {
		eventually(t, waitLimit, name+" has an answer of the new process", func() bool {
			err := call()
			if status.Code(err) != codes.Unavailable {
				t.Fatalf("%s: got %v, want Unavailable", name, err)
			}
			return strings.Contains(err.Error(), "is meant for node")
		})
	}
	if _, err := c.nodes[0].store.ScrubOn(context.Background(), c.nodes[1].id, false); err != nil {
		t.Errorf("the node that is meant: %v", err)
	}
	n.checkPull(b)
}
