package nemesis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"time"

	"github.com/atollregistry/atoll/jepsen/cluster"
)

const (
	// attachTimeout bounds how long strace may take to hold a process, traceTimeout how long to
	// let it go. tracePoll is the pause between two looks.
	attachTimeout = 10 * time.Second
	traceTimeout  = 20 * time.Second
	tracePoll     = 20 * time.Millisecond
)

// tracer is an strace that has system calls of a process fail, or take longer.
type tracer struct {
	cmd *exec.Cmd
	// calls is what it tells of them, complaints all else.
	calls, complaints *os.File
	// ended is closed when it has ended.
	ended chan struct{}
}

// startTracer starts strace. The caller stops it.
func startTracer(dir string, pid int, calls, how string) (*tracer, error) {
	t := &tracer{ended: make(chan struct{})}
	var err error
	if t.calls, err = os.CreateTemp(dir, "strace-*.calls"); err != nil {
		return nil, err
	}
	if t.complaints, err = os.CreateTemp(dir, "strace-*.log"); err != nil {
		return nil, errors.Join(err, t.forget())
	}
	t.cmd = exec.Command("strace", "-f", "-o", t.calls.Name(), "-p", strconv.Itoa(pid), "-e", "trace="+calls, "-e", "inject="+calls+":"+how)
	t.cmd.Stderr, t.cmd.SysProcAttr = t.complaints, cluster.ChildAttributes()
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // a process ends with the thread that started it
		defer runtime.UnlockOSThread()
		defer close(t.ended)
		err := t.cmd.Start()
		started <- err
		if err == nil {
			_ = t.cmd.Wait() // How it ends says nothing: the process may have ended before.
		}
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("strace: %w", err), t.forget())
	}
	return t, nil
}

// attached waits until strace holds the process.
func (t *tracer) attached() error {
	timer := time.NewTimer(attachTimeout)
	defer timer.Stop()
	ticker := time.NewTicker(tracePoll)
	defer ticker.Stop()
	for !bytes.Contains(t.said(), []byte(" attached")) {
		select {
		case <-t.ended:
			return fmt.Errorf("strace ended: %s", t.said())
		case <-timer.C:
			return fmt.Errorf("strace does not get hold of the process: %s", t.said())
		case <-ticker.C:
		}
	}
	return nil
}

// said returns what strace has said beside system calls.
func (t *tracer) said() []byte {
	said, _ := os.ReadFile(t.complaints.Name())
	return said[:min(len(said), 1<<10)]
}

// stop has strace let the process go, and waits for that.
func (t *tracer) stop() error {
	// It has ended by itself if the process has.
	_ = t.cmd.Process.Signal(os.Interrupt)
	timer := time.NewTimer(traceTimeout)
	defer timer.Stop()
	select {
	case <-t.ended:
		return nil
	case <-timer.C:
	}
	err := errors.Join(fmt.Errorf("strace does not let the process go: %s", t.said()), t.cmd.Process.Kill())
	<-t.ended
	return err
}

// struck counts the calls that were made to fail or to wait.
func (t *tracer) struck() (int, error) {
	content, err := os.ReadFile(t.calls.Name())
	return struckIn(content), err
}

func struckIn(calls []byte) int {
	return bytes.Count(calls, []byte("(INJECTED)")) + bytes.Count(calls, []byte("(DELAYED)"))
}

// forget removes what strace has written.
func (t *tracer) forget() error {
	var faults []error
	for _, file := range []*os.File{t.calls, t.complaints} {
		if file != nil {
			faults = append(faults, file.Close(), os.Remove(file.Name()))
		}
	}
	return errors.Join(faults...)
}

// trace has system calls of a node fail, or take longer, for a while, and tells in how many.
func (f *Field) trace(ctx context.Context, t *fault, n *cluster.Node, calls, how string) error {
	before := ends(n)
	var traced int
	var s *tracer
	err := n.During(func(pid int) (err error) {
		traced = pid
		if s, err = startTracer(f.Cluster.Dir(), pid, calls, how); err != nil {
			return err
		}
		return s.attached()
	})
	if s == nil {
		return err
	}
	early := false
	if err == nil {
		early = !f.lastUnless(ctx, s.ended, 4*time.Second, 10*time.Second)
	}
	err = errors.Join(err, s.stop())
	if early && err == nil {
		err = f.Cluster.Eventually(context.WithoutCancel(ctx), lookTimeout, "a process ends with its strace", func() error {
			if n.Pid() == traced {
				return fmt.Errorf("strace has ended, and %s goes on: %s", n.Name, s.said())
			}
			return nil
		})
		if err != nil { // not the cluster's fault
			err = errors.New(err.Error())
		}
	}
	count, countErr := s.struck()
	if count > 0 {
		t.saw("%d calls of %s injected", count, n.Name)
		t.sawEnd(n, before)
	}
	return errors.Join(err, countErr, s.forget())
}
