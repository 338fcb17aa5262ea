//go:build linux

package nodetest

import (
	"errors"
	"fmt"
	"net/http"
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

const (
	smallDiskBytes = 2 << 30
	smallReserve   = 64 << 20
)

// onSmallDisks puts every node's data folder on a file system of its own, which is
// an image of smallDiskBytes.
func onSmallDisks(t *testing.T) func(*node.Config) {
	return func(cfg *node.Config) {
		cfg.Data, cfg.ReserveBytes = []string{filepath.Join(mountDisk(t, filepath.Join(t.TempDir(), "disk")), "data")}, smallReserve
	}
}

// mountDisk mounts a new file system of smallDiskBytes on a folder, which is made
// when absent.
func mountDisk(t *testing.T, mount string) string {
	t.Helper()
	if os.Getuid() != 0 {
		skip(t, "mounting takes root")
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, smallDiskBytes), os.MkdirAll(mount, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"mkfs.ext4", "-q", "-F", "-m", "0", image}, {"mount", "-o", "loop", image, mount}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			skip(t, fmt.Sprintf("%s: %v: %s", argv[0], err, out))
		}
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", mount).Run() })
	return mount
}

// skip skips a test for what this machine lacks; in CI that is a fault.
func skip(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("can't be skipped in CI: %s", reason)
	}
	t.Skip(reason)
}

// leave has somebody else take what is left of a member's disk but so many bytes
// above the reserve.
func (m *Member) leave(bytes uint64) {
	t := m.cluster.t
	t.Helper()
	file, err := os.Create(filepath.Join(filepath.Dir(m.Config.Home()), "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var fs unix.Statfs_t
	if err := unix.Statfs(m.Config.Home(), &fs); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(file.Fd()), 0, 0, int64(fs.Bavail*uint64(fs.Bsize)-smallReserve-bytes)); err != nil {
		t.Fatal(err)
	}
}

// fillCluster pushes images until there is no room, and says what the cluster then
// answered.
func fillCluster(c *Cluster, layer int, first uint64) (images int, refusal error) {
	const most = 200
	for ; images < most && refusal == nil; images++ {
		on, before := c.Members[images%len(c.Members):], len(c.Acked())
		_, refusal = c.PushImage("app", fmt.Sprint("v", first+uint64(images)), [][]byte{Bytes(first+uint64(images), layer)}, on...)
		if refusal != nil {
			// Blobs of it that were taken belong to no image, and go after the grace.
			c.forgetSince(before)
		}
	}
	return images - 1, refusal
}

// forgetSince forgets what was acknowledged after the first so many.
func (c *Cluster) forgetSince(first int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acked = c.acked[:first]
}

// TestDisksFillUp fills one disk to its reserve, which no client notices, and then
// all: pushes are refused, pulls and deletes go on, and what deletes free is used
// again without a restart.
func TestDisksFillUp(t *testing.T) {
	const layer = 8 << 20
	small := onSmallDisks(t)
	c := Start(t, 3, small, quickExpiry, func(cfg *node.Config) { cfg.Collect.Grace = 5 * time.Second })
	for _, m := range c.Members {
		m.Stop()
		m.Tune = func(cfg *blobstore.Config) { cfg.SweepInterval, cfg.SweepGrace = checkSweepInterval, time.Second }
		m.Start()
	}
	for _, m := range c.Members {
		m.WaitReady()
	}
	n1, n2, n3 := c.Members[0], c.Members[1], c.Members[2]
	n1.leave(24 << 20)
	n2.leave(100 << 20)
	n3.leave(100 << 20)
	for i := uint64(0); !n2.isFull("n1"); i++ {
		if _, err := c.PushImage("app", fmt.Sprint("one", i), [][]byte{Bytes(i, layer)}, c.Members...); err != nil || i == 50 {
			t.Fatalf("push %d while n1 fills up: %v", i, err)
		}
	}
	images, refusal := fillCluster(c, layer, 100)
	if refusal == nil || !strings.Contains(refusal.Error(), "507 Insufficient Storage") || !strings.Contains(refusal.Error(), "has no room") {
		t.Fatalf("after %d images: %v", images, refusal)
	}
	if images < 5 {
		t.Errorf("with one disk full, the cluster took %d images only", images)
	}
	for _, m := range c.Members {
		if err := m.wantMetric(`atoll_node_full{name="n1"} 1`); err != nil {
			t.Error(err)
		}
	}
	c.checkContent()
	for _, acked := range c.Acked() {
		if acked.Manifest {
			if _, _, err := n3.expect(http.StatusAccepted, "DELETE", "/v2/app/manifests/"+acked.Digest, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.forgetRepository("app")
	c.Eventually(settleTimeout, "the disks have room again", func() error {
		for _, m := range c.Members {
			if n2.isFull(m.Config.Name) {
				return fmt.Errorf("%s is full", m.Config.Name)
			}
		}
		return nil
	})
	push(t, c, "app", "again", 1000, c.Members...)
	again, refusal := fillCluster(c, layer, 2000)
	if refusal == nil || again < images {
		t.Errorf("after everything was deleted, the cluster took %d images, and %d before: %v", again, images, refusal)
	}
	for _, m := range c.Members {
		m.leave(smallDiskBytes / 2)
	}
	c.Check()
}

// isFull tells whether a member says that another takes no new shards.
func (m *Member) isFull(name string) bool {
	return m.wantMetric(fmt.Sprintf(`atoll_node_full{name=%q} 1`, name)) == nil
}
