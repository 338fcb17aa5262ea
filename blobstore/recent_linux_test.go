package blobstore

import (
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// resident returns how many bytes of a file are in memory.
func resident(t *testing.T, path string) (bytes int) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	memory, err := unix.Mmap(int(file.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(memory) }() // read only
	pages := make([]byte, (len(memory)+pageBytes-1)/pageBytes)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&memory[0])), uintptr(len(memory)), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for _, page := range pages {
		bytes += int(page&1) * pageBytes
	}
	return bytes
}

// What was written stays in memory until others were.
func TestShardsLeaveMemory(t *testing.T) {
	dir := t.TempDir()
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil || stat.Type == unix.TMPFS_MAGIC {
		skipf(t, "%s is on no disk (%v)", dir, err)
	}
	d := openTestDisk(t, diskConfig(dir))
	d.recent.limit = 5 << 20
	const shardBytes = 2 << 20
	var shards []*shardContent
	for i := range 3 {
		s := newShardContent(t, byte(i), 64<<10, shardBytes)
		w, err := d.Create(s.header)
		if err == nil {
			err = w.Write(s.data)
		}
		if err == nil {
			_, err = w.Commit(s.trailer())
		}
		if err != nil {
			t.Fatal(err)
		}
		shards = append(shards, s)
	}
	in := func(i int) int { return resident(t, d.path(shards[i].id())) }
	if in(0) > shardBytes/2 || in(1) < shardBytes/2 || in(2) < shardBytes/2 {
		t.Errorf("in memory are %d, %d and %d bytes of three shards", in(0), in(1), in(2))
	}
}
