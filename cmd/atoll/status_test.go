package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/atollregistry/atoll/node"
)

func TestPrintStatus(t *testing.T) {
	status := &node.Status{
		Health: node.HealthDegraded, Cluster: "f00d", Node: "n2",
		Nodes: []node.NodeStatus{
			{ID: "n1", State: "unreachable", Voter: true, LastContactMS: 65_000, AppliedIndex: 7,
				Registry: "http://127.0.0.1:5001", Cluster: "127.0.0.1:5101", Operations: "http://127.0.0.1:5201"},
			{ID: "n2", State: "active", Voter: true, Leader: true, AppliedIndex: 9, Shards: 12, ShardBytes: 5 << 20, FreeBytes: 3 << 30, CapacityBytes: 200 << 30,
				Registry: "http://127.0.0.1:5002", Cluster: "127.0.0.1:5102", Operations: "http://127.0.0.1:5202"},
			{ID: "n3", State: "active", LastContactMS: -1},
		},
		Blobs:    node.BlobCounts{Whole: 10, Degraded: 2, Lost: 1},
		Problems: []string{"node n1 does not answer"}, Notes: []string{"node n3 is empty"},
	}
	var out bytes.Buffer
	if err := printStatus(&out, status); err != nil {
		t.Fatal(err)
	}
	want := `health   degraded
blobs    10 whole, 2 degraded, 1 lost
cluster  f00d, as n2 sees it
problem  node n1 does not answer
note     node n3 is empty

NODE  ROLE       STATE        SEEN      APPLIED  SHARDS  HOLDS    FREE                REGISTRY               CLUSTER         OPERATIONS
n1    voter      unreachable  1m5s ago  7        0       0 B      0 B of 0 B          http://127.0.0.1:5001  127.0.0.1:5101  http://127.0.0.1:5201
n2    leader     active       now       9        12      5.0 MiB  3.0 GiB of 200 GiB  http://127.0.0.1:5002  127.0.0.1:5102  http://127.0.0.1:5202
n3    non-voter  active       never     0        0       0 B      0 B of 0 B
`
	var lines []string
	for line := range strings.Lines(out.String()) {
		lines = append(lines, strings.TrimRight(line, " \n")+"\n")
	}
	if got := strings.Join(lines, ""); got != want {
		t.Errorf("status is\n%s\nwant\n%s", got, want)
	}
}

func TestBinaryBytes(t *testing.T) {
	for size, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 KiB", 1023: "1.0 KiB", 1536: "1.5 KiB", 10 << 10: "10 KiB", 999 << 20: "999 MiB",
		1 << 30: "1.0 GiB", 10 << 40: "10 TiB", 1<<64 - 1: "16 EiB",
	} {
		if got := binaryBytes(size); got != want {
			t.Errorf("binaryBytes(%d) = %q, want %q", size, got, want)
		}
	}
}
