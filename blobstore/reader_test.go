package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// TestReadAnyErasures is the promise of the erasure code: with any m shards of
// every extent lost or rotten, every range reads back as it was written; with one
// more, nothing wrong is read.
func TestReadAnyErasures(t *testing.T) {
	for _, nodes := range []int{2, 3, 4, 5, 7, 10} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			seed := uint64(nodes)
			random := rand.New(rand.NewPCG(seed, seed))
			c := startCluster(t, nodes, func(cfg *Config) { cfg.MaxExtentBytes = 150_000 })
			for _, size := range []int{1, 2500, 30_000, 260_000 + random.IntN(4000)} {
				b := c.nodes[0].push(size, seed)
				m := int(b.extents[0].GetLayout().GetParityShards())
				lost := make([][]int, len(b.extents))
				for i, e := range b.extents {
					lost[i] = random.Perm(len(e.GetHolders()))
					for _, number := range lost[i][:random.IntN(m+1)] {
						c.damage(e, number, random)
					}
				}
				c.nodes[random.IntN(nodes)].checkRanges(b, random, 10)
				for i, e := range b.extents {
					for _, number := range lost[i][:m] {
						c.remove(e, number)
					}
				}
				c.nodes[random.IntN(nodes)].checkPull(b)
				for i, e := range b.extents {
					c.remove(e, lost[i][m])
				}
				_, err := c.nodes[random.IntN(nodes)].pull(b, 0, uint64(size))
				if k := int(b.extents[0].GetLayout().GetDataShards()); !errors.Is(err, ErrTooFewShards) && size > k*k {
					t.Errorf("%d bytes without m+1 shards: %v", size, err)
				}
			}
		})
	}
}

// remove deletes a shard's file, if it is there still.
func (c *testCluster) remove(e *proto.Extent, number int) {
	c.t.Helper()
	c.holderOf(e, number).store.disks.all[0].handles.forgetAll()
	if err := os.Remove(c.shardPath(e, number)); err != nil && !errors.Is(err, os.ErrNotExist) {
		c.t.Fatal(err)
	}
}

// TestReadSwappedShards puts sound shard files in wrong places.
func TestReadSwappedShards(t *testing.T) {
	c := startCluster(t, 3, nil)
	one, two := c.nodes[0].push(20_000, 1), c.nodes[0].push(20_000, 2)
	from, err := os.ReadFile(c.shardPath(two.extents[0], 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.shardPath(one.extents[0], 0), from, 0o600); err != nil {
		t.Fatal(err)
	}
	c.nodes[1].checkPull(one)
	if got := c.nodes[1].store.DamagedShards(); got == 0 {
		t.Error("nobody noticed")
	}
}

// TestReadOnlyNeededCells sees that a range costs only the cells that it lies in.
func TestReadOnlyNeededCells(t *testing.T) {
	c := startCluster(t, 3, nil)
	b := c.nodes[0].push(80_000, 1)
	e := b.extents[0]
	cell := testConfig().CellBytes
	// Everything is rotten but one cell of shard 1, the third.
	for number := range 3 {
		path := c.shardPath(e, number)
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		l, _ := extentLayout(e)
		for stripe := range l.stripes() {
			if number != 1 || stripe != 2 {
				file[int(l.cellOffset(stripe))] ^= 1
			}
		}
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		c.holderOf(e, number).store.disks.all[0].handles.forgetAll()
	}
	start := 2*2*cell + cell
	for _, span := range [][2]int{{start, cell}, {start + 7, 1}, {start + cell - 1, 1}} {
		got, err := c.nodes[0].pull(b, uint64(span[0]), uint64(span[1]))
		if err != nil || !bytes.Equal(got, b.content[span[0]:span[0]+span[1]]) {
			t.Errorf("%d bytes at %d: %v", span[1], span[0], err)
		}
	}
	if _, err := c.nodes[0].pull(b, uint64(start-1), 2); !errors.Is(err, ErrTooFewShards) {
		t.Errorf("a rotten byte was read: %v", err)
	}
}

// TestReadHolderFails has a holder of data fail in the middle of a read.
func TestReadHolderFails(t *testing.T) {
	faults := map[string]func(n *testNode){
		"killed":  func(n *testNode) { n.cut() },
		"stalled": func(n *testNode) { n.freeze() },
		"wiped": func(n *testNode) {
			n.store.disks.all[0].handles.forgetAll()
			files, _ := filepath.Glob(filepath.Join(n.cfg.Dir, "??", "*.?"))
			for _, file := range files {
				_ = os.Remove(file)
			}
		},
	}
	for _, nodes := range []int{3, 6} {
		c := startCluster(t, nodes, func(cfg *Config) {
			cfg.MaxExtentBytes = 1 << 20
			cfg.BufferBytes = 96 << 10 // Groups of some stripes.
			cfg.StallTimeout, cfg.HedgeDelay = testStall, testHedge
		})
		for name, fault := range faults {
			for _, at := range []int{0, 1, 9000, 150_000} {
				t.Run(fmt.Sprintf("%d/%s/%d", nodes, name, at), func(t *testing.T) {
					b := c.nodes[0].push(300_000, 1)
					victim := c.others(c.nodes[0])[0]
					defer victim.heal()
					reader, err := c.nodes[0].store.Read(context.Background(), b.extents, 0, 300_000)
					if err != nil {
						t.Fatal(err)
					}
					defer reader.Close()
					head := make([]byte, at)
					if _, err := io.ReadFull(reader, head); err != nil {
						t.Fatal(err)
					}
					fault(victim)
					began := time.Now()
					rest, err := io.ReadAll(reader)
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(append(head, rest...), b.content) {
						t.Error("read other bytes than were written")
					}
					// The first group is hedged, the others do not even ask.
					if took := time.Since(began); took > 5*testStall {
						t.Errorf("the rest took %s", took)
					}
				})
			}
		}
	}
}

// TestReadTwoDeadHolders has m = 2, with one dead before and one in the middle.
func TestReadTwoDeadHolders(t *testing.T) {
	c := startCluster(t, 5, nil)
	b := c.nodes[0].push(250_000, 1)
	c.nodes[1].cut()
	reader, err := c.nodes[0].store.Read(context.Background(), b.extents, 0, 250_000)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	head := make([]byte, 70_000)
	if _, err := io.ReadFull(reader, head); err != nil {
		t.Fatal(err)
	}
	c.nodes[2].cut()
	rest, err := io.ReadAll(reader)
	if err != nil || !bytes.Equal(append(head, rest...), b.content) {
		t.Fatal(err)
	}
	c.nodes[3].cut()
	if _, err := c.nodes[0].pull(b, 0, 250_000); !errors.Is(err, ErrTooFewShards) {
		t.Errorf("read with three of five nodes dead: %v", err)
	}
}

// A holder that was started again a moment ago may not be connected yet. If there
// is no other, the read waits for it, and not for ever.
func TestReadWaitsForReconnection(t *testing.T) {
	c := startCluster(t, 3, nil)
	b := c.nodes[0].push(250_000, 1)
	c.nodes[1].kill()
	c.nodes[2].kill()
	pulled := make(chan error, 1)
	go func() {
		content, err := c.nodes[0].pull(b, 0, 250_000)
		if err == nil && !bytes.Equal(content, b.content) {
			err = errors.New("wrong bytes")
		}
		pulled <- err
	}()
	eventually(t, waitLimit, "the read has missed a holder", func() bool {
		return c.nodes[0].suspected(c.nodes[1].id) || c.nodes[0].suspected(c.nodes[2].id)
	})
	c.nodes[2].start()
	if err := <-pulled; err != nil {
		t.Errorf("pull while a holder comes back: %v", err)
	}
	c.nodes[2].kill()
	began := time.Now()
	if _, err := c.nodes[0].pull(b, 0, 250_000); !errors.Is(err, ErrTooFewShards) || time.Since(began) < reconnectWait {
		t.Errorf("pull without enough holders: %v after %s", err, time.Since(began))
	}
	c.nodes[1].start()
	c.nodes[2].start()
}

// TestReadDegradedExtent reads an extent whose record says that a shard is missing.
func TestReadDegradedExtent(t *testing.T) {
	c := startCluster(t, 3, nil)
	b := c.nodes[0].push(50_000, 1)
	for number := range 3 {
		degraded := &proto.Extent{
			Id: b.extents[0].Id, Size: b.extents[0].Size, Layout: b.extents[0].Layout,
			Holders: append([]string(nil), b.extents[0].Holders...),
		}
		degraded.Holders[number] = ""
		c.nodes[0].checkPull(&blob{content: b.content, extents: []*proto.Extent{degraded}})
	}
}

// TestReadOwnDiskHangs has the disk of the node that reads hang.
func TestReadOwnDiskHangs(t *testing.T) {
	c := startCluster(t, 3, func(cfg *Config) { cfg.MaxShardReads, cfg.HedgeDelay = 2, testHedge })
	b := c.nodes[0].push(60_000, 1)
	n := c.nodes[0]
	// All the reads that the disk may have under way hang.
	n.store.diskReads <- struct{}{}
	n.store.diskReads <- struct{}{}
	n.checkPull(b)
	<-n.store.diskReads
	<-n.store.diskReads
}

func TestReadInvalid(t *testing.T) {
	c := startCluster(t, 3, nil)
	b := c.nodes[0].push(60_000, 1)
	e := b.extents[0]
	for name, test := range map[string]struct {
		extents        []*proto.Extent
		offset, length uint64
	}{
		"beyond":       {b.extents, 60_000, 1},
		"too long":     {b.extents, 0, 60_001},
		"overflow":     {b.extents, 10, ^uint64(0)},
		"far":          {b.extents, ^uint64(0), 10},
		"no extents":   {nil, 0, 1},
		"few holders":  {[]*proto.Extent{{Id: e.Id, Size: e.Size, Layout: e.Layout, Holders: e.Holders[:2]}}, 0, 1},
		"wrong layout": {[]*proto.Extent{{Id: e.Id, Size: e.Size, Layout: &proto.Layout{}, Holders: nil}}, 0, 1},
	} {
		if _, err := c.nodes[0].store.Read(context.Background(), test.extents, test.offset, test.length); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, offset := range []uint64{0, 5, 60_000} {
		if got, err := c.nodes[0].pull(b, offset, 0); err != nil || len(got) != 0 {
			t.Errorf("nothing at %d: %d bytes, %v", offset, len(got), err)
		}
	}
}

// TestReadSlowClients has many clients who stop reading. Others still get their
// bytes, writers their memory, and what the slow ones hold is bounded.
func TestReadSlowClients(t *testing.T) {
	c := startCluster(t, 3, func(cfg *Config) { cfg.BufferBytes = 256 << 10 })
	n := c.nodes[0]
	b := n.push(300_000, 1)
	var slow []io.ReadCloser
	for range 100 {
		reader, err := n.store.Read(context.Background(), b.extents, 0, 300_000)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(reader, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, reader)
	}
	if held := n.store.reading.Load(); held > n.cfg.BufferBytes/readersShare {
		t.Errorf("readers hold %d bytes of the budget", held)
	}
	n.checkPull(b)
	n.checkPull(n.push(200_000, 2))
	for _, reader := range slow {
		if err := reader.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestReadCloses closes readers at every stage, twice, and cancels them.
func TestReadCloses(t *testing.T) {
	c := startCluster(t, 3, nil)
	b := c.nodes[0].push(100_000, 1)
	for _, at := range []int{0, 1, 5000, 99_999, 100_000} {
		ctx, cancel := context.WithCancel(context.Background())
		reader, err := c.nodes[0].store.Read(ctx, b.extents, 0, 100_000)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(reader, make([]byte, at)); err != nil {
			t.Fatal(err)
		}
		if at%2 == 1 {
			cancel()
			if _, err := io.ReadAll(reader); at < 99_999 && !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled at %d: %v", at, err)
			}
		}
		if err := errors.Join(reader.Close(), reader.Close()); err != nil {
			t.Error(err)
		}
		if _, err := reader.Read(make([]byte, 1)); err == nil {
			t.Error("a closed reader can be read")
		}
		cancel()
	}
}

// TestClose ends transfers under way.
func TestClose(t *testing.T) {
	c := startCluster(t, 3, nil)
	b := c.nodes[0].push(100_000, 1)
	store := c.nodes[0].store
	reader, err := store.Read(context.Background(), b.extents, 0, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(reader, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	blocked, unblock := io.Pipe()
	appended := make(chan error, 1)
	go func() {
		_, _, _, err := store.Append(context.Background(), Progress{}, blocked, nil)
		appended <- err
	}()
	eventually(t, waitLimit, "append begins", func() bool { return store.appends.Load() == 1 })
	closed := make(chan error, 1)
	go func() { closed <- store.Close() }()
	eventually(t, waitLimit, "close begins", func() bool {
		_, end, err := store.begin(context.Background())
		if err == nil {
			end()
		}
		return errors.Is(err, ErrClosed)
	})
	if _, err := io.ReadAll(reader); !errors.Is(err, ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	_ = reader.Close()
	go func() { _, _ = unblock.Write(make([]byte, 50_000)) }() // Ends when the pipe is closed.
	if err := <-appended; !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	_ = blocked.Close()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if _, err := store.Read(context.Background(), b.extents, 0, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
}

// TestReadWhileNodesComeAndGo reads all the time while one node after the other
// dies and comes back.
func TestReadWhileNodesComeAndGo(t *testing.T) {
	c := startCluster(t, 4, nil)
	b := c.nodes[0].push(200_000, 1)
	var stop atomic.Bool
	var rounds atomic.Int64
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for !stop.Load() {
				got, err := c.nodes[0].pull(b, 0, 200_000)
				if err != nil || !bytes.Equal(got, b.content) {
					t.Errorf("read: %v", err)
					return
				}
				rounds.Add(1)
			}
		})
	}
	for i := range 6 {
		n := c.nodes[1+i%3]
		n.kill()
		before := rounds.Load()
		eventually(t, waitLimit, "reads go on", func() bool { return rounds.Load() > before+8 || t.Failed() })
		n.heal()
	}
	stop.Store(true)
	readers.Wait()
}

// TestRebuildRoom sees that nothing is rebuilt where a read that hangs may write.
func TestRebuildRoom(t *testing.T) {
	c := startCluster(t, 3, nil)
	b := c.nodes[0].push(60_000, 1)
	l, err := extentLayout(b.extents[0])
	if err != nil {
		t.Fatal(err)
	}
	g := c.nodes[0].store.newGroup(&part{extent: b.extents[0], layout: l, length: 60_000}, true)
	defer g.release()
	if g.memory == nil {
		t.Fatal("no memory")
	}
	f := &groupFetch{group: g, shards: make([]shardFetch, l.shards())}
	for state, own := range map[fetchState]bool{fetchIdle: true, fetchRunning: false, fetchLate: false, fetchFailed: false} {
		f.shards[1].state = state
		if got := &f.rebuildRoom(1)[0] == &g.room(1)[0]; got != own {
			t.Errorf("in state %d the shard is rebuilt in its own room: %t", state, got)
		}
	}
}

// TestCutSpan checks that the spans of a range are in order and whole, for many
// layouts.
func TestCutSpan(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		l := layout{data: 1 + random.IntN(9), cell: 1 + random.IntN(300), parity: 1}
		l.size = uint64(1 + random.IntN(l.stripeBytes()*5))
		offset := uint64(random.IntN(int(l.size)))
		length := 1 + uint64(random.IntN(int(l.size-offset)))
		limit := 1 + random.IntN(2*l.stripeBytes())
		for length > 0 {
			s := l.cutSpan(offset, length, limit)
			first := uint64(s.first)*uint64(l.stripeBytes()) + uint64(s.firstShard*l.cellBytes(s.first)+s.skip)
			if first != offset || s.bytes <= 0 || uint64(s.bytes) > length {
				t.Fatalf("%+v at %d, %d left: %+v", l, offset, length, s)
			}
			if s.bytes > max(limit, l.cell) {
				t.Fatalf("%+v: %d bytes with a limit of %d", l, s.bytes, limit)
			}
			if s.stripes > 1 && (s.skip > 0 || s.firstShard > 0 || s.lastShard != l.data-1) {
				t.Fatalf("%+v: run of stripes that are not whole: %+v", l, s)
			}
			if s.lastShard >= l.data || s.first+s.stripes > l.stripes() {
				t.Fatalf("%+v: %+v is beyond the end", l, s)
			}
			offset += uint64(s.bytes)
			length -= uint64(s.bytes)
		}
	}
}

// TestUnreadableFileIsTheShardsFault: one file that can't be read is repaired, and its
// node stays in use for all else.
func TestUnreadableFileIsTheShardsFault(t *testing.T) {
	c := startCluster(t, 3, nil)
	n := c.nodes[0]
	b := n.push(90_000, 1)
	e := b.extents[0]
	number := 0
	if c.holderOf(e, number) == n {
		number = 1
	}
	holder, path := c.holderOf(e, number), c.shardPath(e, number)
	holder.store.disks.all[0].handles.forgetAll()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, path); err != nil { // To open it is ELOOP: ErrDisk, as EIO is.
		t.Fatal(err)
	}
	eventually(t, waitLimit, "the shard was asked for", func() bool {
		n.checkPull(b)
		return n.store.DamagedShards() > 0
	})
	if n.suspected(holder.id) {
		t.Errorf("%s is suspected for one file", holder.id)
	}
}
