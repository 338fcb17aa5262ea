package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/atollregistry/atoll/node"
)

const (
	// askTimeout bounds a question to a node over its socket.
	askTimeout = 2 * time.Second
	// goneInterval is how often a stopping process that is no child is looked at.
	goneInterval = 50 * time.Millisecond
)

// devNode is one node as dev watches it: first its own child, and after that was
// killed perhaps a process that somebody started by hand.
type devNode struct {
	plan   devNodePlan
	argv   []string
	report *devReport
	target *target
	child  *child
	// pid is the last process that was seen to be the node.
	pid int
	// last is what was shown last.
	last devState
	// adopted is true while pid is a process that dev has not started.
	adopted bool
}

// devState is what is shown of a node.
type devState struct {
	dead  bool
	level readiness
}

// newDevNode makes the node's folder and log; child and pid come when it has
// started.
func newDevNode(plan devNodePlan, argv []string, report *devReport) (*devNode, childSpec, error) {
	n := &devNode{
		plan:   plan,
		argv:   argv,
		report: report,
		target: &target{address: plan.registry, operations: "http://" + plan.operations},
		last:   devState{level: readinessFull},
	}
	if err := os.MkdirAll(plan.data, 0o700); err != nil {
		return nil, childSpec{}, fmt.Errorf("make data folder of %s: %w", plan.name, err)
	}
	log, err := openNodeLog(n.logPath(),
		func(line []byte) { report.nodeLine(plan.name, line) },
		func(err error) { report.event(zerolog.ErrorLevel, plan.name, err.Error()) })
	if err != nil {
		return nil, childSpec{}, err
	}
	return n, childSpec{argv: argv, log: log}, nil
}

func (n *devNode) logPath() string { return filepath.Join(n.plan.data, "log") }

// look compares the node with what was shown last and shows what has changed. It
// reports whether the node has got another process.
func (n *devNode) look(ctx context.Context) (newProcess bool) {
	level := n.target.get()
	own := n.child.running()
	now := devState{dead: !own && level == readinessNone, level: level}
	if now.dead {
		if !n.last.dead {
			n.showDeath()
		}
		n.adopted = false
		n.last = now
		return false
	}
	if !own && !n.adopted {
		newProcess = n.adopt(ctx)
	}
	if now != n.last {
		n.report.event(zerolog.InfoLevel, n.plan.name, now.level.String())
		n.last = now
	}
	return newProcess
}

func (n *devNode) showDeath() {
	how := ""
	if !n.adopted {
		how = ", " + n.child.outcome
	}
	n.report.event(zerolog.WarnLevel, n.plan.name, fmt.Sprintf("is dead (process %d%s) and stays so until somebody runs\n  %s", n.pid, how, shellLine(n.argv)))
}

// adopt gets to know a process that somebody started in the place of the child.
// It is tried again with the next look if the node does not say yet who it is.
func (n *devNode) adopt(ctx context.Context) bool {
	pid, err := n.ask(ctx)
	if err != nil {
		return false
	}
	n.pid, n.adopted = pid, true
	n.report.event(zerolog.InfoLevel, n.plan.name, fmt.Sprintf("was started by hand: process %d", pid))
	return true
}

// ask learns the process id from the node itself, over its socket.
func (n *devNode) ask(ctx context.Context) (pid int, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	status, err := node.FetchStatus(ctx, n.plan.data)
	if err != nil {
		return 0, err
	}
	for _, member := range status.Nodes {
		if member.ID == n.plan.name && member.PID > 0 {
			return member.PID, nil
		}
	}
	return 0, fmt.Errorf("ask node %s: it does not say its process id", n.plan.name)
}

// stop ends the node's process, whoever started it, and returns when it is gone.
func (n *devNode) stop(ctx context.Context) error {
	if n.child.running() {
		return n.stopChild(ctx)
	}
	pid, err := n.ask(ctx)
	if err != nil {
		return nil // nothing runs there, or nothing that could be named
	}
	if err := n.stopProcess(ctx, pid); err != nil {
		return fmt.Errorf("stop node %s, process %d: %w", n.plan.name, pid, err)
	}
	return nil
}

func (n *devNode) stopChild(ctx context.Context) error {
	fault := n.child.signal(syscall.SIGTERM)
	select {
	case <-n.child.ended:
		return fault
	case <-ctx.Done():
	}
	n.report.event(zerolog.WarnLevel, n.plan.name, "does not stop; it is killed")
	fault = errors.Join(fault, n.child.signal(syscall.SIGKILL))
	<-n.child.ended
	return fault
}

// stopProcess ends a process that is no child. A pidfd stays with its process, so
// once the node has confirmed the id, no other process can be hit; and it tells
// of an end that nobody has waited for.
func (n *devNode) stopProcess(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open it: %w", err)
	}
	defer unix.Close(fd)
	if confirmed, err := n.ask(ctx); err != nil || confirmed != pid {
		return nil // it is gone already
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		return fmt.Errorf("signal it: %w", err)
	}
	for ctx.Err() == nil {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		count, err := unix.Poll(poll, int(goneInterval.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for its end: %w", err)
		}
		if count > 0 {
			return nil
		}
	}
	return errors.New("it goes on running")
}
