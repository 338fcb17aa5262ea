package blobstore

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"github.com/atollregistry/atoll/proto"
)

// The format of shard files. DESIGN.md has the picture and the reasons. Numbers
// are little endian. Nothing here does input or output.
const (
	// ExtentIDBytes is the length of an extent's id.
	ExtentIDBytes = 16
	// shardFormat is the version of the format.
	shardFormat = 2
	// checksumBytes is a cell's checksum in the trailer.
	checksumBytes = 4
	// footerBytes is the end of the trailer, and of the file.
	footerBytes = 64

	shardMagic = "atollshd"
	// firstMagic is the footer's in format 1, which was not released.
	firstMagic = "atollend"
)

// shardID names a shard.
type shardID struct {
	extent [ExtentIDBytes]byte
	number uint32
}

// newShardID fails with ErrInvalid when there can be no such shard.
func newShardID(extentID []byte, shardNumber uint32) (shardID, error) {
	if len(extentID) != ExtentIDBytes {
		return shardID{}, fmt.Errorf("extent id of %d bytes: %w", len(extentID), ErrInvalid)
	}
	if shardNumber >= MaxDataShards+MaxParityShards {
		return shardID{}, fmt.Errorf("shard number %d: %w", shardNumber, ErrInvalid)
	}
	return shardID{extent: [ExtentIDBytes]byte(extentID), number: shardNumber}, nil
}

// String returns the name of the shard's file.
func (s shardID) String() string {
	return hex.EncodeToString(s.extent[:]) + "." + strconv.FormatUint(uint64(s.number), 10)
}

// parseShardID is the inverse of String; ok is false for any other name.
func parseShardID(name string) (id shardID, ok bool) {
	extent, number, found := strings.Cut(name, ".")
	if !found || len(extent) != 2*ExtentIDBytes {
		return shardID{}, false
	}
	if _, err := hex.Decode(id.extent[:], []byte(extent)); err != nil {
		return shardID{}, false
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return shardID{}, false
	}
	id.number = uint32(n)
	return id, id.String() == name
}

// shardHeader is what is known of a shard when writing begins.
type shardHeader struct {
	id                      shardID
	data, parity, cellBytes uint32
}

// newShardHeader fails with ErrInvalid when there can be no such shard.
func newShardHeader(h *proto.ShardHeader) (shardHeader, error) {
	id, err := newShardID(h.GetExtentId(), h.GetShardNumber())
	if err != nil {
		return shardHeader{}, err
	}
	l, err := newLayout(h.GetLayout(), 1)
	if err != nil {
		return shardHeader{}, fmt.Errorf("shard %s: %w", id, err)
	}
	if id.number >= uint32(l.shards()) {
		return shardHeader{}, fmt.Errorf("shard %s of %d: %w", id, l.shards(), ErrInvalid)
	}
	return shardHeader{id: id, data: uint32(l.data), parity: uint32(l.parity), cellBytes: uint32(l.cell)}, nil
}

// layout binds the header's layout to the size of the extent.
func (h shardHeader) layout(extentBytes uint64) (layout, error) {
	return newLayout(&proto.Layout{DataShards: h.data, ParityShards: h.parity, CellBytes: h.cellBytes}, extentBytes)
}

// encodeTrailer returns the last part of a shard file: the checksums of the
// cells, and the footer.
func encodeTrailer(h shardHeader, extentBytes uint64, checksums []uint32) []byte {
	b := make([]byte, 0, len(checksums)*checksumBytes+footerBytes)
	for _, sum := range checksums {
		b = binary.LittleEndian.AppendUint32(b, sum)
	}
	sum, footerAt := crc32.Checksum(b, castagnoli()), len(b)
	b = append(b, shardMagic...)
	b = binary.LittleEndian.AppendUint32(b, shardFormat)
	b = binary.LittleEndian.AppendUint32(b, erasureCodec)
	b = append(b, h.id.extent[:]...)
	b = binary.LittleEndian.AppendUint32(b, h.id.number)
	b = binary.LittleEndian.AppendUint32(b, h.data)
	b = binary.LittleEndian.AppendUint32(b, h.parity)
	b = binary.LittleEndian.AppendUint32(b, h.cellBytes)
	b = binary.LittleEndian.AppendUint64(b, extentBytes)
	b = binary.LittleEndian.AppendUint32(b, sum)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[footerAt:], castagnoli()))
}

// shardFooter is the end of a shard file.
type shardFooter struct {
	layout layout
	// sum is that of the cells' checksums.
	sum uint32
}

// decodeShardFooter fails with ErrChecksum when the bytes are not the end of this shard in a file of
// fileBytes, and with ErrInvalid when they are that of a shard, but of a format that this
// software does not know.
func decodeShardFooter(id shardID, b []byte, fileBytes int64) (shardFooter, error) {
	fail := func(what string) (shardFooter, error) { return shardFooter{}, fmt.Errorf("%s: %w", what, ErrChecksum) }
	if len(b) == footerBytes && string(b[:8]) == firstMagic {
		return shardFooter{}, fmt.Errorf("format 1 is of other software: %w", ErrInvalid)
	}
	if len(b) != footerBytes || string(b[:8]) != shardMagic {
		return fail("the file has not the end of a shard")
	}
	if sum := binary.LittleEndian.Uint32(b[60:]); sum != crc32.Checksum(b[:60], castagnoli()) {
		return fail("footer")
	}
	format, codec := binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
	if format != shardFormat || codec != erasureCodec {
		return shardFooter{}, fmt.Errorf("format %d with erasure code %d is of other software: %w", format, codec, ErrInvalid)
	}
	h := shardHeader{
		id:        shardID{extent: [ExtentIDBytes]byte(b[16:]), number: binary.LittleEndian.Uint32(b[32:])},
		data:      binary.LittleEndian.Uint32(b[36:]),
		parity:    binary.LittleEndian.Uint32(b[40:]),
		cellBytes: binary.LittleEndian.Uint32(b[44:]),
	}
	if h.id != id {
		return fail("the file is of shard " + h.id.String())
	}
	l, err := h.layout(binary.LittleEndian.Uint64(b[48:]))
	if err != nil || l.stripes() > MaxShardCells {
		return fail("layout and size do not fit")
	}
	if fileBytes != shardFileBytes(l) {
		return fail("length")
	}
	return shardFooter{layout: l, sum: binary.LittleEndian.Uint32(b[56:])}, nil
}

// decodeChecksums returns the checksums of the cells, which are before the footer. It fails with ErrChecksum.
func (f shardFooter) decodeChecksums(b []byte) ([]uint32, error) {
	if crc32.Checksum(b, castagnoli()) != f.sum {
		return nil, fmt.Errorf("checksums: %w", ErrChecksum)
	}
	checksums := make([]uint32, f.layout.stripes())
	for i := range checksums {
		checksums[i] = binary.LittleEndian.Uint32(b[i*checksumBytes:])
	}
	return checksums, nil
}

// trailerBytes returns the size of the trailer of a shard.
func trailerBytes(l layout) int { return l.stripes()*checksumBytes + footerBytes }

// shardFileBytes returns the size of a shard's file.
func shardFileBytes(l layout) int64 {
	return l.shardBytes() + int64(trailerBytes(l))
}

// cellChecksum returns the CRC32C of a cell. It covers where the cell belongs, so
// that sound bytes in a wrong place are found as well.
func cellChecksum(extentID []byte, shardNumber, cellNumber uint32, data []byte) uint32 {
	return crc32.Update(cellSeed(extentID, shardNumber, cellNumber), castagnoli(), data)
}

// cellSeed is the checksum of a cell without bytes.
func cellSeed(extentID []byte, shardNumber, cellNumber uint32) uint32 {
	var place [ExtentIDBytes + 8]byte
	copy(place[:], extentID)
	binary.LittleEndian.PutUint32(place[ExtentIDBytes:], shardNumber)
	binary.LittleEndian.PutUint32(place[ExtentIDBytes+4:], cellNumber)
	return crc32.Checksum(place[:], castagnoli())
}

// castagnoli is the polynomial of CRC32C, which the processor has an instruction
// for.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }
