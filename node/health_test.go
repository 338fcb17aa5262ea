package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestJudge(t *testing.T) {
	active := NodeStatus{ID: "n1", State: stateActive, FreeBytes: 1}
	for _, test := range []struct {
		name   string
		status Status
		writes error
		want   Health
		// words that the problems and then the notes have, in this order, one each.
		problems, notes []string
	}{
		{name: "all is well", status: Status{Nodes: []NodeStatus{active}, Blobs: BlobCounts{Whole: 3}}, want: HealthOK},
		{
			name:   "a node is away for a moment",
			status: Status{Nodes: []NodeStatus{active, {ID: "n2", State: stateUnreachable, LastContactMS: 8000}}, Blobs: BlobCounts{Degraded: 2}},
			want:   HealthDegraded, problems: []string{"n2 does not answer, last seen 8s ago: start it again; its shards are rebuilt on others once it has been away for 5m0s", "2 blobs have fewer shards"},
		},
		{
			name:   "a node is gone",
			status: Status{Nodes: []NodeStatus{active, {ID: "n2", State: stateDown, LastContactMS: -1}, {ID: "n3", State: stateDown, Shards: 1}}},
			want:   HealthDegraded, problems: []string{"all its shards are on others by now; start it again", "being rebuilt on others"},
		},
		{
			name:   "no quorum and lost blobs: the worst is the health",
			status: Status{Nodes: []NodeStatus{active, {ID: "n2", State: stateUnreachable}}, Blobs: BlobCounts{Lost: 1}},
			writes: fmt.Errorf("%w for 15s", errNoMajority), want: HealthLosing,
			problems: []string{"start those again with their data", "voters for 15s: see that most", "n2 does not answer"},
		},
		{
			name:   "lost with all nodes there",
			status: Status{Nodes: []NodeStatus{active}, Blobs: BlobCounts{Lost: 1}},
			want:   HealthLosing, problems: []string{"push them again or restore them"},
		},
		{
			name:   "no quorum",
			status: Status{Nodes: []NodeStatus{active}}, writes: errors.New("shutting down"),
			want: HealthReadOnly, problems: []string{"can't serve tags or pushes: shutting down"},
		},
		{
			name:   "full disk",
			status: Status{Nodes: []NodeStatus{active, {ID: "n2", State: stateActive}, {ID: "n3", State: stateActive, LastContactMS: -1}}},
			want:   HealthDegraded, problems: []string{"n2 takes no new shards"},
		},
		{
			name:   "repair waits",
			status: Status{Nodes: []NodeStatus{active}, Waiting: map[string]uint32{"too few healthy nodes": 7, "no room": 3}},
			want:   HealthDegraded, problems: []string{"3 extents can't be repaired or moved, no room", "7 extents"},
		},
		{
			name: "drains are no problem",
			status: Status{Nodes: []NodeStatus{
				{ID: "n1", State: stateDraining, Draining: true, FreeBytes: 1, Shards: 7, ShardBytes: 70},
				{ID: "n2", State: stateDraining, Draining: true, FreeBytes: 1},
			}},
			want: HealthOK, notes: []string{"n1 is draining: 7 shards", "n2 is empty: 'atoll remove n2'"},
		},
	} {
		test.status.judge(test.writes, 5*time.Minute)
		has := func(texts, words []string) bool {
			return slices.EqualFunc(texts, words, strings.Contains)
		}
		if test.status.Health != test.want || !has(test.status.Problems, test.problems) || !has(test.status.Notes, test.notes) {
			t.Errorf("%s: %s, problems %q, notes %q", test.name, test.status.Health, test.status.Problems, test.status.Notes)
		}
	}
}
