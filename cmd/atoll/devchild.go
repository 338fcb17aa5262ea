package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// pipeDelay is how long a dead child's output is waited for.
const pipeDelay = 5 * time.Second

// child is a node's process that dev has started.
type child struct {
	pid int
	// ended is closed when the process is gone; then outcome says how.
	ended   chan struct{}
	outcome string
	cmd     *exec.Cmd
}

func (c *child) id() int { return c.pid }

func (c *child) running() (yes bool, outcome string) {
	select {
	case <-c.ended:
		return false, c.outcome
	default:
		return true, ""
	}
}

func (c *child) stop(ctx context.Context) error {
	fault := c.signal(syscall.SIGTERM)
	select {
	case <-c.ended:
		return fault
	case <-ctx.Done():
	}
	// It had its time. Nothing that was acknowledged is lost by this.
	fault = errors.Join(fault, c.signal(syscall.SIGKILL))
	<-c.ended
	return fault
}

func (c *child) release() {}

// signal sends one to the process unless it is gone.
func (c *child) signal(signal os.Signal) error {
	if err := c.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal process %d: %w", c.pid, err)
	}
	return nil
}

// childSpec is what there is to start.
type childSpec struct {
	argv []string
	log  *nodeLog
}

// startChildren starts processes that end when this one does, even by kill -9.
// The kernel ties them to the thread that started them (PR_SET_PDEATHSIG in
// prctl(2)), so one thread starts all and is kept until release is called. On an
// error the children that run already are killed.
func startChildren(specs []childSpec) (children []*child, release func(), err error) {
	type result struct {
		children []*child
		err      error
	}
	started, released := make(chan result), make(chan struct{})
	go func() { // ends with release
		runtime.LockOSThread()
		var all result
		for _, spec := range specs {
			c, err := startChild(spec)
			if err != nil {
				all.err = err
				break
			}
			all.children = append(all.children, c)
		}
		started <- all
		<-released
		// The thread goes with the goroutine, as it was never unlocked.
	}()
	all := <-started
	release = func() { close(released) }
	if all.err != nil {
		for _, c := range all.children {
			all.err = errors.Join(all.err, c.signal(syscall.SIGKILL))
			<-c.ended
		}
		release()
		return nil, nil, all.err
	}
	return all.children, release, nil
}

func startChild(spec childSpec) (*child, error) {
	cmd := exec.Command(spec.argv[0], spec.argv[1:]...)
	// What the node is told is in argv alone, so that argv starts it again.
	cmd.Env = environmentWithout(os.Environ(), environmentPrefix)
	cmd.Stdout, cmd.Stderr = spec.log, spec.log
	cmd.WaitDelay = pipeDelay
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		// A process group of its own, so that Ctrl-C reaches dev alone, which then
		// stops the nodes.
		Setpgid: true,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", strings.Join(spec.argv, " "), err)
	}
	c := &child{pid: cmd.Process.Pid, ended: make(chan struct{}), cmd: cmd}
	go func() { // ends with the process
		err := cmd.Wait()
		c.outcome = "exit status 0"
		if err != nil {
			c.outcome = err.Error()
		}
		if err := spec.log.Close(); err != nil {
			c.outcome += "; close log: " + err.Error()
		}
		close(c.ended)
	}()
	return c, nil
}

func environmentWithout(environ []string, prefix string) []string {
	var kept []string
	for _, entry := range environ {
		if !strings.HasPrefix(entry, prefix) {
			kept = append(kept, entry)
		}
	}
	return kept
}

// shellLine writes a command so that it can be pasted into a shell.
func shellLine(argv []string) string {
	var words []string
	for _, word := range argv {
		if strings.ContainsAny(word, " \t\n'\"\\$&;|<>()*?[]{}~#!`") {
			word = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// programName is how the user calls this program.
func programName(executable string) string {
	if ranByGo(executable) {
		return "go run ./cmd/atoll"
	}
	return filepath.Base(executable)
}

// ranByGo tells whether a program is a temporary binary of go run.
func ranByGo(executable string) bool {
	return strings.Contains(executable, string(filepath.Separator)+"go-build")
}
