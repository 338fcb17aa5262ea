package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/atollregistry/atoll/proto"
)

func TestAppendSizes(t *testing.T) {
	for _, nodes := range []int{1, 2, 3, 5, 11} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			c := startCluster(t, nodes, nil)
			cfg := testConfig()
			small, cell := cfg.SmallBlobBytes, cfg.CellBytes
			m := parityShards(nodes, -1)
			k := min(8, nodes-m)
			stripe := k * cell
			sizes := []int{0, 1, 63, small - 1, small, small + 1, cell, cell + 1, stripe - 1, stripe, stripe + 1,
				2*stripe - 7, 100_000, 100_001, 250_000}
			for i, size := range sizes {
				b := c.nodes[i%nodes].push(size, uint64(i))
				for _, e := range b.extents {
					wantK := k
					if e.GetSize() <= uint64(small) {
						wantK = 1
					}
					if l := e.GetLayout(); int(l.GetDataShards()) != wantK || int(l.GetParityShards()) != m {
						t.Errorf("%d bytes: layout %v, want %d+%d", size, l, wantK, m)
					}
					for number, holder := range e.GetHolders() {
						if holder == "" {
							t.Errorf("%d bytes: shard %d is missing", size, number)
						}
					}
				}
				if len(b.extents) != (size+99_999)/100_000 && size > 100_000 && len(b.extents) < 2 {
					t.Errorf("%d bytes are in %d extents", size, len(b.extents))
				}
				if size == 0 {
					if len(b.extents) != 0 {
						t.Errorf("nothing is in %d extents", len(b.extents))
					}
					continue
				}
				reader := c.nodes[(i+1)%nodes]
				reader.checkPull(b)
				reader.checkRanges(b, rand.New(rand.NewPCG(1, uint64(i))), 5)
			}
		})
	}
}

// TestAppendResumes spreads an upload over nodes and appends.
func TestAppendResumes(t *testing.T) {
	c := startCluster(t, 3, nil)
	content := randomBytes(300_000, 1)
	progress := Progress{UploadID: "u"}
	var err error
	if progress.Hashes, err = startHashes(); err != nil {
		t.Fatal(err)
	}
	all := &blob{content: content}
	cuts := []int{0, 1, 5000, 5000, 120_000, 230_001, 300_000}
	for i := range len(cuts) - 1 {
		part := content[cuts[i]:cuts[i+1]]
		// Readers may return as little as they like, and the end with the last bytes.
		var source io.Reader = iotest.DataErrReader(bytes.NewReader(part))
		if i%2 == 1 {
			source = iotest.HalfReader(bytes.NewReader(part))
		}
		var extents []*proto.Extent
		if progress, extents, err = c.nodes[i%3].appendAll(progress, source); err != nil {
			t.Fatal(err)
		}
		all.extents = append(all.extents, extents...)
	}
	for algorithm, want := range map[string]string{"sha256": sha256Digest(content), "sha512": sha512Digest(content)} {
		if got, err := progress.Digest(algorithm); err != nil || got != want {
			t.Errorf("digest %s, %v, want %s", got, err, want)
		}
	}
	c.nodes[0].checkPull(all)
}

func TestAppendHashStateUnusable(t *testing.T) {
	c := startCluster(t, 1, nil)
	for name, from := range map[string]Progress{
		"missing":  {Size: 1},
		"broken":   {Size: 1, Hashes: []*proto.HashState{{Algorithm: "sha256", State: []byte("x")}}},
		"unknown":  {Hashes: []*proto.HashState{{Algorithm: "md5"}}},
		"only 512": {Size: 1, Hashes: mustHashes(t)[1:]},
	} {
		_, _, _, err := c.nodes[0].store.Append(context.Background(), from, bytes.NewReader([]byte("x")), nil)
		if !errors.Is(err, ErrHashState) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (Progress{}).Digest("sha512"); !errors.Is(err, ErrHashState) {
		t.Errorf("digest of a hash that was not kept: %v", err)
	}
}

// TestAppendRecord has what record says decide.
func TestAppendRecord(t *testing.T) {
	c := startCluster(t, 3, nil)
	content := randomBytes(250_000, 1)
	refused := errors.New("refused")
	calls := 0
	_, _, _, err := c.nodes[0].store.Append(context.Background(), Progress{}, bytes.NewReader(content), func(context.Context, Recorded) error {
		if calls++; calls == 2 {
			return refused
		}
		return nil
	})
	if !errors.Is(err, refused) || calls != 2 {
		t.Errorf("after %d calls: %v", calls, err)
	}
	// Without record everything is the tail.
	to, tail, from, err := c.nodes[0].store.Append(context.Background(), Progress{}, bytes.NewReader(content), nil)
	if err != nil || from != 0 || to.Size != 250_000 || len(tail) < 3 {
		t.Errorf("tail of %d extents from %d to %d: %v", len(tail), from, to.Size, err)
	}
	c.nodes[1].checkPull(&blob{content: content, extents: tail})
}

// TestAppendHolderFails has a holder fail in every way, at different points.
func TestAppendHolderFails(t *testing.T) {
	faults := map[string]func(n *testNode){
		"killed":  func(n *testNode) { n.cut() },
		"stalled": func(n *testNode) { n.freeze() },
		"full":    func(n *testNode) { n.setFull(true) },
	}
	for _, nodes := range []int{3, 5} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			t.Parallel() // Most of it is waiting for what has stalled.
			c := startCluster(t, nodes, func(cfg *Config) { cfg.StallTimeout, cfg.HedgeDelay, cfg.LateDelay = testStall, testHedge, testHedge })
			for name, fault := range faults {
				for _, at := range []int{0, 9000, 60_000, 240_000, 250_000} {
					c.appendWithFault(name, fault, at)
				}
			}
		})
	}
}

// appendWithFault has a holder fail once so many bytes were read, and makes it
// well again.
func (c *testCluster) appendWithFault(name string, fault func(*testNode), at int) {
	t := c.t
	t.Helper()
	victim := c.nodes[1]
	content := randomBytes(250_000, 1)
	source := &gateReader{content: content, gate: at, reached: func() { fault(victim) }}
	to, extents, err := c.nodes[0].appendAll(Progress{UploadID: "u"}, source)
	if err != nil {
		t.Fatalf("%s at %d: %v", name, at, err)
	}
	if digest, _ := to.Digest("sha256"); digest != sha256Digest(content) {
		t.Errorf("%s at %d: wrong digest", name, at)
	}
	// One that is known to be dead before the extent is placed is not even asked, and
	// with two parities one that is slow is only left behind.
	if len(c.nodes) == 3 && (name == "stalled" || name == "killed" && at > 3000 && at < 200_000) {
		if !c.nodes[0].suspected(victim.id) {
			t.Errorf("%s at %d: nobody suspects the node", name, at)
		}
	}
	b := &blob{content: content, extents: extents}
	c.nodes[0].checkPull(b)
	c.nodes[2].checkPull(b)
	victim.heal()
	victim.checkPull(b)
}

// TestAppendOwnDiskFull has the disk of the node that takes the bytes fill up.
func TestAppendOwnDiskFull(t *testing.T) {
	c := startCluster(t, 3, nil)
	content := randomBytes(250_000, 1)
	source := &gateReader{content: content, gate: 60_000, reached: func() { c.nodes[0].setFull(true) }}
	_, extents, err := c.nodes[0].appendAll(Progress{UploadID: "u"}, source)
	if err != nil {
		t.Fatal(err)
	}
	c.nodes[0].checkPull(&blob{content: content, extents: extents})
	c.nodes[1].setFull(true)
	if _, _, err := c.nodes[0].appendAll(Progress{}, bytes.NewReader(content)); !errors.Is(err, ErrNoSpace) {
		t.Errorf("with room on one node only: %v", err)
	}
}

// TestAppendFullNodeIsNotAskedAgain has a write wait for the node that is away,
// rather than try one without room again and again.
func TestAppendFullNodeIsNotAskedAgain(t *testing.T) {
	c := startCluster(t, 3, nil)
	writer, full, away := c.nodes[0], c.nodes[1], c.nodes[2]
	writer.store.nodeWait = waitLimit
	var asked atomic.Int64
	space := full.store.disks.all[0].calls.space
	full.store.disks.all[0].calls.space = func(dir string) (uint64, uint64, error) {
		// The next look for nodes, if it asks this one again, finds nothing else.
		if asked.Add(1) == 1 {
			time.AfterFunc(10*nodePoll, func() { away.setSick(false) })
		}
		return space(dir)
	}
	full.mu.Lock()
	full.full, full.stale = true, true
	full.mu.Unlock()
	away.setSick(true)
	content := randomBytes(250_000, 1)
	_, extents, err := writer.appendAll(Progress{UploadID: "u"}, bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if asked.Load() != 1 {
		t.Errorf("the full node was asked %d times", asked.Load())
	}
	writer.checkPull(&blob{content: content, extents: extents})
}

// TestAppendSurvivesNextFailure checks that what was acknowledged while a node was
// down can lose m nodes all the same.
func TestAppendSurvivesNextFailure(t *testing.T) {
	c := startCluster(t, 3, nil)
	content := randomBytes(250_000, 1)
	source := &gateReader{content: content, gate: 60_000, reached: c.nodes[2].cut}
	_, extents, err := c.nodes[0].appendAll(Progress{UploadID: "u"}, source)
	if err != nil {
		t.Fatal(err)
	}
	b := &blob{content: content, extents: extents}
	c.nodes[1].cut()
	c.nodes[0].checkPull(b)
}

// TestAppendWaitsForAnFsync: an extent is not acknowledged short of a shard because the
// disk of one node takes a little longer than those of the others.
func TestAppendWaitsForAnFsync(t *testing.T) {
	c := startCluster(t, 5, func(cfg *Config) {
		defaults := DefaultConfig()
		cfg.HedgeDelay, cfg.LateDelay = defaults.HedgeDelay, defaults.LateDelay
	})
	disk := c.nodes[1].store.disks.all[0]
	sync := disk.calls.sync
	disk.calls.sync = func(f *os.File) error {
		time.Sleep(DefaultConfig().HedgeDelay + 100*time.Millisecond)
		return sync(f)
	}
	for i := range 3 {
		for _, e := range c.nodes[0].push(50_000, uint64(i)).extents {
			if slices.Contains(e.GetHolders(), "") {
				t.Errorf("all nodes are well, and an extent is on %q", e.GetHolders())
			}
		}
	}
}

// TestAppendOwnDiskHangs has the disk of the node that takes the bytes hang.
func TestAppendOwnDiskHangs(t *testing.T) {
	c := startCluster(t, 3, func(cfg *Config) { cfg.StallTimeout, cfg.HedgeDelay, cfg.LateDelay = testStall, testHedge, testHedge })
	content := randomBytes(250_000, 1)
	var release func()
	source := &gateReader{content: content, gate: 60_000, reached: func() { release = c.nodes[0].hang() }}
	_, extents, err := c.nodes[0].appendAll(Progress{UploadID: "u"}, source)
	release()
	if err != nil {
		t.Fatal(err)
	}
	c.nodes[1].checkPull(&blob{content: content, extents: extents})
}

// TestAppendTooManyFail loses more holders than the redundancy covers.
func TestAppendTooManyFail(t *testing.T) {
	c := startCluster(t, 3, nil)
	content := randomBytes(250_000, 1)
	source := &gateReader{content: content, gate: 60_000, reached: func() {
		c.nodes[1].cut()
		c.nodes[2].cut()
	}}
	_, _, err := c.nodes[0].appendAll(Progress{UploadID: "u"}, source)
	if !errors.Is(err, ErrTooFewShards) {
		t.Errorf("error is %v", err)
	}
	_, _, err = c.nodes[0].appendAll(Progress{UploadID: "u"}, bytes.NewReader(content))
	if !errors.Is(err, ErrInsufficientNodes) {
		t.Errorf("error is %v", err)
	}
}

// TestAppendTwoFailWithTwoParities has m = 2.
func TestAppendTwoFailWithTwoParities(t *testing.T) {
	c := startCluster(t, 6, func(cfg *Config) { cfg.MaxExtentBytes = 1 << 20 })
	content := randomBytes(900_000, 1)
	source := &gateReader{content: content, gate: 60_000, reached: func() {
		c.nodes[1].cut()
		c.nodes[2].cut()
	}}
	_, extents, err := c.nodes[0].appendAll(Progress{UploadID: "u"}, source)
	if err != nil {
		t.Fatal(err)
	}
	// What comes after the failure is in another extent, with all its shards.
	if size := extents[0].GetSize(); size > 500_000 {
		t.Errorf("the extent went on to %d bytes", size)
	}
	for _, e := range extents[1:] {
		if slices.Contains(e.GetHolders(), "") {
			t.Errorf("a later extent is degraded: %v", e.GetHolders())
		}
	}
	b := &blob{content: content, extents: extents}
	c.nodes[0].checkPull(b)
	c.nodes[3].cut() // k+1 shards at least are durable.
	c.nodes[0].checkPull(b)
}

// TestAppendNarrows has a node down: k shrinks, m stays.
func TestAppendNarrows(t *testing.T) {
	c := startCluster(t, 3, nil)
	c.nodes[2].kill()
	b := c.nodes[0].push(50_000, 1)
	if l := b.extents[0].GetLayout(); l.GetDataShards() != 1 || l.GetParityShards() != 1 {
		t.Errorf("layout %v with two of three nodes", l)
	}
	c.nodes[0].kill()
	c.nodes[1].checkPull(b)
}

// TestAppendWaitsForNodes has a node come back while an append waits for it.
func TestAppendWaitsForNodes(t *testing.T) {
	c := startCluster(t, 2, nil)
	c.nodes[0].store.nodeWait = waitLimit
	c.nodes[1].setSick(true)
	done := make(chan error, 1)
	go func() {
		_, _, err := c.nodes[0].appendAll(Progress{}, bytes.NewReader(randomBytes(9000, 1)))
		done <- err
	}()
	eventually(t, waitLimit, "append begins", func() bool { return c.nodes[0].store.appends.Load() == 1 })
	select {
	case err := <-done:
		t.Fatalf("append did not wait: %v", err)
	default:
	}
	c.nodes[1].setSick(false)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestAppendDraining sees that a draining node gets nothing.
func TestAppendDraining(t *testing.T) {
	c := startCluster(t, 4, nil)
	c.nodes[3].setDraining(true)
	b := c.nodes[0].push(50_000, 1)
	for _, holder := range b.extents[0].GetHolders() {
		if holder == "node-3" {
			t.Error("a draining node got a shard")
		}
	}
}

// TestAppendClientHangsUp breaks the client's connection at many places.
func TestAppendClientHangsUp(t *testing.T) {
	c := startCluster(t, 3, nil)
	content := randomBytes(210_000, 1)
	random := rand.New(rand.NewPCG(1, 2))
	cuts := []int{0, 1, 2999, 3000, 3001, 4095, 4096, 8191, 8192, 8193, 16384, 98_304, 100_000, 106_496}
	for range 20 {
		cuts = append(cuts, random.IntN(len(content)))
	}
	for _, cut := range cuts {
		source := io.MultiReader(bytes.NewReader(content[:cut]), iotest.ErrReader(io.ErrUnexpectedEOF))
		_, _, err := c.nodes[0].appendAll(Progress{UploadID: "u"}, source)
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
	for _, other := range c.nodes[1:] {
		if c.nodes[0].suspected(other.id) {
			t.Error("a client that hangs up made a node suspect")
		}
	}
}

// TestAppendCancelled ends the context instead.
func TestAppendCancelled(t *testing.T) {
	c := startCluster(t, 3, nil)
	for _, at := range []int{0, 3001, 50_000, 150_000} {
		ctx, cancel := context.WithCancel(context.Background())
		source := &gateReader{content: randomBytes(200_000, 1), gate: at, reached: cancel}
		_, _, _, err := c.nodes[0].store.Append(ctx, Progress{}, source, nil)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled at %d: %v", at, err)
		}
		cancel()
	}
	for _, other := range c.nodes[1:] {
		if c.nodes[0].suspected(other.id) {
			t.Error("cancelling made a node suspect")
		}
	}
}

// TestAppendManyAtOnce has far more writers than the budget has stripes.
func TestAppendManyAtOnce(t *testing.T) {
	c := startCluster(t, 3, func(cfg *Config) {
		cfg.CellBytes = 256 << 10
		cfg.SmallBlobBytes = 128 << 10
		cfg.MaxExtentBytes = 1 << 20
		cfg.BufferBytes = 8 << 20
	})
	var writers sync.WaitGroup
	for i := range 200 {
		writers.Go(func() {
			content := randomBytes(200_000+i*7919%600_000, uint64(i))
			n := c.nodes[i%3]
			to, tail, _, err := n.store.Append(context.Background(), Progress{UploadID: fmt.Sprint(i)}, bytes.NewReader(content), nil)
			if err != nil {
				t.Errorf("writer %d: %v", i, err)
				return
			}
			if digest, _ := to.Digest("sha256"); digest != sha256Digest(content) {
				t.Errorf("writer %d: wrong digest", i)
			}
			got, err := c.nodes[(i+1)%3].pull(&blob{extents: tail}, 0, uint64(len(content)))
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("reader %d: %v", i, err)
			}
		})
	}
	writers.Wait()
}

// TestAppendManyWhenNodeDies lets a node die under many writers at once.
func TestAppendManyWhenNodeDies(t *testing.T) {
	c := startCluster(t, 4, func(cfg *Config) { cfg.BufferBytes = 1 << 20 })
	var once sync.Once
	var writers sync.WaitGroup
	for i := range 60 {
		writers.Go(func() {
			content := randomBytes(150_000, uint64(i))
			n := c.nodes[i%3]
			source := &gateReader{content: content, gate: 20_000 + i*1000, reached: func() {
				if i > 20 {
					once.Do(c.nodes[3].cut)
				}
			}}
			_, tail, _, err := n.store.Append(context.Background(), Progress{UploadID: fmt.Sprint(i)}, source, nil)
			if err != nil {
				t.Errorf("writer %d: %v", i, err)
				return
			}
			got, err := n.pull(&blob{extents: tail}, 0, uint64(len(content)))
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("reader %d: %v", i, err)
			}
		})
	}
	writers.Wait()
}

func TestShareCell(t *testing.T) {
	cfg := DefaultConfig()
	for _, test := range []struct {
		data, parity int
		appends      int64
		want         int
	}{
		{2, 1, 1, 256 << 10},
		{2, 1, 42, 256 << 10},
		{2, 1, 43, 128 << 10},
		{2, 1, 1000, 128 << 10}, // A stripe has room for more than a small blob.
		{1, 1, 1000, 256 << 10},
		{8, 2, 12, 256 << 10},
		{8, 2, 13, 128 << 10},
		{8, 2, 200, 32 << 10},
		{8, 2, 1000, 32 << 10},
	} {
		l := layout{data: test.data, parity: test.parity}
		if got := shareCell(l, cfg, test.appends); got != test.want {
			t.Errorf("%d+%d with %d appends: %d, want %d", test.data, test.parity, test.appends, got, test.want)
		}
	}
}

// TestRecut has the layout change between the first bytes and the placement.
func TestRecut(t *testing.T) {
	c := startCluster(t, 5, nil)
	content := randomBytes(90_000, 1)
	for at, change := range map[int]func(){
		1:    func() { c.nodes[4].setSick(true) },
		100:  func() { c.nodes[4].setSick(false) },
		2999: func() { c.nodes[3].setSick(true); c.nodes[4].setSick(true) },
	} {
		source := &gateReader{content: content, gate: at, reached: change}
		_, extents, err := c.nodes[0].appendAll(Progress{}, source)
		if err != nil {
			t.Fatal(err)
		}
		c.nodes[1].checkPull(&blob{content: content, extents: extents})
	}
}
