package nodetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atollregistry/atoll/node"
)

const (
	// crashNodes is enough for one to be drained, or to be down, and for a layout with
	// more than two data shards.
	crashNodes = 4
	// crashGrace is how long a blob stays that no manifest refers to. Nothing is
	// collected unless the test says so, and that it does not in the middle of a push.
	crashGrace = time.Second
	// crashTimeout bounds the wait for a cluster to come to rest after a crash, on a machine
	// that has much else to do.
	crashTimeout = 2 * time.Minute
	// crashLogLines is how much of a child's log is shown.
	crashLogLines = 100
)

// crashCluster is a cluster whose nodes are processes that can be killed truly.
type crashCluster struct {
	*Cluster
	nodes []*crashNode
}

// crashNode is a node in a process of its own, with the Member for what is asked of
// it from outside.
type crashNode struct {
	*Member
	// file has the configuration, log what the processes have said.
	file, log string
	id        string

	cmd     *exec.Cmd
	control *rpc.Client
	ended   chan struct{} // closed when the process has ended
}

func startCrashCluster(t *testing.T) *crashCluster {
	t.Helper()
	c := &crashCluster{Cluster: &Cluster{t: t}}
	c.Members = c.configure(crashNodes, crashNodes, []func(*node.Config){func(cfg *node.Config) {
		cfg.Collect = node.CollectConfig{Grace: crashGrace, Interval: time.Hour}
		cfg.Scrub.Period = 0
	}})
	dir := t.TempDir()
	for _, m := range c.Members {
		n := &crashNode{Member: m, file: filepath.Join(dir, m.Config.Name+".json"), log: filepath.Join(dir, m.Config.Name+".log")}
		content, err := json.Marshal(m.Config)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(n.file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, n)
	}
	t.Cleanup(c.killAll)
	for _, n := range c.nodes {
		n.start()
	}
	for _, n := range c.nodes {
		n.WaitReady()
	}
	status, err := c.nodes[0].Status()
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range status.Nodes {
		for _, n := range c.nodes {
			if n.Config.Name == found.ID {
				n.id = found.UUID
			}
		}
	}
	return c
}

// start runs the node, always by the same command.
func (n *crashNode) start() {
	t := n.cluster.t
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), crashChild+"="+n.file, "GORACE="+os.Getenv("GORACE")+" halt_on_error=1")
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n.cmd, n.ended = cmd, make(chan struct{})
	n.control = rpc.NewClient(struct {
		io.Reader
		io.WriteCloser
	}{out, in})
	go func(ended chan struct{}) { // killAll waits for it
		_ = cmd.Wait() // who cares looks at how it ended
		close(ended)
	}(n.ended)
}

func (n *crashNode) alive() bool {
	select {
	case <-n.ended:
		return false
	default:
		return true
	}
}

// killed says whether the process ended as by kill -9.
func (n *crashNode) killed() bool {
	status, ok := n.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

func (c *crashCluster) killAll() {
	for _, n := range c.nodes {
		if n.cmd == nil {
			continue
		}
		_ = n.cmd.Process.Kill() // it may have ended
		<-n.ended
		_ = n.control.Close() // so has the other side
		if !c.t.Failed() {
			continue
		}
		content, _ := os.ReadFile(n.log)
		lines := slices.DeleteFunc(strings.SplitAfter(string(content), "\n"), func(line string) bool {
			return strings.Contains(line, `"message":"request"`) || strings.Contains(line, `"level":"debug"`) || strings.Contains(line, `"level":"trace"`)
		})
		c.t.Logf("end of the log of %s:\n%s", n.Config.Name, strings.Join(lines[max(0, len(lines)-crashLogLines):], ""))
	}
}

// ask calls a method of CrashChild.
func (n *crashNode) ask(method string, argument, answer any) error {
	if err := n.control.Call("CrashChild."+method, argument, answer); err != nil {
		return fmt.Errorf("ask %s for %s: %w", n.Config.Name, method, err)
	}
	return nil
}

// mustAsk is ask of a child that can't have died.
func (n *crashNode) mustAsk(method string, argument, answer any) {
	n.cluster.t.Helper()
	if err := n.ask(method, argument, answer); err != nil {
		n.cluster.t.Fatal(err)
	}
}

// leader is the node that leads.
func (c *crashCluster) leader() *crashNode {
	c.t.Helper()
	leader := c.Leader()
	for _, n := range c.nodes {
		if n.Member == leader {
			return n
		}
	}
	c.t.Fatal("the leader is none of the nodes")
	return nil
}

// another returns a node that is alive and none of the given ones.
func (c *crashCluster) another(than ...*crashNode) *crashNode {
	c.t.Helper()
next:
	for _, n := range c.nodes {
		for _, other := range than {
			if n == other {
				continue next
			}
		}
		if n.alive() {
			return n
		}
	}
	c.t.Fatal("no such node is alive")
	return nil
}

// inspect compares the disks of nodes with the newest records, through a node that
// is alive. strays says to look for files that no record names, too.
func (c *crashCluster) inspect(via *crashNode, strays bool, of ...*crashNode) (found Inspection, err error) {
	question := Inspect{Strays: strays}
	for _, n := range of {
		question.Disks = append(question.Disks, DiskOf{n.id, n.Config.Home()})
	}
	err = via.ask("Inspect", question, &found)
	return found, err
}

// errDied says that the node died that was to die.
var errDied = errors.New("the node died")

// until waits for check, or for the end of the victim: then it returns errDied. With
// no victim, or if it does not come to pass, the test fails.
func (c *crashCluster) until(victim *crashNode, what string, check func() error) error {
	c.t.Helper()
	var err error
	c.Eventually(crashTimeout, what, func() error {
		for _, n := range c.nodes {
			if n.alive() {
				continue
			}
			if n != victim || !n.killed() {
				c.t.Fatalf("%s: node %s ended by itself: %s", what, n.Config.Name, n.cmd.ProcessState)
			}
			err = errDied
			return nil
		}
		return check()
	})
	return err
}
