package metadata

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/proto"
)

// TestManyUploads: 100,000 uploads that somebody has begun and left cost room on the
// disk, but no memory; each other one is begun and found as fast as before; and they
// go when their time is over. Under the race detector there are 10,000.
func TestManyUploads(t *testing.T) {
	if testing.Short() {
		t.Skip("begins 100,000 uploads")
	}
	const uploads, perBatch = 100_000 / slowdown, 5000
	now := time.UnixMilli(1_000_000_000)
	s, log := openStore(t, StoreConfig{Now: func() time.Time { return now }})
	id := func(i int) string { return uploadIDAt(int64(i), fmt.Sprint(i), "app", "robot:wild") }
	heap := func() uint64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before := heap()
	var batch []consensus.Entry
	for i := range uploads {
		log.last++
		batch = append(batch, entryOf(t, log.last, &proto.Command{
			RequestId: requestID(log.last), TimeUnixMs: now.UnixMilli(), Body: begin(id(i), "app", "robot:wild", 0).GetBody(),
		}))
		if len(batch) == perBatch {
			if _, err := log.machine.Apply(batch); err != nil {
				t.Fatal(err)
			}
			batch = nil
		}
	}
	held := int64(heap()) - int64(before)
	info, err := os.Stat(filepath.Join(log.machine.cfg.Dir, stateFile))
	if err != nil {
		t.Fatal(err)
	}
	i := 0
	find := medianOf(101, func() {
		i += 7919
		if _, err := s.Upload(t.Context(), "app", id(i%uploads), ""); err != nil {
			t.Fatal(err)
		}
	})
	begin := medianOf(31, func() {
		if _, err := createUpload(t.Context(), s, "app", "user:ann", 1000); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("%d uploads: %d KiB of memory, %d MiB on disk; one is found in %s, begun in %s", uploads, held>>10, info.Size()>>20, find, begin)
	if held > 16<<20 || info.Size() > uploads<<11 {
		t.Errorf("%d MiB of memory, %d MiB on disk", held>>20, info.Size()>>20)
	}
	if find > 10*time.Millisecond || begin > 50*time.Millisecond {
		t.Errorf("found in %s, begun in %s", find, begin)
	}
	// Whoever has that many begins no other one; everybody else does.
	if _, err := createUpload(t.Context(), s, "app", "robot:wild", uploads); !errors.Is(err, ErrTooManyUploads) {
		t.Errorf("one more: %v", err)
	}

	now = now.Add(365 * 24 * time.Hour)
	dropped, err := s.ExpireAll(t.Context())
	if err != nil || dropped < uploads {
		t.Errorf("dropped %d: %v", dropped, err)
	}
	if left := dump(t, log.machine, "uploads", "uploads-by-time", "uploads-by-owner"); left != "" {
		t.Errorf("left is\n%s", left)
	}
}
