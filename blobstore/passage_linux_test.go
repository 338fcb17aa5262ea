package blobstore

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	// folioBytes is what the kernel may hold as one piece, trailerPages what is left of a shard that was read: its trailer, read when
	// it was opened.
	folioBytes, trailerPages = 2 << 20, 2 * 4096
)

// What of a shard that one reader reads from beginning to end, in runs of a group, is in memory: little while he reads, nothing afterwards.
// A second reader has the kernel keep it.
func TestPassageLeavesMemory(t *testing.T) {
	d, s := coldShard(t, 16<<20)
	read := func(first, cells int) { checkCells(t, d, s, first, cells) }
	in := func() int { return resident(t, d.path(s.id())) }
	const run = 16 // cells of 64 KiB
	for first := 0; first < 256; first += run {
		read(first, run)
		// The kernel reads ahead as it thinks best; what lies behind is what counts, but for a folio of which some is before.
		if behind := (first+run)*64<<10 - passageBytes; behind > 0 {
			if got := residentFrom(t, d.path(s.id()), 0, behind); got > folioBytes {
				t.Fatalf("%d of %d bytes behind the reader are in memory", got, behind)
			}
		}
	}
	if in() > trailerPages {
		t.Errorf("%d bytes are in memory after it was read", in())
	}
	for first := 0; first < 256; first += run {
		read(first, run)
	}
	if in() < 15<<20 {
		t.Errorf("only %d bytes are in memory after it was read for the second time", in())
	}
}

// Groups of one transfer come in any order.
func TestPassageOfGroupsOutOfOrder(t *testing.T) {
	d, s := coldShard(t, 16<<20)
	for first := 0; first < 256; first += 32 {
		checkCells(t, d, s, first+16, 16)
		checkCells(t, d, s, first, 16)
	}
	if in := resident(t, d.path(s.id())); in > trailerPages {
		t.Errorf("%d bytes are in memory after it was read", in)
	}
}

// What is in memory already stays there, as do ranges, and shards that are small.
func TestPassageKeeps(t *testing.T) {
	t.Run("what was pushed a moment ago", func(t *testing.T) {
		d, s := coldShard(t, 16<<20)
		readAll(t, d, s)
		in := resident(t, d.path(s.id()))
		d.handles.forgetAll()
		checkCells(t, d, s, 0, 16)
		checkCells(t, d, s, 16, 240)
		if got := resident(t, d.path(s.id())); got < in {
			t.Errorf("%d of %d bytes are in memory", got, in)
		}
	})
	t.Run("ranges", func(t *testing.T) {
		d, s := coldShard(t, 16<<20)
		for _, first := range []int{0, 200, 100, 150, 50, 240} {
			checkCells(t, d, s, first, 16)
		}
		for _, first := range []int{0, 200, 100, 150, 50, 240} {
			if got := residentFrom(t, d.path(s.id()), first*64<<10, 1<<20); got < 1<<20 {
				t.Errorf("%d bytes of the range that begins with cell %d are in memory", got, first)
			}
		}
	})
	t.Run("a small shard", func(t *testing.T) {
		d, s := coldShard(t, passageBytes-64<<10)
		checkCells(t, d, s, 0, s.layout.stripes())
		if got := resident(t, d.path(s.id())); got < passageBytes-64<<10 {
			t.Errorf("%d bytes are in memory", got)
		}
	})
}

// coldShard returns a disk with one shard of cells of 64 KiB, of which nothing is in memory. It skips where that can't be had.
func coldShard(t *testing.T, size int) (*Disk, *shardContent) {
	t.Helper()
	d := openTestDisk(t, diskConfig(t.TempDir()))
	s := newShardContent(t, 1, 64<<10, size)
	if _, err := s.write(d); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(d.path(s.id()))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	dropFromCache(file, 0, 0)
	if !isCold(file, 0, size) {
		skipf(t, "this kernel, or file system, does not tell what is in memory, or does not drop it")
	}
	return d, s
}

// readAll reads a shard twice, so that it is in memory.
func readAll(t *testing.T, d *Disk, s *shardContent) {
	t.Helper()
	for range 2 {
		checkCells(t, d, s, 0, s.layout.stripes())
	}
}

func checkCells(t *testing.T, d *Disk, s *shardContent, first, cells int) {
	t.Helper()
	if err := s.check(d, first, cells); err != nil {
		t.Fatal(err)
	}
}

// residentFrom returns how many bytes of a range of a file are in memory.
func residentFrom(t *testing.T, path string, offset, length int) int {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var cached unix.Cachestat_t
	if err := unix.Cachestat(uint(file.Fd()), &unix.CachestatRange{Off: uint64(offset), Len: uint64(length)}, &cached, 0); err != nil {
		t.Fatal(err)
	}
	return int(cached.Cache) * os.Getpagesize()
}
