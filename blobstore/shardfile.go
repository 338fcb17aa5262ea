package blobstore

import (
	"encoding/binary"
	"hash/crc32"
)

// ExtentIDBytes is the length of an extent's id.
const ExtentIDBytes = 16

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

// castagnoli is CRC32C, which the processor computes.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }
