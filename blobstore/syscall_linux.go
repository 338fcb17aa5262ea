package blobstore

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// maxVectors bounds the pieces of one writev; the kernel takes 1024 (IOV_MAX).
const maxVectors = 1024

// writeVector writes all pieces at the file's offset with as few calls as
// possible: what comes from the network is in pieces of 16 KiB.
func writeVector(f *os.File, pieces [][]byte) error {
	for len(pieces) > 0 {
		n, err := unix.Writev(int(f.Fd()), pieces[:min(len(pieces), maxVectors)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("writev", err)
		}
		pieces = dropWritten(pieces, n)
	}
	return nil
}

// dropWritten returns what is left of the pieces after n bytes of them.
func dropWritten(pieces [][]byte, n int) [][]byte {
	for i, piece := range pieces {
		if n < len(piece) {
			// A copy, since the caller's pieces are not ours to change.
			rest := append([][]byte{piece[n:]}, pieces[i+1:]...)
			return rest
		}
		n -= len(piece)
	}
	return nil
}

// startWriteback tells the kernel to begin writing a range of the file to the
// disk. With settle it also waits for the range. Neither makes it durable: that
// takes an fsync. An error is final, since the kernel may not report it again.
func startWriteback(f *os.File, offset, length int64, settle bool) error {
	flags := unix.SYNC_FILE_RANGE_WRITE
	if settle {
		flags |= unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	}
	for {
		err := unix.SyncFileRange(int(f.Fd()), offset, length, flags)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil, errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM):
			return nil // Where it can't be had, the fsync takes longer.
		}
		return os.NewSyscallError("sync_file_range", err)
	}
}

// dropFromCache tells the kernel that pages of a file, to its end if length is 0, are not needed again soon.
func dropFromCache(f *os.File, offset, length int64) {
	_ = unix.Fadvise(int(f.Fd()), offset, length, unix.FADV_DONTNEED) // advice, no more
}

// isCold says that hardly anything of a file of size bytes, of which a page was read a moment ago, is in the kernel's cache. If not even that
// page is there, or the kernel is older than 6.5, it can't be told, as on overlayfs: then it is not.
func isCold(file *os.File, size int64) bool {
	var cached unix.Cachestat_t
	err := unix.Cachestat(uint(file.Fd()), &unix.CachestatRange{}, &cached, 0)
	return err == nil && cached.Cache > 0 && int64(cached.Cache)*int64(os.Getpagesize()) < size/8
}

// reservedInodes are left to others: the log and the state have few files, but need
// those. File systems that make inodes as they need them say that they have none at
// all, or more than that.
const reservedInodes = 1024

// fileSystemSpace returns the bytes of the file system that holds a folder, and
// how many of them an ordinary process may still write: none, if there are no inodes
// for more files.
func fileSystemSpace(dir string) (free, total uint64, err error) {
	var stat unix.Statfs_t
	for {
		err := unix.Statfs(dir, &stat)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, 0, fmt.Errorf("statfs %s: %w", dir, err)
		}
		free, total = stat.Bavail*uint64(stat.Bsize), stat.Blocks*uint64(stat.Bsize)
		if stat.Files > 0 && stat.Ffree <= reservedInodes {
			free = 0
		}
		return free, total, nil
	}
}
