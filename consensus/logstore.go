package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// deleteChunk is how many entries are deleted in one transaction. Tens of
// thousands at once would hold up appends for a third of a second.
const deleteChunk = 1024

// checksumBytes is the length of the CRC32C behind all that is stored.
const checksumBytes = 4

// diskLog is what the stores of this file lie on: raft-boltdb.
type diskLog interface {
	raft.LogStore
	raft.StableStore
	Close() error
}

// disk watches over every write: it has a deadline, and none may fail.
type disk struct {
	diskLog
	timeout time.Duration
	life    *life
}

// write runs a write. After an error or a deadline it does not return: a page
// that the kernel failed to write is lost, though the next fsync may succeed
// (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).
func (d *disk) write(what string, f func() error) {
	late := func() {
		d.life.fail(fmt.Errorf("%s: %w: no answer in %s", what, ErrLogWriteTimeout, d.timeout))
	}
	w := startWatch(d.timeout, late)
	err := f()
	if !w.stop() {
		late()
	}
	if err != nil {
		d.life.fail(fmt.Errorf("%s: %w", what, err))
	}
}

// logStore is the log: every entry carries a checksum, since neither raft-boltdb
// nor bbolt has one for data, and a flipped bit would be replicated.
type logStore struct {
	disk *disk
	// held counts snapshots on their way to other nodes. Meanwhile nothing is cut
	// off the log's front: a node that has just taken the snapshot needs the
	// entries behind it.
	held atomic.Int32
	// record is the snapshot record, nil if there is none.
	record atomic.Pointer[record]
	// stored, if not nil, is called when entries were appended.
	stored func()
}

// IsMonotonic tells Raft that this log can't have a gap, so that it drops what
// is left of the old log after it installed a snapshot.
func (s *logStore) IsMonotonic() bool { return true }

// FirstIndex implements raft.LogStore.
func (s *logStore) FirstIndex() (uint64, error) { return s.disk.FirstIndex() }

// LastIndex implements raft.LogStore. An empty log ends where the snapshot does:
// the library takes the distance between the two for the entries that are new.
func (s *logStore) LastIndex() (uint64, error) {
	last, err := s.disk.LastIndex()
	if r := s.record.Load(); err == nil && last == 0 && r != nil {
		return r.index, nil
	}
	return last, err
}

// StoreLog implements raft.LogStore.
func (s *logStore) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

// StoreLogs appends entries durably in one transaction. It returns nil or not at
// all.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	sealed := make([]*raft.Log, len(logs))
	for i, log := range logs {
		entry := *log // the original is in Raft's hands and caches
		entry.Data = seal(entryHeader(log), log.Data)
		sealed[i] = &entry
	}
	s.disk.write("append to the Raft log", func() error { return s.disk.StoreLogs(sealed) })
	if s.stored != nil {
		s.stored()
	}
	return nil
}

// GetLog reads one entry. It returns raft.ErrLogNotFound before the first and
// behind the last one, and not at all if the entry can't be read.
//
// The entry of the snapshot record is answered even if it was cut off, without
// its data. A follower asks for its term to find where its log and the leader's
// part; without an answer it would refuse all that the leader has and be sent a
// snapshot that is older than its own. A leader never sends what is made up here:
// it asks for the entry before it as well, which is not there.
func (s *logStore) GetLog(logIndex uint64, log *raft.Log) error {
	err := s.disk.GetLog(logIndex, log)
	if errors.Is(err, raft.ErrLogNotFound) {
		if err := s.checkMissing(logIndex); err != nil {
			s.disk.life.fail(err)
		}
		if r := s.record.Load(); r != nil && r.index == logIndex && logIndex > 1 {
			*log = raft.Log{Index: r.index, Term: r.term, Type: raft.LogNoop}
			return nil
		}
		return raft.ErrLogNotFound
	}
	if err == nil && log.Index != logIndex {
		err = fmt.Errorf("%w: it says that it is %d", ErrChecksum, log.Index)
	}
	if err == nil {
		log.Data, err = unseal(entryHeader(log), log.Data)
	}
	if err != nil {
		s.disk.life.fail(fmt.Errorf("read entry at log index %d: %w", logIndex, err))
	}
	return nil
}

// checkMissing returns an error if a missing entry should be there. The log may
// be cut at either end between two looks, but only shrinks towards its middle
// while an entry that was seen missing stays missing.
func (s *logStore) checkMissing(logIndex uint64) error {
	inside := func() bool {
		first, err := s.disk.FirstIndex()
		if err != nil {
			return false
		}
		last, err := s.disk.LastIndex()
		return err == nil && first <= logIndex && logIndex <= last
	}
	if !inside() || !errors.Is(s.disk.GetLog(logIndex, new(raft.Log)), raft.ErrLogNotFound) || !inside() {
		return nil
	}
	return fmt.Errorf("read entry at log index %d: %w: it is missing in the middle of the log", logIndex, ErrChecksum)
}

// DeleteRange deletes the entries from one log index to another, both included,
// in pieces: from the front when the log's front goes, and otherwise from the
// back, so that a crash in between never leaves a gap. It returns nil or not at
// all.
func (s *logStore) DeleteRange(from, to uint64) error {
	for {
		first, err := s.FirstIndex()
		if err != nil {
			return fmt.Errorf("delete from the Raft log: %w", err)
		}
		last, err := s.disk.LastIndex()
		if err != nil {
			return fmt.Errorf("delete from the Raft log: %w", err)
		}
		chunk, ok := nextDelete(first, last, from, to)
		if !ok || (chunk.front && s.held.Load() > 0) {
			return nil
		}
		s.disk.write("delete from the Raft log", func() error { return s.disk.DeleteRange(chunk.from, chunk.to) })
	}
}

// deletion is a piece of a longer deletion.
type deletion struct {
	from, to uint64
	front    bool // the log's front goes and its back stays
}

// nextDelete picks the next piece to delete of [from, to] in a log [first, last].
func nextDelete(first, last, from, to uint64) (deletion, bool) {
	from, to = max(from, first), min(to, last)
	if last == 0 || from > to {
		return deletion{}, false
	}
	if to < last {
		return deletion{from: from, to: min(to, from+deleteChunk-1), front: from == first}, true
	}
	if to-from >= deleteChunk {
		from = to - deleteChunk + 1
	}
	return deletion{from: from, to: to}, true
}

// stableStore keeps the term and the vote, with checksums: a flipped bit there
// could make a node vote twice.
type stableStore struct{ disk *disk }

// Set stores a value durably. It returns nil or not at all.
func (s *stableStore) Set(key, value []byte) error {
	s.disk.write("write vote or term", func() error { return s.disk.Set(key, seal(key, value)) })
	return nil
}

// notFound is the text of the error for a key never set, which Raft compares as a
// string.
const notFound = "not found"

// Get returns a value. For a key never set, the error's text is notFound.
func (s *stableStore) Get(key []byte) ([]byte, error) {
	value, err := s.disk.Get(key)
	if err != nil {
		return nil, err
	}
	if value, err = unseal(key, value); err != nil {
		s.disk.life.fail(fmt.Errorf("read %s: %w", key, err))
	}
	return value, nil
}

// What Raft calls its term and the two halves of a vote (raft.go, keyCurrentTerm,
// keyLastVoteTerm and keyLastVoteCand). Of the vote it writes the term first.
const (
	termKey          = "CurrentTerm"
	voteTermKey      = "LastVoteTerm"
	voteCandidateKey = "LastVoteCand"
)

// nobody is a candidate that no node is.
const nobody = "\x00"

// SetUint64 stores a number durably. It returns nil or not at all. Before the term
// of a new vote, the candidate of the last one is taken away: a crash between the
// two would leave a vote for that candidate in the new term, and Raft grants it
// again without a look at the candidate's log.
func (s *stableStore) SetUint64(key []byte, value uint64) error {
	if string(key) == voteTermKey {
		if err := s.Set([]byte(voteCandidateKey), []byte(nobody)); err != nil {
			return err
		}
	}
	return s.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 returns a number, with the errors of Get.
func (s *stableStore) GetUint64(key []byte) (uint64, error) {
	value, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		s.disk.life.fail(fmt.Errorf("read %s: %w: it has %d bytes, not 8", key, ErrChecksum, len(value)))
	}
	return binary.BigEndian.Uint64(value), nil
}

// entryHeader is what an entry's checksum covers beside its data. Not covered is
// the leader's time of appending, which only feeds a metric.
func entryHeader(log *raft.Log) []byte {
	header := make([]byte, 0, 17+len(log.Extensions))
	header = binary.BigEndian.AppendUint64(header, log.Index)
	header = binary.BigEndian.AppendUint64(header, log.Term)
	header = append(header, byte(log.Type))
	return append(header, log.Extensions...)
}

// seal returns data with the checksum of context and data behind it.
func seal(context, data []byte) []byte {
	sealed := make([]byte, 0, len(data)+checksumBytes)
	return binary.BigEndian.AppendUint32(append(sealed, data...), checksum(context, data))
}

// unseal returns what seal was given.
func unseal(context, sealed []byte) ([]byte, error) {
	if len(sealed) < checksumBytes {
		return nil, fmt.Errorf("%w: %d bytes are too few", ErrChecksum, len(sealed))
	}
	data, sum := sealed[:len(sealed)-checksumBytes], sealed[len(sealed)-checksumBytes:]
	if binary.BigEndian.Uint32(sum) != checksum(context, data) {
		return nil, ErrChecksum
	}
	return data[:len(data):len(data)], nil
}

// checksum is the CRC32C of the length of context, context, and data.
func checksum(context, data []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli) // the library keeps it
	sum := crc32.Update(0, table, binary.BigEndian.AppendUint32(nil, uint32(len(context))))
	return crc32.Update(crc32.Update(sum, table, context), table, data)
}
