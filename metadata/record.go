package metadata

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	pb "google.golang.org/protobuf/proto"
)

// bbolt checks its root page and nothing else: a flipped bit in a value reads
// back without an error. So every value is sealed: followed by a CRC32C that
// covers its bucket and key too, which finds values in a wrong place.

const sealBytes = 4

// seal returns value followed by its checksum. The result shares no memory with
// value: bbolt keeps it until the transaction ends.
func seal(b bucket, key, value []byte) []byte {
	sealed := make([]byte, 0, len(value)+sealBytes)
	sealed = append(sealed, value...)
	return binary.BigEndian.AppendUint32(sealed, checksum(b, key, value))
}

// unseal returns the value in sealed, or ErrCorrupt.
func unseal(b bucket, key, sealed []byte) ([]byte, error) {
	if len(sealed) < sealBytes {
		return nil, fmt.Errorf("%w: bucket %q, key %q: value of %d bytes has no checksum", ErrCorrupt, b, key, len(sealed))
	}
	value := sealed[:len(sealed)-sealBytes]
	if checksum(b, key, value) != binary.BigEndian.Uint32(sealed[len(value):]) {
		return nil, fmt.Errorf("%w: bucket %q, key %q: checksum does not match", ErrCorrupt, b, key)
	}
	return value, nil
}

func checksum(b bucket, key, value []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(prefixChecksum(table, b, key), table, key)
	return crc32.Update(sum, table, value)
}

// prefixChecksum is the checksum of recordPrefix, byte by byte: what package crc32 gets
// has to be on the heap, and this is needed for each record that is read.
func prefixChecksum(table *crc32.Table, b bucket, key []byte) uint32 {
	sum := ^uint32(0)
	for _, x := range recordPrefix(b, key) {
		sum = table[byte(sum)^x] ^ sum>>8
	}
	return ^sum
}

// recordPrefix makes the bytes of (bucket, key, value) unambiguous.
func recordPrefix(b bucket, key []byte) []byte {
	prefix := append(make([]byte, 0, 64), byte(len(b)))
	prefix = append(prefix, b...)
	return binary.BigEndian.AppendUint32(prefix, uint32(len(key)))
}

// stateHashBytes is the length of an encoded state hash.
const stateHashBytes = 16

// stateHash is a hash of the whole state that follows each change in constant
// time: the sum, in two lanes of 64 bits, of one hash per record. Records are a
// set, so the order of changes does not matter. It finds accidents, not an
// adversary, who can forge such a sum.
type stateHash [2]uint64

// add takes a record into the hash.
func (h *stateHash) add(b bucket, key, value []byte) {
	high, low := recordHash(b, key, value)
	h[0] += high
	h[1] += low
}

// remove takes a record out of the hash.
func (h *stateHash) remove(b bucket, key, value []byte) {
	high, low := recordHash(b, key, value)
	h[0] -= high
	h[1] -= low
}

func (h stateHash) bytes() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, h[0]), h[1])
}

func stateHashOf(encoded []byte) stateHash {
	return stateHash{binary.BigEndian.Uint64(encoded), binary.BigEndian.Uint64(encoded[8:])}
}

func recordHash(b bucket, key, value []byte) (high, low uint64) {
	hash := sha256.New()
	hash.Write(recordPrefix(b, key))
	hash.Write(key)
	hash.Write(value)
	var sum [sha256.Size]byte
	hash.Sum(sum[:0])
	return binary.BigEndian.Uint64(sum[:]), binary.BigEndian.Uint64(sum[8:])
}

// encode writes a message so that equal messages are equal bytes on every node.
// Protobuf promises that only within one version of its library; records here
// have no unknown fields, and their order of fields has never changed.
func encode(m pb.Message) ([]byte, error) {
	encoded, err := pb.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", m, err)
	}
	return encoded, nil
}

// position is how far a state is, and what this node knows of it.
type position struct {
	logIndex, term uint64
	hash           stateHash
	// The newest checkpoint and the state's hash there.
	checkpointIndex uint64
	checkpointHash  stateHash
}

const positionBytes = 8 + 8 + stateHashBytes + 8 + stateHashBytes

func (p position) encode() []byte {
	out := make([]byte, 0, positionBytes)
	out = binary.BigEndian.AppendUint64(out, p.logIndex)
	out = binary.BigEndian.AppendUint64(out, p.term)
	out = append(out, p.hash.bytes()...)
	out = binary.BigEndian.AppendUint64(out, p.checkpointIndex)
	return append(out, p.checkpointHash.bytes()...)
}

func decodePosition(encoded []byte) (position, error) {
	if len(encoded) != positionBytes {
		return position{}, fmt.Errorf("%w: position has %d bytes", ErrCorrupt, len(encoded))
	}
	return position{
		logIndex:        binary.BigEndian.Uint64(encoded),
		term:            binary.BigEndian.Uint64(encoded[8:]),
		hash:            stateHashOf(encoded[16:]),
		checkpointIndex: binary.BigEndian.Uint64(encoded[32:]),
		checkpointHash:  stateHashOf(encoded[40:]),
	}, nil
}
