package nodetest

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atollregistry/atoll/node"
)

// wantRemovedEnd fails unless the node ends by itself since it was removed.
func (m *Member) wantRemovedEnd() {
	m.cluster.t.Helper()
	if err := m.WaitEnd(); !errors.Is(err, node.ErrRemoved) {
		m.cluster.t.Errorf("node %s ended with %v", m.Config.Name, err)
	}
}

// drop takes a member that was removed out of the closing checks.
func (c *Cluster) drop(m *Member) {
	c.Members = slices.DeleteFunc(slices.Clone(c.Members), func(other *Member) bool { return other == m })
}

func wantError(t *testing.T, err error, words string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("error is %v, want %q", err, words)
	}
}

// The node that leads is emptied under load and taken out of the cluster, at the
// word of another one.
func TestDrainAndRemoveTheLeader(t *testing.T) {
	t.Parallel()
	c := Start(t, 3, quickExpiry)
	for seed := range 5 {
		push(t, c, "app", fmt.Sprint("v", seed), uint64(seed), c.Members...)
	}
	victim := c.Leader()
	name, victimData := victim.Config.Name, victim.Config.Home()
	data := c.Members[0].Config.Home()
	if victim == c.Members[0] {
		data = c.Members[1].Config.Home()
	}
	_, err := node.StartDrain(t.Context(), data, "n9")
	wantError(t, err, `no node "n9": its nodes are`)
	removal, err := node.Remove(t.Context(), data, name, false)
	if err != nil || removal.Removed || !strings.Contains(removal.Refusal, "drain") {
		t.Fatalf("removal of a node that holds shards: %+v, %v", removal, err)
	}
	if drain, err := node.StartDrain(t.Context(), victimData, name); err != nil || !drain.Draining || drain.Shards == 0 {
		t.Fatalf("drain is %+v, %v", drain, err)
	}
	if drain, err := node.CancelDrain(t.Context(), data, name); err != nil || drain.Draining {
		t.Fatalf("cancelled drain is %+v, %v", drain, err)
	}

	l := c.startLoad()
	if _, err := node.StartDrain(t.Context(), data, name); err != nil {
		t.Fatal(err)
	}
	c.Eventually(settleTimeout, "the node is empty", func() error {
		drain, err := node.FetchDrain(t.Context(), data, name)
		if err == nil && (!drain.Draining || drain.Shards > 0) {
			err = fmt.Errorf("drain is %+v", drain)
		}
		return err
	})
	l.without(victim)
	removal, err = node.Remove(t.Context(), data, name, false)
	if err != nil || !removal.Removed {
		t.Fatalf("removal of an empty node: %+v, %v", removal, err)
	}
	victim.wantRemovedEnd()
	t.Logf("%d images pushed and pulled meanwhile", l.end())

	// It stays out, and neither of the two that are left can be spared.
	victim.Start()
	victim.wantRemovedEnd()
	c.drop(victim)
	left := c.Leader()
	_, err = node.StartDrain(t.Context(), left.Config.Home(), left.Config.Name)
	wantError(t, err, "could not take its place")
	c.Check()
}

// Of three nodes one can be spared. Two of them are to be drained at the same moment,
// each through another node: one is, the other is refused.
func TestTwoDrainsAtOnce(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	for round := range 5 {
		errs := make([]error, 2)
		var both sync.WaitGroup
		for i := range errs {
			both.Go(func() {
				_, errs[i] = node.StartDrain(t.Context(), c.Members[i].Config.Home(), c.Members[i].Config.Name)
			})
		}
		both.Wait()
		for i, err := range errs {
			if err == nil {
				wantError(t, errs[1-i], "could not take its place")
			}
		}
		if errs[0] != nil && errs[1] != nil {
			t.Errorf("round %d: neither is drained: %v", round, errs)
		}
		for _, m := range c.Members[:2] {
			if _, err := node.CancelDrain(t.Context(), c.Members[2].Config.Home(), m.Config.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A node that is gone is not removed while that costs data or the quorum, unless
// the data is given up. When it is back, it is told so.
func TestRemoveDeadNode(t *testing.T) {
	t.Parallel()
	const grace = 10 * time.Second // time enough to push an image here
	c := Start(t, 3, func(cfg *node.Config) {
		cfg.Parity, cfg.Collect = 0, node.CollectConfig{Grace: grace, Interval: time.Second}
	})
	digest := push(t, c, "app", "v1", 1, c.Members...)
	dead, other := c.Members[2], c.Members[1]
	data, name := c.Members[0].Config.Home(), dead.Config.Name
	remove := func(name string, force bool) (*node.Removal, error) {
		return node.Remove(t.Context(), data, name, force)
	}
	dead.Crash()
	c.Eventually(FormTimeout, "the removal is refused for what would be lost", func() error {
		removal, err := remove(name, false)
		if err != nil {
			return err
		}
		if removal.Removed || removal.Blobs == 0 || !slices.Contains(removal.Lost[0].Repositories, "app") {
			return fmt.Errorf("removal is %+v", removal)
		}
		return nil
	})
	removal, err := remove(other.Config.Name, true)
	if err != nil || removal.Removed || !strings.Contains(removal.Refusal, "no quorum") {
		t.Errorf("removal of a voter that is needed: %+v, %v", removal, err)
	}
	removal, err = remove(name, true)
	if err != nil || !removal.Removed || removal.Blobs == 0 {
		t.Fatalf("forced removal: %+v, %v", removal, err)
	}
	_, err = remove(name, true)
	wantError(t, err, "no node")

	dead.Start()
	dead.wantRemovedEnd()
	dead.Wipe()
	dead.Start()
	dead.WaitReady()
	// What was given up goes once nothing names it any more.
	if _, _, err := dead.expect(http.StatusAccepted, "DELETE", "/v2/app/manifests/"+digest, nil); err != nil {
		t.Fatal(err)
	}
	for _, acked := range c.Acked() {
		c.Forget(acked.Digest)
	}
	push(t, c, "app", "v2", 2, c.Members...)
	c.Check()
}

// A new machine takes the place of a dead one: the same name, another address.
func TestReplaceOnAnotherAddress(t *testing.T) {
	t.Parallel()
	c := Start(t, 3, quickExpiry)
	push(t, c, "app", "v1", 1, c.Members...)
	dead := c.Members[1]
	addresses := freeAddresses(t, clusterHost(), 3)
	replacement := &Member{cluster: c, Config: dead.Config}
	replacement.Config.Data = []string{filepath.Join(t.TempDir(), "n2")}
	replacement.Config.Registry.Listen, replacement.Config.Cluster.Listen, replacement.Config.Operations.Listen = addresses[0], addresses[1], addresses[2]
	replacement.Config.Cluster.Address = replacement.Config.Cluster.Listen
	replacement.Start()
	wantEnd(t, replacement, "node name is taken", "is alive")

	dead.Crash()
	c.Eventually(FormTimeout, "it is known to be silent", func() error {
		status, err := c.Members[0].Status()
		if err == nil && status.Nodes[1].State != "unreachable" {
			err = fmt.Errorf("%s is %s", status.Nodes[1].ID, status.Nodes[1].State)
		}
		return err
	})
	replacement.Start()
	replacement.WaitReady()
	old := dead
	c.Members = []*Member{c.Members[0], replacement, c.Members[2]}
	c.WaitWhole()
	old.Start()
	old.wantRemovedEnd()
	push(t, c, "app", "v2", 2, c.Members...)
	c.Check()
}

// Every node shows how the repair is doing, which only the leader knows, and takes
// changes of its settings for all.
func TestRepairIsShownAndChangedAnywhere(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	leader := c.Leader()
	for i, m := range c.Members {
		rate, concurrency, paused := uint64(i+1)<<20, uint32(i+1), i%2 == 0
		want := node.RepairSettings{BytesPerSecond: rate, Concurrency: concurrency, RebalancePaused: paused}
		got, err := node.ChangeRepair(t.Context(), m.Config.Home(), node.RepairChange{BytesPerSecond: &rate, Concurrency: &concurrency, RebalancePaused: &paused})
		if err != nil || got.Settings != want {
			t.Fatalf("settings changed through %s are %+v, want %+v (%v)", m.Config.Name, got.Settings, want, err)
		}
		zero := uint32(0)
		_, err = node.ChangeRepair(t.Context(), m.Config.Home(), node.RepairChange{Concurrency: &zero})
		wantError(t, err, "concurrency 0")
		for _, other := range c.Members {
			c.Eventually(FormTimeout, other.Config.Name+" knows it", func() error {
				repair, err := node.FetchRepair(t.Context(), other.Config.Home())
				if err == nil && (repair.Settings != want || repair.Leader != leader.Config.Name) {
					err = fmt.Errorf("repair is %+v", repair)
				}
				return err
			})
		}
	}
	c.Check()
}

// TestEmptyFolderIsNoReplacement: a node on an empty folder does not take its old place
// while what it had can't be done without, since its disk may only not be mounted.
func TestEmptyFolderIsNoReplacement(t *testing.T) {
	t.Parallel()
	c := Start(t, 5, func(cfg *node.Config) { cfg.Parity = 1 })
	push(t, c, "app", "v1", 1, c.Members...)
	away, empty := c.Members[3], c.Members[4]
	away.Stop()
	empty.Stop()
	mounted := empty.Config.Home()
	if err := os.Rename(mounted, mounted+".disk"); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Members[:3] { // whichever leads
		c.Eventually(settleTimeout, "it is known that one node is away", func() error {
			return m.wantMetric(fmt.Sprintf(`atoll_node_state{name=%q,state="unreachable"} 1`, away.Config.Name))
		})
	}
	log := &logBook{}
	empty.Log = log
	empty.Start()
	c.Eventually(settleTimeout, "the node on the empty folder is refused", func() error {
		if !log.has("see that its disk is mounted") {
			return errors.New("its log does not say so")
		}
		return nil
	})
	empty.cancelRun()
	_ = empty.wait() // It was no member.
	if err := errors.Join(os.RemoveAll(mounted), os.Rename(mounted+".disk", mounted)); err != nil {
		t.Fatal(err)
	}
	empty.Start()
	empty.WaitReady()
	c.Members[0].WaitReady()
	if err := empty.Read(c.Acked()[0]); err != nil {
		t.Errorf("with its disk: %v", err)
	}
	empty.Stop()
	empty.Wipe()
	away.Start()
	away.WaitReady()
	empty.Start()
	empty.WaitReady()
	c.Check()
}

// logBook keeps what a node logs.
type logBook struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

func (l *logBook) has(words string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.all.String(), words)
}
