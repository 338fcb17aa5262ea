package blobstore

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/atollregistry/atoll/blobstore/cache"
	"github.com/atollregistry/atoll/proto"
)

// connection is a cache.Sender that counts what came as files.
type connection struct {
	bytes.Buffer
	sent int64
	// before is called before a file is taken.
	before func(file *io.LimitedReader)
}

// SendFile implements cache.Sender.
func (c *connection) SendFile(file *io.LimitedReader) (int64, error) {
	if c.before != nil {
		c.before(file)
	}
	n, err := io.Copy(&c.Buffer, file)
	c.sent += n
	return n, err
}

// pullTo pulls a range of a blob to a connection and compares.
func (n *testNode) pullTo(b *blob, to *connection, offset, length int) {
	t := n.cluster.t
	t.Helper()
	reader, err := n.store.Pull(t.Context(), sha256Digest(b.content), b.extents, uint64(offset), uint64(length), false)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if _, err := io.CopyBuffer(onlySender{to}, reader, nil); err != nil {
		t.Fatalf("pull %d bytes at %d: %v", length, offset, err)
	}
	if !bytes.Equal(to.Bytes(), b.content[offset:offset+length]) {
		t.Fatalf("%d bytes at %d are others than were written", length, offset)
	}
}

// onlySender keeps io.Copy from the ReadFrom of a connection's buffer.
type onlySender struct{ to *connection }

// Write implements io.Writer.
func (o onlySender) Write(p []byte) (int, error) { return o.to.Write(p) }

// SendFile implements cache.Sender.
func (o onlySender) SendFile(file *io.LimitedReader) (int64, error) { return o.to.SendFile(file) }

// mirrors are this node's shards of a blob.
func (n *testNode) mirrors(b *blob) (shards []*openShard) {
	for _, e := range b.extents {
		id, err := newShardID(e.GetId(), uint32(holderNumber(e, n.id)))
		if err != nil {
			n.cluster.t.Fatal(err)
		}
		d, shard, err := n.store.disks.acquire(id, false)
		if err != nil {
			n.cluster.t.Fatal(err)
		}
		defer d.handles.release(shard)
		shards = append(shards, shard)
	}
	return shards
}

func holderNumber(e *proto.Extent, node string) int {
	for number, holder := range e.GetHolders() {
		if holder == node {
			return number
		}
	}
	return -1
}

// What nobody has read through is compared with its checksums as it is sent, in whole or in
// part; after that it is sent as it is.
func TestMirrorIsSent(t *testing.T) {
	for _, nodes := range []int{1, 2} {
		n := startCluster(t, nodes, nil).nodes[0]
		b := n.push(250_000, 1)
		for _, r := range []struct{ offset, length int }{{99_999, 2}, {5, 249_990}, {0, 250_000}, {0, 1}, {98_304, 98_304}, {249_999, 1}} {
			to := &connection{}
			n.pullTo(b, to, r.offset, r.length)
			if to.sent != int64(r.length) {
				t.Errorf("%d of %d bytes at %d were sent as files", to.sent, r.length, r.offset)
			}
			for i, shard := range n.mirrors(b) {
				if r.length == len(b.content) && !shard.passage.isKept() {
					t.Errorf("shard %d is dropped from memory while it is sent, if others read it", i)
				}
				// Only the whole blob has all cells of the first shard, and of the last.
				if whole := r.length == len(b.content); i != 1 && whole && shard.checked.Load() == nil {
					t.Errorf("shard %d was sent whole and is not known to be sound", i)
				}
			}
		}
	}
}

// A shard that nobody has read through for long is compared again: what is rotten is not sent, what
// is right takes its place, and the damage is reported.
func TestMirrorRots(t *testing.T) {
	c := startCluster(t, 2, nil)
	n := c.nodes[0]
	b := n.push(250_000, 1)
	n.pullTo(b, &connection{}, 0, len(b.content))
	path := c.shardPath(b.extents[1], holderNumber(b.extents[1], n.id))
	content, err := os.ReadFile(path)
	if err == nil {
		err = flip(path, content, 50_000)
	}
	if err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-cache.TrustInterval - time.Minute)
	for _, shard := range n.mirrors(b) {
		shard.checked.Store(&long)
	}
	to := &connection{}
	n.pullTo(b, to, 0, len(b.content))
	cell := int64(n.cfg.CellBytes)
	if want := int64(len(b.content)) - int64(b.extents[1].GetSize()) + 50_000/cell*cell; to.sent != want {
		t.Errorf("%d bytes were sent as files, all but those behind the damage are %d", to.sent, want)
	}
	if n.store.DamagedShards() == 0 {
		t.Error("nobody has noticed the damage")
	}
}

// A file that ends early, or can't be read, while it is sent, is replaced in that reply.
func TestMirrorFailsWhileSent(t *testing.T) {
	c := startCluster(t, 2, nil)
	n := c.nodes[0]
	b := n.push(90_000, 1)
	n.pullTo(b, &connection{}, 0, len(b.content)) // From now on it is trusted.
	to := &connection{before: func(*io.LimitedReader) {
		if err := os.Truncate(c.shardPath(b.extents[0], holderNumber(b.extents[0], n.id)), 40_000); err != nil {
			t.Error(err)
		}
	}}
	n.pullTo(b, to, 0, len(b.content))
	if to.sent != 40_000 {
		t.Errorf("%d bytes came from the file, it had 40000", to.sent)
	}
}

// A file that has taken the place of the one that was read through is not sent unseen.
func TestMirrorIsReplaced(t *testing.T) {
	c := startCluster(t, 2, nil)
	n := c.nodes[0]
	b := n.push(90_000, 1)
	n.pullTo(b, &connection{}, 0, len(b.content)) // From now on it is trusted.
	path := c.shardPath(b.extents[0], holderNumber(b.extents[0], n.id))
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content[7] ^= 1
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	to := &connection{}
	n.pullTo(b, to, 0, len(b.content))
	if cell := int64(n.cfg.CellBytes); to.sent >= cell {
		t.Errorf("%d bytes of another file were sent unseen", to.sent)
	}
}
