package nodetest

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/node"
)

// openRecovery opens the data folder of a stopped member.
func (m *Member) openRecovery(rejoin bool) *node.Recovery {
	m.cluster.t.Helper()
	recovery, err := node.OpenRecovery(m.Config, rejoin, zerolog.Nop())
	if err != nil {
		m.cluster.t.Fatalf("open recovery of %s: %v", m.Config.Name, err)
	}
	return recovery
}

func (m *Member) closeRecovery(recovery *node.Recovery) {
	m.cluster.t.Helper()
	if err := recovery.Close(); err != nil {
		m.cluster.t.Errorf("close recovery of %s: %v", m.Config.Name, err)
	}
}

// survey is what the operator is told before a recovery.
func (m *Member) survey(rejoin bool) *node.Survey {
	m.cluster.t.Helper()
	recovery := m.openRecovery(rejoin)
	defer m.closeRecovery(recovery)
	survey, err := recovery.Survey(m.cluster.t.Context(), rejoin)
	if err != nil {
		m.cluster.t.Fatal(err)
	}
	return survey
}

// recoverCluster is atoll recover --yes, and returns the id that the cluster got.
func (m *Member) recoverCluster(done func(step string)) string {
	m.cluster.t.Helper()
	if refusal := m.survey(false).Refusal(); refusal != nil {
		m.cluster.t.Fatalf("recover %s: %v", m.Config.Name, refusal)
	}
	recovery := m.openRecovery(false)
	defer m.closeRecovery(recovery)
	id, err := recovery.Recover(done)
	if err != nil {
		m.cluster.t.Fatalf("recover %s: %v", m.Config.Name, err)
	}
	return id
}

// rejoin is atoll recover --rejoin --yes.
func (m *Member) rejoin(done func(step string)) {
	m.cluster.t.Helper()
	survey := m.survey(true)
	if refusal := survey.Refusal(); refusal != nil {
		m.cluster.t.Fatalf("rejoin %s: %v", m.Config.Name, refusal)
	}
	recovery := m.openRecovery(true)
	defer m.closeRecovery(recovery)
	if err := recovery.Rejoin(survey.Recovered.ID, done); err != nil {
		m.cluster.t.Fatalf("rejoin %s: %v", m.Config.Name, err)
	}
}

func anyStep(string) {}

// wantSuperseded fails unless the node ends by itself since its cluster was recovered.
func (m *Member) wantSuperseded() {
	m.cluster.t.Helper()
	err := m.WaitEnd()
	if !errors.Is(err, node.ErrSuperseded) || !strings.Contains(err.Error(), "atoll recover --rejoin") {
		m.cluster.t.Errorf("node %s of the cluster as it was ended with %v", m.Config.Name, err)
	}
}

// lost lists what the cluster can't read back.
func (m *Member) lost() []string {
	m.cluster.t.Helper()
	var digests []string
	err := node.Verify(m.cluster.t.Context(), m.Config.Home(), 0, func(v node.Verified) error {
		if v.Found != nil {
			digests = append(digests, v.Found.Digest)
		}
		return nil
	})
	if err != nil {
		m.cluster.t.Errorf("verify: %v", err)
	}
	return digests
}

// Two of three nodes are gone, one with its disk. The third is recovered, the second
// rejoins with its shards, and a new one takes the place of the lost one.
func TestRecoverFromLossOfQuorum(t *testing.T) {
	t.Parallel()
	c := Start(t, 3, quickExpiry)
	push(t, c, "a/image", "v1", 1, c.Members...) // what can't be read takes 3 s each to be given up
	chosen, second, gone := c.Members[0], c.Members[1], c.Members[2]
	_, err := node.OpenRecovery(chosen.Config, false, zerolog.Nop())
	wantError(t, err, "in use by another atoll process")
	chosen.Crash()
	wantError(t, chosen.survey(false).Refusal(), "node n2 at "+second.Config.Cluster.Address+" runs")
	second.Crash()
	gone.Crash()
	gone.Wipe()
	wantError(t, second.survey(true).Refusal(), "no node answers that its cluster was recovered")

	id := chosen.recoverCluster(anyStep)
	wantError(t, chosen.survey(false).Refusal(), "the only one that votes")
	// A voter of the cluster as it was runs already, and does not keep it from starting.
	second.Start()
	chosen.Start()
	second.wantSuperseded()
	chosen.WaitReady()
	status, err := chosen.Status()
	if err != nil || status.Cluster != id || status.Health != node.HealthLosing || len(status.Nodes) != 3 || len(status.Notes) != 1 {
		t.Errorf("status of the recovered node is %+v, %v", status, err)
	}
	if lost := chosen.lost(); uint64(len(lost)) != status.Blobs.Lost {
		t.Errorf("verify finds %d blobs that can't be read, status says %d", len(lost), status.Blobs.Lost)
	}

	tags := slices.DeleteFunc(c.Acked(), func(a Acked) bool { return a.Tag == "" })
	chosen.readsMeanwhile(tags[0], func() {
		second.Start()
		second.wantSuperseded()
	})
	wantError(t, second.survey(false).Refusal(), "run 'atoll recover --rejoin' here")
	second.rejoin(anyStep)
	wantError(t, second.survey(true).Refusal(), "already: start it")
	second.Start()
	second.WaitReady()
	if lost := append(chosen.lost(), second.lost()...); len(lost) > 0 {
		t.Errorf("with both nodes, these can't be read: %v", lost)
	}
	for _, acked := range c.Acked() {
		for _, m := range []*Member{chosen, second} {
			if err := m.Read(acked); err != nil {
				t.Errorf("acknowledged content is not there: %v", err)
			}
		}
	}
	push(t, c, "a/image", "after", 5, chosen, second)
	gone.Start()
	gone.WaitReady()
	c.Check()
}

// readsMeanwhile reads a tag from a member again and again while something happens. No
// read may fail.
func (m *Member) readsMeanwhile(tag Acked, happens func()) {
	m.cluster.t.Helper()
	over, reads := make(chan struct{}), make(chan int)
	go func() { // ends when it has happened; received from below
		for n := 0; ; n++ {
			select {
			case <-over:
				reads <- n
				return
			default:
			}
			if _, _, err := m.expect(http.StatusOK, "HEAD", "/v2/"+tag.Repository+"/manifests/"+tag.Tag, nil); err != nil {
				m.cluster.t.Errorf("read meanwhile: %v", err)
			}
		}
	}()
	happens()
	close(over)
	m.cluster.t.Logf("%d reads meanwhile", <-reads)
}

// Three of five nodes are gone with their disks, and are given up. What the others can't
// read is known, and heals by being pushed again.
func TestRecoverTwoOfFive(t *testing.T) {
	t.Parallel()
	c := Start(t, 5, quickExpiry)
	push(t, c, "a/image", "v1", 1, c.Members...)
	for _, m := range c.Members {
		m.Crash()
	}
	for _, m := range c.Members[2:] {
		m.Wipe()
	}
	survivors := slices.Clone(c.Members[:2])
	slices.SortFunc(survivors, func(a, b *Member) int {
		x, y := a.survey(false), b.survey(false)
		return cmp.Or(cmp.Compare(y.LastTerm, x.LastTerm), cmp.Compare(y.LastIndex, x.LastIndex))
	})
	chosen, second := survivors[0], survivors[1]
	chosen.recoverCluster(anyStep)
	chosen.Start()
	chosen.WaitReady()
	second.rejoin(anyStep)
	second.Start()
	second.WaitReady()
	status, err := chosen.Status()
	if err != nil || status.Health != node.HealthLosing {
		t.Fatalf("status is %+v, %v", status, err)
	}
	lost := second.lost()
	if len(lost) == 0 {
		t.Error("two of five nodes have all shards")
	}
	for _, acked := range c.Acked() {
		if slices.Contains(lost, acked.Digest) {
			continue
		}
		if err := chosen.Read(acked); err != nil {
			t.Errorf("verify did not find: %v", err)
		}
	}
	for _, m := range c.Members[2:] { // one after the other: none waits for the voters that are lost
		removal, err := node.Remove(t.Context(), chosen.Config.Home(), m.Config.Name, true)
		if err != nil || !removal.Removed {
			t.Errorf("removal of a lost node is %+v, %v", removal, err)
		}
		m.Start()
		m.WaitReady()
	}
	push(t, c, "a/image", "v1", 1, c.Members...)
	c.Check()
}

// A node is recovered while the others, which it does not reach, have a quorum. As soon as
// they hear of each other, the cluster as it was ends.
func TestRecoverTooEarly(t *testing.T) {
	t.Parallel()
	c := Start(t, 3, quickExpiry)
	push(t, c, "a/image", "v1", 1, c.Members...)
	hasty, others := c.Members[0], c.Members[1:]
	hasty.Crash()
	c.Isolate(hasty)
	recovery := hasty.openRecovery(false)
	if _, err := recovery.Recover(anyStep); err != nil {
		t.Fatal(err)
	}
	hasty.closeRecovery(recovery)
	hasty.Start()
	hasty.WaitReady()
	if _, err := c.PushBlob("b", Bytes(9, 1000), others...); err != nil {
		t.Fatal(err)
	}
	c.Forget(Digest(Bytes(9, 1000))) // it is what the operator gives up
	// The first of them is back while the other still runs as a node of the cluster as it was.
	for _, m := range others {
		c.Heal(hasty, m)
		m.wantSuperseded()
		if survey := m.survey(true); len(survey.Warnings) != 1 || !strings.Contains(survey.Warnings[0], "has more than the cluster was recovered with") {
			t.Errorf("%s is warned of %q", m.Config.Name, survey.Warnings)
		}
		m.rejoin(anyStep)
		m.Start()
		m.WaitReady()
	}
	c.Check()
}

// Two nodes are recovered, each without the other. The one that went on from less, or
// later, gives way.
func TestRecoverTwice(t *testing.T) {
	t.Parallel()
	c := Start(t, 3, quickExpiry)
	push(t, c, "a/image", "v1", 1, c.Members...)
	for _, m := range c.Members {
		m.Crash()
	}
	first, second, third := c.Members[0], c.Members[1], c.Members[2]
	if a, b := first.survey(false), second.survey(false); cmp.Or(cmp.Compare(a.LastTerm, b.LastTerm), cmp.Compare(a.LastIndex, b.LastIndex)) < 0 {
		first, second = second, first
	}
	first.recoverCluster(anyStep)
	second.recoverCluster(anyStep)
	first.Start()
	second.Start()
	first.WaitReady()
	second.wantSuperseded()
	// What is left of the third is its shards.
	if err := os.RemoveAll(filepath.Join(third.Config.Home(), "raft")); err != nil {
		t.Fatal(err)
	}
	if survey := third.survey(true); !strings.Contains(survey.Fault, "the Raft log is lost") {
		t.Errorf("survey of a node without its log is %+v", survey)
	}
	third.rejoin(anyStep)
	third.Start()
	third.WaitReady()
	if survey := second.survey(true); len(survey.Warnings) != 1 || !strings.Contains(survey.Warnings[0], "was recovered itself") {
		t.Errorf("it is warned of %q", survey.Warnings)
	}
	second.rejoin(anyStep)
	second.Start()
	second.WaitReady()
	c.Check()
}

// A crash after any step of a recovery or of a rejoin keeps the node from starting until
// the same command has completed it.
func TestCrashWhileRecovering(t *testing.T) {
	t.Parallel()
	c := Start(t, 2, quickExpiry)
	push(t, c, "a/image", "v1", 1, c.Members...)
	chosen, second := c.Members[0], c.Members[1]
	chosen.Crash()
	second.Crash()
	var id string
	c.atEachStep(chosen, func(done func(string)) {
		again := chosen.recoverCluster(done)
		if id != "" && again != id {
			t.Errorf("completed, the cluster is called %s, not %s", again, id)
		}
		id = again
	}, "atoll recover --yes")
	chosen.Start()
	chosen.WaitReady()
	c.atEachStep(second, func(done func(string)) { second.rejoin(done) }, "atoll recover --rejoin --yes")
	second.Start()
	second.WaitReady()
	c.Check()
}

// atEachStep runs an operator's command on a stopped member, then from what a crash after
// each of its steps would have left.
func (c *Cluster) atEachStep(m *Member, run func(done func(string)), command string) {
	t := c.t
	t.Helper()
	images := t.TempDir()
	var steps []string
	run(func(step string) {
		steps = append(steps, step)
		if err := copyFolder(m.Config.Home(), filepath.Join(images, fmt.Sprint(len(steps)))); err != nil {
			t.Fatal(err)
		}
	})
	for i, step := range steps {
		t.Logf("%s: crash after: %s", m.Config.Name, step)
		if err := errors.Join(os.RemoveAll(m.Config.Home()), os.Rename(filepath.Join(images, fmt.Sprint(i+1)), m.Config.Home())); err != nil {
			t.Fatal(err)
		}
		m.Start()
		if err := m.WaitEnd(); err == nil || !strings.Contains(err.Error(), "a recovery was cut off: run '"+command+"' again") {
			t.Errorf("the node ended with %v", err)
		}
		run(anyStep)
	}
	if len(steps) < 3 {
		t.Errorf("steps are %q", steps)
	}
}

// copyFolder copies folders and files, and nothing else, such as sockets.
func copyFolder(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(to, strings.TrimPrefix(path, from))
		switch {
		case entry.IsDir():
			return os.MkdirAll(target, 0o700)
		case !entry.Type().IsRegular():
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, content, 0o600)
	})
}
