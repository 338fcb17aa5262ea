package blobstore

import (
	"bytes"
	"io"
	"net"
	"testing"

	"github.com/atollregistry/atoll/node/alloctest"
	"github.com/atollregistry/atoll/proto"
)

func BenchmarkHot(b *testing.B)    { alloctest.Bench(b, hotFunctions) }
func TestAllocations(t *testing.T) { alloctest.Check(t, hotFunctions) }

// hotFunctions are those that run for each stripe, cell, message or extent.
func hotFunctions(t testing.TB) []alloctest.Function {
	return append(append(hotStripe(t), hotLink(t)...), hotPlace(t)...)
}

// hotStripe is what is done to each stripe, and to a shard's cells.
func hotStripe(t testing.TB) []alloctest.Function {
	l := testLayout(t, 3, 2, 256<<10, 1<<30)
	st := newStripe(newBuffers(64<<20).overdraw(stripeMemory(l)), make(chan struct{}, 1))
	st.filled = l.stripeBytes()
	var code erasure
	hashes, err := resumeHashes(Progress{})
	if err != nil {
		t.Fatal(err)
	}
	disk := openTestDisk(t, diskConfig(t.TempDir()))
	shard := newShardContent(t, 1, 256<<10, 8<<20)
	if _, err := shard.write(disk); err != nil {
		t.Fatal(err)
	}
	run := shardRun{extentID: shard.header.GetExtentId(), layout: shard.layout, number: 1, first: 2, cells: 4}
	buf := make([]byte, run.bytes())
	sum := uint32(0)
	return []alloctest.Function{
		{Name: "encode a stripe", Allocs: 2, Call: func() {
			if _, err := st.encode(l, &code); err != nil {
				t.Fatal(err)
			}
		}},
		{Name: "hash a stripe", Allocs: 0, Call: func() { hashes.write(st.buf.data[:st.filled]) }},
		{Name: "checksum a cell", Allocs: 1, Call: func() { sum += cellChecksum(run.extentID, 1, 2, buf[:256<<10]) }},
		{Name: "read a run of cells", Allocs: 4, Call: func() {
			checksums, data, err := disk.ReadCells(run.request(), buf)
			if err == nil {
				err = run.verify(checksums, data)
			}
			if err != nil {
				t.Fatal(err)
			}
		}},
	}
}

// hotLink is what is done to each message with cells between two nodes.
func hotLink(t testing.TB) []alloctest.Function {
	cells := bytes.Repeat([]byte("cell"), 256<<10)
	answer := &proto.ShardAnswer{CellChecksums: []uint32{1, 2, 3, 4}}
	var sent bytes.Buffer
	if err := newLink(bufferConn{Writer: &sent}).send(answer, cells); err != nil {
		t.Fatal(err)
	}
	from, received := bytes.NewReader(nil), make([]byte, len(cells))
	sender, receiver := newLink(bufferConn{Writer: io.Discard}), newLink(readerConn{Reader: from})
	return []alloctest.Function{
		{Name: "send cells", Allocs: 2, Call: func() {
			if err := sender.send(answer, cells); err != nil {
				t.Fatal(err)
			}
		}},
		{Name: "receive cells", Allocs: 1, Call: func() {
			from.Reset(sent.Bytes())
			_, bulk, err := receiver.receive(answer, maxHeadBytes)
			if err == nil {
				err = receiver.receiveBulk(received[:bulk])
			}
			if err != nil {
				t.Fatal(err)
			}
		}},
	}
}

// readerConn is a connection that is read from memory.
type readerConn struct {
	net.Conn
	io.Reader
}

func (r readerConn) Read(p []byte) (int, error) { return r.Reader.Read(p) }

// hotPlace is what is done for each extent that is written, and each range that is read.
func hotPlace(t testing.TB) []alloctest.Function {
	nodes := testNodes(7, "a", "b", "c")
	l := testLayout(t, 3, 2, 256<<10, 1<<30)
	cfg := DefaultConfig()
	var bytes int
	return []alloctest.Function{
		{Name: "place an extent on 5 of 7 nodes", Allocs: 10, Call: func() {
			layout, err := chooseLayout(nodes, false, 0, cfg)
			if err == nil {
				_, err = place(nodes, "upload", int(layout.GetDataShards()+layout.GetParityShards()))
			}
			if err != nil {
				t.Fatal(err)
			}
		}},
		{Name: "layout of a range of 16 MiB", Allocs: 0, Call: func() {
			first, stripes := l.stripesOf(300<<20, 16<<20)
			for stripe := first; stripe < first+stripes; stripe++ {
				r := l.stripeRange(stripe, 300<<20, 16<<20)
				bytes += r.to - r.from + int(l.cellOffset(stripe)) + l.cellBytes(stripe)
			}
		}},
	}
}
