package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// minFreeBytes is what the disk must have free: two turns' pushes and half as much again for
// parity, what pulls read, and as much for the nodes' caches.
const minFreeBytes = 16 << 30

// checkDisk fails for a folder that is in memory, where what is durable costs nothing, or
// that has no room.
func checkDisk(folder string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(folder, &stat); err != nil {
		return fmt.Errorf("look at the disk of %s: %w", folder, err)
	}
	if stat.Type == unix.TMPFS_MAGIC || stat.Type == unix.RAMFS_MAGIC {
		return fmt.Errorf("%s is in memory: name a folder on a disk with --folder", folder)
	}
	if free := stat.Bavail * uint64(stat.Bsize); free < minFreeBytes {
		return fmt.Errorf("%s has %d GiB free, %d are needed: name another folder with --folder", folder, free>>30, minFreeBytes>>30)
	}
	return nil
}

// syncDisk returns when all that was written to the folder's file system is on the disk.
func syncDisk(folder string) error {
	dir, err := os.Open(folder)
	if err != nil {
		return fmt.Errorf("sync %s: %w", folder, err)
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", folder, err)
	}
	return nil
}

// dropPages takes the files below a folder out of the page cache. What is not on the disk
// yet stays, so syncDisk comes first; so does what a process has mapped.
func dropPages(folder string) error {
	return filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			err = dropFile(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was a temporary one
		}
		return err
	})
}

func dropFile(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("drop pages of %s: %w", path, err)
	}
	return nil
}
