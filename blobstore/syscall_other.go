//go:build !linux

package blobstore

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// writeVector writes all pieces at the file's offset.
func writeVector(f *os.File, pieces [][]byte) error {
	for _, piece := range pieces {
		if _, err := f.Write(piece); err != nil {
			return err
		}
	}
	return nil
}

// startWriteback does nothing here: the fsync takes longer.
func startWriteback(*os.File, int64, int64, bool) error { return nil }

// dropFromCache does nothing here.
func dropFromCache(*os.File, int64, int64) {}

// fileSystemSpace returns the bytes of the file system that holds a folder, and
// how many of them an ordinary process may still write.
func fileSystemSpace(dir string) (free, total uint64, err error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return 0, 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return uint64(stat.Bavail) * uint64(stat.Bsize), uint64(stat.Blocks) * uint64(stat.Bsize), nil
}

// isCold can't be told here.
func isCold(*os.File, int64) bool { return false }
