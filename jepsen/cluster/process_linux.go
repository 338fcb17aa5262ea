package cluster

import (
	"errors"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ChildAttributes has a process end with the thread that started it, and so with this program.
func ChildAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// reap waits for the end of a process, and returns with mu locked. The process's number is given
// free only under the lock.
func reap(cmd *exec.Cmd, mu *sync.Mutex) error {
	for {
		err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break // a real error is found again below
		}
	}
	mu.Lock()
	return cmd.Wait()
}
