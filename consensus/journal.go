package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// journalFile is the journal, journalTemp is it while it is made.
const (
	journalFile = "journal"
	journalTemp = "journal.new"
)

// The journal is a file of a fixed size: a page with its header, and two areas that are
// written in turns, from their beginning to their end and then anew. So an append writes to blocks that
// the file has already, and the file system has nothing of its own to write with them.
//
// An area has records, of one append each:
//
//	offset  bytes
//	     0      4  magic
//	     4      4  length of the body, n
//	     8      8  epoch
//	    16      8  log index up to which raft-boltdb had all when the turn began, 0 if it was empty
//	    24      4  CRC32C of salt, the 24 bytes before, and body
//	    28      4  zero
//	    32      n  body: the entries
//	32 + n         up to 7 bytes, so that the next record begins at a multiple of 8
//
// All records of an area's present turn have the same epoch, one more than those of the
// other area's turn before; what is behind them is of earlier turns. The salt is random and secret: what
// clients have put into the log can't look like a record. Numbers are big endian.
const (
	journalMagic       = "atolljn\x01"
	journalHeaderBytes = 4096
	journalSaltBytes   = 16
	// journalAreaBytes is for some hundred commands that have a tiny blob in them, so that
	// raft-boltdb gets as many at once. Of two areas each node has a copy in memory.
	journalAreaBytes   = 2 << 20
	journalAreas       = 2
	recordMagicNumber  = 0x61746a72
	recordHeaderBytes  = 32
	recordSumAt        = 24
	recordAlign        = 8
	journalEntryHeader = 8 + 8 + 8 + 1 + 4 + 4
)

// journal is that file. Its methods don't overlap.
type journal struct {
	file *os.File
	salt []byte
	// area is being written, in its turn epoch, and has offset bytes. When the turn began raft-boltdb ended
	// at log index base.
	area   int
	offset int64
	epoch  uint64
	base   uint64
	// first is the log index of each area's first entry, 0 if it has none.
	first  [journalAreas]uint64
	buffer []byte
}

// createJournal makes a new journal in dir.
func createJournal(dir string, salt []byte) error {
	content := make([]byte, journalHeaderBytes+journalAreas*journalAreaBytes)
	copy(content, seal(nil, append([]byte(journalMagic), salt...)))
	temp := filepath.Join(dir, journalTemp)
	if err := writeFile(temp, content); err != nil {
		return err
	}
	if err := os.Rename(temp, filepath.Join(dir, journalFile)); err != nil {
		return err
	}
	return syncDir(dir)
}

// openJournal opens the journal with that salt, whichever it is if that is nil. Error: fs.ErrNotExist. What it holds is to
// be read, and then the journal to be reset, before anything is appended.
func openJournal(dir string, salt []byte) (*journal, error) {
	file, err := os.OpenFile(filepath.Join(dir, journalFile), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	j := &journal{file: file, salt: salt}
	if err := j.checkHeader(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", file.Name(), err), file.Close())
	}
	return j, nil
}

func (j *journal) checkHeader() error {
	info, err := j.file.Stat()
	if err != nil {
		return err
	}
	if info.Size() != journalHeaderBytes+journalAreas*journalAreaBytes {
		return fmt.Errorf("%w: it has %d bytes", ErrChecksum, info.Size())
	}
	header := make([]byte, len(journalMagic)+journalSaltBytes+checksumBytes)
	if _, err := j.file.ReadAt(header, 0); err != nil {
		return err
	}
	body, err := unseal(nil, header)
	if err != nil {
		return err
	}
	salt, ok := bytes.CutPrefix(body, []byte(journalMagic))
	if !ok {
		return errors.New("it is not a journal of this version")
	}
	if j.salt == nil {
		j.salt = salt
	}
	if !bytes.Equal(salt, j.salt) {
		return fmt.Errorf("%w: it belongs to another log", ErrLogLost)
	}
	return nil
}

// at returns where an area begins.
func (j *journal) at(area int) int64 { return journalHeaderBytes + int64(area)*journalAreaBytes }

// recordBytes is how long a record of entries is.
func recordBytes(entries []*raft.Log) int64 {
	size := int64(recordHeaderBytes)
	for _, entry := range entries {
		size += int64(journalEntryHeader + len(entry.Extensions) + len(entry.Data))
	}
	return size
}

// fits reports whether the area has room for entries.
func (j *journal) fits(entries []*raft.Log) bool {
	return j.offset+recordBytes(entries) <= journalAreaBytes
}

// append writes entries that fit as one record, durably.
func (j *journal) append(entries []*raft.Log) error {
	record := j.encode(entries)
	if err := j.write(record); err != nil {
		return err
	}
	if j.first[j.area] == 0 {
		j.first[j.area] = entries[0].Index
	}
	return nil
}

// write writes a record at the end of the area, durably.
func (j *journal) write(record []byte) error {
	if _, err := j.file.WriteAt(record, j.at(j.area)+j.offset); err != nil {
		return err
	}
	if err := datasync(j.file); err != nil {
		return err
	}
	j.offset += aligned(int64(len(record)))
	return nil
}

// holds reports whether the journal has an entry at log index, or before it.
func (j *journal) holds(index uint64) bool {
	return slices.ContainsFunc(j.first[:], func(first uint64) bool { return first > 0 && first <= index })
}

// next begins the other area's next turn: what it holds is lost with the first append. Raft-boltdb ends at
// log index base.
func (j *journal) next(base uint64) {
	j.area, j.offset, j.epoch, j.base = 1-j.area, 0, j.epoch+1, base
	j.first[j.area] = 0
}

// reset durably empties the journal of what the log has elsewhere: each area begins a turn with an empty record. What
// a crash between the two leaves are the newest of those entries.
func (j *journal) reset(base uint64) error {
	for range journalAreas {
		j.next(base)
		if err := j.write(j.encode(nil)); err != nil {
			return err
		}
	}
	return nil
}

func (j *journal) close() error { return j.file.Close() }

// aligned rounds up to where a record may begin.
func aligned(n int64) int64 { return (n + recordAlign - 1) &^ (recordAlign - 1) }

// encode returns a record of the present turn, which is good until the next one.
func (j *journal) encode(entries []*raft.Log) []byte {
	record := append(j.buffer[:0], make([]byte, recordHeaderBytes)...)
	for _, entry := range entries {
		record = appendEntry(record, entry)
	}
	binary.BigEndian.PutUint32(record, recordMagicNumber)
	binary.BigEndian.PutUint32(record[4:], uint32(len(record)-recordHeaderBytes))
	binary.BigEndian.PutUint64(record[8:], j.epoch)
	binary.BigEndian.PutUint64(record[16:], j.base)
	binary.BigEndian.PutUint32(record[recordSumAt:], j.sum(record))
	if cap(record) <= journalAreaBytes {
		j.buffer = record
	}
	return record
}

// sum is the checksum of a record.
func (j *journal) sum(record []byte) uint32 {
	context := append(make([]byte, 0, journalSaltBytes+recordSumAt), j.salt...)
	return checksum(append(context, record[:recordSumAt]...), record[recordHeaderBytes:])
}

// appendEntry appends an entry: log index, term, time of appending in ns since 1970, type, and the
// lengths of extensions and data before the two.
func appendEntry(record []byte, entry *raft.Log) []byte {
	record = binary.BigEndian.AppendUint64(record, entry.Index)
	record = binary.BigEndian.AppendUint64(record, entry.Term)
	var appended int64
	if !entry.AppendedAt.IsZero() {
		appended = entry.AppendedAt.UnixNano()
	}
	record = binary.BigEndian.AppendUint64(record, uint64(appended))
	record = append(record, byte(entry.Type))
	record = binary.BigEndian.AppendUint32(record, uint32(len(entry.Extensions)))
	record = binary.BigEndian.AppendUint32(record, uint32(len(entry.Data)))
	return append(append(record, entry.Extensions...), entry.Data...)
}

// cutEntry is the inverse of appendEntry.
func cutEntry(body []byte) (entry *raft.Log, rest []byte, err error) {
	if len(body) < journalEntryHeader {
		return nil, nil, fmt.Errorf("%w: a record ends within an entry", ErrChecksum)
	}
	extensions, data := int64(binary.BigEndian.Uint32(body[25:])), int64(binary.BigEndian.Uint32(body[29:]))
	if journalEntryHeader+extensions+data > int64(len(body)) {
		return nil, nil, fmt.Errorf("%w: a record ends within an entry", ErrChecksum)
	}
	entry = &raft.Log{Index: binary.BigEndian.Uint64(body), Term: binary.BigEndian.Uint64(body[8:]), Type: raft.LogType(body[24])}
	if appended := int64(binary.BigEndian.Uint64(body[16:])); appended != 0 {
		entry.AppendedAt = time.Unix(0, appended)
	}
	rest = body[journalEntryHeader:]
	if extensions > 0 {
		entry.Extensions = rest[:extensions:extensions]
	}
	entry.Data = rest[extensions : extensions+data : extensions+data]
	return entry, rest[extensions+data:], nil
}

// areaTurn is what one area holds: epoch, base and entries of the records from its beginning on,
// epoch 0 if there is none, and the newest epoch of any record that is not among those.
type areaTurn struct {
	epoch   uint64
	base    uint64
	entries []*raft.Log
	astray  uint64
}

// read returns the entries that the journal holds, the oldest first, and leaves it so that the next
// turn is newer than all. A record that is not whole is the end, since power may have failed
// while it was written. Only the last one can be so: what is whole behind it was written
// later, and says that what is not is damaged.
func (j *journal) read() ([]*raft.Log, error) {
	var turns [journalAreas]areaTurn
	for area := range turns {
		content := make([]byte, journalAreaBytes)
		if _, err := io.ReadFull(io.NewSectionReader(j.file, j.at(area), journalAreaBytes), content); err != nil {
			return nil, err
		}
		var err error
		if turns[area], err = j.readArea(content); err != nil {
			return nil, err
		}
	}
	last := 0
	if turns[1].epoch > turns[0].epoch {
		last = 1
	}
	newest, before := turns[last], turns[1-last]
	j.area, j.epoch, j.base = last, newest.epoch, newest.base
	if astray := max(newest.astray, before.astray); astray > 0 && astray >= newest.epoch {
		return nil, fmt.Errorf("%w: there is a record of turn %d behind one that is damaged", ErrChecksum, astray)
	}
	if newest.epoch == 0 || before.epoch != newest.epoch-1 {
		return newest.entries, nil
	}
	return append(before.entries, newest.entries...), nil
}

func (j *journal) readArea(content []byte) (turn areaTurn, err error) {
	at := int64(0)
	for at+recordHeaderBytes <= journalAreaBytes {
		epoch, record, ok := j.recordAt(content[at:])
		if !ok || at > 0 && epoch != turn.epoch {
			break
		}
		turn.epoch, turn.base = epoch, binary.BigEndian.Uint64(record[16:])
		for rest := record[recordHeaderBytes:]; len(rest) > 0; {
			var entry *raft.Log
			if entry, rest, err = cutEntry(rest); err != nil {
				return turn, err
			}
			turn.entries = append(turn.entries, entry)
		}
		at += aligned(int64(len(record)))
	}
	for ; at+recordHeaderBytes <= journalAreaBytes; at += recordAlign {
		if epoch, _, ok := j.recordAt(content[at:]); ok {
			turn.astray = max(turn.astray, epoch)
		}
	}
	return turn, nil
}

// recordAt returns the record that content begins with, if it does.
func (j *journal) recordAt(content []byte) (epoch uint64, record []byte, ok bool) {
	if binary.BigEndian.Uint32(content) != recordMagicNumber {
		return 0, nil, false
	}
	size := recordHeaderBytes + int64(binary.BigEndian.Uint32(content[4:]))
	if size > int64(len(content)) || binary.BigEndian.Uint32(content[recordSumAt:]) != j.sum(content[:size]) {
		return 0, nil, false
	}
	return binary.BigEndian.Uint64(content[8:]), content[:size:size], true
}
