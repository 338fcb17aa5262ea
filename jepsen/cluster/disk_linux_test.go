package cluster

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What was not fsynced is gone after a loss of power, what was is there, and a full disk
// takes nothing.
func TestDisk(t *testing.T) {
	if os.Getuid() != 0 {
		skip(t, "mounting takes root")
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		skip(t, err.Error())
	}
	dir := t.TempDir()
	d, err := newDisk(filepath.Join(dir, "image"), filepath.Join(dir, "mount"), 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.detach() })
	durable, fleeting := filepath.Join(d.mount, "durable"), filepath.Join(d.mount, "fleeting")
	write(t, durable, true)
	write(t, fleeting, false)
	if err := d.LosePower(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.mount, "late"), nil, 0o600); err == nil {
		t.Error("a disk without power takes files")
	}
	if err := d.Reattach(); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(durable); err != nil || len(content) == 0 {
		t.Errorf("what was durable is gone: %d bytes, %v", len(content), err)
	}
	if content, _ := os.ReadFile(fleeting); len(content) != 0 {
		t.Error("what was not durable is there")
	}
	// Who has a file open is waited for.
	open, err := os.Open(durable)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(200*time.Millisecond, func() { open.Close() })
	if err := d.Reattach(); err != nil {
		t.Fatal(err)
	}
	if err := d.Fill(0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fleeting, make([]byte, 1<<20), 0o600); err == nil {
		t.Error("a full disk takes files")
	}
	if err := d.Drain(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fleeting, make([]byte, 1<<20), 0o600); err != nil {
		t.Error(err)
	}
}

// write writes a file, which is durable with its name if sync is set.
func write(t *testing.T, path string, sync bool) {
	t.Helper()
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !sync {
		return
	}
	for _, name := range []string{path, filepath.Dir(path)} {
		file, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if err := unix.Fsync(int(file.Fd())); err != nil {
			t.Fatal(err)
		}
	}
}
