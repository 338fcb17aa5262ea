package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// ownMounts is set in the environment of the process that has its own mounts, to the name of those
// that it must not touch.
const ownMounts = "JEPSEN_OWN_MOUNTS"

// inOwnMounts runs this program again with mounts of its own, if it will mount disks, and says
// whether it has.
func inOwnMounts(o *options) (again bool, code int, err error) {
	if o.loopback {
		return false, 0, nil
	}
	if os.Getenv(ownMounts) != "" {
		mine, err := os.Readlink("/proc/self/ns/mnt")
		if err != nil || mine == os.Getenv(ownMounts) {
			return true, exitUnknown, errors.Join(fmt.Errorf("%s is for this program itself to set", ownMounts), err)
		}
		// What is mounted here must not be seen elsewhere.
		return false, 0, syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
	}
	self, err := os.Executable()
	if err != nil {
		return true, exitUnknown, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	outer, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return true, exitUnknown, err
	}
	cmd.Env = append(os.Environ(), ownMounts+"="+outer)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	// The terminal sends Ctrl-C to both; what others send to this one is passed on.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		return true, exitUnknown, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	if err := cmd.Wait(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.Exited() {
			return true, exit.ExitCode(), nil
		}
		return true, exitUnknown, err
	}
	return true, exitValid, nil
}
