package metadata

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/proto"
)

// putTags gives a repository tags of 6 digits, from first to last-1, many to a
// command and many commands to a transaction.
func putTags(t testing.TB, log *localLog, first, last int) {
	t.Helper()
	const tagsPerCommand, commandsPerBatch = 100, 50
	var batch []consensus.Entry
	for ; first < last; first += tagsPerCommand {
		put := putOf("app", fmt.Sprintf("manifest %d", first))
		for tag := first; tag < min(last, first+tagsPerCommand); tag++ {
			put.Tags = append(put.Tags, fmt.Sprintf("%06d", tag))
		}
		log.last++
		batch = append(batch, entryOf(t, log.last, &proto.Command{
			RequestId: requestID(log.last), Body: &proto.Command_PutManifest{PutManifest: put},
		}))
		if len(batch) == commandsPerBatch || first+tagsPerCommand >= last {
			if _, err := log.machine.Apply(batch); err != nil {
				t.Fatal(err)
			}
			batch = nil
		}
	}
}

// medianOf returns the median time of run. The machine may be busy: a median is
// not moved by a few slow runs.
func medianOf(runs int, run func()) time.Duration {
	times := make([]time.Duration, runs)
	for i := range times {
		start := time.Now()
		run()
		times[i] = time.Since(start)
	}
	slices.Sort(times)
	return times[runs/2]
}

// slowerThan returns what takes longer than a tree that is deeper by a level
// explains. What reads all of it takes 100 times as long.
func slowerThan(large, small map[string]time.Duration) (slow []string) {
	for what := range small {
		if what != "a page of 1,000" && large[what] > 5*small[what]+5*time.Millisecond {
			slow = append(slow, what)
		}
	}
	return slow
}

// TestCostDoesNotGrowWithTheState measures with 10 tags and with 100,000.
func TestCostDoesNotGrowWithTheState(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 100,000 tags")
	}
	s, log := openStore(t, StoreConfig{})
	ctx := t.Context()
	measure := func(tags int) map[string]time.Duration {
		i := 0
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		next := func() string { i += 7919; return fmt.Sprintf("%06d", i%tags) }
		times := map[string]time.Duration{
			"read a tag":      medianOf(101, func() { _, err := s.ManifestByTag(ctx, "app", next()); must(err) }),
			"a page of 1,000": medianOf(31, func() { _, _, err := s.Tags(ctx, "app", "000499", 1000); must(err) }),
			"a page of 100":   medianOf(31, func() { _, _, err := s.Tags(ctx, "app", next(), 100); must(err) }),
			"put a tag":       medianOf(31, func() { must(s.PutManifest(ctx, putOf("app", "manifest 0", next()))) }),
			"delete and put a tag": medianOf(31, func() {
				must(s.DeleteTag(ctx, "app", next(), nil))
				must(s.PutManifest(ctx, putOf("app", "manifest 0", fmt.Sprintf("%06d", i%tags))))
			}),
		}
		times["open"] = medianOf(11, func() {
			must(log.machine.Close())
			m, err := OpenMachine(log.machine.cfg)
			must(err)
			log.machine = m
			s = NewStore(m, log, StoreConfig{})
		})
		return times
	}
	putTags(t, log, 0, 10)
	small := measure(10)
	putTags(t, log, 0, 100_000)
	info, err := os.Stat(filepath.Join(log.machine.cfg.Dir, stateFile))
	if err != nil {
		t.Fatal(err)
	}
	// Other work on the machine can make it slow for a while, but not fast.
	for attempt := 1; ; attempt++ {
		large := measure(100_000)
		t.Logf("database of %d MiB; times with 10 tags: %v; with 100,000: %v", info.Size()>>20, small, large)
		slow := slowerThan(large, small)
		if large["a page of 1,000"] > 10*time.Millisecond {
			slow = append(slow, "a page of 1,000")
		}
		if len(slow) == 0 {
			break
		}
		if attempt == 3 {
			t.Fatalf("too slow with 100,000 tags: %q", slow)
		}
	}
	tags, _, err := s.Tags(ctx, "app", "050000", 1000)
	if err != nil || len(tags) != 1000 || tags[0] != "050001" {
		t.Fatalf("page has %d tags (%v)", len(tags), err)
	}
	if err := log.machine.Close(); err != nil {
		t.Fatal(err)
	}
}

// One layer that every image has, say that of an empty configuration, in 100,000
// repositories: finding some of them, listing all, and dropping the last links.
// Under the race detector, which takes 30 s for so many, there are 10,000.
func TestBlobInManyRepositories(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 100,000 repositories")
	}
	const repositories, perBatch = 100_000 / slowdown, 5000
	now := time.UnixMilli(1_000_000_000)
	s, log := openStore(t, StoreConfig{Now: func() time.Time { return now }, BlobGrace: time.Hour})
	joinNodes(t, s, "n1")
	layer := pushBlob(t, s, "000000", "layer", "n1")
	var batch []consensus.Entry
	for i := 1; i < repositories; i++ {
		log.last++
		batch = append(batch, entryOf(t, log.last, &proto.Command{
			RequestId: requestID(log.last), TimeUnixMs: now.UnixMilli(),
			Body: &proto.Command_MountBlob{MountBlob: &proto.MountBlob{Repository: fmt.Sprintf("%06d", i), Digest: layer, From: "000000"}},
		}))
		if len(batch) == perBatch || i == repositories-1 {
			if _, err := log.machine.Apply(batch); err != nil {
				t.Fatal(err)
			}
			batch = nil
		}
	}
	for what, page := range map[string]func() ([]string, bool, error){
		"catalog":      func() ([]string, bool, error) { return s.Repositories(t.Context(), "005000", 1000) },
		"repositories": func() ([]string, bool, error) { return s.BlobRepositories(t.Context(), layer, "005000", 1000) },
	} {
		took := medianOf(31, func() {
			if names, more, err := page(); err != nil || !more || len(names) != 1000 || names[0] != "005001" {
				t.Fatalf("%s: page has %d names, more %v (%v)", what, len(names), more, err)
			}
		})
		t.Logf("%s of %d: a page of 1,000 takes %s", what, repositories, took)
		if took > 10*time.Millisecond {
			t.Errorf("%s: a page of 1,000 takes %s", what, took)
		}
	}
	now = now.Add(2 * time.Hour)
	start, first := time.Now(), log.last
	// The blob goes with its last link.
	if dropped := expireAll(t, s, log, expireWork+100); dropped != repositories+1 {
		t.Errorf("dropped %d records, not %d links and the blob", dropped, repositories)
	}
	commands := int(log.last - first)
	t.Logf("%d commands took %s", commands, time.Since(start))
	if left := dump(t, log.machine, "links", "unreferenced-links", "repositories-by-blob", "blobs", "unreferenced-blobs"); left != "" {
		t.Errorf("left is\n%s", left)
	}
}

// BenchmarkApply measures batches of tag writes on a state of 100,000 tags.
func BenchmarkApply(b *testing.B) {
	for _, size := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("batch of %d", size), func(b *testing.B) {
			_, log := openStore(b, StoreConfig{})
			putTags(b, log, 0, 100_000)
			n := 0
			for b.Loop() {
				var batch []consensus.Entry
				for range size {
					log.last++
					n += 7919
					batch = append(batch, entryOf(b, log.last, &proto.Command{
						RequestId: requestID(log.last),
						Body:      &proto.Command_PutManifest{PutManifest: putOf("app", "manifest 0", fmt.Sprintf("%06d", n%100_000))},
					}))
				}
				if _, err := log.machine.Apply(batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*size), "µs/command")
		})
	}
}
