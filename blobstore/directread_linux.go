package blobstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A shard that is read for the first time since it left the kernel's cache is mostly read
// once: what many clients want of it is kept whole in the node's cache, and the pages of that file serve them. So a long run of cells
// is read past the kernel's cache, into memory that is there already. The second time
// the shard is read, while its file is open, the kernel keeps it as well.

const (
	// directRun is how many bytes a read must have to be worth it: less is what pullers of
	// ranges ask for, again and again.
	directRun = 256 << 10
	// directPiece is what is asked of the disk at once.
	directPiece = 512 << 10
	// directAlign is what the disk wants offsets, lengths and memory to be multiples of.
	// One that wants more refuses, and is read by way of the kernel's cache.
	directAlign = 4096
)

// directFile reads a shard past the kernel's cache.
type directFile struct {
	once sync.Once
	// file is nil where that can't be done.
	file *os.File
	// read counts the bytes that were read so, and failed says that some were not.
	read   atomic.Int64
	failed atomic.Bool
}

// open opens a file that is open once more.
func (d *directFile) open(file *os.File) *os.File {
	d.once.Do(func() {
		fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err == nil { // Else the file system can't, or nobody may look there.
			d.file = os.NewFile(uintptr(fd), file.Name())
		}
	})
	return d.file
}

// close is called when nobody reads any more.
func (d *directFile) close() {
	d.once.Do(func() {})
	if d.file != nil {
		_ = d.file.Close() // It was only read.
	}
}

// directMemory has memory that the disk writes to: directPiece and what is around it, aligned.
var directMemory = sync.Pool{New: func() any {
	memory := make([]byte, directPiece+3*directAlign)
	skip := int(-uintptr(unsafe.Pointer(&memory[0])) & (directAlign - 1))
	memory = memory[skip : skip+directPiece+2*directAlign]
	return &memory
}}

// readAt reads exactly buf, of a file of which size bytes are cells, if that is better than by way
// of the kernel's cache; if not, or if it fails, it returns false.
func (d *directFile) readAt(file *os.File, size int64, buf []byte, offset int64) bool {
	if len(buf) < directRun || d.failed.Load() || d.read.Load() >= size || !isCold(file, offset, len(buf)) {
		return false
	}
	direct := d.open(file)
	if direct == nil {
		return false
	}
	memory := directMemory.Get().(*[]byte)
	defer directMemory.Put(memory)
	for done := 0; done < len(buf); {
		piece := buf[done:min(done+directPiece, len(buf))]
		from := offset + int64(done)
		skip := int(from % directAlign)
		wanted := (skip + len(piece) + directAlign - 1) / directAlign * directAlign
		n, err := direct.ReadAt((*memory)[:wanted], from-int64(skip))
		if n < skip+len(piece) || err != nil && !errors.Is(err, io.EOF) {
			d.failed.Store(true)
			return false
		}
		done += copy(piece, (*memory)[skip:n])
	}
	d.read.Add(int64(len(buf)))
	return true
}

// isCold says that hardly anything of a range of a file is in the kernel's cache. A kernel
// before 6.5 can't tell.
func isCold(file *os.File, offset int64, length int) bool {
	var cached unix.Cachestat_t
	err := unix.Cachestat(uint(file.Fd()), &unix.CachestatRange{Off: uint64(offset), Len: uint64(length)}, &cached, 0)
	return err == nil && int64(cached.Cache)*int64(os.Getpagesize()) < int64(length)/8
}
