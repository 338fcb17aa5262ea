package metadata

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var limitEntries = flag.Int("limits", 200_000, "how many tags, and as many blobs, BenchmarkLimits puts into the state; a multiple of 200,000")

// BenchmarkLimits measures what a state of many tags and blobs costs, and what of that
// grows with it: it fills a state up to a hundredth, a tenth, and all of -limits, stops
// at each, and prints the table of docs/limits.md as far as it has come.
//
//	go test -run '^$' -bench Limits -benchtime 1x -timeout 3h ./metadata -limits 1000000
//
// It needs about 6 GiB on the disk of TMPDIR for a million.
func BenchmarkLimits(b *testing.B) {
	if *limitEntries < 200_000 || *limitEntries%200_000 != 0 {
		b.Fatalf("-limits is %d, not a multiple of 200,000", *limitEntries)
	}
	s, log := openStore(b, StoreConfig{})
	m := &limitsMeasure{b: b, crowd: newCrowd(b, s, log), table: newLimitsTable()}
	for _, size := range []int{*limitEntries / 100, *limitEntries / 10, *limitEntries} {
		m.table.begin(size)
		m.fill(size)
		m.sizes(size)
		m.reads()
		m.rounds()
		m.transfer()
		m.restart()
		fmt.Println(m.table)
	}
	m.must(m.machine().Close())
}

// limitsMeasure takes the measurements, at one size after the other.
type limitsMeasure struct {
	b     *testing.B
	crowd *crowd
	table *limitsTable
}

func (m *limitsMeasure) machine() *Machine { return m.crowd.log.machine }

func (m *limitsMeasure) must(err error) {
	m.b.Helper()
	if err != nil {
		m.b.Fatal(err)
	}
}

// fill grows the state and measures the last commands, in batches as Raft hands them on.
func (m *limitsMeasure) fill(size int) {
	c := m.crowd
	const timed = 20 * raftBatch
	c.putBlobs(size-timed, fillBatch)
	m.commands("commit a blob", c.putBlobs(size, raftBatch))
	c.putImages(size / tagsPerImage)
	m.commands("put a tag", c.moveTags(timed))
}

func (m *limitsMeasure) commands(name string, c cost) {
	m.table.add(name+", commands/s", float64(c.commands)/c.took.Seconds())
	m.table.add(name+", processor µs", microseconds(c.processor)/float64(c.commands))
}

// timed measures what takes long, by the clock and by the processor time of it, which
// other work on the machine changes less.
func (m *limitsMeasure) timed(name string, run func()) {
	processor, began := processorTime(), time.Now()
	run()
	m.table.add(name+", s", time.Since(began).Seconds())
	m.table.add(name+", processor s", (processorTime() - processor).Seconds())
}

// sizes measures the database: as a file, and by what is in it.
func (m *limitsMeasure) sizes(size int) {
	info, err := os.Stat(filepath.Join(m.machine().cfg.Dir, stateFile))
	m.must(err)
	m.table.add("database file, MiB", mebibytes(info.Size()))
	used := map[string]int{}
	m.must(m.machine().view(func(v view) error {
		for _, bucket := range stateBuckets() {
			stats := v.tx.Bucket([]byte(bucket)).Stats()
			used[limitsGroup(bucket)] += stats.LeafAlloc + stats.BranchAlloc
		}
		return nil
	}))
	m.table.add("database, bytes a tag", float64(used["tag"])/float64(size))
	m.table.add("database, bytes a manifest of 10 blobs", float64(used["manifest"])/float64(size/tagsPerImage))
	m.table.add("database, bytes a blob", float64(used["blob"])/float64(size))
	m.table.add("database, answers to requests and the rest, MiB", mebibytes(int64(used["rest"])))
}

// limitsGroup says what the records of a bucket are there for.
func limitsGroup(b bucket) string {
	switch b {
	case bucketTags, bucketTagsByManifest:
		return "tag"
	case bucketManifests, bucketManifestContents, bucketManifestAges, bucketBlobReferences, bucketManifestParents, bucketReferrers, bucketUntagged:
		return "manifest"
	case bucketBlobs, bucketExtents, bucketExtentContents, bucketShardsByNode, bucketLinks, bucketRepositoriesByBlob, bucketUnreferenced, bucketUnreferencedLinks, bucketDegraded:
		return "blob"
	default:
		return "rest"
	}
}

// reads measures single reads, all over the state.
func (m *limitsMeasure) reads() {
	ctx, c := m.b.Context(), m.crowd
	m.table.add("manifest by tag, µs", microseconds(medianOf(1001, func() {
		repository, tag := c.anyTag()
		_, err := c.store.ManifestByTag(ctx, repository, tag)
		m.must(err)
	})))
	m.table.add("blob record, µs", microseconds(medianOf(1001, func() {
		repository, digest := c.anyBlob()
		_, err := c.store.Blob(ctx, repository, digest)
		m.must(err)
	})))
	m.table.add("page of 100 tags, µs", microseconds(medianOf(101, func() {
		repository, _ := c.anyTag()
		tags, _, err := c.store.Tags(ctx, repository, "", 100)
		m.must(err)
		if len(tags) != min(100, c.images*tagsPerImage/crowdRepositories) {
			m.b.Fatalf("page of %d tags", len(tags))
		}
	})))
}

// rounds measures what runs in the background every now and then.
func (m *limitsMeasure) rounds() {
	ctx, store := m.b.Context(), m.crowd.store
	count := func(sick string) {
		_, _, _, err := store.Census(ctx, func(id string) bool { return id == sick })
		m.must(err)
	}
	m.table.add("look for what has expired, µs", microseconds(medianOf(101, func() {
		_, err := store.Expire(ctx)
		m.must(err)
	})))
	m.table.add("count degraded blobs, all nodes healthy, µs", microseconds(medianOf(101, func() { count("") })))
	m.timed("count degraded blobs, one of three nodes away", func() { count(crowdNodes[0]) })
}

// transfer measures the way of the state to a node that fell behind.
func (m *limitsMeasure) transfer() {
	var state io.ReadCloser
	var size int64
	m.timed("copy the state for another node", func() {
		var err error
		state, size, _, err = m.machine().Snapshot()
		m.must(err)
	})
	m.table.add("size of the copy, MiB", mebibytes(size))
	behind, err := OpenMachine(MachineConfig{Dir: m.b.TempDir()})
	m.must(err)
	m.timed("restore it there, checked", func() { m.must(behind.Restore(state)) })
	m.must(state.Close())
	m.must(behind.Close())
	m.must(os.RemoveAll(behind.cfg.Dir))
}

// restart measures a start on this state, with the file in the kernel's cache, and what
// it holds in memory then.
func (m *limitsMeasure) restart() {
	reopen := func(verify bool) {
		m.must(m.machine().Close())
		cfg := m.machine().cfg
		cfg.Verify = verify
		m.open(cfg)
	}
	m.must(m.machine().Close())
	heap, mapped := memoryInUse(m.b)
	memory := func(when string) {
		heapNow, mappedNow := memoryInUse(m.b)
		m.table.add("start: heap "+when+", MiB", max(0, mebibytes(heapNow-heap)))
		m.table.add("start: pages of the file in memory "+when+", MiB", mebibytes(mappedNow-mapped))
	}
	m.open(m.machine().cfg)
	memory("once open")
	m.timed("start: close and open the database, ten times", func() {
		for range 10 {
			reopen(false)
		}
	})
	m.timed("start: the same once, and check every record, as a node does", func() { reopen(true) })
	memory("after the check")
	reopen(false)
}

// open has the crowd go on with a machine on what is there.
func (m *limitsMeasure) open(cfg MachineConfig) {
	machine, err := OpenMachine(cfg)
	m.must(err)
	m.crowd.log.machine = machine
	m.crowd.store = NewStore(machine, m.crowd.log, StoreConfig{})
}

// processorTime is that of this process, so far.
func processorTime() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// memoryInUse returns the bytes of live heap, and of mapped files that are in memory,
// which the kernel takes back when it needs them.
func memoryInUse(b *testing.B) (heap, mapped int64) {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssFile:")
	kibibytes, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return int64(stats.HeapAlloc), kibibytes << 10
}

func mebibytes(n int64) float64            { return float64(n) / (1 << 20) }
func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
