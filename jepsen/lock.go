package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lockFile makes a file, if it is not there, and locks it until it is closed or the process ends. It fails
// at once if another process has it.
func lockFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: another run has it: %w", path, err)
	}
	return file, nil
}

// lockLoopback keeps runs on loopback apart, which would take each other's ports.
func lockLoopback() (*os.File, error) {
	return lockFile(filepath.Join(os.TempDir(), "atoll-jepsen-loopback.lock"))
}
