package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// foreignPollInterval is how often the end of a stopping process is looked for.
const foreignPollInterval = 50 * time.Millisecond

// foreign is a process that dev has not started. Its descriptor (pidfd_open(2))
// stays with it, unlike its id, and tells of an end that nobody has waited for.
type foreign struct {
	pid, fd int
}

func openForeign(pid int) (*foreign, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &foreign{pid: pid, fd: fd}, nil
}

func (f *foreign) id() int { return f.pid }

func (f *foreign) running() (yes bool, outcome string) {
	ended, err := f.ended(0)
	return err != nil || !ended, "started by hand"
}

// ended waits so long for the process to be gone.
func (f *foreign) ended(wait time.Duration) (bool, error) {
	poll := []unix.PollFd{{Fd: int32(f.fd), Events: unix.POLLIN}}
	count, err := unix.Poll(poll, int(wait.Milliseconds()))
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	return count > 0, err
}

func (f *foreign) stop(ctx context.Context) error {
	if err := unix.PidfdSendSignal(f.fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", f.pid, err)
	}
	for ctx.Err() == nil {
		ended, err := f.ended(foreignPollInterval)
		if err != nil {
			return fmt.Errorf("wait for process %d: %w", f.pid, err)
		}
		if ended {
			return nil
		}
	}
	return fmt.Errorf("process %d goes on running", f.pid)
}

func (f *foreign) release() { unix.Close(f.fd) }
