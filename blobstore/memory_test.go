package blobstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestMemoryIsBounded passes 1 GiB through a cluster of three, all in this
// process, and watches the heap.
func TestMemoryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("moves 1 GiB to three disks")
	}
	const (
		size = 1 << 30
		// What the nodes may hold: buffers of the store and of gRPC, and garbage until it
		// is collected.
		limit = 200 << 20
	)
	c := startCluster(t, 3, func(cfg *Config) {
		defaults := DefaultConfig()
		cfg.CellBytes, cfg.SmallBlobBytes = defaults.CellBytes, defaults.SmallBlobBytes
		cfg.MaxExtentBytes = 256 << 20
		cfg.BufferBytes = defaults.BufferBytes
	})
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	stop, peak := make(chan struct{}), uint64(0)
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapInuse)
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	})
	source := io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
	to, extents, _, err := c.nodes[0].store.Append(context.Background(), Progress{}, source, nil)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := c.nodes[1].store.Read(context.Background(), extents, 0, size)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	sum := sha256.New()
	if n, err := io.Copy(sum, reader); n != size || err != nil {
		t.Fatalf("read %d bytes: %v", n, err)
	}
	close(stop)
	watch.Wait()
	if digest, err := to.Digest("sha256"); err != nil || digest != "sha256:"+hex.EncodeToString(sum.Sum(nil)) {
		t.Errorf("digest %s, %v", digest, err)
	}
	t.Logf("heap: %d MiB before, %d MiB at most", before.HeapInuse>>20, peak>>20)
	if peak > before.HeapInuse+limit {
		t.Errorf("heap grew from %d to %d MiB", before.HeapInuse>>20, peak>>20)
	}
}
