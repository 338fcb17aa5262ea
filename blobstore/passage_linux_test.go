package blobstore

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	passageCell = 64 << 10
	// passageRun is how many cells a reader asks for at once.
	passageRun = 16
	// fewBytes is more than a shard's trailer, which is read when it is opened, and what the kernel may hold as one piece.
	fewBytes = 2 << 20
)

// What of a shard that one reader reads from beginning to end is in memory: little while he reads, nothing afterwards. A second reader has the
// kernel keep it, whether the file is still open or not.
func TestPassageLeavesMemory(t *testing.T) {
	for _, size := range []int{recentLeast, passageBytes, 3*passageBytes + passageCell} {
		d, s := coldShard(t, size)
		cells := s.layout.stripes()
		readOn(t, d, s, 0, cells, func(read int) {
			// The kernel reads ahead as it thinks best; what lies behind is what counts.
			if behind := read*passageCell - passageBytes; behind > 0 {
				if got := residentFrom(t, d.path(s.id()), 0, behind); got > fewBytes {
					t.Fatalf("shard of %d bytes: %d of %d bytes behind the reader are in memory", size, got, behind)
				}
			}
		})
		in := func() int { return resident(t, d.path(s.id())) }
		if in() > size/4 {
			t.Errorf("shard of %d bytes: %d are in memory after it was read", size, in())
		}
		if d.handles.forgetAll(); size > passageBytes {
			readOn(t, d, s, 0, 2*passageRun, nil)
			d.handles.forgetAll()
		}
		readOn(t, d, s, 0, cells, nil)
		if in() < size/2 {
			t.Errorf("shard of %d bytes: only %d are in memory after it was read for the second time", size, in())
		}
	}
}

// While the file is open, more than all of a shard is a second reading of it, wherever that begins.
func TestPassageOfTheEndAgain(t *testing.T) {
	for _, size := range []int{recentLeast, passageBytes, 3 * passageBytes} {
		d, s := coldShard(t, size)
		cells := s.layout.stripes()
		readOn(t, d, s, 0, cells, nil)
		readOn(t, d, s, cells-passageRun, passageRun, nil)
		if in := resident(t, d.path(s.id())); in < passageRun*passageCell/2 {
			t.Errorf("shard of %d bytes: %d are in memory after its end was read again", size, in)
		}
	}
}

// Groups of one transfer come in any order.
func TestPassageOfGroupsOutOfOrder(t *testing.T) {
	d, s := coldShard(t, 16<<20)
	for first := 0; first < s.layout.stripes(); first += 2 * passageRun {
		readOn(t, d, s, first+passageRun, passageRun, nil)
		readOn(t, d, s, first, passageRun, nil)
	}
	if in := resident(t, d.path(s.id())); in > fewBytes {
		t.Errorf("%d bytes are in memory after it was read", in)
	}
}

// Two groups are asked for at once: the second finds what the first had the kernel read ahead, which says nothing.
func TestPassageOfGroupsAtOnce(t *testing.T) {
	d, s := coldShard(t, 16<<20)
	shard, err := d.acquire(s.id())
	if err != nil {
		t.Fatal(err)
	}
	defer d.handles.release(shard)
	size := s.layout.shardBytes()
	buf := make([]byte, passageRun*passageCell)
	shard.passage.begin(shard.file, size, 0, len(buf))
	if err := readFull(shard.file, make([]byte, size/2), 0); err != nil {
		t.Fatal(err)
	}
	shard.passage.begin(shard.file, size, int64(len(buf)), len(buf))
	if shard.passage.isKept() {
		t.Error("the shard is the kernel's business")
	}
}

// A second reader that comes while the first reads is noticed at once.
func TestPassageOfTwoReaders(t *testing.T) {
	d, s := coldShard(t, 16<<20)
	shard, err := d.acquire(s.id())
	if err != nil {
		t.Fatal(err)
	}
	defer d.handles.release(shard)
	readOn(t, d, s, 0, 6*passageRun, nil)
	if shard.passage.isKept() {
		t.Fatal("one reader is taken for several")
	}
	if readOn(t, d, s, 0, passageRun, nil); !shard.passage.isKept() {
		t.Error("two readers are taken for one")
	}
}

// What is in memory already stays there, as do ranges and small shards.
func TestPassageKeeps(t *testing.T) {
	tests := []struct {
		name string
		size int
		// reads are cells that are read one after the other, all of which stay.
		reads  [][2]int
		before func(t *testing.T, path string)
	}{
		{"ranges", 16 << 20, [][2]int{{0, 16}, {200, 16}, {100, 16}, {150, 16}, {50, 16}, {240, 16}}, nil},
		{"ranges from the end", 16 << 20, [][2]int{{240, 16}, {0, 16}}, nil},
		{"a small shard", recentLeast - passageCell, [][2]int{{0, 15}}, nil},
		{"what was pushed a moment ago", 16 << 20, [][2]int{{0, 256}}, func(t *testing.T, path string) { warm(t, path, 0, 16<<20) }},
		{"a shard of which the end was pushed a moment ago", 16 << 20, [][2]int{{0, 256}}, func(t *testing.T, path string) { warm(t, path, 8<<20, 8<<20) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d, s := coldShard(t, test.size)
			if test.before != nil {
				test.before(t, d.path(s.id()))
			}
			for _, read := range test.reads {
				readOn(t, d, s, read[0], read[1], nil)
			}
			for _, read := range test.reads {
				if got, want := residentFrom(t, d.path(s.id()), read[0]*passageCell, read[1]*passageCell), read[1]*passageCell/2; got < want {
					t.Errorf("of cells %d+%d %d bytes are in memory", read[0], read[1], got)
				}
			}
		})
	}
}

// coldShard returns a disk with one shard of cells of passageCell bytes, of which nothing is in memory. It skips where that can't be had.
func coldShard(t *testing.T, size int) (*Disk, *shardContent) {
	t.Helper()
	d := openTestDisk(t, diskConfig(t.TempDir()))
	s := newShardContent(t, 1, passageCell, size)
	if _, err := s.write(d); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(d.path(s.id()))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	dropFromCache(file, 0, 0)
	err = unix.Cachestat(uint(file.Fd()), &unix.CachestatRange{}, &unix.Cachestat_t{}, 0)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skip("a kernel before 6.5 does not tell what is in memory, nor does a sandbox that does not know that it can")
	}
	if err := readFull(file, make([]byte, 1), int64(size)); err != nil { // a page of the trailer
		t.Fatal(err)
	}
	if !isCold(file, int64(size)) {
		dropFromCache(file, 0, 0)
		skipf(t, "this file system does not tell what is in memory, or does not drop it")
	}
	dropFromCache(file, 0, 0)
	return d, s
}

// readOn reads cells as a reader does, in runs, and calls after with the number of those read, unless it is nil.
func readOn(t *testing.T, d *Disk, s *shardContent, first, cells int, after func(read int)) {
	t.Helper()
	for read := 0; read < cells; {
		run := min(passageRun, cells-read)
		if err := s.check(d, first+read, run); err != nil {
			t.Fatal(err)
		}
		if read += run; after != nil {
			after(read)
		}
	}
}

// warm has a part of a file in memory.
func warm(t *testing.T, path string, offset, length int) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := readFull(file, make([]byte, length), int64(offset)); err != nil {
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
