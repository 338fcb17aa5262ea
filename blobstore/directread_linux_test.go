package blobstore

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// coldFile returns a file of random bytes of which the kernel has nothing cached, and
// the bytes. It skips where that can't be had.
func coldFile(t *testing.T, size int) (*os.File, []byte) {
	t.Helper()
	content := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(content)
	file, err := os.Create(filepath.Join(t.TempDir(), "shard"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if _, err := file.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
	dropFromCache(file, 0, 0)
	if !isCold(file, 0, size) {
		t.Skip("this kernel, or file system, does not tell what is cached, or does not drop it")
	}
	return file, content
}

func cachedPages(t *testing.T, file *os.File) uint64 {
	t.Helper()
	var cached unix.Cachestat_t
	if err := unix.Cachestat(uint(file.Fd()), &unix.CachestatRange{}, &cached, 0); err != nil {
		t.Fatal(err)
	}
	return cached.Cache
}

// Whatever is asked for comes, from anywhere and to the last byte, and leaves nothing in the kernel's cache.
func TestDirectRead(t *testing.T) {
	const size = 5*directPiece + 1234
	file, content := coldFile(t, size)
	direct := &directFile{}
	defer direct.close()
	if direct.open(file) == nil {
		t.Skip("this file system has no direct reads")
	}
	for _, c := range []struct{ offset, length int }{
		{0, directRun}, {headerBytes, directRun}, {headerBytes, 2*directPiece + 1}, {4095, directPiece}, {4096, directPiece},
		{directPiece - 1, 3 * directPiece}, {0, size}, {size - directRun, directRun}, {1, size - 1},
	} {
		buf := make([]byte, c.length)
		if !direct.readAt(file, 1<<40, buf, int64(c.offset)) {
			t.Fatalf("%d bytes from %d on were not read", c.length, c.offset)
		}
		if !bytes.Equal(buf, content[c.offset:c.offset+c.length]) {
			t.Fatalf("%d bytes from %d on are wrong", c.length, c.offset)
		}
	}
	if cached := cachedPages(t, file); cached > 0 {
		t.Errorf("%d pages are in the kernel's cache", cached)
	}
	if buf := make([]byte, directRun); direct.readAt(file, 1<<40, buf, size-directRun+1) {
		t.Error("read beyond the end")
	}
}

// What is small, read before or in the kernel's cache is not read past it.
func TestDirectReadIsForTheFirstTime(t *testing.T) {
	const size = 4 * directRun
	file, _ := coldFile(t, size)
	direct := &directFile{}
	defer direct.close()
	if direct.open(file) == nil {
		t.Skip("this file system has no direct reads")
	}
	if direct.readAt(file, size, make([]byte, directRun-1), 0) {
		t.Error("a short run was read directly")
	}
	if !direct.readAt(file, size, make([]byte, size), 0) {
		t.Fatal("a cold file was not read directly")
	}
	if direct.readAt(file, size, make([]byte, size), 0) {
		t.Error("a file was read directly for the second time")
	}
	warm := &directFile{}
	defer warm.close()
	if err := readFull(file, make([]byte, size), 0); err != nil {
		t.Fatal(err)
	}
	if warm.readAt(file, size, make([]byte, size), 0) {
		t.Error("a file was read directly that is in the kernel's cache")
	}
}
