package cache

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// What comes in at once has no more room than what comes in one after the other.
func TestBoundOfFills(t *testing.T) {
	const limit = 8 * blockBytes
	r := start(t, t.TempDir(), limit)
	held := make(chan struct{})
	hold := func(from io.Reader) io.Reader { <-held; return from }
	var readers []io.ReadCloser
	for i := range 16 {
		if reader := r.Open(t.Context(), r.request(fmt.Sprint(i), 2*blockBytes, true, hold)); reader != nil {
			readers = append(readers, reader)
		}
	}
	if len(readers) != 4 {
		t.Errorf("%d of them come in", len(readers))
	}
	close(held)
	var all sync.WaitGroup
	for _, reader := range readers {
		all.Go(func() { _, _ = io.Copy(io.Discard, reader) })
	}
	all.Wait()
	r.eventually("all ended", func(s Status) bool { return s.Fills == 3 && s.Passed == 1 })
	if s := r.Status(); s.Bytes > limit {
		t.Errorf("%+v", s)
	}
	for _, reader := range readers {
		reader.Close()
	}
	if s := r.Status(); s.Bytes != 6*blockBytes {
		t.Errorf("%+v", s)
	}
}

// leave leaves a file with a blob of zeros in a folder.
func leave(t *testing.T, dir, name string, size uint64) {
	t.Helper()
	file, err := os.Create(filepath.Join(dir, blobName(name)+serialMark+"1"))
	if err != nil {
		t.Fatal(err)
	}
	sums := make([]uint32, blocks(size))
	for i := range sums {
		sums[i] = crc32.Checksum(make([]byte, blockBytes), castagnoli)
	}
	_, err = file.WriteAt(trailer(sums, blobName(name), size), int64(size))
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
}

// Blobs give way to bytes that have come, not to those that a client has asked for and does not take.
func TestNothingGivesWayToPromises(t *testing.T) {
	const blobs = 12
	dir := t.TempDir()
	for i := range blobs {
		leave(t, dir, fmt.Sprint(i), 8*blockBytes)
	}
	r := start(t, dir, 128*blockBytes) // 96 for those that stay
	if s := r.Status(); s.Blobs != blobs {
		t.Fatalf("%+v", s)
	}
	var readers []io.ReadCloser
	for i := range 3 {
		reader := r.Open(t.Context(), r.request(fmt.Sprint("large ", i), 32*blockBytes, true, nil))
		readers = append(readers, reader)
		if _, err := io.ReadFull(reader, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
	}
	for _, reader := range readers {
		reader.Close()
	}
	r.eventually("they are given up", func(s Status) bool { return s.Abandoned == 3 })
	const came = 3 * (fillAhead/blockBytes + 1)
	if s := r.Status(); s.Blobs < blobs-(came+7)/8 {
		t.Errorf("of %d blobs are left: %+v", blobs, s)
	}
}

// openFiles returns the bytes of files of a folder that are open, with and without a name.
func openFiles(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	for _, path := range openPaths(t, dir) {
		if info, err := os.Stat(path); err == nil {
			bytes += info.Size()
		}
	}
	return bytes
}

// openPaths returns other names of the files of a folder that are open.
func openPaths(t *testing.T, dir string) (paths []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	for _, entry := range entries {
		path := filepath.Join("/proc/self/fd", entry.Name())
		if to, err := os.Readlink(path); err == nil && strings.HasPrefix(to, dir) {
			paths = append(paths, path)
		}
	}
	return paths
}

// A file without a name takes room until its last reader is done.
func TestSlowReadersPinNoMore(t *testing.T) {
	const limit = 16 * blockBytes
	r := start(t, t.TempDir(), limit)
	var readers []io.ReadCloser
	for i := range 30 {
		reader := r.Open(t.Context(), r.request(fmt.Sprint(i), 2*blockBytes, false, nil))
		if reader == nil {
			continue
		}
		if _, err := io.CopyN(io.Discard, reader, blockBytes); err != nil {
			t.Fatal(err)
		}
		readers = append(readers, reader)
		r.eventually("it is whole", func(s Status) bool { return s.Passed == uint64(len(readers)) })
	}
	if len(readers) != 2 || openFiles(t, r.cfg.Dir) > limit/blobShare+limit/blobShare/4 || r.Status().Bytes != limit/blobShare {
		t.Errorf("%d readers have %d bytes: %+v", len(readers), openFiles(t, r.cfg.Dir), r.Status())
	}
	for _, reader := range readers {
		reader.Close()
	}
	if s := r.Status(); s.Bytes != 0 {
		t.Errorf("when they are done: %+v", s)
	}
}

// What is being sent does not give way to what comes in: nothing would be won.
func TestInUse(t *testing.T) {
	r := start(t, t.TempDir(), 8*blockBytes) // 6 for those that stay
	var readers []io.ReadCloser
	for i, name := range []string{"a", "b", "c"} {
		request := r.request(name, 2*blockBytes, true, nil)
		r.mustRead(request, true)
		r.eventually("it came in", func(s Status) bool { return s.Fills == uint64(i+1) })
		if name != "b" {
			readers = append(readers, r.Open(t.Context(), request))
		}
	}
	r.mustRead(r.request("d", 2*blockBytes, true, nil), true)
	r.eventually("it came in", func(s Status) bool { return s.Fills == 4 })
	if s := r.Status(); s.Evicted != 1 || !r.Has("a") || r.Has("b") || !r.Has("c") {
		t.Errorf("%+v", s)
	}
	readers = append(readers, r.Open(t.Context(), r.request("d", 2*blockBytes, true, nil)))
	r.mustRead(r.request("e", 2*blockBytes, true, nil), true)
	r.mustRead(r.request("f", 2*blockBytes, true, nil), true)
	r.eventually("all ended", func(s Status) bool { return s.Fills+s.Failed+s.Passed == 6 })
	if s := r.Status(); s.Bytes > 8*blockBytes || !r.Has("a") || !r.Has("c") || !r.Has("d") {
		t.Errorf("%+v", s)
	}
	// Only as the disk fills up some has to go as well, and counts until then.
	r.room.Store(0)
	r.adapt()
	if s := r.Status(); s.LimitBytes > 4*blockBytes || s.Bytes < 6*blockBytes || s.Blobs != 1 {
		t.Errorf("%+v", s)
	}
	for _, reader := range readers {
		if _, err := io.Copy(io.Discard, reader); err != nil {
			t.Error(err)
		}
		reader.Close()
	}
	r.adapt()
	if s := r.Status(); s.Bytes > s.LimitBytes {
		t.Errorf("%+v", s)
	}
}

// Fills that hang, and that nobody waits for any more, are bounded.
func TestHangingFills(t *testing.T) {
	r := start(t, t.TempDir(), 1<<30)
	held := make(chan struct{})
	var hanging atomic.Int32
	for i := range 5 * maxFills {
		request := r.request(fmt.Sprint(i), 1000, true, nil)
		request.Source = func(context.Context, uint64, uint64) (io.ReadCloser, error) {
			hanging.Add(1)
			<-held
			return nil, errors.New("too late")
		}
		if reader := r.Open(t.Context(), request); reader != nil {
			reader.Close()
		}
	}
	r.eventually("they hang", func(Status) bool { return hanging.Load() >= maxFills })
	if n := hanging.Load(); n > maxFills {
		t.Errorf("%d fills hang", n)
	}
	close(held)
	r.eventually("all ended", func(s Status) bool { return s.Abandoned == maxFills && s.Bytes == 0 })
	r.mustRead(r.request("again", 1000, true, nil), true)
}
