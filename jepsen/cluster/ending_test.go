package cluster

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// script makes a node that is a shell script, and starts it.
func script(t *testing.T, text string) *Node {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	n := &Node{Name: "n1", program: program, host: Loopback("127.77.0.250"), exited: make(chan struct{})}
	n.cluster = &Cluster{cfg: Config{Dir: dir, Program: program, Log: t.Logf}}
	close(n.exited)
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Kill(); err != nil {
			t.Error(err)
		}
		n.cluster.all.Wait()
	})
	return n
}

// until waits for a condition.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("it is not so that %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

const waiting = "echo waiting; while :; do sleep 0.02; done"

// ready waits until a script has come to where it waits.
func ready(t *testing.T, n *Node) {
	t.Helper()
	until(t, "it waits", func() bool { return strings.Contains(n.LogFrom(0), "waiting") })
}

// Only ends that were asked for, and in the way that was asked for, are not remembered.
func TestExits(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		end    func(*Node) error
		asked  ending
		how    string // empty if nothing is to be remembered
	}{
		"killed":                 {waiting, (*Node).Kill, byKill, ""},
		"stopped in order":       {"trap 'exit 0' TERM; " + waiting, (*Node).Terminate, onRequest, ""},
		"stopped with an error":  {"trap 'exit 4' TERM; " + waiting, (*Node).Terminate, onRequest, "exit status 4"},
		"stopped by the signal":  {waiting, (*Node).Terminate, onRequest, "signal: terminated"},
		"loses power":            {"trap 'exit 4' TERM; " + waiting, func(n *Node) error { return n.end(syscall.SIGTERM, anyhow) }, anyhow, ""},
		"removed":                {"trap 'exit 3' USR1; " + waiting, letGo, whenRemoved, ""},
		"removed, and says none": {"trap 'exit 0' USR1; " + waiting, letGo, whenRemoved, "exit status 0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := script(t, test.script)
			ready(t, n)
			if err := test.end(n); err != nil {
				t.Fatal(err)
			}
			n.cluster.all.Wait() // nothing is started again
			exits := n.Exits()
			switch {
			case n.Pid() != 0:
				t.Error("it runs")
			case test.how == "" && len(exits) > 0:
				t.Errorf("remembered: %+v", exits)
			case test.how != "" && (len(exits) != 1 || exits[0].How != test.how || exits[0].Asked != string(test.asked) || exits[0].Node != "n1"):
				t.Errorf("remembered: %+v", exits)
			}
		})
	}
}

func letGo(n *Node) error {
	n.LetGo()
	if err := n.signal(syscall.SIGUSR1); err != nil {
		return err
	}
	return n.AwaitEnd(killTimeout)
}

// Who crashes right before it is killed has crashed.
func TestCrashBeforeKillIsRemembered(t *testing.T) {
	t.Parallel()
	n := script(t, "trap 'exit 2' USR1; "+waiting)
	ready(t, n)
	err := n.During(func(pid int) error { // nobody notices meanwhile
		if err := syscall.Kill(pid, syscall.SIGUSR1); err != nil {
			return err
		}
		until(t, "it is dead", func() bool {
			state, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
			return err == nil && strings.HasPrefix(string(state), "Z")
		})
		n.due = byKill
		return n.cmd.Process.Signal(syscall.SIGKILL)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.AwaitEnd(killTimeout); err != nil {
		t.Fatal(err)
	}
	if exits := n.Exits(); len(exits) != 1 || exits[0].How != "exit status 2" || exits[0].Asked != "SIGKILL" {
		t.Errorf("remembered: %+v", exits)
	}
}
