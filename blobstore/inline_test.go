package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/atollregistry/atoll/proto"
)

// testInline is up to where blobs are inline in these tests: less than what is small.
const testInline = 2000

func inlineConfig(cfg *Config) { cfg.InlineBlobBytes = testInline }

// files counts the files in the folders of all nodes for shards and caches.
func (c *testCluster) files() (count int) {
	c.t.Helper()
	for _, n := range c.nodes {
		for _, dir := range []string{n.cfg.Dir, n.cfg.CacheDir} {
			if dir == "" {
				continue
			}
			if err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
				if err == nil && entry.Type().IsRegular() && filepath.Ext(path) != ".json" {
					count++
				}
				return err
			}); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	return count
}

// inlineBytes is how much of a blob is inline.
func inlineBytes(extents []*proto.Extent) (bytes uint64) {
	for _, e := range extents {
		if isInline(e) {
			bytes += e.GetSize()
		}
	}
	return bytes
}

// TestInlineSizes pushes blobs of sizes around the bound: up to it they are one inline
// extent, and no node has anything of them on its disk.
func TestInlineSizes(t *testing.T) {
	for _, nodes := range []int{1, 3, 5} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			c := startCluster(t, nodes, inlineConfig)
			before := c.files()
			for i, size := range []int{0, 1, testInline - 1, testInline} {
				b := c.nodes[i%nodes].push(size, uint64(i))
				if len(b.extents) != min(size, 1) || inlineBytes(b.extents) != uint64(size) {
					t.Errorf("%d bytes are in %v", size, b.extents)
				}
				for _, n := range c.nodes {
					n.checkPull(b)
					if size > 0 {
						n.checkRanges(b, rand.New(rand.NewPCG(1, uint64(i))), 5)
					}
				}
			}
			if files := c.files(); files != before {
				t.Errorf("there are %d files, and were %d", files, before)
			}
			for _, size := range []int{testInline + 1, 3000, 3001, 4096, 50_000} {
				b := c.nodes[0].push(size, uint64(size))
				if inlineBytes(b.extents) != 0 {
					t.Errorf("%d bytes are in %v", size, b.extents)
				}
				c.nodes[nodes-1].checkPull(b)
			}
		})
	}
}

// TestInlineWhateverTheReaderDoes: how the bytes come in makes no difference.
func TestInlineWhateverTheReaderDoes(t *testing.T) {
	c := startCluster(t, 1, inlineConfig)
	for name, reader := range map[string]func(io.Reader) io.Reader{
		"end with the last bytes": iotest.DataErrReader, "byte by byte": iotest.OneByteReader, "halves": iotest.HalfReader,
	} {
		for _, size := range []int{1, testInline, testInline + 1} {
			content := randomBytes(size, 7)
			to, extents, err := c.nodes[0].appendAll(Progress{}, reader(bytes.NewReader(content)))
			if err != nil || len(extents) != 1 || isInline(extents[0]) != (size <= testInline) {
				t.Fatalf("%s, %d bytes: %v, %v", name, size, extents, err)
			}
			if digest, err := to.Digest("sha256"); err != nil || digest != sha256Digest(content) {
				t.Errorf("%s, %d bytes: digest %s, %v", name, size, digest, err)
			}
			c.nodes[0].checkPull(&blob{content: content, extents: extents})
		}
	}
	if c.nodes[0].store.buffers.budget.TryAcquire(c.nodes[0].cfg.BufferBytes) {
		c.nodes[0].store.buffers.budget.Release(c.nodes[0].cfg.BufferBytes)
	} else {
		t.Error("an append has kept memory of the budget")
	}
}

// TestInlineThenShards has an upload begin with inline extents and go on with shards: what
// is inline ends at or before the bound of the blob, not of the request.
func TestInlineThenShards(t *testing.T) {
	for _, nodes := range []int{1, 2, 3} { // mirrored on one and two
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			c := startCluster(t, nodes, func(cfg *Config) {
				cfg.InlineBlobBytes, cfg.CacheBytes, cfg.CacheDir = testInline, 1<<30, t.TempDir()
			})
			content := randomBytes(60_000, 1)
			b := &blob{content: content}
			progress := Progress{UploadID: "u"}
			var err error
			if progress.Hashes, err = startHashes(); err != nil {
				t.Fatal(err)
			}
			cuts := []int{0, 700, 701, 701, testInline, testInline + 1, 3000, 60_000}
			for i := range len(cuts) - 1 {
				var extents []*proto.Extent
				progress, extents, err = c.nodes[i%nodes].appendAll(progress, bytes.NewReader(content[cuts[i]:cuts[i+1]]))
				if err != nil {
					t.Fatal(err)
				}
				b.extents = append(b.extents, extents...)
			}
			for algorithm, want := range map[string]string{"sha256": sha256Digest(content), "sha512": sha512Digest(content)} {
				if got, err := progress.Digest(algorithm); err != nil || got != want {
					t.Errorf("digest %s, %v, want %s", got, err, want)
				}
			}
			if !areInline(b.extents[:3]) || inlineBytes(b.extents) != testInline {
				t.Errorf("%d bytes are inline: %v", inlineBytes(b.extents), b.extents)
			}
			for _, n := range c.nodes {
				n.checkPull(b)
				n.checkRanges(b, rand.New(rand.NewPCG(1, 2)), 30)
				n.checkInlineRanges(b)
			}
		})
	}
}

// checkInlineRanges pulls ranges within, across and behind the inline extents, as clients
// do: by files where there are some, and as bytes.
func (n *testNode) checkInlineRanges(b *blob) {
	for _, span := range [][2]int{{0, 1}, {0, 700}, {699, 2}, {300, 1500}, {0, testInline}, {testInline - 1, 2}, {testInline, 1}, {100, 50_000}, {5000, 20_000}, {0, len(b.content)}} {
		n.pullTo(b, &connection{}, span[0], span[1])
		reader, err := n.store.Pull(context.Background(), sha256Digest(b.content), b.extents, uint64(span[0]), uint64(span[1]), true)
		if err != nil {
			n.cluster.t.Fatal(err)
		}
		got, err := io.ReadAll(iotest.OneByteReader(reader))
		_ = reader.Close() // It has nothing to say about what was read.
		if err != nil || !bytes.Equal(got, b.content[span[0]:span[0]+span[1]]) {
			n.cluster.t.Errorf("%s: %d bytes at %d: got %d, %v", n.id, span[1], span[0], len(got), err)
		}
	}
}

// TestInlineBetweenShards: a node that was started with another bound may have left an
// inline extent behind others.
func TestInlineBetweenShards(t *testing.T) {
	c := startCluster(t, 3, nil)
	content := randomBytes(40_000, 1)
	progress, first, err := c.nodes[0].appendAll(Progress{UploadID: "u"}, bytes.NewReader(content[:500]))
	if err != nil {
		t.Fatal(err)
	}
	inline := &proto.Extent{Id: newExtentID(), Size: 300, Content: content[500:800]}
	_, rest, err := c.nodes[1].appendAll(Progress{UploadID: "u", Size: 800, Hashes: progress.Hashes}, bytes.NewReader(content[800:]))
	if err != nil {
		t.Fatal(err)
	}
	b := &blob{content: content, extents: slices.Concat(first, []*proto.Extent{inline}, rest)}
	c.nodes[2].checkPull(b)
	c.nodes[2].checkRanges(b, rand.New(rand.NewPCG(1, 2)), 30)
	c.nodes[2].pullTo(b, &connection{}, 0, len(content))
}

// TestInlineTouchesNoDisk: with all other nodes gone, and nothing on the disk, each node
// has the blob at hand, and leaves the cache alone.
func TestInlineTouchesNoDisk(t *testing.T) {
	c := startCluster(t, 3, func(cfg *Config) {
		cfg.InlineBlobBytes, cfg.CacheBytes, cfg.CacheDir = testInline, 1<<30, t.TempDir()
	})
	b := c.nodes[0].push(testInline, 1)
	before := c.files()
	n := c.nodes[2]
	c.nodes[0].kill()
	c.nodes[1].kill()
	if !n.store.AtHand(sha256Digest(b.content), b.extents) {
		t.Error("the blob is not at hand")
	}
	for range 3 {
		pulled, err := n.store.Pull(t.Context(), sha256Digest(b.content), b.extents, 0, testInline, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, isPlain := pulled.(*reader); !isPlain {
			t.Errorf("it is read by a %T", pulled)
		}
		if err := pulled.Close(); err != nil {
			t.Error(err)
		}
		n.pullTo(b, &connection{}, 0, testInline)
		n.pullTo(b, &connection{}, testInline-1, 1)
	}
	if status, ok := n.store.Cache(); !ok || status.Bytes != 0 || c.files() != before {
		t.Errorf("cache %+v, %d files, and there were %d", status, c.files(), before)
	}
	if home := Home(n.Nodes(), sha256Digest(b.content), b.extents, n.id); home != "" {
		t.Errorf("it has a home: %s", home)
	}
}

// TestInlineIsNoWayAroundAFullCluster: what would be refused as a shard is refused.
func TestInlineIsNoWayAroundAFullCluster(t *testing.T) {
	c := startCluster(t, 3, inlineConfig)
	push := func(size int) error {
		_, _, err := c.nodes[0].appendAll(Progress{UploadID: "u"}, bytes.NewReader(randomBytes(size, 1)))
		return err
	}
	for _, test := range []struct {
		change, undo func(n *testNode)
		want         error
	}{
		{func(n *testNode) { n.setFull(true) }, func(n *testNode) { n.setFull(false) }, ErrNoSpace},
		{func(n *testNode) { n.setSick(true) }, func(n *testNode) { n.setSick(false) }, ErrInsufficientNodes},
		{func(n *testNode) { n.setDraining(true) }, func(n *testNode) { n.setDraining(false) }, ErrInsufficientNodes},
	} {
		test.change(c.nodes[2])
		if err := push(testInline); err != nil {
			t.Errorf("with two nodes left: %v", err)
		}
		test.change(c.nodes[1])
		for _, size := range []int{1, testInline, testInline + 1} {
			if err := push(size); !errors.Is(err, test.want) {
				t.Errorf("%d bytes with one node left: %v, want %v", size, err, test.want)
			}
		}
		test.undo(c.nodes[1])
		test.undo(c.nodes[2])
	}
	if err := push(1); err != nil {
		t.Error(err)
	}
}

// TestInlineSparesFullNodes: what one node has no room for goes to the others, and not to it.
func TestInlineSparesFullNodes(t *testing.T) {
	c := startCluster(t, 3, inlineConfig)
	for _, full := range []bool{false, true, false} {
		c.nodes[2].setFull(full)
		_, extents, err := c.nodes[0].appendAll(Progress{UploadID: "u"}, bytes.NewReader(randomBytes(testInline, 1)))
		if err != nil {
			t.Fatal(err)
		}
		if inline := isInline(extents[0]); inline == full {
			t.Errorf("a node is full: %t, and the blob is inline: %t", full, inline)
		}
	}
}

// TestInlineContentOfAnotherLength is an error, and no short blob.
func TestInlineContentOfAnotherLength(t *testing.T) {
	c := startCluster(t, 1, inlineConfig)
	good := c.nodes[0].push(100, 1)
	for _, content := range [][]byte{nil, good.content[:99], append(slices.Clone(good.content), 0)} {
		bad := []*proto.Extent{{Id: good.extents[0].GetId(), Size: 100, Content: content}}
		for name, read := range map[string]func() (io.ReadCloser, error){
			"read": func() (io.ReadCloser, error) { return c.nodes[0].store.Read(t.Context(), bad, 0, 100) },
			"pull": func() (io.ReadCloser, error) {
				return c.nodes[0].store.Pull(t.Context(), sha256Digest(good.content), bad, 98, 1, true)
			},
		} {
			if _, err := read(); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s with %d bytes of 100: %v", name, len(content), err)
			}
		}
	}
	if _, err := c.nodes[0].store.Read(t.Context(), good.extents, 99, 2); !errors.Is(err, ErrInvalid) {
		t.Errorf("beyond the end: %v", err)
	}
}

// TestInlineNeedsNoRepair: whoever goes through all extents leaves it alone.
func TestInlineNeedsNoRepair(t *testing.T) {
	c := startCluster(t, 3, inlineConfig)
	b := c.nodes[0].push(100, 1)
	v := newSurvey(c.nodes[0].cfg, c.nodes[0].Nodes())
	if job, err := v.improve(c.now(b.extents)[0], failure{}); job != nil || err != nil {
		t.Errorf("to be stored anew: %v, %v", job, err)
	}
	for _, n := range c.nodes {
		if err := n.store.CheckDrain(t.Context(), n.id); err != nil {
			t.Errorf("%s can't be emptied: %v", n.id, err)
		}
	}
}

// TestInlineIsOnlyWhatIsPushed: an extent that is stored again is in shards, however small.
func TestInlineIsOnlyWhatIsPushed(t *testing.T) {
	c := startCluster(t, 3, nil)
	b := c.nodes[0].push(100, 1)
	c.nodes[0].store.cfg.InlineBlobBytes = testInline
	again, err := c.nodes[0].store.reencode(t.Context(), b.extents[0])
	if err != nil || len(again) != 1 || isInline(again[0]) {
		t.Errorf("stored again: %v, %v", again, err)
	}
}
