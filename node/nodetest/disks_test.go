//go:build linux

package nodetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/node"
)

// killDisk has a mounted ext4 file system answer everything with EIO from now on.
func killDisk(t *testing.T, mount string) {
	t.Helper()
	const (
		ioctlShutdown = 0x8004587d // EXT4_IOC_SHUTDOWN in fs/ext4/ext4.h.
		noLogFlush    = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH.
	)
	dir, err := os.Open(mount)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), ioctlShutdown, noLogFlush); err != nil {
		skip(t, fmt.Sprintf("this kernel can't kill a file system: %v", err))
	}
}

// TestDiskDies: one of a node's disks dies under load. No request fails, its shards
// are rebuilt while the node lives on, and a new disk in its place is taken into use
// with the next start.
func TestDiskDies(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "disk2")
	c := Start(t, 3, quickExpiry, func(cfg *node.Config) {
		cfg.Data = append(cfg.Data, filepath.Join(t.TempDir(), "disk2"))
		cfg.Capacity = 1 << 30 // as much on each disk
		if cfg.Name == "n1" {
			cfg.Data[1] = mountDisk(t, folder)
		}
	})
	n1, n2 := c.Members[0], c.Members[1]
	n1.Stop()
	n1.Tune = func(cfg *blobstore.Config) {
		cfg.DiskProbeInterval, cfg.DiskGrace = 100*time.Millisecond, 5*time.Second
	}
	n1.Start()
	n1.WaitReady()
	for i := range uint64(8) {
		push(t, c, "app", fmt.Sprint("v", i), i, c.Members...)
	}
	onDisk, _ := filepath.Glob(filepath.Join(folder, "shards", "??", "*.?"))
	if len(onDisk) < 3 {
		t.Fatalf("the disk has %d shards", len(onDisk))
	}
	load := c.startLoad()
	killDisk(t, folder)
	c.Eventually(settleTimeout, "the disk's shards are rebuilt elsewhere", func() error {
		status, err := n2.Status()
		if err != nil {
			return err
		}
		repair, err := node.FetchRepair(t.Context(), n2.Config.Home())
		if err != nil {
			return err
		}
		if len(status.Problems) != 1 || !strings.Contains(status.Problems[0], "disk "+folder+" of node n1 is out of service") || repair.DegradedExtents > 0 {
			return fmt.Errorf("problems are %q, and %d extents miss shards", status.Problems, repair.DegradedExtents)
		}
		return n2.wantMetric(fmt.Sprintf(`atoll_disk_in_service{folder=%q,name="n1"} 0`, folder))
	})
	if requests := load.end(); requests < loaders {
		t.Errorf("the load made %d requests only", requests)
	}
	c.checkContent()
	n1.Stop()
	if out, err := exec.Command("umount", "-l", folder).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	mountDisk(t, folder)
	n1.Start()
	n1.WaitReady()
	for i := range uint64(8) {
		push(t, c, "app", fmt.Sprint("w", i), 100+i, c.Members...)
	}
	if onDisk, _ = filepath.Glob(filepath.Join(folder, "shards", "??", "*.?")); len(onDisk) < 3 {
		t.Errorf("the new disk has %d shards", len(onDisk))
	}
	c.Check()
}
