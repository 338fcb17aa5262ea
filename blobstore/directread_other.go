//go:build !linux

package blobstore

import "os"

// directFile reads a shard past the kernel's cache: not here.
type directFile struct{}

func (*directFile) readAt(*os.File, int64, []byte, int64) bool { return false }

func (*directFile) close() {}
