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
	shardFormat = 1
	// headerBytes is what precedes the cells.
	headerBytes = 64
	// checksumBytes is a cell's checksum in the trailer.
	checksumBytes = 4
	// footerBytes is the end of the trailer, and of the file.
	footerBytes = 64

	headerMagic = "atollshd"
	footerMagic = "atollend"
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

// shardHeader is the first part of a shard file: what is known when writing
// begins.
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

func (h shardHeader) encode() []byte {
	b := make([]byte, 0, headerBytes)
	b = append(b, headerMagic...)
	b = binary.LittleEndian.AppendUint32(b, shardFormat)
	b = binary.LittleEndian.AppendUint32(b, erasureCodec)
	b = append(b, h.id.extent[:]...)
	b = binary.LittleEndian.AppendUint32(b, h.id.number)
	b = binary.LittleEndian.AppendUint32(b, h.data)
	b = binary.LittleEndian.AppendUint32(b, h.parity)
	b = binary.LittleEndian.AppendUint32(b, h.cellBytes)
	b = b[:headerBytes-checksumBytes] // Zeros, for later formats.
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli()))
}

// decodeShardHeader fails with ErrChecksum when the bytes are not a header of
// this shard, and with ErrInvalid when they are one, but of a format that this
// software does not know.
func decodeShardHeader(id shardID, b []byte) (shardHeader, error) {
	if len(b) != headerBytes || string(b[:8]) != headerMagic {
		return shardHeader{}, fmt.Errorf("not a shard file: %w", ErrChecksum)
	}
	if sum := binary.LittleEndian.Uint32(b[headerBytes-checksumBytes:]); sum != crc32.Checksum(b[:headerBytes-checksumBytes], castagnoli()) {
		return shardHeader{}, fmt.Errorf("header: %w", ErrChecksum)
	}
	format, codec := binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
	if format != shardFormat || codec != erasureCodec {
		return shardHeader{}, fmt.Errorf("format %d with erasure code %d is of other software: %w", format, codec, ErrInvalid)
	}
	h := shardHeader{
		id:        shardID{extent: [ExtentIDBytes]byte(b[16:]), number: binary.LittleEndian.Uint32(b[32:])},
		data:      binary.LittleEndian.Uint32(b[36:]),
		parity:    binary.LittleEndian.Uint32(b[40:]),
		cellBytes: binary.LittleEndian.Uint32(b[44:]),
	}
	if h.id != id {
		return shardHeader{}, fmt.Errorf("the file is of shard %s: %w", h.id, ErrChecksum)
	}
	return h, nil
}

// encodeTrailer returns the last part of a shard file: the checksums of the
// cells, and the footer.
func encodeTrailer(h shardHeader, extentBytes uint64, checksums []uint32) []byte {
	b := make([]byte, 0, len(checksums)*checksumBytes+footerBytes)
	for _, sum := range checksums {
		b = binary.LittleEndian.AppendUint32(b, sum)
	}
	end := len(b) + footerBytes - checksumBytes
	b = append(b, footerMagic...)
	b = append(b, h.id.extent[:]...)
	b = binary.LittleEndian.AppendUint32(b, h.id.number)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(checksums)))
	b = binary.LittleEndian.AppendUint64(b, extentBytes)
	b = b[:end] // Zeros, for later formats.
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli()))
}

// shardFooter is the end of a shard file: what is known when writing ends.
type shardFooter struct {
	extentBytes uint64
	cells       uint32
}

// decodeShardFooter reads the numbers of a footer. They are to be trusted only
// once decodeTrailer has seen the whole trailer.
func decodeShardFooter(b []byte) (shardFooter, error) {
	if len(b) != footerBytes || string(b[:8]) != footerMagic {
		return shardFooter{}, fmt.Errorf("the file has no end: %w", ErrChecksum)
	}
	f := shardFooter{cells: binary.LittleEndian.Uint32(b[28:]), extentBytes: binary.LittleEndian.Uint64(b[32:])}
	if f.cells == 0 || f.cells > MaxShardCells {
		return shardFooter{}, fmt.Errorf("footer with %d cells: %w", f.cells, ErrChecksum)
	}
	return f, nil
}

// decodeTrailer checks the trailer of a file of fileBytes against its header and
// returns the layout with the extent's size, and the checksums of the cells. It
// fails with ErrChecksum.
func decodeTrailer(h shardHeader, b []byte, fileBytes int64) (layout, []uint32, error) {
	fail := func(what string) (layout, []uint32, error) {
		return layout{}, nil, fmt.Errorf("%s: %w", what, ErrChecksum)
	}
	if len(b) < footerBytes {
		return fail("trailer is cut off")
	}
	body := len(b) - checksumBytes
	if binary.LittleEndian.Uint32(b[body:]) != crc32.Checksum(b[:body], castagnoli()) {
		return fail("trailer")
	}
	footer := b[len(b)-footerBytes:]
	f, err := decodeShardFooter(footer)
	if err != nil {
		return layout{}, nil, err
	}
	if [ExtentIDBytes]byte(footer[8:]) != h.id.extent || binary.LittleEndian.Uint32(footer[24:]) != h.id.number {
		return fail("trailer of another shard")
	}
	l, err := h.layout(f.extentBytes)
	if err != nil {
		return fail("layout and size do not fit")
	}
	if int(f.cells) != l.stripes() || len(b) != trailerBytes(l) || fileBytes != shardFileBytes(l) {
		return fail("length")
	}
	checksums := make([]uint32, f.cells)
	for i := range checksums {
		checksums[i] = binary.LittleEndian.Uint32(b[i*checksumBytes:])
	}
	return l, checksums, nil
}

// trailerBytes returns the size of the trailer of a shard.
func trailerBytes(l layout) int { return l.stripes()*checksumBytes + footerBytes }

// shardFileBytes returns the size of a shard's file.
func shardFileBytes(l layout) int64 {
	return headerBytes + l.shardBytes() + int64(trailerBytes(l))
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
