package blobstore

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// testExtentID returns an extent id that begins with the byte given.
func testExtentID(first byte) []byte {
	return append([]byte{first}, "fifteen bytes.."...)
}

// testShard returns a small shard's file: number 1 of 2+1, two cells of 16 and 3
// bytes.
func testShard(t testing.TB) (id shardID, l layout, file []byte) {
	t.Helper()
	layoutMessage := &proto.Layout{DataShards: 2, ParityShards: 1, CellBytes: 16}
	header, err := newShardHeader(&proto.ShardHeader{ExtentId: testExtentID('e'), ShardNumber: 1, Layout: layoutMessage})
	if err != nil {
		t.Fatal(err)
	}
	const extentBytes = 2*16 + 6
	cells := [][]byte{[]byte("sixteen bytes..."), []byte("end")}
	var sums []uint32
	for i, cell := range cells {
		file = append(file, cell...)
		sums = append(sums, cellChecksum(testExtentID('e'), 1, uint32(i), cell))
	}
	file = append(file, encodeTrailer(header, extentBytes, sums)...)
	return header.id, testLayout(t, 2, 1, 16, extentBytes), file
}

// readShardBytes reads a shard's file as the disk does.
func readShardBytes(t testing.TB, id shardID, file []byte) (*openShard, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shard")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	shard, err := openShardFile(path, id)
	if err == nil {
		t.Cleanup(func() { _ = shard.file.Close() })
	}
	return shard, err
}

// TestShardFileGolden holds the format fast.
func TestShardFileGolden(t *testing.T) {
	id, l, file := testShard(t)
	path := filepath.Join("testdata", "shard-v2.golden")
	if *rewrite {
		if err := os.WriteFile(path, []byte(hex.Dump(file)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.Dump(file); got != string(want) {
		t.Errorf("the format changed; a new version needs a new number, and the old must still be read:\n%s", got)
	}
	shard, err := readShardBytes(t, id, file)
	if err != nil {
		t.Fatal(err)
	}
	if shard.layout != l || len(shard.checksums) != 2 {
		t.Errorf("read back %+v, %d checksums", shard.layout, len(shard.checksums))
	}
}

// TestShardFileFindsEveryFlippedBit flips each bit of a file: around the cells it
// must show when the file is opened, in a cell when its checksum is compared.
func TestShardFileFindsEveryFlippedBit(t *testing.T) {
	id, l, file := testShard(t)
	path := filepath.Join(t.TempDir(), "shard")
	for bit := range len(file) * 8 {
		flipped := bytes.Clone(file)
		flipped[bit/8] ^= 1 << (bit % 8)
		if err := os.WriteFile(path, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		shard, err := openShardFile(path, id)
		inCells := bit/8 < int(l.shardBytes())
		if !inCells {
			if !errors.Is(err, ErrChecksum) {
				t.Fatalf("bit %d of byte %d: got %v, want ErrChecksum", bit%8, bit/8, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("bit %d of byte %d in a cell: %v", bit%8, bit/8, err)
		}
		sound := true
		for cell := range l.stripes() {
			data := flipped[l.cellOffset(cell):][:l.cellBytes(cell)]
			sound = sound && cellChecksum(id.extent[:], id.number, uint32(cell), data) == shard.checksums[cell]
		}
		if sound {
			t.Fatalf("bit %d of byte %d: nobody noticed", bit%8, bit/8)
		}
		_ = shard.file.Close()
	}
}

func TestShardFileFindsWrongLengths(t *testing.T) {
	id, _, file := testShard(t)
	for length := range file {
		if _, err := readShardBytes(t, id, file[:length]); !errors.Is(err, ErrChecksum) {
			t.Fatalf("%d of %d bytes: got %v, want ErrChecksum", length, len(file), err)
		}
	}
	zeroTail := append(bytes.Clone(file[:len(file)-30]), make([]byte, 30)...)
	longer := append(bytes.Clone(file), 0)
	hole := append([]byte{0}, file...)
	for _, wrong := range [][]byte{zeroTail, longer, hole, make([]byte, len(file))} {
		if _, err := readShardBytes(t, id, wrong); !errors.Is(err, ErrChecksum) {
			t.Errorf("got %v, want ErrChecksum", err)
		}
	}
}

// TestShardFileFindsSwappedFiles: a sound file in the place of another shard.
func TestShardFileFindsSwappedFiles(t *testing.T) {
	id, _, file := testShard(t)
	otherNumber, otherExtent := id, id
	otherNumber.number = 0
	otherExtent.extent[15]++
	for _, other := range []shardID{otherNumber, otherExtent} {
		if _, err := readShardBytes(t, other, file); !errors.Is(err, ErrChecksum) {
			t.Errorf("got %v, want ErrChecksum", err)
		}
	}
}

// TestShardFileOfOtherSoftware: an unknown format is not taken for rot, which
// would be repaired.
func TestShardFileOfOtherSoftware(t *testing.T) {
	id, _, file := testShard(t)
	for _, offset := range []int{8, 12} {
		newer := bytes.Clone(file)
		footer := newer[len(newer)-footerBytes:]
		footer[offset]++
		resum(footer)
		if _, err := readShardBytes(t, id, newer); !errors.Is(err, ErrInvalid) || errors.Is(err, ErrChecksum) {
			t.Errorf("got %v, want ErrInvalid", err)
		}
	}
}

// TestShardFileOfFormat1: nor is the format before.
func TestShardFileOfFormat1(t *testing.T) {
	id, _, file := testShard(t)
	copy(file[len(file)-footerBytes:], firstMagic)
	if _, err := readShardBytes(t, id, file); !errors.Is(err, ErrInvalid) || errors.Is(err, ErrChecksum) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
}

// resum makes the checksum at the end of b right.
func resum(b []byte) {
	body := len(b) - checksumBytes
	binary.LittleEndian.PutUint32(b[body:], crc32.Checksum(b[:body], castagnoli()))
}

// FuzzShardFile: no bytes, not even with right checksums, make the reader panic,
// use much memory, or return cells that are not in the file.
func FuzzShardFile(f *testing.F) {
	id, _, file := testShard(f)
	f.Add(file, false)
	f.Add(file, true)
	f.Add(file[len(file)-footerBytes:], true)
	f.Add(append([]byte("cells and checksums"), file[len(file)-footerBytes:]...), true)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, file []byte, sums bool) {
		file = bytes.Clone(file)
		if sums && len(file) >= footerBytes {
			resum(file[len(file)-footerBytes:])
		}
		path := filepath.Join(dir, "shard")
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		shard, err := openShardFile(path, id)
		if err != nil {
			if !errors.Is(err, ErrChecksum) && !errors.Is(err, ErrInvalid) {
				t.Fatalf("unexpected error %v", err)
			}
			return
		}
		defer shard.file.Close()
		if int64(len(file)) != shardFileBytes(shard.layout) || len(shard.checksums) != shard.layout.stripes() {
			t.Fatalf("%d bytes taken for %+v with %d checksums", len(file), shard.layout, len(shard.checksums))
		}
	})
}

func TestParseShardID(t *testing.T) {
	id, _, _ := testShard(t)
	if got, ok := parseShardID(id.String()); !ok || got != id {
		t.Errorf("%q became %v, %v", id.String(), got, ok)
	}
	const hexID = "65666966746565206279746573202e2e"
	for _, name := range []string{"", ".", hexID, hexID + ".", hexID + ".01", hexID + ".-1", hexID + ".+1", hexID + ".1.2", hexID[:30] + ".1", "X" + hexID[1:] + ".1", "E" + hexID[1:] + ".1", hexID + ".99999999999"} {
		if got, ok := parseShardID(name); ok {
			t.Errorf("%q was taken for %v", name, got)
		}
	}
}

// TestCellChecksumKnowsItsPlace: the same bytes elsewhere have another checksum.
func TestCellChecksumKnowsItsPlace(t *testing.T) {
	cell := []byte("the same bytes")
	sums := map[uint32]bool{
		cellChecksum(testExtentID(1), 0, 0, cell): true,
		cellChecksum(testExtentID(2), 0, 0, cell): true,
		cellChecksum(testExtentID(1), 1, 0, cell): true,
		cellChecksum(testExtentID(1), 0, 1, cell): true,
	}
	if len(sums) != 4 {
		t.Errorf("%d different checksums for 4 places", len(sums))
	}
	// The check value that catalogues of CRCs give for CRC-32C.
	if got := crc32.Checksum([]byte("123456789"), castagnoli()); got != 0xe3069283 {
		t.Errorf("CRC32C is %08x", got)
	}
}

func TestNewShardHeaderRefuses(t *testing.T) {
	sound := &proto.Layout{DataShards: 2, ParityShards: 1, CellBytes: 16}
	for name, h := range map[string]*proto.ShardHeader{
		"nothing":             nil,
		"short id":            {ExtentId: []byte("short"), Layout: sound},
		"no layout":           {ExtentId: testExtentID(1)},
		"number beyond":       {ExtentId: testExtentID(1), ShardNumber: 3, Layout: sound},
		"number far beyond":   {ExtentId: testExtentID(1), ShardNumber: 1 << 31, Layout: sound},
		"layout without size": {ExtentId: testExtentID(1), Layout: &proto.Layout{DataShards: 2}},
	} {
		if _, err := newShardHeader(h); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
}
