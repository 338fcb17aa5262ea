package cache

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A process that has too many files open does not take that for a fault of the file.
func TestTooManyFilesOpen(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	request := r.request("sha256:a", 1000, true, nil)
	r.mustRead(request, true)
	r.eventually("it came in", func(s Status) bool { return s.Fills == 1 })
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = 3 // less than there are
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	_, openErr := os.Open(os.DevNull)
	reader := r.Open(t.Context(), request)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if openErr == nil || reader != nil {
		t.Errorf("opened: %v, %v", openErr, reader)
	}
	r.mustRead(request, true)
	if s := r.Status(); s.Rotten > 0 || s.Fills != 1 || s.Hits != 1 {
		t.Errorf("%+v", s)
	}
}

// A source that takes its time has no more to do for many readers than for one.
func TestSlowSource(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	r.patience = 2 * time.Second // A busy disk takes less.
	released := make(chan struct{})
	request := r.request("sha256:a", 2*blockBytes, true, func(from io.Reader) io.Reader { <-released; return from })
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() { r.mustRead(request, true) })
	}
	r.eventually("they wait", func(s Status) bool { return s.Joins == 9 })
	time.Sleep(r.patience + r.patience/4)
	close(released)
	all.Wait()
	if r.reads["sha256:a"] != 1 {
		t.Errorf("it was read %d times", r.reads["sha256:a"])
	}
}

// A disk that hangs is not waited for.
func TestDiskHangs(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	r.patience = 20 * time.Millisecond
	released := make(chan struct{})
	r.beforeSpace = func() { <-released }
	request := r.request("sha256:a", 2*blockBytes, true, nil)
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() { r.mustRead(request, true) })
	}
	all.Wait()
	close(released)
	r.eventually("nothing is left of it", func(s Status) bool { return s.Abandoned > 0 && s.Blobs == 0 && s.Bytes == 0 })
}

// A folder that somebody removes is made again, and missed once, not by each client.
func TestFolderRemoved(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	r.mustRead(r.request("kept", 1000, true, nil), true)
	r.eventually("it came in", func(s Status) bool { return s.Fills == 1 })
	if err := os.RemoveAll(r.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	r.mustRead(r.request("first", 1000, true, nil), true)
	r.eventually("it failed", func(s Status) bool { return s.Failed == 1 })
	for i := range 10 {
		r.mustRead(r.request(fmt.Sprint(i), 1000, true, nil), false)
	}
	if lines := strings.Count(r.log.String(), "\n"); lines != 1 {
		t.Errorf("%d lines in the log: %s", lines, r.log.String())
	}
	r.adapt()
	r.mustRead(r.request("kept", 1000, true, nil), false)
	r.mustRead(r.request("kept", 1000, true, nil), true)
	r.eventually("it came in", func(s Status) bool { return s.Fills == 2 && s.Rotten == 1 && s.Blobs == 1 })
}

// What the disk has refused in part is not sent to those that have not had it yet.
func TestDoubtfulFile(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	request := r.request("sha256:a", 3*blockBytes, true, func(from io.Reader) io.Reader {
		return io.MultiReader(io.LimitReader(from, 2*blockBytes), &onRead{from, func() {
			r.Cache.mu.Lock()
			defer r.Cache.mu.Unlock()
			if f := r.fills[blobName("sha256:a")]; f != nil {
				f.file.Close() // Writing fails from now on.
			}
		}})
	})
	reader := r.Open(t.Context(), request)
	defer reader.Close()
	if _, err := io.CopyN(io.Discard, reader, 100); err != nil {
		t.Fatal(err)
	}
	r.eventually("it failed", func(s Status) bool { return s.Failed == 1 })
	got := &comparing{want: r.content("sha256:a", 3*blockBytes)[100:]}
	for _, path := range openPaths(t, r.cfg.Dir) {
		if err := os.WriteFile(path, make([]byte, 3*blockBytes), 0); err != nil { // What the disk has instead.
			t.Fatal(err)
		}
	}
	if _, err := io.Copy(got, reader); err != nil || len(got.want) > 0 {
		t.Errorf("read: %v, %d bytes are missing", err, len(got.want))
	}
}
