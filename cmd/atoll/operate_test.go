package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/atollregistry/atoll/node"
)

func TestPrintRemoval(t *testing.T) {
	lost := []node.LostBlob{{Digest: "sha256:aa", Bytes: 2048, Repositories: []string{"app", "base"}}}
	for _, test := range []struct {
		removal   node.Removal
		want, err string
	}{
		{removal: node.Removal{Node: "n2", Removed: true}, want: "node n2 is removed from the cluster\n", err: "<nil>"},
		{
			removal: node.Removal{Node: "n2", Refusal: "what only it has would be lost", Blobs: 3, Uploads: 1, Lost: lost},
			want:    "would be lost: sha256:aa, 2.0 KiB, in app, base\nwould be lost: 2 more blobs\nwould be lost: 1 uploads in progress\n",
			err:     "node n2 is not removed: what only it has would be lost",
		},
		{
			removal: node.Removal{Node: "n2", Removed: true, Blobs: 1, Lost: lost},
			want:    "lost: sha256:aa, 2.0 KiB, in app, base\nnode n2 is removed from the cluster\n", err: "<nil>",
		},
	} {
		var out bytes.Buffer
		err := printRemoval(&out, &test.removal)
		if got := fmt.Sprint(err); out.String() != test.want || got != test.err {
			t.Errorf("%+v: printed\n%s and %s; want\n%s and %s", test.removal, out.String(), got, test.want, test.err)
		}
	}
}

// A service manager can tell a node that was removed from one that failed.
func TestExitCode(t *testing.T) {
	for err, want := range map[error]int{fmt.Errorf("join: %w", node.ErrRemoved): 3, fmt.Errorf("join: %w", node.ErrSuperseded): 3, node.ErrFatal: 1} {
		if got := exitCode(err); got != want {
			t.Errorf("%v ends with %d, want %d", err, got, want)
		}
	}
}

func TestPrintRepair(t *testing.T) {
	repair := &node.Repair{
		Leader: "n2", DegradedExtents: 7, DownShards: 8, DrainingShards: 9, Running: map[string]uint32{"n3": 2, "n1": 4},
		Done: 5, DoneBytes: 3 << 20, Failed: 1, Waiting: map[string]uint32{"no room": 6}, LastError: "disk on fire",
		Settings: node.RepairSettings{BytesPerSecond: 64 << 20, Concurrency: 4},
	}
	var out bytes.Buffer
	if err := printRepair(&out, repair); err != nil {
		t.Fatal(err)
	}
	want := `to do       7 extents miss shards; 8 shards are on nodes that are down, 9 on nodes that are drained
running     4 extents on n1, 2 extents on n3
done        5 extents, 3.0 MiB, since n2 leads; 1 tries failed
waiting     6 extents: no room
last error  disk on fire
limits      each node writes 64 MiB a second, of 4 extents at once
`
	if out.String() != want {
		t.Errorf("repair is\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	if err := printRepair(&out, &node.Repair{Settings: node.RepairSettings{Concurrency: 1}}); err != nil {
		t.Fatal(err)
	}
	for _, words := range []string{"hears of no leader", "writes as much as they can, of 1 extents"} {
		if !strings.Contains(out.String(), words) {
			t.Errorf("repair does not say %q:\n%s", words, out.String())
		}
	}
}

func TestPrintBalance(t *testing.T) {
	var out bytes.Buffer
	repair := &node.Repair{Settings: node.RepairSettings{RebalancePaused: true, Reencode: true}}
	status := &node.Status{Nodes: []node.NodeStatus{{ID: "n1", State: "active", Shards: 3, ShardBytes: 1 << 30, CapacityBytes: 4 << 30}, {ID: "n2", State: "down"}}}
	if err := printBalance(&out, repair, status); err != nil {
		t.Fatal(err)
	}
	want := `rebalance  paused
reencode   on, until every extent has the layout that new ones get

NODE  STATE   SHARDS  HOLDS    CAPACITY  FULL
n1    active  3       1.0 GiB  4.0 GiB   25.0 %
n2    down    0       0 B      0 B       0.0 %
`
	if out.String() != want {
		t.Errorf("balance is\n%s\nwant\n%s", out.String(), want)
	}
}
