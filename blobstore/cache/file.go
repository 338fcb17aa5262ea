package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

// A file has the blob's bytes; then the CRC32C of each block of them, the last of which may be
// shorter, 4 bytes each; then the footer: "atollche", the blob's size in 8 bytes, and in 4 the CRC32C of
// all checksums, the size, and the blob's name. Little endian.
const (
	blockBytes  = 1 << 20
	magic       = "atollche"
	footerBytes = 8 + 8 + 4
	sumBytes    = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errDamaged is that a file is not what was written.
var errDamaged = errors.New("damaged")

func blocks(size uint64) uint64 { return (size + blockBytes - 1) / blockBytes }

// contentBytes returns the size of the blob in a file of so many bytes; ok is false if no blob
// makes such a file.
func contentBytes(fileBytes int64) (size uint64, ok bool) {
	if fileBytes <= footerBytes {
		return 0, false
	}
	rest := uint64(fileBytes - footerBytes) // size + 4 * blocks(size)
	n := (rest + blockBytes + sumBytes - 1) / (blockBytes + sumBytes)
	if rest <= n*sumBytes {
		return 0, false
	}
	size = rest - n*sumBytes
	return size, blocks(size) == n
}

// trailer returns what stands behind the blob's bytes.
func trailer(sums []uint32, name string, size uint64) []byte {
	var out []byte
	for _, sum := range sums {
		out = binary.LittleEndian.AppendUint32(out, sum)
	}
	covered := crc32.Checksum(append(binary.LittleEndian.AppendUint64(out[:len(out):len(out)], size), name...), castagnoli)
	out = append(out, magic...)
	out = binary.LittleEndian.AppendUint64(out, size)
	return binary.LittleEndian.AppendUint32(out, covered)
}

// fileBlobBytes returns the size of the blob whose file was finished under a name. It fails with
// errDamaged, or as the disk does.
func fileBlobBytes(path, name string) (uint64, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	size, ok := contentBytes(info.Size())
	if !ok {
		return 0, fmt.Errorf("%d bytes: %w", info.Size(), errDamaged)
	}
	_, err = readSums(file, name, size)
	return size, err
}

// checkBlock reads a block of a blob and compares it with its checksum, through a buffer. It fails with errDamaged, or
// as the disk does.
func checkBlock(file *os.File, size, block uint64, want uint32, buffer []byte) error {
	offset := block * blockBytes
	length := min(blockBytes, size-offset)
	sum := crc32.New(castagnoli)
	content := struct{ io.Reader }{io.NewSectionReader(file, int64(offset), int64(length))}
	n, err := io.CopyBuffer(struct{ io.Writer }{sum}, content, buffer)
	if err == nil && (uint64(n) < length || sum.Sum32() != want) {
		err = errDamaged
	}
	if err != nil {
		return fmt.Errorf("block %d: %w", block, err)
	}
	return nil
}

// readSums returns the checksums of a file for a blob of that size.
func readSums(file *os.File, name string, size uint64) ([]uint32, error) {
	n := blocks(size)
	raw := make([]byte, n*sumBytes+footerBytes)
	if _, err := file.ReadAt(raw, int64(size)); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("checksums: %w", err)
	}
	sums := make([]uint32, n)
	for i := range sums {
		sums[i] = binary.LittleEndian.Uint32(raw[i*sumBytes:])
	}
	if string(raw) != string(trailer(sums, name, size)) {
		return nil, fmt.Errorf("checksums: %w", errDamaged)
	}
	return sums, nil
}
