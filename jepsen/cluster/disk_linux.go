package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// shutdownIoctl and noLogFlush stop an ext4 file system as a power failure does:
	// EXT4_IOC_SHUTDOWN and EXT4_GOING_FLAGS_NOLOGFLUSH in fs/ext4/ext4.h.
	shutdownIoctl = 0x8004587d
	noLogFlush    = 2
	// ballast is the file that fills a disk.
	ballast = "ballast"
	// mountOptions keep the file system from making durable by itself what nobody has fsynced: it
	// commits its journal after five minutes instead of five seconds, and does not write out a file
	// at once because it was cut to nothing or renamed over another one. There are limits: the
	// kernel writes back data that has waited for half a minute, and an fsync of one file commits
	// the journal, with the names and sizes of all files of the disk.
	mountOptions = "loop,noauto_da_alloc,commit=300"
	// detachTimeout bounds the wait for whoever still has a file open, such as a command that
	// talks to the node; detachPoll is the pause between two tries.
	detachTimeout = 20 * time.Second
	detachPoll    = 50 * time.Millisecond
)

// Disk is an ext4 file system of its own in an image, mounted by a loop device.
type Disk struct {
	image, mount string
}

// newDisk makes the file system and mounts it.
func newDisk(image, mount string, bytes int64) (*Disk, error) {
	d := &Disk{image: image, mount: mount}
	file, err := os.Create(image)
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	if err := errors.Join(file.Truncate(bytes), file.Close(), os.MkdirAll(mount, 0o700)); err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	if err := run("mkfs.ext4", "-q", "-F", "-m", "0", image); err != nil {
		return nil, err
	}
	return d, d.attach()
}

func (d *Disk) attach() error { return run("mount", "-o", mountOptions, d.image, d.mount) }

// LosePower drops what was not made durable, in files and in the journal. All later
// I/O fails with EIO until the disk is attached again.
func (d *Disk) LosePower() error {
	dir, err := os.Open(d.mount)
	if err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	defer dir.Close()
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), shutdownIoctl, noLogFlush); err != nil {
		return fmt.Errorf("disk %s: shut down: %w", d.mount, err)
	}
	return nil
}

// Reattach unmounts the file system, whose users must be gone, and mounts it again,
// which replays its journal.
func (d *Disk) Reattach() error {
	if err := d.detach(); err != nil {
		return err // a second mount on top would hide the first
	}
	return d.attach()
}

// detach unmounts the file system. It waits while it is busy.
func (d *Disk) detach() error {
	deadline := time.Now().Add(detachTimeout)
	for {
		err := unix.Unmount(d.mount, 0)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("disk: unmount %s: %w", d.mount, err)
		}
		time.Sleep(detachPoll)
	}
}

// Free returns how many bytes of the file system are free.
func (d *Disk) Free() (int64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(d.mount, &stat); err != nil {
		return 0, fmt.Errorf("disk: %w", err)
	}
	return int64(stat.Bavail) * stat.Bsize, nil
}

// Fill leaves so many bytes of the file system free.
func (d *Disk) Fill(leave int64) error {
	free, err := d.Free()
	size := free - leave
	if err != nil || size <= 0 {
		return err
	}
	file, err := os.Create(filepath.Join(d.mount, ballast))
	if err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	err = unix.Fallocate(int(file.Fd()), 0, 0, size)
	if errors.Is(err, unix.ENOSPC) { // the file's own records needed room as well: it is full all the same
		err = nil
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("disk: fill %s: %w", d.mount, err)
	}
	return nil
}

// Drain takes away what Fill has put there.
func (d *Disk) Drain() error {
	if err := os.Remove(filepath.Join(d.mount, ballast)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("disk: %w", err)
	}
	return nil
}

// run runs a program of the system.
func run(argv ...string) error {
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", argv, err, out)
	}
	return nil
}
