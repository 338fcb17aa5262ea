//go:build linux

package blobstore

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// These tests use a file system of their own, in a file. They need root, loop
// devices and mkfs.ext4, and are skipped where these are missing.

// skipf skips a test for what the machine lacks; where CI is set, it fails.
func skipf(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// fileSystem is an ext4 file system in a file.
type fileSystem struct{ image, mount string }

func newFileSystem(t *testing.T, bytes int64) *fileSystem {
	t.Helper()
	if os.Getuid() != 0 {
		skipf(t, "mounting takes root")
	}
	dir := t.TempDir()
	f := &fileSystem{image: filepath.Join(dir, "image"), mount: filepath.Join(dir, "mount")}
	image, err := os.Create(f.image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(image.Truncate(bytes), image.Close(), os.Mkdir(f.mount, 0o700)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", f.image).CombinedOutput(); err != nil {
		skipf(t, "mkfs.ext4: %v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", f.image, f.mount).CombinedOutput(); err != nil {
		skipf(t, "mount: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", f.mount).Run() })
	return f
}

// losePower stops the file system as a power failure does: what was not made
// durable, in files and in the journal, is gone.
func (f *fileSystem) losePower(t *testing.T) {
	t.Helper()
	const (
		ioctlShutdown = 0x8004587d // EXT4_IOC_SHUTDOWN in fs/ext4/ext4.h.
		noLogFlush    = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH.
	)
	dir, err := os.Open(f.mount)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), ioctlShutdown, noLogFlush); err != nil {
		skipf(t, "this kernel can't simulate a power failure: %v", err)
	}
}

// restart mounts what is on the disk after the failure. It mounts a copy of it: a
// container that started meanwhile took the old mount along into its own
// namespace, where the stopped file system lives on, and mounting the same image
// again would only bring that one back.
func (f *fileSystem) restart(t *testing.T) {
	t.Helper()
	after := f.image + ".after"
	for _, command := range [][]string{
		{"umount", f.mount},
		{"cp", "--sparse=always", f.image, after},
		{"mount", "-o", "loop", after, f.mount},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command[0], err, out)
		}
	}
	f.image = after
}

// TestPowerFailure cuts the power while shards are written. Afterwards every
// shard whose Commit returned is there, and every file with a shard's name is a
// whole shard.
func TestPowerFailure(t *testing.T) {
	f := newFileSystem(t, 96<<20)
	cfg := diskConfig(f.mount)
	for round := range 3 {
		d, err := OpenDisk(cfg)
		if err != nil {
			t.Fatal(err)
		}
		d.writeBehind = 64 << 10
		var mu sync.Mutex
		var committed []*shardContent
		var all sync.WaitGroup
		for worker := range 4 {
			all.Go(func() {
				for i := 0; i < 60; i++ {
					s := newShardContent(t, byte(worker*64+i), 4<<10, 1+(round*7919+worker*1009+i*50021)%(200<<10))
					if _, err := s.write(d); err != nil {
						return // The power is off.
					}
					mu.Lock()
					committed = append(committed, s)
					mu.Unlock()
				}
			})
		}
		waitFor(t, "some shards", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(committed) >= 20+20*round
		})
		f.losePower(t)
		all.Wait()
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		f.restart(t)
		checkAfterPowerFailure(t, cfg, committed)
	}
}

func checkAfterPowerFailure(t *testing.T, cfg Config, committed []*shardContent) {
	t.Helper()
	d, err := OpenDisk(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, s := range committed {
		if err := s.check(d, 0, s.layout.stripes()); err != nil {
			t.Errorf("a committed shard: %v", err)
		}
	}
	whole := 0
	for folder := range shardFolders {
		if err := d.list(byte(folder), func(ids []shardID) error {
			for _, id := range ids {
				shard, err := openShardFile(d.path(id), id)
				if err != nil {
					return fmt.Errorf("a shard's name on what is none: %w", err)
				}
				whole++
				_ = shard.file.Close()
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	if _, unfinished := diskFiles(t, d); len(unfinished) > 0 {
		t.Errorf("left behind: %v", unfinished)
	}
	t.Logf("%d shards were committed, %d are there", len(committed), whole)
}

// TestFullDisk fills a file system up: the reserve stays free, nothing breaks, and
// room that is made can be used.
func TestFullDisk(t *testing.T) {
	f := newFileSystem(t, 48<<20)
	cfg := diskConfig(f.mount)
	cfg.ReserveBytes = 8 << 20
	d := openTestDisk(t, cfg)
	defer d.Close()
	var mu sync.Mutex
	var kept []*shardContent
	var refused atomic.Int64
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			for i := range 64 {
				s := newShardContent(t, byte(worker*64+i), 64<<10, 3<<20)
				_, err := s.write(d)
				switch {
				case errors.Is(err, ErrNoSpace):
					refused.Add(1)
					return
				case err != nil:
					t.Errorf("got %v, want ErrNoSpace", err)
					return
				}
				mu.Lock()
				kept = append(kept, s)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if refused.Load() != 4 || len(kept) == 0 {
		t.Fatalf("%d writers were refused, %d shards were written", refused.Load(), len(kept))
	}
	if d.resting() {
		t.Error("a full disk was taken for a broken one")
	}
	if _, unfinished := diskFiles(t, d); len(unfinished) > 0 {
		t.Errorf("left behind: %v", unfinished)
	}
	for _, s := range kept {
		if err := s.check(d, 0, s.layout.stripes()); err != nil {
			t.Error(err)
		}
	}
	// A margin for what four writers ask for at the same time.
	if free, _, err := fileSystemSpace(f.mount); err != nil || free < cfg.ReserveBytes-4<<20 {
		t.Errorf("%d bytes are free, %v; the reserve is %d", free, err, cfg.ReserveBytes)
	}
	for _, s := range kept[:2] {
		if err := d.remove(s.id()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := kept[0].write(d); err != nil {
		t.Errorf("after room was made: %v", err)
	}
}

// TestFullDiskWithoutReserve meets the file system's own ENOSPC.
func TestFullDiskWithoutReserve(t *testing.T) {
	f := newFileSystem(t, 24<<20)
	d := openTestDisk(t, diskConfig(f.mount))
	defer d.Close()
	real := d.calls.space
	d.calls.space = func(dir string) (uint64, uint64, error) { _, total, err := real(dir); return 1 << 40, total, err }
	s := newShardContent(t, 1, 64<<10, 32<<20)
	if _, err := s.write(d); !errors.Is(err, ErrNoSpace) {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
	if shards, unfinished := diskFiles(t, d); len(shards)+len(unfinished) > 0 {
		t.Errorf("left behind: %v %v", shards, unfinished)
	}
}

// TestNoInodesNoRoom: a file system without room for more files has no room.
func TestNoInodesNoRoom(t *testing.T) {
	if os.Getuid() != 0 {
		skipf(t, "mounting takes root")
	}
	mount := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=64m,nr_inodes=%d", reservedInodes+100), "tmpfs", mount).CombinedOutput(); err != nil {
		skipf(t, "mount: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", mount).Run() })
	for i := range 100 {
		free, _, err := fileSystemSpace(mount)
		if err != nil || (free == 0) != (i >= 99) {
			t.Fatalf("with %d files %d bytes are free: %v", i, free, err)
		}
		if err := os.WriteFile(filepath.Join(mount, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
