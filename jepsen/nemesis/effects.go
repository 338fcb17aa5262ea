package nemesis

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/atollregistry/atoll/jepsen/cluster"
	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/netlab"
)

const (
	// lookTimeout bounds a look at what has come of a fault.
	lookTimeout = 15 * time.Second
	// maxWords is how much of a node's last words is told, in bytes.
	maxWords = 200
)

// fault is a fault that lasts, and what was seen to come of it so far.
type fault struct {
	field        *Field
	kind, target string
	close        func(effects ...string)

	mu   sync.Mutex // guards seen
	seen []string
}

// begin records the beginning of a fault. The caller tells what it saw, and ends it.
func (f *Field) begin(kind string, nodes ...*cluster.Node) *fault {
	target := strings.Join(namesOf(nodes), ",")
	f.Log("%s of %s", kind, target)
	return &fault{field: f, kind: kind, target: target, close: f.History.BeginFault(kind, target)}
}

// saw records something that has come of the fault.
func (t *fault) saw(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen = append(t.seen, fmt.Sprintf(format, args...))
}

// end records that the fault is healed. If nothing was seen of it, it had no effect.
func (t *fault) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	effect := history.NoEffect
	if len(t.seen) > 0 {
		effect = strings.Join(t.seen, "; ")
	}
	t.close(effect)
	t.field.Log("effect of %s of %s: %s", t.kind, t.target, effect)
}

func namesOf(nodes []*cluster.Node) []string {
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.Name
	}
	return names
}

// view returns what a node tells that is ready and none of but. It waits for one, also when ctx has
// ended, and returns nil if there is none.
func (f *Field) view(ctx context.Context, but ...*cluster.Node) *cluster.Status {
	var status *cluster.Status
	ctx = context.WithoutCancel(ctx)
	err := f.Cluster.Eventually(ctx, lookTimeout, "a node tells its status", func() (err error) {
		status, err = f.Cluster.View(ctx, but...)
		return err
	})
	if err != nil {
		f.Log("%v", err)
		return nil
	}
	return status
}

// identities returns the identities of some nodes' data, by names, as others see them.
func (f *Field) identities(ctx context.Context, nodes ...*cluster.Node) map[string]string {
	found := make(map[string]string)
	status := f.view(ctx, nodes...)
	if status == nil {
		return found
	}
	for _, n := range nodes {
		if told := status.Find(n.Name); told != nil {
			found[n.Name] = told.UUID
		}
	}
	return found
}

// sawNew tells which nodes have another identity than before: they lost what they had.
func (t *fault) sawNew(before, after map[string]string) {
	for name, id := range after {
		if old := before[name]; old != "" && old != id {
			t.saw("%s was %s and is %s", name, old, id)
		}
	}
}

// pids returns the process ids of nodes, for sawGone.
func pids(nodes []*cluster.Node) []int {
	found := make([]int, len(nodes))
	for i, n := range nodes {
		found[i] = n.Pid()
	}
	return found
}

// sawGone tells which processes are no more.
func (t *fault) sawGone(before []int, nodes []*cluster.Node) {
	for i, n := range nodes {
		if before[i] != 0 && n.Pid() != before[i] {
			t.saw("process %d of %s is gone", before[i], n.Name)
		}
	}
}

// ends counts how often a node has ended by itself so far, for sawEnd.
func ends(n *cluster.Node) int { return len(n.Exits()) }

// sawEnd tells how a node has ended since, and whether it has.
func (t *fault) sawEnd(n *cluster.Node, before int) bool {
	exits := n.Exits()
	if len(exits) <= before {
		return false
	}
	t.saw("%s ended %d times: %s", n.Name, len(exits)-before, lastWords(exits[before].Tail))
	return true
}

// lastWords returns the beginning of the last message in a log: the last line, if it is JSON what that
// tells, and else the first of the lines since.
func lastWords(tail string) string {
	lines := strings.Split(strings.TrimSpace(tail), "\n")
	first := len(lines) - 1
	for first > 0 && !strings.HasPrefix(lines[first], "{") && !strings.HasPrefix(lines[first-1], "{") {
		first--
	}
	words := strings.TrimSpace(lines[first])
	var line struct{ Error, Message string }
	if json.Unmarshal([]byte(words), &line) == nil && line.Error+line.Message != "" {
		words = strings.TrimSuffix(strings.TrimPrefix(line.Message+": "+line.Error, ": "), ": ")
	}
	if len(words) > maxWords {
		words = strings.ToValidUTF8(words[:maxWords], "") + "..."
	}
	return words
}

// sawPackets tells what has become of packets since, if anything.
func (t *fault) sawPackets(before map[netlab.Pair]netlab.Counters) {
	if words := packets(before, t.field.Network.Counters()); words != "" {
		t.saw("%s", words)
	}
}

// packets tells what became of packets between two looks, empty if all just arrived.
func packets(before, after map[netlab.Pair]netlab.Counters) string {
	var dropped, delayed, duplicated int64
	for pair, now := range after {
		dropped += now.Dropped - before[pair].Dropped
		delayed += now.Delayed - before[pair].Delayed
		duplicated += now.Duplicated - before[pair].Duplicated
	}
	var words []string
	for _, one := range []struct {
		count int64
		word  string
	}{{dropped, "dropped"}, {delayed, "delayed"}, {duplicated, "doubled"}} {
		if one.count > 0 {
			words = append(words, fmt.Sprintf("%d packets %s", one.count, one.word))
		}
	}
	return strings.Join(words, ", ")
}
