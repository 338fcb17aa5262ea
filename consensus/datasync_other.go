//go:build !linux

package consensus

import "os"

// datasync has what was written to a file on the disk.
func datasync(file *os.File) error { return file.Sync() }
