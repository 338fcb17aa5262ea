package blobstore

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// testCatalog knows extents by the first byte of their ids. Between two questions
// eras pass, unless they are held.
type testCatalog struct {
	*records  // for what the sweep does not ask for
	mu        sync.Mutex
	live      map[byte]bool
	err       error
	short     bool
	questions int
	held      bool
	era       uint64
}

func (c *testCatalog) LiveShards(_ context.Context, shards []*proto.ShardRef) ([]bool, uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.questions++
	if !c.held {
		c.era += erasToGarbage
	}
	if c.err != nil {
		return nil, 0, c.err
	}
	answers := make([]bool, len(shards))
	for i, shard := range shards {
		answers[i] = c.live[shard.GetExtentId()[0]] && shard.GetNodeId() == "self"
	}
	if c.short {
		answers = answers[1:]
	}
	return answers, c.era, nil
}

func (c *testCatalog) set(live ...byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live = make(map[byte]bool)
	for _, extent := range live {
		c.live[extent] = true
	}
}

// sweepBench is a sweep with a clock that only the test moves.
type sweepBench struct {
	*sweep
	disk    *Disk
	catalog *testCatalog
	clock   time.Time
}

// newSweepBench has a disk with shards of the extents 1 to 4.
func newSweepBench(t *testing.T) *sweepBench {
	cfg := diskConfig(t.TempDir())
	cfg.SweepGrace = time.Hour
	b := &sweepBench{disk: openTestDisk(t, cfg), catalog: &testCatalog{}, clock: time.Now()}
	b.sweep = newSweep(cfg, "self", b.disk, &disks{all: []*Disk{b.disk}}, b.catalog)
	b.sweep.now = func() time.Time { return b.clock }
	for extent := byte(1); extent <= 4; extent++ {
		if _, err := newShardContent(t, extent, 16, 40).write(b.disk); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func (b *sweepBench) mustRound(t *testing.T) swept {
	t.Helper()
	done, err := b.round(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// left returns the extents that have a shard.
func (b *sweepBench) left(t *testing.T) []byte {
	t.Helper()
	left := make(map[byte]bool)
	for folder := range shardFolders {
		if err := b.disk.list(byte(folder), func(ids []shardID) error {
			for _, id := range ids {
				left[id.extent[0]] = true
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return slices.Sorted(maps.Keys(left))
}

func TestSweepRemovesWhatNoRecordNames(t *testing.T) {
	b := newSweepBench(t)
	b.catalog.set(1, 3)
	if done := b.mustRound(t); done != (swept{shards: 4, suspects: 2}) {
		t.Errorf("first round: %+v", done)
	}
	b.clock = b.clock.Add(time.Hour - time.Second)
	if done := b.mustRound(t); done != (swept{shards: 4, suspects: 2}) {
		t.Errorf("within the grace: %+v", done)
	}
	b.clock = b.clock.Add(time.Second)
	if done := b.mustRound(t); done != (swept{shards: 4, removed: 2}) {
		t.Errorf("after the grace: %+v", done)
	}
	if left := b.left(t); !slices.Equal(left, []byte{1, 3}) {
		t.Errorf("left are %v", left)
	}
	if done := b.mustRound(t); done != (swept{shards: 2}) {
		t.Errorf("last round: %+v", done)
	}
}

// A file that nobody has recorded for a long time is kept while its writer may still
// do so: two eras count, whatever the clocks say.
func TestSweepWaitsForTwoEras(t *testing.T) {
	b := newSweepBench(t)
	b.catalog.held = true
	for era, removed := range []int{0, 0, 4, 0} {
		b.catalog.era = 7 + uint64(era)
		if done := b.mustRound(t); done.removed != removed {
			t.Errorf("%d eras after the first look: %+v", era, done)
		}
		b.clock = b.clock.Add(2 * time.Hour)
	}
}

// TestSweepSparesAShardThatCameBack: a shard that had left this node is stored on it
// again, and is not recorded yet when the old file's grace is over.
func TestSweepSparesAShardThatCameBack(t *testing.T) {
	b := newSweepBench(t)
	b.catalog.set(2, 3, 4)
	b.mustRound(t)
	if _, err := newShardContent(t, 1, 16, 40).write(b.disk); err != nil {
		t.Fatal(err)
	}
	b.clock = b.clock.Add(time.Hour)
	if done := b.mustRound(t); done != (swept{shards: 4, suspects: 1}) {
		t.Errorf("after the old file's grace: %+v", done)
	}
	b.clock = b.clock.Add(time.Hour)
	if done := b.mustRound(t); done != (swept{shards: 4, removed: 1}) {
		t.Errorf("after its own: %+v", done)
	}
}

// TestSweepSparesWhatWasRecordedMeanwhile: a record that comes late, but within
// the grace, saves the shard, and the grace begins anew when it goes again.
func TestSweepSparesWhatWasRecordedMeanwhile(t *testing.T) {
	b := newSweepBench(t)
	b.catalog.set(1, 2, 3)
	b.mustRound(t)
	b.catalog.set(1, 2, 3, 4)
	b.clock = b.clock.Add(2 * time.Hour)
	b.mustRound(t)
	b.catalog.set(1, 2, 3)
	b.clock = b.clock.Add(2 * time.Hour)
	if done := b.mustRound(t); done != (swept{shards: 4, suspects: 1}) {
		t.Errorf("got %+v", done)
	}
	if left := b.left(t); len(left) != 4 {
		t.Errorf("left are %v", left)
	}
}

// TestSweepNeedsTwoSightings: however old its file is, a shard that is seen without
// a record for the first time stays. Its record may be on its way, on a machine
// that slept for a day.
func TestSweepNeedsTwoSightings(t *testing.T) {
	b := newSweepBench(t)
	b.clock = b.clock.Add(24 * time.Hour)
	if done := b.mustRound(t); done.removed != 0 {
		t.Errorf("got %+v", done)
	}
}

// TestSweepWithoutAnswersRemovesNothing: no answer is not a no.
func TestSweepWithoutAnswersRemovesNothing(t *testing.T) {
	b := newSweepBench(t)
	b.mustRound(t)
	b.clock = b.clock.Add(2 * time.Hour)
	b.catalog.err = errors.New("no quorum")
	if _, err := b.round(context.Background()); !errors.Is(err, b.catalog.err) {
		t.Errorf("got %v", err)
	}
	b.catalog.err, b.catalog.short = nil, true
	if _, err := b.round(context.Background()); !errors.Is(err, ErrInvalid) {
		t.Errorf("too few answers: got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.round(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	if left := b.left(t); len(left) != 4 {
		t.Errorf("left are %v", left)
	}
}

// TestSweepLeavesWritesAlone: a shard that is being written has no place among
// the shards yet.
func TestSweepLeavesWritesAlone(t *testing.T) {
	b := newSweepBench(t)
	s := newShardContent(t, 9, 16, 40)
	w, err := b.disk.Create(s.header)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := w.Write(s.data); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		b.mustRound(t)
		b.clock = b.clock.Add(2 * time.Hour)
	}
	if left := b.left(t); len(left) != 0 {
		t.Errorf("left are %v", left)
	}
	if _, err := w.Commit(s.trailer()); err != nil {
		t.Fatal(err)
	}
	b.mustRound(t)
	if err := s.check(b.disk, 0, 3); err != nil {
		t.Error(err)
	}
}

// TestSweepGoesOnBehindABadFolder: a folder that can't be listed, and a file that can't
// be removed, are told of, and keep nothing in the folders behind them.
func TestSweepGoesOnBehindABadFolder(t *testing.T) {
	b := newSweepBench(t)
	if err := os.RemoveAll(filepath.Join(b.disk.dir, "01")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.disk.dir, "01"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	remove := b.disk.calls.remove
	b.disk.calls.remove = func(path string) error {
		if filepath.Base(filepath.Dir(path)) == "02" {
			return &os.PathError{Op: "remove", Path: path, Err: syscall.EIO}
		}
		return remove(path)
	}
	removed := 0
	for range 2 {
		done, err := b.round(context.Background())
		if !errors.Is(err, ErrDisk) {
			t.Errorf("got %v", err)
		}
		removed += done.removed
		b.clock = b.clock.Add(time.Hour)
	}
	if removed != 2 || b.disk.Has(testExtentID(3), 1) || b.disk.Has(testExtentID(4), 1) {
		t.Errorf("%d shards are removed", removed)
	}
}

// TestSweepBoundsItsMemory: suspects beyond the bound wait for their turn.
func TestSweepBoundsItsMemory(t *testing.T) {
	b := newSweepBench(t)
	b.count = maxSuspects - 1
	if b.mustRound(t); b.count != maxSuspects {
		t.Fatalf("%d suspects, the bound is %d", b.count, maxSuspects)
	}
	b.clock = b.clock.Add(2 * time.Hour)
	for round := range 4 {
		if done := b.mustRound(t); done.removed == 0 && round == 0 {
			t.Errorf("got %+v", done)
		}
		b.clock = b.clock.Add(2 * time.Hour)
	}
	if left := b.left(t); len(left) != 0 {
		t.Errorf("left are %v", left)
	}
}

func TestSweepRuns(t *testing.T) {
	cfg := diskConfig(t.TempDir())
	cfg.SweepGrace, cfg.SweepInterval = 0, time.Millisecond
	d, catalog := openTestDisk(t, cfg), &testCatalog{}
	catalog.set(1)
	for extent := byte(1); extent <= 2; extent++ {
		if _, err := newShardContent(t, extent, 16, 40).write(d); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		newSweep(cfg, "self", d, &disks{all: []*Disk{d}}, catalog).Run(ctx)
	}()
	waitFor(t, "the sweep", func() bool { return !d.Has(testExtentID(2), 1) })
	cancel()
	<-ended
	if !d.Has(testExtentID(1), 1) {
		t.Error("a shard with a record is gone")
	}
}

// A writer was held up between the last byte and the record, for so long that the
// holders have swept what it has stored: the record is refused.
func TestRecordAfterTheSweepIsRefused(t *testing.T) {
	c := startCluster(t, 3, nil)
	content := randomBytes(90_000, 1)
	_, stored, _, err := c.nodes[0].store.Append(t.Context(), Progress{UploadID: "u"}, bytes.NewReader(content), nil)
	if err != nil {
		t.Fatal(err)
	}
	clock := time.Now()
	var sweeps []*sweep
	for _, holder := range c.nodes[1:] { // the writer's own node is held up with it
		s := newSweep(holder.cfg, holder.id, holder.store.disks.all[0], holder.store.disks, c.records)
		s.grace, s.now = time.Hour, func() time.Time { return clock }
		sweeps = append(sweeps, s)
	}
	round := func() (removed int) {
		for _, s := range sweeps {
			done, err := s.round(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			removed += done.removed
		}
		clock = clock.Add(time.Hour)
		return removed
	}
	for range 3 {
		if removed := round(); removed > 0 {
			t.Fatalf("%d shards were removed while they could be recorded", removed)
		}
	}
	for range erasToGarbage {
		c.records.beginEra()
	}
	if removed := round(); removed != 2 {
		t.Errorf("%d shards were removed, not 2", removed)
	}
	if err := c.records.record(stored[0]); err == nil {
		t.Error("the extent was recorded")
	}
	b := c.nodes[0].push(90_000, 2)
	if err := c.records.record(b.extents[0]); err != nil {
		t.Errorf("one stored now: %v", err)
	}
	c.nodes[1].checkPull(b)
}
