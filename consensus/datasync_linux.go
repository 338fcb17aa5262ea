package consensus

import (
	"os"

	"golang.org/x/sys/unix"
)

// datasync has what was written to a file on the disk. The file's times need not be, which spares the file
// system a write of its own.
func datasync(file *os.File) error {
	for {
		if err := unix.Fdatasync(int(file.Fd())); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
