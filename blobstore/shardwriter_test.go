package blobstore

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

// TestShardWriterTakesAnyPieces: pieces end where the network ended them.
func TestShardWriterTakesAnyPieces(t *testing.T) {
	d := openTestDisk(t, diskConfig(filepath.Dir(newShardsDir(t))))
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
			for range random.IntN(2048) { // Above what one writev takes.
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
			d := openTestDisk(t, diskConfig(filepath.Dir(newShardsDir(t))))
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
		create: real.create,
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
		remove: real.remove,
		space:  real.space,
	}
}

// TestCommitOrder: contents before name before folder, and no more calls than
// that.
func TestCommitOrder(t *testing.T) {
	d := openTestDisk(t, diskConfig(filepath.Dir(newShardsDir(t))))
	faults := &faultyCall{failAt: -1}
	faults.inject(d)
	small := newShardContent(t, 1, 16, 40)
	if _, err := small.write(d); err != nil {
		t.Fatal(err)
	}
	if want := []string{"write", "write", "sync", "rename", "syncDir"}; !slices.Equal(faults.calls, want) {
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
				d := openTestDisk(t, diskConfig(filepath.Dir(newShardsDir(t))))
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
	d := openTestDisk(t, diskConfig(filepath.Dir(newShardsDir(t))))
	for fault, want := range map[error]error{
		syscall.EIO: ErrDisk, syscall.EROFS: ErrDisk, syscall.ENXIO: ErrDisk, fs.ErrClosed: ErrDisk,
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
	d.endRoom = 0
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
