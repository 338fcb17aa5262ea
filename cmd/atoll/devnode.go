package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/node"
)

// askTimeout bounds a question to a node over its socket.
const askTimeout = 2 * time.Second

// process is the operating system's process of a node.
type process interface {
	// id is the process id.
	id() int
	// running reports whether the process is still there, and if not, how it ended
	// as far as that can be known.
	running() (yes bool, outcome string)
	// stop asks the process to end and returns when it is gone. At the end of ctx
	// it uses force, or fails.
	stop(ctx context.Context) error
	// release forgets a process that is gone.
	release()
}

// devNode is one node as dev watches it: first its own child, and after that was
// killed perhaps a process that somebody started by hand.
type devNode struct {
	plan   devNodePlan
	argv   []string
	report *devReport
	target *target
	// process is nil while the node is dead.
	process process
	// pid is the last process that was seen to be the node.
	pid int
	// shown is the readiness that was shown last.
	shown readiness
}

// newDevNode makes the node's folder and log; its process comes when it has
// started.
func newDevNode(plan devNodePlan, argv []string, report *devReport) (*devNode, childSpec, error) {
	n := &devNode{
		plan:   plan,
		argv:   argv,
		report: report,
		target: &target{address: plan.registry, operations: "http://" + plan.operations},
		shown:  readinessFull, // what form waits for
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

// set makes p the node's process.
func (n *devNode) set(p process) { n.process, n.pid = p, p.id() }

// look shows what has changed since the last look. It reports whether the node
// has got another process.
func (n *devNode) look(ctx context.Context) (newProcess bool) {
	if n.process != nil {
		if running, outcome := n.process.running(); !running {
			n.showDeath(outcome)
		}
	}
	level := n.target.get()
	if n.process == nil {
		if level == readinessNone || !n.adopt(ctx) {
			return false
		}
		newProcess = true
		n.report.event(zerolog.InfoLevel, n.plan.name, fmt.Sprintf("was started by hand: process %d", n.pid))
	}
	if level != n.shown {
		n.report.event(zerolog.InfoLevel, n.plan.name, level.String())
		n.shown = level
	}
	return newProcess
}

func (n *devNode) showDeath(outcome string) {
	n.process.release()
	n.process, n.shown = nil, readinessNone
	n.target.set(readinessNone) // the balancer need not find out by itself
	n.report.event(zerolog.WarnLevel, n.plan.name,
		fmt.Sprintf("is dead (process %d, %s) and stays so until somebody runs\n  %s", n.pid, outcome, shellLine(n.argv)))
}

// adopt gets to know a process that somebody started in the place of one that is
// gone. The node may not be ready to say who it is; then the next look tries again.
func (n *devNode) adopt(ctx context.Context) bool {
	pid, err := n.ask(ctx)
	if err != nil {
		return false
	}
	p, err := openForeign(pid)
	if err != nil {
		return false
	}
	// A process id can pass to another process; the descriptor can't.
	if confirmed, err := n.ask(ctx); err != nil || confirmed != pid {
		p.release()
		return false
	}
	n.set(p)
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
	if n.process == nil && !n.adopt(ctx) {
		return nil
	}
	if err := n.process.stop(ctx); err != nil {
		return fmt.Errorf("stop node %s: %w", n.plan.name, err)
	}
	n.process.release()
	return nil
}
