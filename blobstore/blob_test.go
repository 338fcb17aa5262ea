package blobstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/atollregistry/atoll/proto"
)

// blob is a blob that was stored.
type blob struct {
	content []byte
	extents []*proto.Extent
}

func randomBytes(size int, seed uint64) []byte {
	content := make([]byte, size)
	source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = source.Read(content)
	return content
}

func sha256Digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// appendAll stores what r returns and checks everything that Append promises of
// its result. It returns the extents, recorded ones and tail together.
func (n *testNode) appendAll(from Progress, r io.Reader) (Progress, []*proto.Extent, error) {
	t := n.cluster.t
	t.Helper()
	var extents []*proto.Extent
	size := from.Size
	sum := func(more []*proto.Extent) (bytes uint64) {
		for _, e := range more {
			bytes += e.GetSize()
		}
		return bytes
	}
	to, tail, tailFrom, err := n.store.Append(context.Background(), from, r, func(_ context.Context, done Recorded) error {
		if done.ExpectedSize != size || len(done.Extents) == 0 {
			t.Errorf("record of %d extents at %d, expected at %d", len(done.Extents), done.ExpectedSize, size)
		}
		size += sum(done.Extents)
		if done.Progress.Size != size {
			t.Errorf("recorded progress is %d, extents end at %d", done.Progress.Size, size)
		}
		extents = append(extents, done.Extents...)
		return nil
	})
	if err != nil {
		return to, extents, err
	}
	if tailFrom != size || to.Size != size+sum(tail) {
		t.Errorf("tail from %d, expected %d; progress %d, expected %d", tailFrom, size, to.Size, size+sum(tail))
	}
	extents = append(extents, tail...)
	for _, e := range extents {
		n.cluster.put(e)
		n.cluster.checkExtent(e)
	}
	return to, extents, nil
}

// checkExtent checks that an extent is as redundant as promised: its shards are on
// different nodes, there, and at least k+1.
func (c *testCluster) checkExtent(e *proto.Extent) {
	c.t.Helper()
	if isInline(e) {
		if uint64(len(e.GetContent())) != e.GetSize() || len(e.GetHolders()) > 0 {
			c.t.Errorf("inline extent %x: %d bytes of %d, holders %q", e.GetId(), len(e.GetContent()), e.GetSize(), e.GetHolders())
		}
		return
	}
	l, err := extentLayout(e)
	if err != nil {
		c.t.Error(err)
		return
	}
	durable, seen := 0, make(map[string]bool)
	for number, holder := range e.GetHolders() {
		if holder == "" {
			continue
		}
		if seen[holder] {
			c.t.Errorf("extent %x has two shards on %s", e.GetId(), holder)
		}
		seen[holder] = true
		if _, err := os.Stat(c.shardPath(e, number)); err == nil {
			durable++
		}
	}
	if durable < l.data+min(1, l.parity) {
		c.t.Errorf("extent %x: %d of %d shards are durable", e.GetId(), durable, l.shards())
	}
}

// shardPath is where the holder has a shard, or, if it has not, where it would in its
// first folder.
func (c *testCluster) shardPath(e *proto.Extent, number int) string {
	id, err := newShardID(e.GetId(), uint32(number))
	if err != nil {
		c.t.Fatal(err)
	}
	cfg, name := c.node(e.GetHolders()[number]).cfg, filepath.Join(folderName(id.extent[0]), id.String())
	for _, dir := range cfg.MoreDirs {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name)
		}
	}
	return filepath.Join(cfg.Dir, name)
}

// push stores random bytes through a node.
func (n *testNode) push(size int, seed uint64) *blob {
	t := n.cluster.t
	t.Helper()
	content := randomBytes(size, seed)
	to, extents, err := n.appendAll(Progress{UploadID: fmt.Sprint("upload-", seed)}, bytes.NewReader(content))
	if err != nil {
		t.Fatalf("append %d bytes: %v", size, err)
	}
	if digest, err := to.Digest("sha256"); err != nil || digest != sha256Digest(content) {
		t.Fatalf("digest of %d bytes: %s, %v", size, digest, err)
	}
	return &blob{content: content, extents: extents}
}

// pull reads a range of a blob through a node.
func (n *testNode) pull(b *blob, offset, length uint64) ([]byte, error) {
	reader, err := n.store.Read(context.Background(), b.extents, offset, length)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	return io.ReadAll(reader)
}

// checkPull reads a whole blob through a node and compares.
func (n *testNode) checkPull(b *blob) {
	t := n.cluster.t
	t.Helper()
	got, err := n.pull(b, 0, uint64(len(b.content)))
	if err != nil {
		t.Fatalf("%s: read %d bytes: %v", n.id, len(b.content), err)
	}
	if !bytes.Equal(got, b.content) {
		t.Fatalf("%s: read other bytes than were written", n.id)
	}
}

// checkRanges reads random ranges of a blob and compares.
func (n *testNode) checkRanges(b *blob, random *rand.Rand, count int) {
	t := n.cluster.t
	t.Helper()
	for range count {
		offset := random.IntN(len(b.content))
		length := 1 + random.IntN(len(b.content)-offset)
		if random.IntN(2) == 0 {
			length = 1 + random.IntN(min(length, 50))
		}
		got, err := n.pull(b, uint64(offset), uint64(length))
		if err != nil {
			t.Fatalf("%s: read %d bytes at %d: %v", n.id, length, offset, err)
		}
		if !bytes.Equal(got, b.content[offset:offset+length]) {
			t.Fatalf("%s: %d bytes at %d are others than were written", n.id, length, offset)
		}
	}
}

// holderOf returns the node that holds a shard.
func (c *testCluster) holderOf(e *proto.Extent, number int) *testNode {
	return c.node(e.GetHolders()[number])
}

// others returns the nodes but these.
func (c *testCluster) others(not ...*testNode) []*testNode {
	return slices.DeleteFunc(slices.Clone(c.nodes), func(n *testNode) bool { return slices.Contains(not, n) })
}
