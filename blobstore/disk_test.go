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
	"strings"
	"sync"
	"syscall"
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

func TestDiskReadsWhatWasWritten(t *testing.T) {
	d := openTestDisk(t, diskConfig(t.TempDir()))
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

// TestShardWriterTakesAnyPieces: pieces end where the network ended them.
func TestShardWriterTakesAnyPieces(t *testing.T) {
	d := openTestDisk(t, diskConfig(t.TempDir()))
	random := rand.New(rand.NewPCG(1, 1))
	for i := range 20 {
		s := newShardContent(t, byte(i), 1+random.IntN(300), 50000)
		w, err := d.Create(s.header)
		if err != nil {
			t.Fatal(err)
		}
		rest := s.data
		for len(rest) > 0 {
			var pieces [][]byte
			for range random.IntN(2 * maxVectors) {
				n := min(random.IntN(40), len(rest))
				pieces, rest = append(pieces, rest[:n]), rest[n:]
			}
			if err := w.Write(pieces...); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.Commit(s.trailer()); err != nil {
			t.Fatal(err)
		}
		if err := s.check(d, 0, s.layout.stripes()); err != nil {
			t.Error(err)
		}
	}
}

func TestReadCellsRefuses(t *testing.T) {
	d := openTestDisk(t, diskConfig(t.TempDir()))
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

// TestCommitRefusesOtherBytes: what is durable is what the sender meant.
func TestCommitRefusesOtherBytes(t *testing.T) {
	tests := []struct {
		name   string
		change func(s *shardContent) *proto.ShardTrailer
		want   error
	}{
		{"a flipped bit", func(s *shardContent) *proto.ShardTrailer { s.data[20] ^= 1; return s.trailer() }, ErrChecksum},
		{"a byte less", func(s *shardContent) *proto.ShardTrailer { s.data = s.data[:39]; return s.trailer() }, ErrChecksum},
		{"a byte more", func(s *shardContent) *proto.ShardTrailer { s.data = append(s.data, 0); return s.trailer() }, ErrChecksum},
		{"a cell more", func(s *shardContent) *proto.ShardTrailer { s.data = append(s.data, s.data...); return s.trailer() }, ErrChecksum},
		{"nothing", func(s *shardContent) *proto.ShardTrailer { s.data = nil; return s.trailer() }, ErrChecksum},
		{"a checksum less", func(s *shardContent) *proto.ShardTrailer { s.sums = s.sums[:2]; return s.trailer() }, ErrChecksum},
		{"no trailer", func(*shardContent) *proto.ShardTrailer { return nil }, ErrInvalid},
		{"absurd size", func(s *shardContent) *proto.ShardTrailer {
			return &proto.ShardTrailer{ExtentSize: 1 << 63, CellChecksums: s.sums}
		}, ErrInvalid},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := openTestDisk(t, diskConfig(t.TempDir()))
			s := newShardContent(t, 1, 16, 40)
			trailer := test.change(s)
			w, err := d.Create(s.header)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Write(s.data); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Commit(trailer); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if shards, unfinished := diskFiles(t, d); len(shards)+len(unfinished) > 0 {
				t.Errorf("left behind: %v %v", shards, unfinished)
			}
			if _, err := w.Commit(trailer); !errors.Is(err, ErrInvalid) {
				t.Errorf("second Commit: %v", err)
			}
			w.Abort()
			if d.resting() {
				t.Error("the disk was blamed")
			}
		})
	}
}

// faultyCall counts the calls on which durability depends, and makes one fail.
type faultyCall struct {
	mu    sync.Mutex
	calls []string
	// failAt is the number of the call that fails, counted from 0; -1 for none.
	failAt int
	fault  error
}

func (f *faultyCall) next(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, name)
	if len(f.calls)-1 == f.failAt {
		return f.fault
	}
	return nil
}

// inject puts the faults between a disk and its calls.
func (f *faultyCall) inject(d *Disk) {
	real := d.calls
	d.calls = fileCalls{
		write: func(file *os.File, pieces [][]byte) error {
			if err := f.next("write"); err != nil {
				_ = real.write(file, [][]byte{pieces[0][:len(pieces[0])/2]}) // A torn write.
				return err
			}
			return real.write(file, pieces)
		},
		writeback: func(file *os.File, offset, length int64, settle bool) error {
			if err := f.next(map[bool]string{false: "start", true: "settle"}[settle]); err != nil {
				return err
			}
			return real.writeback(file, offset, length, settle)
		},
		sync: func(file *os.File) error {
			if err := f.next("sync"); err != nil {
				return err
			}
			return real.sync(file)
		},
		rename: func(from, to string) error {
			if err := f.next("rename"); err != nil {
				return err
			}
			return real.rename(from, to)
		},
		syncDir: func(dir string) error {
			if err := f.next("syncDir"); err != nil {
				return err
			}
			return real.syncDir(dir)
		},
		space: real.space,
	}
}

// TestCommitOrder: contents before name before folder, and no more calls than
// that.
func TestCommitOrder(t *testing.T) {
	d := openTestDisk(t, diskConfig(t.TempDir()))
	faults := &faultyCall{failAt: -1}
	faults.inject(d)
	small := newShardContent(t, 1, 16, 40)
	if _, err := small.write(d); err != nil {
		t.Fatal(err)
	}
	if want := []string{"write", "write", "write", "sync", "rename", "syncDir"}; !slices.Equal(faults.calls, want) {
		t.Errorf("small shard: got %v, want %v", faults.calls, want)
	}
	faults.calls = nil
	d.writeBehind = 2 << 20
	large := newShardContent(t, 2, 256<<10, 6<<20)
	if _, err := large.write(d); err != nil {
		t.Fatal(err)
	}
	ordered := slices.DeleteFunc(faults.calls, func(call string) bool { return call == "write" })
	if want := []string{"start", "start", "settle", "start", "settle", "sync", "rename", "syncDir"}; !slices.Equal(ordered, want) {
		t.Errorf("large shard: got %v, want %v", ordered, want)
	}
}

// TestEveryCallMayFail makes each call fail in turn: the shard does not count,
// nothing is tried again, the right one is blamed, and the disk works afterwards.
func TestEveryCallMayFail(t *testing.T) {
	tests := []struct {
		fault error
		want  error
		rests bool
	}{
		{syscall.EIO, ErrDisk, true},
		{syscall.ENOSPC, ErrNoSpace, false},
	}
	for _, test := range tests {
		t.Run(test.fault.Error(), func(t *testing.T) {
			for failAt := 0; ; failAt++ {
				d := openTestDisk(t, diskConfig(t.TempDir()))
				d.writeBehind = 1 << 20
				faults := &faultyCall{failAt: failAt, fault: test.fault}
				faults.inject(d)
				s := newShardContent(t, 1, 64<<10, 2<<20+1)
				_, err := s.write(d)
				if len(faults.calls) <= failAt {
					if err != nil {
						t.Fatalf("without a fault: %v", err)
					}
					return
				}
				at := fmt.Sprintf("call %d, %s", failAt, faults.calls[failAt])
				if !errors.Is(err, test.want) {
					t.Fatalf("%s: got %v, want %v", at, err, test.want)
				}
				if len(faults.calls) != failAt+1 {
					t.Fatalf("%s: went on with %v", at, faults.calls[failAt+1:])
				}
				shards, unfinished := diskFiles(t, d)
				if faults.calls[failAt] == "syncDir" {
					shards = nil // Whole, but of no record: the sweep's.
				}
				if len(shards)+len(unfinished) > 0 {
					t.Fatalf("%s: left behind %v %v", at, shards, unfinished)
				}
				checkRest(t, d, test.rests)
				d.failed.Store(0)
				if _, err := s.write(d); err != nil {
					t.Fatalf("%s: afterwards: %v", at, err)
				}
				if err := s.check(d, 0, s.layout.stripes()); err != nil {
					t.Fatalf("%s: afterwards: %v", at, err)
				}
			}
		})
	}
}

func TestDiskBlamesTheRightOne(t *testing.T) {
	d := openTestDisk(t, diskConfig(t.TempDir()))
	for fault, want := range map[error]error{
		syscall.EIO: ErrDisk, syscall.EROFS: ErrDisk, syscall.EUCLEAN: ErrDisk, fs.ErrClosed: ErrDisk,
		syscall.ENOSPC: ErrNoSpace, syscall.EDQUOT: ErrNoSpace, syscall.EMFILE: ErrBusy, syscall.ENFILE: ErrBusy,
	} {
		d.failed.Store(0)
		err := d.fault(&os.PathError{Op: "write", Path: "shard", Err: fault})
		if !errors.Is(err, want) || d.resting() != (want == ErrDisk) {
			t.Errorf("%v: got %v, the disk rests: %v", fault, err, d.resting())
		}
	}
}

// checkRest: a disk that failed offers no space and takes no shards for a while.
func checkRest(t *testing.T, d *Disk, rests bool) {
	t.Helper()
	free, _, err := d.Space()
	if err != nil || (free == 0) != rests {
		t.Errorf("Space says %d, %v", free, err)
	}
	w, err := d.Create(newShardContent(t, 9, 16, 1).header)
	if rests != errors.Is(err, ErrDisk) {
		t.Errorf("Create says %v", err)
	}
	if w != nil {
		w.Abort()
	}
}

func TestDiskKeepsItsReserve(t *testing.T) {
	cfg := diskConfig(t.TempDir())
	cfg.ReserveBytes = 1000
	d := openTestDisk(t, cfg)
	free := uint64(1 << 20)
	d.calls.space = func(string) (uint64, uint64, error) { return free, 1 << 30, nil }
	s := newShardContent(t, 1, 1024, 4096)
	w, err := d.Create(s.header)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.Write(s.data[:2048]); err != nil {
		t.Fatal(err)
	}
	free = 2048 + 1000
	if err := w.Write(s.data[2048:]); !errors.Is(err, ErrNoSpace) {
		t.Fatalf("got %v, want ErrNoSpace", err)
	}
	if err := w.Write(nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("after an error: %v", err)
	}
	if _, err := w.Commit(s.trailer()); !errors.Is(err, ErrInvalid) {
		t.Errorf("after an error: %v", err)
	}
	for _, test := range []struct{ free, want uint64 }{{1001, 1}, {1000, 0}, {10, 0}} {
		free = test.free
		if got, _, err := d.Space(); err != nil || got != test.want {
			t.Errorf("%d free: Space says %d, %v", free, got, err)
		}
		if _, err := d.Create(s.header); !errors.Is(err, ErrNoSpace) {
			t.Errorf("%d free: Create says %v", free, err)
		}
	}
}

func TestDiskSpace(t *testing.T) {
	const gib = 1 << 30
	tests := []struct {
		name                       string
		free, total                uint64
		reserve, capacity          uint64
		wantFree, wantCapacityWant uint64
	}{
		{"five percent", 10 * gib, 20 * gib, 0, 0, 9 * gib, 19 * gib},
		{"five percent, but no more than 4 GiB", 1000 * gib, 1000 * gib, 0, 0, 996 * gib, 996 * gib},
		{"set", 10 * gib, 20 * gib, 2 * gib, 0, 8 * gib, 18 * gib},
		{"more than there is", 1 * gib, 1 * gib, 2 * gib, 0, 0, 0},
		{"capacity set", 10 * gib, 20 * gib, 2 * gib, 5 * gib, 5 * gib, 5 * gib},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cfg := diskConfig(t.TempDir())
			cfg.ReserveBytes, cfg.CapacityBytes = test.reserve, test.capacity
			d := openTestDisk(t, cfg)
			d.calls.space = func(string) (uint64, uint64, error) { return test.free, test.total, nil }
			free, capacity, err := d.Space()
			if err != nil || free != test.wantFree || capacity != test.wantCapacityWant {
				t.Errorf("got %d of %d, %v", free, capacity, err)
			}
		})
	}
}

func TestDiskBoundsItsWriters(t *testing.T) {
	cfg := diskConfig(t.TempDir())
	cfg.MaxShardWriters = 2
	d := openTestDisk(t, cfg)
	var open []*ShardWriter
	for i := range 2 {
		w, err := d.Create(newShardContent(t, byte(i), 16, 1).header)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, w)
	}
	if _, err := d.Create(newShardContent(t, 3, 16, 1).header); !errors.Is(err, ErrBusy) {
		t.Fatalf("got %v, want ErrBusy", err)
	}
	open[0].Abort()
	open[0].Abort()
	s := newShardContent(t, 3, 16, 1)
	if _, err := s.write(d); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
	if _, err := s.write(d); err != nil {
		t.Errorf("after another has ended: %v", err)
	}
	open[1].Abort()
	if _, unfinished := diskFiles(t, d); len(unfinished) > 0 {
		t.Errorf("left behind: %v", unfinished)
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

// TestDiskReplacesAShard: a rebuilt shard takes the place of a rotten one at once,
// though the old file was open.
func TestDiskReplacesAShard(t *testing.T) {
	d := openTestDisk(t, diskConfig(t.TempDir()))
	s := newShardContent(t, 1, 16, 40)
	if _, err := s.write(d); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(d.path(s.id()), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt([]byte("rotten"), headerBytes); err != nil {
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
	d := openTestDisk(t, diskConfig(t.TempDir()))
	s := newShardContent(t, 1, 16, 40)
	if _, err := s.write(d); err != nil {
		t.Fatal(err)
	}
	if err := s.check(d, 0, 3); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.path(s.id()), headerBytes+20); err != nil {
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
