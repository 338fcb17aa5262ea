package blobstore

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

// testNodes returns healthy nodes n0, n1, ... with room, in the zones given
// cyclically.
func testNodes(count int, zones ...string) []NodeInfo {
	nodes := make([]NodeInfo, count)
	for i := range nodes {
		nodes[i] = NodeInfo{ID: fmt.Sprintf("n%d", i), Healthy: true, FreeBytes: 1 << 30, CapacityBytes: 1 << 40}
		if len(zones) > 0 {
			nodes[i].Zone = zones[i%len(zones)]
		}
	}
	return nodes
}

func TestPlaceTakesFitNodesOnce(t *testing.T) {
	nodes := testNodes(6)
	nodes[1].Healthy = false
	nodes[3].Draining = true
	nodes[4].FreeBytes = 0
	for i := range 100 {
		placed, err := place(nodes, fmt.Sprint("key", i), 3)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(placed)
		if want := []string{"n0", "n2", "n5"}; !slices.Equal(placed, want) {
			t.Fatalf("got %v, want %v", placed, want)
		}
	}
}

func TestPlaceSaysWhatIsMissing(t *testing.T) {
	full := testNodes(3)
	full[2].FreeBytes = 0
	sick := testNodes(3)
	sick[2].Healthy = false
	fullAndSick := testNodes(4)
	fullAndSick[2].FreeBytes, fullAndSick[3].Healthy = 0, false
	fullAndDown := slices.Clone(fullAndSick)
	fullAndDown[3].Down = true
	tests := []struct {
		name  string
		nodes []NodeInfo
		want  error
	}{
		{"none", nil, ErrInsufficientNodes},
		{"two of three healthy", sick, ErrInsufficientNodes},
		{"two of three with room", full, ErrNoSpace},
		{"the third with room may come back", fullAndSick, ErrInsufficientNodes},
		{"the third with room is down", fullAndDown, ErrNoSpace},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, err := place(test.nodes, "key", 3); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestPlaceIgnoresTheOrderOfNodes(t *testing.T) {
	nodes := testNodes(9, "a", "b", "")
	want, err := place(nodes, "key", 5)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(nodes)
	got, err := place(nodes, "key", 5)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, before %v", got, want)
	}
}

func TestPlaceSpreadsOverZones(t *testing.T) {
	nodes := append(testNodes(6, "a", "b", "c"), NodeInfo{ID: "alone", Zone: "d", Healthy: true, FreeBytes: 1, CapacityBytes: 1})
	zones := make(map[string]string)
	for _, n := range nodes {
		zones[n.ID] = n.Zone
	}
	for wanted := 1; wanted <= len(nodes); wanted++ {
		for i := range 50 {
			placed, err := place(nodes, fmt.Sprint(i), wanted)
			if err != nil {
				t.Fatal(err)
			}
			count := make(map[string]int)
			for _, id := range placed {
				count[zones[id]]++
			}
			if len(count) != min(wanted, 4) {
				t.Fatalf("%d shards are in %d zones: %v", wanted, len(count), placed)
			}
		}
	}
}

// TestPlaceFollowsCapacity holds the share of first places against the weights.
func TestPlaceFollowsCapacity(t *testing.T) {
	nodes := testNodes(4)
	weights := []float64{1, 2, 3, 4}
	for i := range nodes {
		nodes[i].CapacityBytes = uint64(weights[i] * (1 << 30))
	}
	const keys = 20000
	first := make(map[string]int)
	for i := range keys {
		placed, err := place(nodes, fmt.Sprint("upload-", i), 1)
		if err != nil {
			t.Fatal(err)
		}
		first[placed[0]]++
	}
	for i, n := range nodes {
		expected := keys * weights[i] / 10
		// Five standard deviations of a binomial distribution.
		if slack := 5 * math.Sqrt(expected*(1-weights[i]/10)); math.Abs(float64(first[n.ID])-expected) > slack {
			t.Errorf("%s came first %d times, expected %.0f±%.0f", n.ID, first[n.ID], expected, slack)
		}
	}
}

// TestPlaceMovesLittle: a node more takes places from others and moves nothing
// between them.
func TestPlaceMovesLittle(t *testing.T) {
	few, many := testNodes(5), testNodes(6)
	for i := range 500 {
		before, err := place(few, fmt.Sprint(i), 3)
		if err != nil {
			t.Fatal(err)
		}
		after, err := place(many, fmt.Sprint(i), 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range after {
			if id != "n5" && !slices.Contains(before, id) {
				t.Fatalf("key %d moved to %s: before %v, after %v", i, id, before, after)
			}
		}
	}
}

func TestChooseLayout(t *testing.T) {
	tests := []struct {
		name         string
		nodes, down  int
		full         int
		small        bool
		parity       int // As configured.
		had          int // Parity shards of the extent that is stored again.
		wantK, wantM uint32
		want         error
	}{
		{name: "one node", nodes: 1, parity: -1, wantK: 1, wantM: 0},
		{name: "two", nodes: 2, parity: -1, wantK: 1, wantM: 1},
		{name: "two, one down", nodes: 2, down: 1, parity: -1, want: ErrInsufficientNodes},
		{name: "three", nodes: 3, parity: -1, wantK: 2, wantM: 1},
		{name: "three, one down", nodes: 3, down: 1, parity: -1, wantK: 1, wantM: 1},
		{name: "three, two down", nodes: 3, down: 2, parity: -1, want: ErrInsufficientNodes},
		{name: "three, one full", nodes: 3, full: 1, parity: -1, wantK: 1, wantM: 1},
		{name: "three, two full", nodes: 3, full: 2, parity: -1, want: ErrNoSpace},
		{name: "four", nodes: 4, parity: -1, wantK: 3, wantM: 1},
		{name: "five", nodes: 5, parity: -1, wantK: 3, wantM: 2},
		{name: "five, two down", nodes: 5, down: 2, parity: -1, wantK: 1, wantM: 2},
		{name: "five, three down", nodes: 5, down: 3, parity: -1, want: ErrInsufficientNodes},
		{name: "twelve", nodes: 12, parity: -1, wantK: 8, wantM: 2},
		{name: "small", nodes: 12, small: true, parity: -1, wantK: 1, wantM: 2},
		{name: "no parity wanted", nodes: 3, parity: 0, wantK: 3, wantM: 0},
		{name: "more parity wanted", nodes: 9, parity: 4, wantK: 5, wantM: 4},
		{name: "more parity wanted than there are nodes", nodes: 3, parity: 3, want: ErrInsufficientNodes},
		{name: "none", nodes: 0, parity: -1, want: ErrInsufficientNodes},
		{name: "stored again, in a smaller cluster", nodes: 4, had: 2, parity: -1, wantK: 2, wantM: 2},
		{name: "stored again, where only copies would do", nodes: 3, had: 2, parity: -1, wantK: 2, wantM: 1},
		{name: "stored again, where one is down", nodes: 4, down: 1, had: 2, parity: -1, wantK: 2, wantM: 1},
		{name: "small, stored again", nodes: 3, small: true, had: 2, parity: -1, wantK: 1, wantM: 2},
		{name: "small, stored again, where two are left", nodes: 3, down: 1, small: true, had: 2, parity: -1, wantK: 1, wantM: 1},
		{name: "stored again, in a larger cluster", nodes: 5, had: 1, parity: -1, wantK: 3, wantM: 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			nodes := testNodes(test.nodes)
			for i := range test.down {
				nodes[i].Healthy = false
			}
			for i := range test.full {
				nodes[i].FreeBytes = 0
			}
			cfg := DefaultConfig()
			cfg.Parity = test.parity
			l, err := chooseLayout(nodes, test.small, test.had, cfg)
			if !errors.Is(err, test.want) {
				t.Fatalf("got error %v, want %v", err, test.want)
			}
			if l.GetDataShards() != test.wantK || l.GetParityShards() != test.wantM {
				t.Errorf("got %d+%d, want %d+%d", l.GetDataShards(), l.GetParityShards(), test.wantK, test.wantM)
			}
			if err == nil {
				if _, err := place(nodes, "key", int(test.wantK+test.wantM)); err != nil {
					t.Errorf("the layout can't be placed: %v", err)
				}
			}
		})
	}
}

// The home is a holder that is well, the same seen from every node, and every
// node is the home of its share.
func TestHome(t *testing.T) {
	nodes := []NodeInfo{
		{ID: "a", Healthy: true, CapacityBytes: 1}, {ID: "b", Healthy: true, CapacityBytes: 1 << 40},
		{ID: "c", Healthy: true, Draining: true}, {ID: "d", Healthy: true},
	}
	extents := []*proto.Extent{{Holders: []string{"a", "b", ""}}, {Holders: []string{"a", "", "c"}}}
	const blobs = 3000
	homes := map[string]int{}
	for i := range blobs {
		digest := fmt.Sprint("sha256:", i)
		home := Home(nodes, digest, extents, "d")
		homes[home]++
		other := slices.Clone(nodes)
		slices.Reverse(other)
		if again := Home(other, digest, extents, "a"); again != home {
			t.Fatalf("home of %s is %s and %s", digest, home, again)
		}
		for j := range other {
			other[j].Healthy = other[j].ID != home
		}
		if next := Home(other, digest, extents, "d"); next == home || next == "" || next == "d" {
			t.Fatalf("without %s the home of %s is %q", home, digest, next)
		}
	}
	for _, id := range []string{"a", "b", "c"} {
		if share := homes[id]; share < blobs/3-150 || share > blobs/3+150 {
			t.Errorf("%s is the home of %d of %d blobs", id, share, blobs)
		}
	}
	if home := Home(nodes, "x", []*proto.Extent{{Holders: []string{"", "e"}}}, "a"); home != "" {
		t.Errorf("home of a blob without holders is %q", home)
	}
}

// A large cluster has several homes for a blob, each for as many nodes as another, give or take.
func TestHomesOfLargeCluster(t *testing.T) {
	const count, blobs = 30, 300
	var nodes []NodeInfo
	holders := make([]string, 10)
	for i := range count {
		nodes = append(nodes, NodeInfo{ID: fmt.Sprint("n", i), Healthy: true})
		holders[i%len(holders)] = nodes[i].ID
	}
	extents := []*proto.Extent{{Holders: holders}}
	busiest := 0
	for i := range blobs {
		askers := map[string]int{}
		for _, n := range nodes {
			askers[Home(nodes, fmt.Sprint("sha256:", i), extents, n.ID)]++
		}
		if len(askers) != count/nodesPerHome {
			t.Fatalf("homes are %v", askers)
		}
		for home, n := range askers {
			if Home(nodes, fmt.Sprint("sha256:", i), extents, home) != home || !slices.Contains(holders, home) {
				t.Fatalf("%s is a home of others, and not its own, or no holder", home)
			}
			busiest += max(0, n-2*nodesPerHome)
		}
	}
	if busiest > 0 {
		t.Errorf("homes have %d nodes more than twice their part", busiest)
	}
}
