package blobstore

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

func TestDiskReadsWhatWasWritten(t *testing.T) {
	d := openTestDisk(t, diskConfig(filepath.Dir(newShardsDir(t))))
	for i, size := range []int{1, 15, 16, 17, 160, 1000, 40 << 10, 33 << 20} {
		cell := 16
		if size > 1<<20 {
			cell = 256 << 10
		}
		s := newShardContent(t, byte(i), cell, size)
		fileBytes, err := s.write(d)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		info, err := os.Stat(d.path(s.id()))
		if err != nil || uint64(info.Size()) != fileBytes || info.Mode().Perm() != 0o600 {
			t.Fatalf("%d bytes: file is %v, %v; Commit said %d", size, info, err, fileBytes)
		}
		if !d.Has(s.header.GetExtentId(), 1) || d.Has(s.header.GetExtentId(), 0) {
			t.Errorf("%d bytes: Has is wrong", size)
		}
		cells := s.layout.stripes()
		for _, run := range [][2]int{{0, 1}, {0, cells}, {cells - 1, 1}, {cells / 2, cells - cells/2}} {
			if err := s.check(d, run[0], run[1]); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
	}
	if _, unfinished := diskFiles(t, d); len(unfinished) > 0 {
		t.Errorf("left behind: %v", unfinished)
	}
}

func TestReadCellsRefuses(t *testing.T) {
	d := openTestDisk(t, diskConfig(filepath.Dir(newShardsDir(t))))
	s := newShardContent(t, 1, 16, 40)
	if _, err := s.write(d); err != nil {
		t.Fatal(err)
	}
	id := s.header.GetExtentId()
	tests := []struct {
		name    string
		request *proto.ReadShardRequest
		buf     int
		want    error
	}{
		{"unknown extent", &proto.ReadShardRequest{ExtentId: testExtentID(2), ShardNumber: 1, Cells: 1}, 16, ErrShardUnknown},
		{"unknown number", &proto.ReadShardRequest{ExtentId: id, Cells: 1}, 16, ErrShardUnknown},
		{"no id", &proto.ReadShardRequest{ShardNumber: 1, Cells: 1}, 16, ErrInvalid},
		{"id that leaves the folder", &proto.ReadShardRequest{ExtentId: []byte("../../etc/passwd"), ShardNumber: 1, Cells: 1}, 16, ErrShardUnknown},
		{"no cells", &proto.ReadShardRequest{ExtentId: id, ShardNumber: 1}, 16, ErrInvalid},
		{"cells beyond", &proto.ReadShardRequest{ExtentId: id, ShardNumber: 1, FirstCell: 2, Cells: 2}, 64, ErrInvalid},
		{"cells that overflow", &proto.ReadShardRequest{ExtentId: id, ShardNumber: 1, FirstCell: 1<<32 - 1, Cells: 1<<32 - 1}, 64, ErrInvalid},
		{"small buffer", &proto.ReadShardRequest{ExtentId: id, ShardNumber: 1, Cells: 2}, 31, ErrInvalid},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, _, err := d.ReadCells(test.request, make([]byte, test.buf)); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// TestDiskReplacesAShard: a rebuilt shard takes the place of a rotten one at once,
// though the old file was open.
func TestDiskReplacesAShard(t *testing.T) {
	d := openTestDisk(t, diskConfig(filepath.Dir(newShardsDir(t))))
	s := newShardContent(t, 1, 16, 40)
	if _, err := s.write(d); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(d.path(s.id()), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt([]byte("rotten"), 0); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.check(d, 0, 1); err == nil {
		t.Fatal("the rot is not there")
	}
	if _, err := s.write(d); err != nil {
		t.Fatal(err)
	}
	if err := s.check(d, 0, 3); err != nil {
		t.Error(err)
	}
}

// TestReadCellsFindsACutFile cuts a file that is open.
func TestReadCellsFindsACutFile(t *testing.T) {
	d := openTestDisk(t, diskConfig(filepath.Dir(newShardsDir(t))))
	s := newShardContent(t, 1, 16, 40)
	if _, err := s.write(d); err != nil {
		t.Fatal(err)
	}
	if err := s.check(d, 0, 3); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.path(s.id()), 20); err != nil {
		t.Fatal(err)
	}
	if err := s.check(d, 0, 1); err != nil {
		t.Errorf("the cell that is left: %v", err)
	}
	for range 2 { // While the file is open, and when it is opened again.
		if err := s.check(d, 1, 1); !errors.Is(err, ErrChecksum) {
			t.Errorf("got %v, want ErrChecksum", err)
		}
	}
}

// TestDiskBoundsOpenFiles reads more shards than may be open, from many sides,
// while they are replaced and removed.
func TestDiskBoundsOpenFiles(t *testing.T) {
	cfg := diskConfig(t.TempDir())
	cfg.MaxOpenShards = 4
	d := openTestDisk(t, cfg)
	var shards []*shardContent
	for i := range 16 {
		s := newShardContent(t, byte(i), 64, 1000)
		if _, err := s.write(d); err != nil {
			t.Fatal(err)
		}
		shards = append(shards, s)
	}
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 0))
			for range 200 {
				s := shards[random.IntN(len(shards))]
				switch err := s.check(d, random.IntN(s.layout.stripes()), 1); {
				case errors.Is(err, ErrShardUnknown):
				case err != nil:
					t.Error(err)
				}
				switch random.IntN(20) {
				case 0:
					if _, err := s.write(d); err != nil {
						t.Error(err)
					}
				case 1:
					if err := d.remove(s.id()); err != nil && !errors.Is(err, ErrShardUnknown) {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
	if open := openFilesBelow(t, d.dir); open > cfg.MaxOpenShards {
		t.Errorf("%d files are open, the bound is %d", open, cfg.MaxOpenShards)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if open := openFilesBelow(t, d.dir); open > 0 {
		t.Errorf("%d files are open after Close", open)
	}
	if err := shards[0].check(d, 0, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if _, err := shards[0].write(d); !errors.Is(err, ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
}

// openFilesBelow counts this process's open files in a folder.
func openFilesBelow(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("no /proc: %v", err)
	}
	count := 0
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", entry.Name()))
		if err == nil && strings.HasPrefix(target, dir) {
			count++
		}
	}
	return count
}
