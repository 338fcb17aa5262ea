package blobstore

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/atollregistry/atoll/proto"
)

// mustPass has a node read all its shards once, and report.
func (n *testNode) mustPass() ScrubPass {
	t := n.cluster.t
	t.Helper()
	n.store.scrub.begin(true)
	if err := n.store.scrub.pass(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := n.store.reports.flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	return n.store.ScrubStatus().Last
}

// TestScrubFindsDamage harms shards in every way: each is found once, and only these.
func TestScrubFindsDamage(t *testing.T) {
	c := startCluster(t, 3, nil)
	victim := c.nodes[1]
	var extents []*proto.Extent
	for i := range len(harms) + 3 {
		extents = append(extents, c.nodes[i%3].push(50_000, uint64(i+1)).extents...)
	}
	if last := victim.mustPass(); last.Damaged+last.Missing > 0 || last.Shards != uint64(len(extents)) {
		t.Fatalf("nothing is wrong, the scrub says %+v", last)
	}
	number := func(e *proto.Extent) int { return slices.Index(e.GetHolders(), victim.id) }
	var harmed []string
	for i, name := range slices.Sorted(maps.Keys(harms)) {
		path := c.shardPath(extents[i], number(extents[i]))
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := harms[name](path, content); err != nil {
			t.Fatal(err)
		}
		harmed = append(harmed, string(extents[i].GetId()))
	}
	// A shard's place is taken by another's sound file.
	swapped := extents[len(harms)]
	content, err := os.ReadFile(c.shardPath(extents[len(harms)+1], number(extents[len(harms)+1])))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.shardPath(swapped, number(swapped)), content, 0o600); err != nil {
		t.Fatal(err)
	}
	harmed = append(harmed, string(swapped.GetId()))

	last := victim.mustPass()
	if last.Missing != 1 || last.Damaged != uint64(len(harmed)-1) || last.Shards != uint64(len(extents)-1) {
		t.Errorf("%d shards were harmed, one of them is gone; the scrub says %+v", len(harmed), last)
	}
	for _, e := range c.now(extents) {
		expected := []uint32(nil)
		if slices.Contains(harmed, string(e.GetId())) {
			expected = []uint32{uint32(number(e))}
		}
		if !slices.Equal(e.GetDamagedShards(), expected) {
			t.Errorf("extent %x has damaged shards %v, not %v", e.GetId(), e.GetDamagedShards(), expected)
		}
	}
	// What is reported already is not missing anew.
	if last := victim.mustPass(); last.Missing != 0 {
		t.Errorf("the second pass says %+v", last)
	}
}

// TestScrubThenRepair: all that a scrub has found is mended.
func TestScrubThenRepair(t *testing.T) {
	c := startCluster(t, 3, nil)
	blobs := c.pushMany()
	victim := c.nodes[2]
	i := 0
	for _, b := range blobs {
		for _, e := range b.extents {
			path := c.shardPath(e, max(0, slices.Index(e.GetHolders(), victim.id)))
			if content, err := os.ReadFile(path); err == nil && slices.Contains(e.GetHolders(), victim.id) {
				names := slices.Sorted(maps.Keys(harms))
				if err := harms[names[i%len(names)]](path, content); err != nil {
					t.Fatal(err)
				}
				i++
			}
		}
	}
	victim.store.disks.all[0].handles.forgetAll()
	victim.mustPass()
	defer c.nodes[0].lead()()
	c.waitWhole(c.nodes[1], blobs...)
}

// TestScrubGoesOn: the next process begins where the last one has ended.
func TestScrubGoesOn(t *testing.T) {
	c := startCluster(t, 1, nil)
	n := c.nodes[0]
	behind := uint64(0)
	for i := range 20 {
		for _, e := range n.push(10_000, uint64(i+1)).extents {
			if e.GetId()[0] >= 100 {
				behind++
			}
		}
	}
	n.store.scrub.begin(true)
	n.store.scrub.progress.Folder = 100
	if err := n.store.scrub.save(); err != nil {
		t.Fatal(err)
	}
	started := n.store.ScrubStatus().Current.Started
	n.kill()
	n.start()
	if status := n.store.ScrubStatus(); !status.Running || status.Done < 0.3 || !status.Current.Started.Equal(started) {
		t.Errorf("after the start the scrub is %+v", status)
	}
	if err := n.store.scrub.pass(context.Background()); err != nil {
		t.Fatal(err)
	}
	if status := n.store.ScrubStatus(); status.Running || status.Last.Shards != behind {
		t.Errorf("%d shards were left, the scrub says %+v", behind, status)
	}
}

// TestScrubSparesWhatIsGone: a shard that the sweep takes meanwhile is no damage.
func TestScrubSparesWhatIsGone(t *testing.T) {
	c := startCluster(t, 1, nil)
	n := c.nodes[0]
	e := n.push(10_000, 1).extents[0]
	id, err := newShardID(e.GetId(), 0)
	if err != nil {
		t.Fatal(err)
	}
	c.remove(e, 0)
	if _, err := n.store.disks.all[0].verify(id, func(int) error { return nil }); !errors.Is(err, ErrShardUnknown) {
		t.Errorf("verify a shard that is gone: %v", err)
	}
}

// TestScrubOfAFolderThatCantBeListed: what is behind the folder is read, and of what is
// in it just the shards that are lost are reported.
func TestScrubOfAFolderThatCantBeListed(t *testing.T) {
	c := startCluster(t, 1, nil)
	n := c.nodes[0]
	var extents []*proto.Extent
	for i := range 20 {
		extents = append(extents, n.push(10_000, uint64(i+1)).extents...)
	}
	d, folder := n.store.disks.all[0], filepath.Join(n.cfg.Dir, folderName(extents[0].GetId()[0]))
	damaged := func() (all []string) {
		for _, e := range c.now(extents) {
			if len(e.GetDamagedShards()) > 0 {
				all = append(all, string(e.GetId()))
			}
		}
		return all
	}
	fault := error(syscall.EMFILE)
	d.calls.openDir = func(dir string) (*os.File, error) {
		if dir == folder {
			return nil, &os.PathError{Op: "open", Path: dir, Err: fault}
		}
		return os.Open(dir)
	}
	// What the process lacks says nothing of the disk: the pass goes on there later.
	n.store.scrub.begin(true)
	if err := n.store.scrub.pass(context.Background()); !errors.Is(err, ErrBusy) || folderName(byte(n.store.scrub.progress.Folder)) != filepath.Base(folder) {
		t.Errorf("too many open files: %v, next is folder %d", err, n.store.scrub.progress.Folder)
	}
	// The disk can't tell, but its shards are sound.
	fault = syscall.EIO
	if last := n.mustPass(); last.Shards != uint64(len(extents)) || last.Damaged+last.Missing > 0 || len(damaged()) > 0 {
		t.Errorf("sound shards in a folder that can't be listed: %+v, reported are %x", last, damaged())
	}
	// They are gone with the folder, which is found in the middle of a pass.
	n.store.scrub.begin(true)
	began := n.store.scrub.progress.Current.Started
	if err := os.Rename(folder, folder+".lost"); err != nil {
		t.Fatal(err)
	}
	if err := n.store.scrub.folder(context.Background(), began, extents[0].GetId()[0]); err != nil {
		t.Fatal(err)
	}
	if err := n.store.reports.flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	var lost []string
	for _, e := range extents {
		if e.GetId()[0] == extents[0].GetId()[0] {
			lost = append(lost, string(e.GetId()))
		}
	}
	if found := damaged(); !slices.Equal(slices.Sorted(slices.Values(found)), slices.Sorted(slices.Values(lost))) {
		t.Errorf("lost are %x, reported %x", lost, found)
	}
	if last := n.mustPass(); last.Shards != uint64(len(extents)-len(lost)) || last.Damaged+last.Missing > 0 {
		t.Errorf("the pass after that: %+v", last)
	}
}

// TestScrubPace: a pass takes its time, within bounds.
func TestScrubPace(t *testing.T) {
	c := startCluster(t, 1, func(cfg *Config) { cfg.ScrubPeriod, cfg.ScrubBytesPerSecond = 100*time.Second, 4<<20 })
	n := c.nodes[0]
	for _, test := range []struct {
		bytes, shards uint64
		fast          bool
		want          rate.Limit
	}{
		{0, 0, false, minScrubBytesPerSecond},
		{200 << 20, 0, false, 2 << 20},
		{100 << 20, 1600, false, 2 << 20},
		{200 << 30, 1, false, 4 << 20},
		{0, 0, true, 4 << 20},
	} {
		usage := &proto.ShardUsage{Bytes: test.bytes, Shards: test.shards}
		n.store.catalog = &fullCatalog{records: c.records, usage: map[string]*proto.ShardUsage{n.id: usage}}
		if got := n.store.scrub.pace(test.fast); got != test.want {
			t.Errorf("%v, fast %v: %g bytes a second, not %g", usage, test.fast, float64(got), float64(test.want))
		}
	}
}

// TestScrubOfSmallShardsHasAPace: what counts of small shards is how many they are, of
// large ones their bytes.
func TestScrubOfSmallShardsHasAPace(t *testing.T) {
	c := startCluster(t, 1, nil)
	s := c.nodes[0].store.scrub
	for bytes, cost := range map[int]float64{100: scrubFileBytes, 90_000: 90_000} {
		e := c.nodes[0].push(bytes, uint64(bytes)).extents[0]
		id, err := newShardID(e.GetId(), 0)
		if err != nil {
			t.Fatal(err)
		}
		s.begin(false)
		s.limiter = rate.NewLimiter(1e-3, maxReadBytes) // gets nothing back while the test runs
		if err := s.shard(context.Background(), s.disks.all[0], s.progress.Current.Started, id); err != nil {
			t.Fatal(err)
		}
		if paid := maxReadBytes - s.limiter.Tokens(); paid < cost-1 || paid > cost+1 {
			t.Errorf("a shard of %d bytes cost %g of the pace, not %g", bytes, paid, cost)
		}
	}
}

// fullCatalog has another usage.
type fullCatalog struct {
	*records
	usage map[string]*proto.ShardUsage
}

func (f *fullCatalog) ShardUsage() (map[string]*proto.ShardUsage, error) { return f.usage, nil }

// TestScrubWhen: passes begin when they are due, or wanted.
func TestScrubWhen(t *testing.T) {
	c := startCluster(t, 1, func(cfg *Config) { cfg.ScrubPeriod = time.Hour })
	s, now := c.nodes[0].store.scrub, time.Now()
	s.now = func() time.Time { return now }
	if wait := s.untilNext(); wait > 0 {
		t.Errorf("the first pass begins in %s", wait)
	}
	if err := s.pass(context.Background()); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Minute)
	if wait := s.untilNext(); wait != 59*time.Minute {
		t.Errorf("the second pass begins in %s", wait)
	}
	// A pass that was begun by a clock that was ahead is no reason to wait for that day.
	now = now.AddDate(-20, 0, 0)
	if wait := s.untilNext(); wait > 0 {
		t.Errorf("after the clock was set back the next pass begins in %s", wait)
	}
	before := s.progress.Current.Started
	now = now.Add(time.Second)
	c.nodes[0].store.ScrubNow()
	if err := s.interrupted(context.Background(), before); !errors.Is(err, errWanted) || s.untilNext() > 0 {
		t.Errorf("a pass that is wanted does not begin (%v)", err)
	}
}

// TestReadersReportDamage: who meets rot has it repaired.
func TestReadersReportDamage(t *testing.T) {
	c := startCluster(t, 3, nil)
	b := c.nodes[0].push(50_000, 1)
	e := b.extents[0]
	c.remove(e, 0)
	reader := c.holderOf(e, 1) // It has no other choice than shard 0.
	reader.checkPull(b)
	if err := reader.store.reports.flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	if damaged := c.now(b.extents)[0].GetDamagedShards(); !slices.Equal(damaged, []uint32{0}) {
		t.Errorf("damaged are %v", damaged)
	}
	defer reader.lead()()
	c.waitWhole(reader, b)
}

// TestReportsAreBounded: a storm of reports costs a bounded memory, and an error
// loses none of those that wait.
func TestReportsAreBounded(t *testing.T) {
	catalog := &refusing{records: newRecords()}
	r := newReports(catalog, testConfig().Logger)
	for i := range maxReports + 100 {
		id := [ExtentIDBytes]byte{byte(i), byte(i >> 8), byte(i >> 16)}
		r.add(id[:], 0, "a")
		r.add(id[:], 0, "a")
	}
	if len(r.waiting) != maxReports {
		t.Errorf("%d reports wait", len(r.waiting))
	}
	if err := r.flush(context.Background()); err == nil || len(r.waiting) != maxReports {
		t.Errorf("%d reports wait after %v", len(r.waiting), err)
	}
	catalog.works = true
	if err := r.flush(context.Background()); err != nil || len(r.waiting) != 0 || catalog.reported != maxReports {
		t.Errorf("%d reports were passed on, %d wait (%v)", catalog.reported, len(r.waiting), err)
	}
}

// refusing takes reports only when it works.
type refusing struct {
	*records
	works    bool
	reported int
}

func (r *refusing) ReportShards(_ context.Context, shards []*proto.ShardRef) error {
	if !r.works {
		return errors.New("no leader")
	}
	r.reported += len(shards)
	return nil
}
