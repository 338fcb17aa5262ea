package blobstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// threeDirs is a configuration with three folders for shards.
func threeDirs(t *testing.T) Config {
	t.Helper()
	cfg := diskConfig(t.TempDir())
	for range 2 {
		cfg.MoreDirs = append(cfg.MoreDirs, filepath.Join(t.TempDir(), "shards"))
	}
	return cfg
}

func openTestDisks(t *testing.T, cfg Config) *disks {
	t.Helper()
	s, err := openDisks(cfg, "self")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.close() })
	return s
}

// store puts a shard on the disks.
func (s *shardContent) store(all *disks) error {
	w, err := all.create(s.header)
	if err != nil {
		return err
	}
	defer w.Abort()
	if err := w.Write(s.data); err != nil {
		return err
	}
	_, err = w.Commit(s.trailer())
	return err
}

// on counts on which disks a shard is.
func (s *shardContent) on(all *disks) (count []int) {
	for i, d := range all.all {
		if d.has(s.id()) {
			count = append(count, i)
		}
	}
	return count
}

// readable says whether a shard can be read from the disks.
func (s *shardContent) readable(all *disks) error {
	run := shardRun{extentID: s.header.GetExtentId(), layout: s.layout, number: 1, cells: s.layout.stripes()}
	buf := make([]byte, run.bytes())
	checksums, _, err := all.ReadCells(run.request(), buf)
	if err != nil {
		return err
	}
	return run.verify(checksums, buf)
}

// TestDisksFillEvenly: shards go to disks in proportion to their room, and are found
// again by the next process, whatever the order of the folders is then.
func TestDisksFillEvenly(t *testing.T) {
	cfg := threeDirs(t)
	s := openTestDisks(t, cfg)
	for i, free := range []uint64{3 << 40, 1 << 40, 0} {
		s.all[i].calls.space = func(string) (uint64, uint64, error) { return free, 4 << 40, nil }
	}
	counts := make([]int, 3)
	var shards []*shardContent
	for i := range 200 {
		shard := newShardContent(t, byte(i), 16, 40)
		if err := shard.store(s); err != nil {
			t.Fatal(err)
		}
		on := shard.on(s)
		if len(on) != 1 {
			t.Fatalf("shard %d is on disks %v", i, on)
		}
		counts[on[0]]++
		shards = append(shards, shard)
	}
	if counts[0] < 120 || counts[1] < 25 || counts[2] > 0 {
		t.Errorf("of 200 shards, disks with 3, 1 and 0 TiB have %v", counts)
	}
	if free, _ := s.space(); free < 4<<40-1<<30 || free > 4<<40 {
		t.Errorf("together %d bytes are free", free)
	}
	cfg.MoreDirs[0], cfg.MoreDirs[1] = cfg.MoreDirs[1], cfg.MoreDirs[0]
	again := openTestDisks(t, cfg)
	for _, shard := range shards {
		if err := shard.readable(again); err != nil || !again.Has(shard.header.GetExtentId(), 1) {
			t.Errorf("after the next start: %v", err)
		}
	}
}

// TestDisksPassOver: a disk that is full or fails is passed over, until none is left.
func TestDisksPassOver(t *testing.T) {
	s := openTestDisks(t, threeDirs(t))
	s.all[0].calls.space = func(string) (uint64, uint64, error) { return 0, 1 << 40, nil }
	s.all[1].calls.create = func(string, string) (*os.File, error) { return nil, syscall.EIO }
	for i := range 30 {
		shard := newShardContent(t, byte(i), 16, 40)
		if err := shard.store(s); err != nil || len(shard.on(s)) != 1 || shard.on(s)[0] != 2 {
			t.Fatalf("shard %d is on %v: %v", i, shard.on(s), err)
		}
	}
	s.all[2].calls.space = s.all[0].calls.space
	if err := newShardContent(t, 99, 16, 40).store(s); !errors.Is(err, ErrNoSpace) && !errors.Is(err, ErrDisk) {
		t.Errorf("without any disk: %v", err)
	}
}

// TestDisksReplaceInPlace: a shard that is written anew is on one disk afterwards,
// the one that had it; or, if that can't take it, another, and the old file is gone.
func TestDisksReplaceInPlace(t *testing.T) {
	s := openTestDisks(t, threeDirs(t))
	for i := range 20 {
		shard := newShardContent(t, byte(i), 16, 40)
		if err := shard.store(s); err != nil {
			t.Fatal(err)
		}
		before := shard.on(s)[0]
		if err := shard.store(s); err != nil || len(shard.on(s)) != 1 || shard.on(s)[0] != before {
			t.Fatalf("written again, the shard of disk %d is on %v: %v", before, shard.on(s), err)
		}
		had := s.all[before]
		space := had.calls.space
		had.calls.space = func(string) (uint64, uint64, error) { return 0, 1 << 40, nil }
		if err := shard.store(s); err != nil || len(shard.on(s)) != 1 || shard.on(s)[0] == before {
			t.Fatalf("disk %d is full, and the shard is on %v: %v", before, shard.on(s), err)
		}
		had.calls.space = space
	}
}

// TestSweepTakesTheSecondCopy: of two files of a shard on one node, one is swept.
func TestSweepTakesTheSecondCopy(t *testing.T) {
	cfg := threeDirs(t)
	cfg.SweepGrace = 0
	s := openTestDisks(t, cfg)
	catalog := &testCatalog{}
	catalog.set(1)
	shard := newShardContent(t, 1, 16, 40)
	for _, d := range s.all[1:] {
		if _, err := shard.write(d); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		for _, d := range s.all {
			if _, err := newSweep(cfg, "self", d, s, catalog).round(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if on := shard.on(s); len(on) != 2 {
		t.Fatalf("sweeps that have seen it once left it on %v", on)
	}
	for _, d := range s.all {
		sweep := newSweep(cfg, "self", d, s, catalog)
		for range 2 {
			if _, err := sweep.round(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if on := shard.on(s); len(on) != 1 || on[0] != 1 {
		t.Errorf("the shard is on %v", on)
	}
	if err := shard.readable(s); err != nil {
		t.Error(err)
	}
}

// TestDiskThatIsNotMounted: the folder below is not taken for the disk, and nothing
// is written to it.
func TestDiskThatIsNotMounted(t *testing.T) {
	cfg := threeDirs(t)
	first := openTestDisks(t, cfg)
	shard := newShardContent(t, 1, 16, 40)
	if err := shard.store(first); err != nil {
		t.Fatal(err)
	}
	away := cfg.MoreDirs[0] + ".away"
	if err := os.Rename(cfg.MoreDirs[0], away); err != nil {
		t.Fatal(err)
	}
	second := openTestDisks(t, cfg)
	status := second.status()
	if len(second.all) != 2 || len(status) != 3 || status[0].Dir != cfg.MoreDirs[0] || !strings.Contains(status[0].Fault, "mount it again") {
		t.Errorf("without a disk: %+v", status)
	}
	if _, err := os.Stat(cfg.MoreDirs[0]); err == nil {
		t.Error("its folder was made anew")
	}
	if err := os.Rename(away, cfg.MoreDirs[0]); err != nil {
		t.Fatal(err)
	}
	third := openTestDisks(t, cfg)
	if err := shard.readable(third); err != nil || len(third.all) != 3 {
		t.Errorf("with the disk again: %v, %+v", err, third.status())
	}
}

// TestDiskOfAnotherNode is left alone.
func TestDiskOfAnotherNode(t *testing.T) {
	cfg := threeDirs(t)
	openTestDisks(t, cfg)
	stolen := diskConfig(t.TempDir())
	stolen.MoreDirs = cfg.MoreDirs[:1]
	other, err := openDisks(stolen, "other")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.close() })
	if fault := other.status()[0].Fault; !strings.Contains(fault, "belongs to node self") {
		t.Errorf("the disk of another node: %q", fault)
	}
	if _, err := openDisks(cfg, "other"); !errors.Is(err, ErrDisk) {
		t.Errorf("the first folder of another node: %v", err)
	}
}

// TestDiskRetires: a disk that fails long enough is out of service, in each of the
// ways in which disks die; one that is full or well is not.
func TestDiskRetires(t *testing.T) {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	faults := map[string]func(d *Disk) error{
		"fsync": func(d *Disk) error {
			d.calls.sync = func(*os.File) error { return syscall.EIO }
			return nil
		},
		"read-only": func(d *Disk) error {
			d.calls.write = func(*os.File, [][]byte) error { return syscall.EROFS }
			return nil
		},
		"gone": func(d *Disk) error { return os.Rename(d.dir, d.dir+".away") },
		"another": func(d *Disk) error {
			return writeJSON(filepath.Join(d.dir, claimFile), diskClaim{ID: "x", Node: "self"})
		},
		"hangs": func(d *Disk) error {
			d.calls.sync = func(*os.File) error { <-release; return nil }
			return nil
		},
		"forgets": func(d *Disk) error {
			write := d.calls.write
			d.calls.write = func(f *os.File, pieces [][]byte) error { return write(f, [][]byte{make([]byte, len(pieces[0]))}) }
			return nil
		},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			cfg := threeDirs(t)
			cfg.DiskProbeInterval, cfg.DiskGrace = 10*time.Millisecond, 50*time.Millisecond
			s := openTestDisks(t, cfg)
			d := s.all[1]
			if err := d.probe(); err != nil {
				t.Fatalf("a sound disk: %v", err)
			}
			if err := fault(d); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
			defer cancel()
			if !d.watch(ctx) || d.retired() == nil || len(s.serving()) != 2 {
				t.Errorf("the disk is in service: %v", ctx.Err())
			}
		})
	}
	t.Run("full", func(t *testing.T) {
		d := openTestDisk(t, diskConfig(t.TempDir()))
		if err := writeJSON(filepath.Join(d.dir, claimFile), d.claim); err != nil {
			t.Fatal(err)
		}
		d.calls.write = func(*os.File, [][]byte) error { return syscall.ENOSPC }
		if err := d.probe(); err != nil {
			t.Error(err)
		}
	})
}

// TestRetiredDiskIsReadAtAnyPrice: what can be read there is read, but does not
// count.
func TestRetiredDiskIsReadAtAnyPrice(t *testing.T) {
	s := openTestDisks(t, threeDirs(t))
	shard := newShardContent(t, 1, 16, 40)
	if err := shard.store(s); err != nil {
		t.Fatal(err)
	}
	lost := s.all[shard.on(s)[0]]
	w, err := lost.Create(newShardContent(t, 2, 16, 40).header)
	if err != nil {
		t.Fatal(err)
	}
	lost.retire(errors.New("test"))
	if err := shard.readable(s); err != nil || s.Has(shard.header.GetExtentId(), 1) {
		t.Errorf("on a disk that is out of service: %v", err)
	}
	begun := newShardContent(t, 2, 16, 40)
	if err := w.Write(begun.data); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(begun.trailer()); err == nil {
		t.Error("a shard was acknowledged on a disk that is out of service")
	}
	if err := shard.store(s); err != nil {
		t.Fatal(err)
	}
	if !s.Has(shard.header.GetExtentId(), 1) {
		t.Error("the shard was not written anew")
	}
}

// TestLostDiskIsRepaired: the shards of a disk that fails are rebuilt, while its node
// lives on; no reader notices.
func TestLostDiskIsRepaired(t *testing.T) {
	for _, nodes := range []int{1, 3, 5} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, nodes, func(cfg *Config) {
				cfg.MoreDirs = []string{filepath.Join(t.TempDir(), "shards"), filepath.Join(t.TempDir(), "shards")}
				// Long enough for the sound disks of a busy machine.
				cfg.DiskProbeInterval, cfg.DiskGrace = 50*time.Millisecond, 5*time.Second
			})
			victim := c.nodes[0]
			blobs := c.pushMany()
			if nodes == 1 {
				blobs = nil // There is nothing to rebuild it from.
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- victim.store.Run(ctx) }()
			defer func() {
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}()
			defer c.nodes[nodes-1].lead()()
			lost := victim.store.disks.all[2]
			if err := os.Rename(lost.dir, lost.dir+".away"); err != nil {
				t.Fatal(err)
			}
			eventually(t, waitLimit, "the disk is out of service", func() bool { return lost.retired() != nil })
			c.waitWhole(victim, blobs...)
			if capacity := victim.store.Disks(); len(capacity) != 3 {
				t.Errorf("disks are %+v", capacity)
			}
			victim.checkPull(victim.push(250_000, 99))
		})
	}
}
