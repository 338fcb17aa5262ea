package consensus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// groups gives each node of a test the group that it says it belongs to.
type groups struct {
	mu sync.Mutex
	of map[string]string
}

func (g *groups) set(id, group string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.of[id] = group
}

func (g *groups) configure(base func(cfg *Config)) func(cfg *Config) {
	return func(cfg *Config) {
		if base != nil {
			base(cfg)
		}
		id := cfg.NodeID
		cfg.GroupID = func() string {
			g.mu.Lock()
			defer g.mu.Unlock()
			return g.of[id]
		}
	}
}

// offline opens a stopped node's log and state in a folder.
func (c *cluster) offline(dir, id, address string) (*Offline, *diary) {
	c.t.Helper()
	machine, err := openDiary(filepath.Join(dir, "state"))
	if err != nil {
		c.t.Fatal(err)
	}
	cfg := c.config(id)
	cfg.Dir, cfg.Address, cfg.Fatal = filepath.Join(dir, "raft"), address, func(err error) { c.t.Error(err) }
	o, err := OpenOffline(cfg, machine)
	if err != nil {
		c.t.Fatal(err)
	}
	return o, machine
}

func lastCommand() ([]byte, error) { return []byte("add recovered"), nil }

// recover recovers a stopped node and calls done after each step.
func (c *cluster) recover(dir, id, address string, done func(step string)) {
	c.t.Helper()
	o, machine := c.offline(dir, id, address)
	if err := errors.Join(o.Recover(lastCommand, done), o.Close(), machine.Close()); err != nil {
		c.t.Fatal(err)
	}
}

// loseQuorum kills two of three nodes, then has the third append an entry that nobody
// else has, and kills it.
func (c *cluster) loseQuorum() (survivor *testNode, lost []*testNode) {
	c.t.Helper()
	survivor, lost = c.leader(), c.followers()
	for _, node := range lost {
		node.kill()
	}
	before, _ := survivor.storage.logs.LastIndex()
	running := make(chan error, 1)
	go func() {
		_, _, err := survivor.Propose(c.ctx(), []byte("add tail"))
		running <- err
	}()
	eventually(c.t, "the entry is in the survivor's log", func() bool {
		last, _ := survivor.storage.logs.LastIndex()
		return last > before
	})
	survivor.kill()
	if err := <-running; err == nil {
		c.t.Fatal("an entry was acknowledged without a quorum")
	}
	return survivor, lost
}

func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// A crash after any step of a recovery leaves what a second one completes, and that
// is as good as one without a crash.
func TestCrashWhileRecovering(t *testing.T) {
	for name, base := range map[string]func(*Config){"whole log": nil, "cut log": eager} {
		t.Run(name, func(t *testing.T) {
			c := form(t, 3, base)
			for range 40 {
				c.insist(c.leader(), "add x")
			}
			survivor, _ := c.loseQuorum()
			dir, images := filepath.Join(c.dir, survivor.id), t.TempDir()
			var steps []string
			c.recover(dir, survivor.id, survivor.address, func(step string) {
				steps = append(steps, step)
				copyFolder(t, dir, filepath.Join(images, fmt.Sprint(len(steps))))
			})
			c.leadsAlone(survivor.id)
			for i, step := range steps {
				t.Log("crash after:", step)
				if err := errors.Join(os.RemoveAll(dir), os.Rename(filepath.Join(images, fmt.Sprint(i+1)), dir)); err != nil {
					t.Fatal(err)
				}
				c.recover(dir, survivor.id, survivor.address, func(string) {})
				c.leadsAlone(survivor.id)
			}
		})
	}
}

// leadsAlone starts a recovered node, looks at what it has, and kills it.
func (c *cluster) leadsAlone(id string) {
	c.t.Helper()
	node := c.start(id)
	eventually(c.t, "the survivor leads alone", node.IsLeader)
	c.insist(node, "add y")
	if err := node.ReadIndex(c.ctx()); err != nil {
		c.t.Error(err)
	}
	if x, tail, y := node.machine.count("x"), node.machine.count("tail"), node.machine.count("y"); x < 40 || tail != 1 || y != 1 {
		c.t.Errorf("x was added %d times, the tail %d, y %d", x, tail, y)
	}
	if servers := node.servers(); len(servers) != 1 || node.voters() != 1 {
		c.t.Errorf("the group is %v", servers)
	}
	node.kill()
}

// What a stopped node says of itself lets an operator compare it with others.
func TestOfflineStatus(t *testing.T) {
	for name, base := range map[string]func(*Config){"whole log": nil, "cut log": eager} {
		t.Run(name, func(t *testing.T) {
			c := form(t, 3, base)
			for range 40 {
				c.insist(c.leader(), "add x")
			}
			survivor, lost := c.loseQuorum()
			status := func(n *testNode) OfflineStatus {
				o, machine := c.offline(filepath.Join(c.dir, n.id), n.id, n.address)
				status, err := o.Status()
				if err := errors.Join(err, o.Close(), machine.Close()); err != nil {
					t.Fatal(err)
				}
				return status
			}
			more, less := status(survivor), status(lost[0])
			if more.LastIndex <= less.LastIndex || more.LastTerm != less.LastTerm || more.AppliedIndex >= more.LastIndex || more.Appended.IsZero() {
				t.Errorf("the survivor says %+v, a lost one %+v", more, less)
			}
			voters := slices.DeleteFunc(more.Members, func(m Member) bool { return !m.Voter })
			if len(voters) != 3 || voters[0].ID != "n1" || voters[0].Address != c.nodes["n1"].address {
				t.Errorf("members are %+v", more.Members)
			}
		})
	}
}

// Nodes of the group as it was reach nobody in the recovered one, and are not counted
// there; one that gives up its log and takes the group's new id is a member again.
func TestFormerGroupIsKeptOut(t *testing.T) {
	g := &groups{of: map[string]string{"n1": "old", "n2": "old", "n3": "old"}}
	c := form(t, 3, g.configure(eager))
	for range 40 {
		c.insist(c.leader(), "add x")
	}
	survivor, lost := c.loseQuorum()
	dir := filepath.Join(c.dir, survivor.id)
	c.recover(dir, survivor.id, survivor.address, func(string) {})
	g.set(survivor.id, "new")
	survivor = c.start(survivor.id)
	eventually(t, "the survivor leads alone", survivor.IsLeader)
	// It takes them for members that will be back one day.
	for _, node := range lost {
		if err := survivor.AddNode(c.ctx(), node.id, node.address); err != nil {
			t.Fatal(err)
		}
	}
	term, applied := survivor.Replica.Status().Term, survivor.applied.index()

	lost[0], lost[1] = c.start(lost[0].id), c.start(lost[1].id)
	// The two are the majority of the old group, and elect a leader of that.
	eventually(t, "the lost voters have a leader of their own", func() bool { return lost[0].IsLeader() || lost[1].IsLeader() })
	for _, former := range lost {
		if _, err := former.streams.dialNode(survivor.id, survivor.address, testTimeout); !errors.Is(err, errOtherGroup) {
			t.Errorf("node %s of the old group is answered %v", former.id, err)
		}
		if _, err := survivor.streams.dialNode(former.id, former.address, testTimeout); !errors.Is(err, errOtherGroup) {
			t.Errorf("node %s of the old group answers %v", former.id, err)
		}
	}
	c.insist(lost[0], "add old")
	if now := survivor.Replica.Status(); now.Term != term || !survivor.IsLeader() || survivor.machine.count("old") != 0 || survivor.applied.index() < applied {
		t.Errorf("the old group disturbs the new one: %+v", now)
	}

	back := lost[0]
	back.kill()
	lost[1].kill()
	for _, name := range []string{"raft", "state"} {
		if err := os.RemoveAll(filepath.Join(c.dir, back.id, name)); err != nil {
			t.Fatal(err)
		}
	}
	g.set(back.id, "new")
	back = c.start(back.id)
	eventually(t, "the node votes again", func() bool { return survivor.voters() == 2 })
	c.insist(back, "add y")
	if err := back.ReadIndex(c.ctx()); err != nil || back.machine.count("y") == 0 || back.machine.count("recovered") != 1 {
		t.Errorf("the node that came back has\n%s, err %v", back.machine.dump(), err)
	}
}
