package blobstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

// diskConfig is a configuration for tests: no reserve to speak of, small cells.
func diskConfig(dir string) Config {
	cfg := DefaultConfig()
	cfg.Dir = filepath.Join(dir, "shards")
	cfg.ReserveBytes = 1
	return cfg
}

func openTestDisk(t testing.TB, cfg Config) *Disk {
	t.Helper()
	d, err := OpenDisk(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// shardContent is one shard with its bytes, for tests.
type shardContent struct {
	header *proto.ShardHeader
	layout layout
	data   []byte
	sums   []uint32
}

// newShardContent makes up a shard of an extent of extentBytes that is mirrored
// in cells of cellBytes.
func newShardContent(t testing.TB, extent byte, cellBytes int, extentBytes int) *shardContent {
	t.Helper()
	l := testLayout(t, 1, 1, cellBytes, uint64(extentBytes))
	s := &shardContent{
		header: &proto.ShardHeader{
			ExtentId:    testExtentID(extent),
			ShardNumber: 1,
			Layout:      &proto.Layout{DataShards: 1, ParityShards: 1, CellBytes: uint32(cellBytes)},
		},
		layout: l,
		data:   make([]byte, l.shardBytes()),
	}
	random := rand.NewChaCha8([32]byte{extent})
	_, _ = random.Read(s.data)
	for cell := range l.stripes() {
		s.sums = append(s.sums, cellChecksum(s.header.GetExtentId(), 1, uint32(cell), s.cells(cell, 1)))
	}
	return s
}

func (s *shardContent) cells(first, cells int) []byte {
	return s.data[s.layout.cellOffset(first):][:s.layout.cellsBytes(first, cells)]
}

func (s *shardContent) trailer() *proto.ShardTrailer {
	return &proto.ShardTrailer{ExtentSize: s.layout.size, CellChecksums: s.sums}
}

func (s *shardContent) id() shardID {
	return shardID{extent: [ExtentIDBytes]byte(s.header.GetExtentId()), number: s.header.GetShardNumber()}
}

// write stores the shard, a megabyte at a time.
func (s *shardContent) write(d *Disk) (uint64, error) {
	w, err := d.Create(s.header)
	if err != nil {
		return 0, err
	}
	defer w.Abort()
	for piece := range slices.Chunk(s.data, 1<<20) {
		if err := w.Write(piece); err != nil {
			return 0, err
		}
	}
	return w.Commit(s.trailer())
}

// check reads a run of cells and compares them with what was written.
func (s *shardContent) check(d *Disk, first, cells int) error {
	sums, data, err := d.ReadCells(&proto.ReadShardRequest{
		ExtentId: s.header.GetExtentId(), ShardNumber: s.header.GetShardNumber(), FirstCell: uint32(first), Cells: uint32(cells),
	}, make([]byte, cells*s.layout.cell))
	if err != nil {
		return err
	}
	if !bytes.Equal(data, s.cells(first, cells)) || !slices.Equal(sums, s.sums[first:first+cells]) {
		return fmt.Errorf("cells %d+%d of %s differ", first, cells, s.id())
	}
	return nil
}

// files returns the shards' files in a disk's folder, and those unfinished.
func diskFiles(t testing.TB, d *Disk) (shards, unfinished []string) {
	t.Helper()
	err := filepath.WalkDir(d.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if filepath.Dir(path) == filepath.Join(d.dir, unfinishedFolder) {
			unfinished = append(unfinished, entry.Name())
		} else {
			shards = append(shards, entry.Name())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return shards, unfinished
}

func TestDiskSpace(t *testing.T) {
	const gib = 1 << 30
	tests := []struct {
		name                   string
		free, total            uint64
		reserve, capacity      uint64
		wantFree, wantCapacity uint64
	}{
		{"five percent", 10 * gib, 20 * gib, 0, 0, 9*gib - endRoomBytes, 19 * gib},
		{"five percent, but no more than 4 GiB", 1000 * gib, 1000 * gib, 0, 0, 996*gib - endRoomBytes, 996 * gib},
		{"set", 10 * gib, 20 * gib, 2 * gib, 0, 8*gib - endRoomBytes, 18 * gib},
		{"more than there is", 1 * gib, 1 * gib, 2 * gib, 0, 0, 0},
		{"enough only for shards already begun", 2*gib + endRoomBytes, 20 * gib, 2 * gib, 0, 0, 18 * gib},
		{"capacity set", 10 * gib, 20 * gib, 2 * gib, 5 * gib, 5 * gib, 5 * gib},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cfg := diskConfig(t.TempDir())
			cfg.ReserveBytes, cfg.CapacityBytes = test.reserve, test.capacity
			d := openTestDisk(t, cfg)
			d.calls.space = func(string) (uint64, uint64, error) { return test.free, test.total, nil }
			free, capacity, err := d.Space()
			if err != nil || free != test.wantFree || capacity != test.wantCapacity {
				t.Errorf("got %d of %d, %v", free, capacity, err)
			}
		})
	}
}

func TestOpenDiskDropsUnfinished(t *testing.T) {
	cfg := diskConfig(t.TempDir())
	first := openTestDisk(t, cfg)
	kept := newShardContent(t, 1, 16, 40)
	if _, err := kept.write(first); err != nil {
		t.Fatal(err)
	}
	begun := newShardContent(t, 2, 16, 40)
	w, err := first.Create(begun.header)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(begun.data); err != nil {
		t.Fatal(err)
	}
	// The process dies here.
	second := openTestDisk(t, cfg)
	if shards, unfinished := diskFiles(t, second); len(shards) != 1 || len(unfinished) != 0 {
		t.Errorf("after the start there are %v and %v", shards, unfinished)
	}
	if err := kept.check(second, 0, 3); err != nil {
		t.Error(err)
	}
}

func TestOpenDiskRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	for dir, want := range map[string]error{"": ErrInvalid, file: ErrDisk, filepath.Join(file, "below"): ErrDisk, filepath.Join(t.TempDir(), "no", "parent"): ErrDisk} {
		cfg.Dir = dir
		if _, err := OpenDisk(cfg); !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", dir, err, want)
		}
	}
}

func TestDiskRemoves(t *testing.T) {
	d := openTestDisk(t, diskConfig(t.TempDir()))
	s := newShardContent(t, 1, 16, 40)
	if _, err := s.write(d); err != nil {
		t.Fatal(err)
	}
	if err := s.check(d, 0, 1); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(s.header.GetExtentId(), 1); err != nil {
		t.Fatal(err)
	}
	if err := s.check(d, 0, 1); !errors.Is(err, ErrShardUnknown) || d.Has(s.header.GetExtentId(), 1) {
		t.Errorf("after Remove: %v", err)
	}
	if err := d.Remove(s.header.GetExtentId(), 1); !errors.Is(err, ErrShardUnknown) {
		t.Errorf("second Remove: %v", err)
	}
}

func TestDiskLists(t *testing.T) {
	d := openTestDisk(t, diskConfig(t.TempDir()))
	want := make(map[shardID]bool)
	for i := range 10 {
		s := newShardContent(t, byte(i%3), 16, 1)
		s.header.ShardNumber = uint32(i % 2)
		s.header.ExtentId[15] = byte(i)
		s.sums = []uint32{cellChecksum(s.header.GetExtentId(), s.header.GetShardNumber(), 0, s.data)}
		if _, err := s.write(d); err != nil {
			t.Fatal(err)
		}
		want[s.id()] = true
	}
	stray := filepath.Join(d.dir, "00", "README")
	if err := os.WriteFile(stray, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for folder := range shardFolders {
		err := d.list(byte(folder), func(ids []shardID) error {
			for _, id := range ids {
				if !want[id] || id.extent[0] != byte(folder) {
					t.Errorf("%s is listed in folder %x", id, folder)
				}
				delete(want, id)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(want) > 0 {
		t.Errorf("not listed: %v", want)
	}
	fault := errors.New("stop")
	if err := d.list(0, func([]shardID) error { return fault }); !errors.Is(err, fault) {
		t.Errorf("got %v, want the page's own error", err)
	}
}

// TestCapacityIsABound: what a node holds is taken off what it offers.
func TestCapacityIsABound(t *testing.T) {
	c := startCluster(t, 1, func(cfg *Config) { cfg.CapacityBytes = 100_000 })
	n := c.nodes[0]
	for i, want := range []uint64{100_000, 40_000, 0} {
		if free, capacity := n.store.Space(); free != want || capacity != 100_000 {
			t.Errorf("with %d bytes in it, %d of %d bytes are free", i*60_000, free, capacity)
		}
		n.push(60_000, uint64(i))
	}
}
