//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mountDisk mounts a new file system on a folder, which is made.
func mountDisk(t *testing.T, mount string) {
	t.Helper()
	if os.Getuid() != 0 {
		skip(t, "mounting takes root")
	}
	requireTool(t, "mkfs.ext4")
	image := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 2<<30), os.Mkdir(mount, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"mkfs.ext4", "-q", "-F", "-m", "0", image}, {"mount", "-o", "loop", image, mount}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			skip(t, fmt.Sprintf("%s: %v: %s", argv[0], err, out))
		}
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", mount).Run() })
}

// fillToTheBrim takes every byte of a file system, as a stranger would.
func fillToTheBrim(t *testing.T, mount string) (empty func()) {
	t.Helper()
	ballast, err := os.Create(filepath.Join(mount, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	const block = 4 << 10
	var end int64
	for step := int64(256 << 20); step >= block; {
		switch err := unix.Fallocate(int(ballast.Fd()), 0, end, step); {
		case err == nil:
			end += step
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		default:
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(ballast.Name()); err != nil {
			t.Fatal(err)
		}
	}
}

// Strangers fill a node's disk to the last byte, reserve and all. If the node can't
// go on it says why and ends, and no client notices. When all disks are full, so is
// the cluster; when they have room again, the same command lines bring everything
// back.
func TestDisksFilledByOthers(t *testing.T) {
	dir := t.TempDir()
	nodes := []string{"n1", "n2", "n3"}
	for _, id := range nodes {
		mountDisk(t, filepath.Join(dir, id))
	}
	c := startDev(t, dir)
	images := []pushed{cranePush(t, c.host("n2"), "app:before", makeImage(t, 8<<20))}
	empty := []func(){fillToTheBrim(t, filepath.Join(dir, "n1"))}
	images = append(images, cranePush(t, c.host("n2"), "app:one-is-full", makeImage(t, 8<<20)))
	for _, image := range images {
		image.verify(t, c.host("n3"))
	}
	for _, id := range nodes[1:] {
		empty = append(empty, fillToTheBrim(t, filepath.Join(dir, id)))
	}
	if out, err := tryCommand(t, program(t, "crane"), "push", makeImage(t, 8<<20), c.host("n2")+"/app:all-are-full"); err == nil {
		t.Errorf("a push to full disks: %s", out)
	}
	for _, e := range empty {
		e()
	}
	for _, id := range nodes {
		c.revive(id)
	}
	for _, id := range nodes {
		eventually(t, formTimeout, "node "+id+" has room and is ready", func() bool { return httpStatus(t, c.node(id).Operations+"/readyz") == 200 })
	}
	images = append(images, c.pushWhenThereIsRoom("app:after"))
	c.waitHealthy()
	for _, image := range images {
		for _, id := range nodes {
			image.verify(t, c.host(id))
		}
	}
}

// revive starts a node again if it has ended, for want of room and nothing else.
func (c *devCluster) revive(id string) {
	c.t.Helper()
	if alive(c.node(id).PID) {
		return
	}
	// Its log is on the full disk as well; dev shows errors besides.
	if !strings.Contains(c.out.String(), "no space left on device") {
		c.t.Errorf("node %s has ended, and nobody says why", id)
	}
	c.startByHand(id)
}

// pushWhenThereIsRoom pushes an image as soon as the nodes know that there is room.
func (c *devCluster) pushWhenThereIsRoom(name string) pushed {
	c.t.Helper()
	image := makeImage(c.t, 8<<20)
	deadline := time.Now().Add(formTimeout)
	for {
		out, err := tryCommand(c.t, program(c.t, "crane"), "push", image, c.host("n1")+"/"+name)
		if err == nil {
			return pushed{name, craneDigest(c.t, c.host("n1"), name)}
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("the disks have room again, and a push fails: %v: %s", err, out)
		}
	}
}
