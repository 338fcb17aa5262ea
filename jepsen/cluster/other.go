//go:build !linux

package cluster

import (
	"errors"
	"os/exec"
	"sync"
	"syscall"
)

var errLinux = errors.New("disks that lose power need Linux")

// Disk is a file system of its own, which only Linux can give.
type Disk struct{}

func newDisk(string, string, int64) (*Disk, error) { return nil, errLinux }

// LosePower fails.
func (d *Disk) LosePower() error { return errLinux }

// Reattach fails.
func (d *Disk) Reattach() error { return errLinux }

// Fill fails.
func (d *Disk) Fill(int64) error { return errLinux }

// Drain fails.
func (d *Disk) Drain() error { return errLinux }

func (d *Disk) detach() error { return errLinux }

// Free fails.
func (d *Disk) Free() (int64, error) { return 0, errLinux }

// ChildAttributes keeps signals of a terminal from a process.
func ChildAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// reap waits for the end of a process, and returns with mu locked.
func reap(cmd *exec.Cmd, mu *sync.Mutex) error {
	err := cmd.Wait()
	mu.Lock()
	return err
}
