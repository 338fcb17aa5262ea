package nodetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/atollregistry/atoll/node"
	atoll "github.com/atollregistry/atoll/proto"
)

// recordOf returns what a member's state has of the node with a name; nil if nothing.
func (m *Member) recordOf(name string) *atoll.Node {
	for _, record := range m.running().Metadata().LocalNodes() {
		if record.Name == name && record.State != atoll.NodeState_NODE_STATE_REMOVED {
			return record
		}
	}
	return nil
}

// wantLiveness is nil if a member's state has it so.
func (m *Member) wantLiveness(name string, want atoll.Liveness) error {
	if got := m.recordOf(name).GetLiveness(); got != want {
		return fmt.Errorf("%s takes %s for %v", m.Config.Name, name, got)
	}
	return nil
}

// A node that dies is unreachable, then down, at its time even though another
// node leads by then; when it comes back, it is a member as before.
func TestDeadNodeIsDown(t *testing.T) {
	t.Parallel()
	const downAfter = 20 * time.Second
	c := Start(t, 3, func(cfg *node.Config) { cfg.DownAfter = downAfter })
	push(t, c, "app", "v1", 1, c.Members...)
	leader := c.Leader()
	var dead, other *Member
	for _, m := range c.Members {
		switch {
		case m == leader:
		case dead == nil:
			dead = m
		default:
			other = m
		}
	}
	dead.Crash()
	name := dead.Config.Name
	c.Eventually(FormTimeout, "it is unreachable", func() error {
		return other.wantLiveness(name, atoll.Liveness_LIVENESS_UNREACHABLE)
	})
	since := other.recordOf(name).LivenessUnixMs

	// The leader hands over and is gone for a moment: nobody leads meanwhile.
	leader.Stop()
	leader.Start()
	leader.WaitReady()
	c.Eventually(downAfter+FormTimeout, "it is down", func() error {
		record := other.recordOf(name)
		if record.Liveness == atoll.Liveness_LIVENESS_UNREACHABLE && record.LivenessUnixMs != since {
			t.Fatalf("it is unreachable since %d, and was since %d: its time began anew", record.LivenessUnixMs, since)
		}
		return other.wantLiveness(name, atoll.Liveness_LIVENESS_DOWN)
	})
	// The next leader may have heard it last a little earlier than the one that recorded
	// that it was away, and that one may have recorded it a little late.
	const apart = 2 * time.Second
	if took := time.Duration(other.recordOf(name).LivenessUnixMs-since) * time.Millisecond; took < downAfter-apart {
		t.Errorf("it was unreachable for %s, less than %s", took, downAfter)
	}
	c.Eventually(FormTimeout, "the status says so", func() error {
		status, err := leader.Status()
		if err != nil {
			return err
		}
		for _, n := range status.Nodes {
			if want := map[bool]string{true: "down", false: "active"}[n.ID == name]; n.State != want {
				return fmt.Errorf("%s is %s, not %s", n.ID, n.State, want)
			}
		}
		return leader.wantMetric(fmt.Sprintf(`atoll_node_state{name=%q,state="down"} 1`, name))
	})

	dead.Start()
	dead.WaitReady()
	for _, m := range c.Members {
		c.Eventually(FormTimeout, "it is back", func() error { return m.wantLiveness(name, atoll.Liveness_LIVENESS_UNSPECIFIED) })
	}
	for _, metric := range []string{fmt.Sprintf(`atoll_node_state{name=%q,state="active"} 1`, name), `atoll_blobs{condition="lost"} 0`} {
		if err := other.wantMetric(metric); err != nil {
			t.Error(err)
		}
	}
	c.Check()
}
