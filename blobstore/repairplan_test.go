package blobstore

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

// surveyOf makes nodes of words: "a b:down c:draining d:away e:full f:tight g@zone".
func surveyOf(t *testing.T, text string) *survey {
	t.Helper()
	var nodes []NodeInfo
	for _, word := range strings.Fields(text) {
		word, state, _ := strings.Cut(word, ":")
		id, zone, _ := strings.Cut(word, "@")
		n := NodeInfo{ID: id, Zone: zone, Healthy: true, FreeBytes: 1 << 30, CapacityBytes: 1 << 30}
		switch state {
		case "":
		case "down":
			n.Healthy, n.Down = false, true
		case "draining":
			n.Draining = true
		case "away":
			n.Healthy = false
		case "full":
			n.FreeBytes = 0
		case "tight":
			n.FreeBytes = 1
		default:
			t.Fatalf("state %q", state)
		}
		nodes = append(nodes, n)
	}
	cfg := testConfig()
	return newSurvey(cfg, nodes)
}

// extentOn makes an extent of words: "2+1 a b -" or "2+1 a b! c", where - is no
// holder and ! a damaged shard.
func extentOn(t *testing.T, text string) *proto.Extent {
	t.Helper()
	words := strings.Fields(text)
	e := &proto.Extent{Id: []byte("0123456789abcdef"), Size: 50_000, Layout: &proto.Layout{CellBytes: 4096}}
	if _, err := fmt.Sscanf(words[0], "%d+%d", &e.Layout.DataShards, &e.Layout.ParityShards); err != nil {
		t.Fatal(err)
	}
	for number, word := range words[1:] {
		if strings.HasSuffix(word, "!") {
			e.DamagedShards = append(e.DamagedShards, uint32(number))
		}
		e.Holders = append(e.Holders, strings.Trim(word, "-!"))
	}
	return e
}

// TestPlan goes through what can become of an extent.
func TestPlan(t *testing.T) {
	for _, test := range []struct {
		nodes, extent string
		need          need
		// shard is the one to rebuild, on one of the nodes, with so many to spare.
		shard int
		on    string
		spare int
		why   error
	}{
		{nodes: "a b c", extent: "2+1 a b c", need: needNothing},
		{nodes: "a b c:away d", extent: "2+1 a b c", need: needNothing}, // It may come back.
		{nodes: "a b c", extent: "2+1 a b -", need: needShard, shard: 2, on: "c", spare: 0},
		{nodes: "a b c d", extent: "2+1 a - c", need: needShard, shard: 1, on: "b d", spare: 0},
		{nodes: "a b:down c d", extent: "2+1 a b c", need: needShard, shard: 1, on: "d", spare: 0},
		{nodes: "a b c", extent: "2+1 a b gone", need: needShard, shard: 2, on: "c", spare: 0},
		// A damaged shard is rebuilt where it is, unless that node leaves or takes nothing.
		{nodes: "a b c d", extent: "2+1 a b! c", need: needShard, shard: 1, on: "b", spare: 0},
		{nodes: "a b:draining c d", extent: "2+1 a b! c", need: needShard, shard: 1, on: "d", spare: 0},
		{nodes: "a b:full c d", extent: "2+1 a b! c", need: needShard, shard: 1, on: "d", spare: 0},
		{nodes: "a b:tight c d", extent: "2+1 a b! c", need: needShard, shard: 1, on: "d", spare: 0},
		{nodes: "a b:tight c", extent: "2+1 a b! c", need: needNode, why: ErrNoSpace},
		// What is lost comes before what leaves, which is not urgent.
		{nodes: "a:draining b c d e", extent: "2+1 a b -", need: needShard, shard: 2, on: "d e c", spare: 0},
		{nodes: "a:draining b c d", extent: "2+1 a b c", need: needShard, shard: 0, on: "d", spare: 1},
		// A shard that leaves can be copied although the lost ones can't be had.
		{nodes: "a:draining b c d e", extent: "2+1 a - -", need: needShard, shard: 0, on: "b c d e", spare: 1},
		{nodes: "a b c:draining d e", extent: "3+1 - a! c -", need: needShard, shard: 2, on: "b d e", spare: 1},
		// If only one of the lost shards has a taker, it is that one's turn.
		{nodes: "a:full b c", extent: "1+2 a! b! c", need: needShard, shard: 1, on: "b", spare: 0},
		// Who does not answer is no help now.
		{nodes: "a b:away c:down d e", extent: "2+2 a b c d", need: needShard, shard: 2, on: "e", spare: 0},
		{nodes: "a b c:down d e", extent: "2+2 a b c d", need: needShard, shard: 2, on: "e", spare: 1},
		{nodes: "a b:down c:down d e", extent: "2+2 a b c d", need: needShard, shard: 1, on: "e", spare: 0},
		{nodes: "a b:down c:down d:down e", extent: "2+2 a b c d", need: needShard, shard: 1, on: "e", spare: -1},
		// Nobody is left: fewer shards.
		{nodes: "a b c:down", extent: "2+1 a b c", need: needLayout, on: "a b", spare: 0},
		{nodes: "a b c:draining", extent: "2+1 a b c", need: needLayout, on: "a b", spare: 1},
		{nodes: "a b c d:full e:down", extent: "2+2 a b c e", need: needLayout, on: "a b c", spare: 1},
		// Not even that.
		{nodes: "a b:down", extent: "1+1 a b", need: needNode, why: ErrInsufficientNodes},
		{nodes: "a b:full c:down", extent: "2+1 a b c", need: needNode, why: ErrNoSpace},
		{nodes: "a b c", extent: "2+1 a b", need: needNode, why: ErrInvalid},
		// A zone that has none comes first.
		{nodes: "a@x b@y c@x d@y e@z", extent: "2+1 a b -", need: needShard, shard: 2, on: "e", spare: 0},
		{nodes: "a@x b@y:down c@x d@y", extent: "1+1 a b", need: needShard, shard: 1, on: "d", spare: 0},
	} {
		need, job, why := surveyOf(t, test.nodes).plan(extentOn(t, test.extent), failure{})
		name := fmt.Sprintf("%s on %s", test.extent, test.nodes)
		if need != test.need || !errors.Is(why, test.why) || (why == nil) != (test.why == nil) {
			t.Errorf("%s: need %d, want %d (%v)", name, need, test.need, why)
			continue
		}
		if need == needNothing || need == needNode {
			continue
		}
		if !slices.Contains(strings.Fields(test.on), job.node) || job.spare != test.spare ||
			job.task.GetReencode() != (need == needLayout) || need == needShard && int(job.task.GetShardNumber()) != test.shard {
			t.Errorf("%s: %s does %v with %d to spare", name, job.node, job.task, job.spare)
		}
	}
}

// TestPlanTakesTurns: a shard that can't be had does not keep the others of its
// extent waiting.
func TestPlanTakesTurns(t *testing.T) {
	v, extent := surveyOf(t, "a b:draining c d e f"), extentOn(t, "2+3 a b - - c")
	var turns []uint32
	for attempts := range 4 {
		_, job, why := v.plan(extent, failure{attempts: attempts})
		if why != nil {
			t.Fatal(why)
		}
		turns = append(turns, job.task.GetShardNumber())
	}
	if !slices.Equal(turns, []uint32{2, 3, 1, 2}) {
		t.Errorf("shards are tried in the order %v", turns)
	}
}

// TestPlanAsksOthers: the node that failed is asked again when all others have
// failed as well, and no extent is stored in fewer shards for that.
func TestPlanAsksOthers(t *testing.T) {
	for _, test := range []struct {
		nodes, extent, failed, on string
	}{
		{nodes: "a b c d", extent: "1+1 a -", failed: "b", on: "c d"},
		{nodes: "a b c d", extent: "1+1 a -", failed: "b c", on: "d"},
		{nodes: "a b c d", extent: "1+1 a -", failed: "b c d", on: "b c d"},
		{nodes: "a b c", extent: "2+1 a b -", failed: "c", on: "c"},
		{nodes: "a@x b@x c@y", extent: "1+1 a -", failed: "c", on: "b"}, // a zone that fails is as bad as none
		// A damaged shard is rebuilt where it is, or else elsewhere.
		{nodes: "a b c d", extent: "2+1 a b! c", failed: "d", on: "b"},
		{nodes: "a b c d", extent: "2+1 a b! c", failed: "b", on: "d"},
		{nodes: "a b c d", extent: "2+1 a b! c", failed: "b d", on: "b"},
		{nodes: "a b c", extent: "2+1 a b! c", failed: "b", on: "b"},
		// The same goes for storing it again.
		{nodes: "a b c:down", extent: "2+1 a b c", failed: "a", on: "b"},
		{nodes: "a b c:down", extent: "2+1 a b c", failed: "a b", on: "a b"},
	} {
		_, job, why := surveyOf(t, test.nodes).plan(extentOn(t, test.extent), failure{nodes: strings.Fields(test.failed)})
		if why != nil || !slices.Contains(strings.Fields(test.on), job.node) {
			t.Errorf("%s on %s, after %s failed: %v (%v)", test.extent, test.nodes, test.failed, job, why)
		}
	}
}

// TestImprove: an extent is stored again only for a layout that survives more, or
// takes less room.
func TestImprove(t *testing.T) {
	for _, test := range []struct {
		nodes, extent string
		better        bool
	}{
		{"a b c", "2+1 a b c", false},
		{"a b c", "1+1 a b", true},
		{"a b c:away", "2+1 a b c", false}, // It would be narrower.
		{"a b c d e f", "2+1 a b c", true},
		{"a b c d e f", "4+2 a b c d e f", false},
		{"a b c", "1+2 a b c", false}, // It would survive less.
	} {
		if job, err := surveyOf(t, test.nodes).improve(extentOn(t, test.extent), failure{}); (job != nil) != test.better || err != nil {
			t.Errorf("%s on %s: %v (%v)", test.extent, test.nodes, job, err)
		}
	}
	small := extentOn(t, "1+1 a b")
	small.Size = 100
	if job, err := surveyOf(t, "a b c").improve(small, failure{}); job != nil || err != nil {
		t.Errorf("a small extent is to be cut: %v (%v)", job, err)
	}
	if job, err := surveyOf(t, "a b c:tight").improve(extentOn(t, "1+1 a b"), failure{}); job != nil || !errors.Is(err, ErrNoSpace) {
		t.Errorf("without room: %v (%v)", job, err)
	}
}
