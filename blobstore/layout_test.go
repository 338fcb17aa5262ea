package blobstore

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

func testLayout(t testing.TB, data, parity, cell int, size uint64) layout {
	t.Helper()
	l, err := newLayout(&proto.Layout{DataShards: uint32(data), ParityShards: uint32(parity), CellBytes: uint32(cell)}, size)
	if err != nil {
		t.Fatalf("newLayout: %v", err)
	}
	return l
}

func TestLayout(t *testing.T) {
	const kib = 1 << 10
	tests := []struct {
		name       string
		data, cell int
		size       uint64
		stripes    int
		lastData   int
		lastCell   int
		shardBytes int64
	}{
		{name: "one byte, mirrored", data: 1, cell: 256 * kib, size: 1, stripes: 1, lastData: 1, lastCell: 1, shardBytes: 1},
		{name: "one byte, cut", data: 8, cell: 256 * kib, size: 1, stripes: 1, lastData: 1, lastCell: 1, shardBytes: 1},
		{name: "less than a byte a shard", data: 8, cell: 16, size: 7, stripes: 1, lastData: 7, lastCell: 1, shardBytes: 1},
		{name: "one full stripe", data: 2, cell: 16, size: 32, stripes: 1, lastData: 32, lastCell: 16, shardBytes: 16},
		{name: "a stripe and a byte", data: 2, cell: 16, size: 33, stripes: 2, lastData: 1, lastCell: 1, shardBytes: 17},
		{name: "uneven rest", data: 3, cell: 16, size: 48 + 10, stripes: 2, lastData: 10, lastCell: 4, shardBytes: 20},
		{name: "1 GiB on eight", data: 8, cell: 256 * kib, size: 1 << 30, stripes: 512, lastData: 2048 * kib, lastCell: 256 * kib, shardBytes: 1 << 27},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := testLayout(t, test.data, 1, test.cell, test.size)
			last := l.stripes() - 1
			if l.stripes() != test.stripes || l.dataBytes(last) != test.lastData || l.cellBytes(last) != test.lastCell || l.shardBytes() != test.shardBytes {
				t.Errorf("got %d stripes, last with %d bytes in cells of %d, shards of %d", l.stripes(), l.dataBytes(last), l.cellBytes(last), l.shardBytes())
			}
			if got := l.cellsBytes(0, l.stripes()); int64(got) != l.shardBytes() {
				t.Errorf("all cells are %d bytes, the shard is %d", got, l.shardBytes())
			}
		})
	}
}

func TestLayoutRefusesTheImpossible(t *testing.T) {
	tests := []struct {
		name   string
		layout *proto.Layout
		size   uint64
	}{
		{"nothing", nil, 1},
		{"no data shards", &proto.Layout{ParityShards: 1, CellBytes: 16}, 1},
		{"too many data shards", &proto.Layout{DataShards: MaxDataShards + 1, CellBytes: 16}, 1},
		{"too many parity shards", &proto.Layout{DataShards: 1, ParityShards: MaxParityShards + 1, CellBytes: 16}, 1},
		{"no cells", &proto.Layout{DataShards: 1}, 1},
		{"huge cells", &proto.Layout{DataShards: 1, CellBytes: MaxCellBytes + 1}, 1},
		{"empty extent", &proto.Layout{DataShards: 1, CellBytes: 16}, 0},
		{"too many cells", &proto.Layout{DataShards: 2, CellBytes: 16}, 2*16*MaxShardCells + 1},
		{"size that overflows", &proto.Layout{DataShards: 1, CellBytes: 16}, 1<<64 - 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, err := newLayout(test.layout, test.size); !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
		})
	}
	full := &proto.Extent{Size: 10, Layout: &proto.Layout{DataShards: 2, ParityShards: 1, CellBytes: 16}, Holders: []string{"a", "b"}}
	if _, err := extentLayout(full); !errors.Is(err, ErrInvalid) {
		t.Errorf("2 holders for 3 shards: got %v, want ErrInvalid", err)
	}
	full.Holders = append(full.Holders, "")
	if _, err := extentLayout(full); err != nil {
		t.Errorf("degraded extent: %v", err)
	}
}

// cut returns an extent's data cells, by stripe and shard number, as the layout
// defines them.
func cut(l layout, extent []byte) [][][]byte {
	var stripes [][][]byte
	for s := range l.stripes() {
		start := s * l.stripeBytes()
		padded := make([]byte, l.cellBytes(s)*l.data)
		copy(padded, extent[start:start+l.dataBytes(s)])
		var cells [][]byte
		for d := range l.data {
			cells = append(cells, padded[d*l.cellBytes(s):(d+1)*l.cellBytes(s)])
		}
		stripes = append(stripes, cells)
	}
	return stripes
}

// checkRange reads a range of the extent from its cells alone, touching only those
// that the layout names.
func checkRange(t *testing.T, l layout, extent []byte, offset, length uint64) {
	t.Helper()
	stripes := cut(l, extent)
	var read []byte
	first, count := l.stripesOf(offset, length)
	for s := first; s < first+count; s++ {
		r := l.stripeRange(s, offset, length)
		if r.from >= r.to || r.firstShard > r.lastShard || r.lastShard >= l.data {
			t.Fatalf("stripe %d of range %d+%d: empty or outside: %+v", s, offset, length, r)
		}
		cell := l.cellBytes(s)
		touched := make([]byte, l.data*cell)
		for d := r.firstShard; d <= r.lastShard; d++ {
			copy(touched[d*cell:], stripes[s][d])
		}
		read = append(read, touched[r.from:r.to]...)
	}
	if !bytes.Equal(read, extent[offset:offset+length]) {
		t.Fatalf("range %d+%d of %d with k=%d, cell=%d: wrong bytes", offset, length, l.size, l.data, l.cell)
	}
}

func FuzzLayoutRanges(f *testing.F) {
	f.Add(uint8(1), uint16(1), uint16(1), uint16(0), uint16(1))
	f.Add(uint8(3), uint16(16), uint16(58), uint16(47), uint16(5))
	f.Add(uint8(8), uint16(64), uint16(4000), uint16(511), uint16(1030))
	f.Fuzz(func(t *testing.T, data uint8, cell, size, offset, length uint16) {
		if data == 0 || data > MaxDataShards || cell == 0 || size == 0 {
			t.Skip()
		}
		l := testLayout(t, int(data), 1, int(cell), uint64(size))
		extent := make([]byte, size)
		random := rand.NewChaCha8([32]byte{1})
		_, _ = random.Read(extent)
		offset %= size
		length = max(1, min(length, size-offset))
		checkRange(t, l, extent, uint64(offset), uint64(length))
		sum := int64(0)
		for s := range l.stripes() {
			if l.cellOffset(s) != sum {
				t.Fatalf("cell %d is at %d, not behind the one before at %d", s, l.cellOffset(s), sum)
			}
			sum += int64(l.cellBytes(s))
		}
		if sum != l.shardBytes() {
			t.Fatalf("cells are %d bytes, the shard is %d", sum, l.shardBytes())
		}
	})
}

func TestLayoutEveryRange(t *testing.T) {
	for _, data := range []int{1, 2, 3, 5} {
		for _, size := range []uint64{1, 7, 8, 9, 31, 40} {
			l := testLayout(t, data, 1, 4, size)
			extent := make([]byte, size)
			for i := range extent {
				extent[i] = byte(i + 1)
			}
			for offset := range size {
				for length := uint64(1); offset+length <= size; length++ {
					checkRange(t, l, extent, offset, length)
				}
			}
		}
	}
}
