package consensus

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// journalEntries is how many entries at most a turn of the journal has: so many go into
// raft-boltdb in one transaction.
const journalEntries = 1024

// saltKey is where raft-boltdb has the salt of the journal that belongs to it.
const saltKey = "JournalSalt"

// journaledLog is raft-boltdb behind a journal. An append is one write of the journal; raft-boltdb, which
// takes two writes one after the other and some new pages for each of its transactions, gets the entries later,
// hundreds at once.
//
// Invariants:
//   - Every entry that was appended, and not deleted since, is in raft-boltdb or in the
//     journal, durably. What is only in the journal is in memory, too: turn and before.
//   - The journal's entries have no gap, and end where the log does. None of them is deleted: what
//     would be is first moved to raft-boltdb, and the journal emptied.
//   - An area begins a new turn only when raft-boltdb has all of its last one.
type journaledLog struct {
	*raftboltdb.BoltStore // for the stable store, which has no journal
	journal               *journal

	// writing is held while entries are appended, deleted, or moved because of that.
	writing sync.Mutex
	// moved is closed when before is in raft-boltdb, or moveErr says why not.
	moved   chan struct{}
	moveErr error
	// failed says that a write has failed: there must be no other.
	failed bool

	mu sync.RWMutex // guards what follows, for readers; written with writing held, or before moved is closed
	// turn are the entries of the journal's present turn, before those of the last one
	// that raft-boltdb has not got yet.
	turn, before []*raft.Log
}

// openJournaled opens the journal in dir that belongs to db, or makes one, and has db take what is in it.
// Errors: ErrLogLost, ErrChecksum.
func openJournaled(dir string, db *raftboltdb.BoltStore) (*journaledLog, error) {
	salt, err := journalSalt(dir, db)
	if err != nil {
		return nil, fmt.Errorf("open journal of the Raft log: %w", advised(err))
	}
	j, err := openJournal(dir, salt)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: its journal is gone: %w", ErrLogLost, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open journal of the Raft log: %w", advised(err))
	}
	moved := make(chan struct{})
	close(moved)
	l := &journaledLog{BoltStore: db, journal: j, moved: moved}
	if err := l.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("recover journal %s: %w", j.file.Name(), advised(err)), j.close())
	}
	return l, nil
}

// advised adds what to do about a log that can't be trusted.
func advised(err error) error {
	if errors.Is(err, ErrChecksum) || errors.Is(err, ErrLogLost) {
		return fmt.Errorf("%w. %s", err, startAnew)
	}
	return err
}

// journalSalt returns the salt of the journal that belongs to db. One that has none gets a journal.
func journalSalt(dir string, db *raftboltdb.BoltStore) ([]byte, error) {
	sealed, err := db.Get([]byte(saltKey))
	if err == nil {
		return unseal([]byte(saltKey), sealed)
	}
	if err.Error() != notFound {
		return nil, err
	}
	if err := checkUnused(dir); err != nil {
		return nil, err
	}
	salt := make([]byte, journalSaltBytes)
	_, _ = rand.Read(salt) // It does not fail.
	if err := createJournal(dir, salt); err != nil {
		return nil, err
	}
	return salt, db.Set([]byte(saltKey), seal([]byte(saltKey), salt))
}

// checkUnused refuses a journal that belongs to a log that is gone. One that was just made, when the process ended,
// is none.
func checkUnused(dir string) error {
	j, err := openJournal(dir, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = j.read()
	if err == nil && j.epoch > 0 {
		err = fmt.Errorf("%w: there is a journal, and the log that it belongs to is gone", ErrLogLost)
	}
	return errors.Join(err, j.close())
}

// recover moves what the journal holds to raft-boltdb, part of which may be there already.
func (l *journaledLog) recover() error {
	entries, err := l.journal.read()
	if err != nil {
		return err
	}
	last, err := l.BoltStore.LastIndex()
	if err != nil {
		return err
	}
	if last < l.journal.base {
		return fmt.Errorf("%w: the log ends at log index %d, and had all up to %d", ErrLogLost, last, l.journal.base)
	}
	for _, entry := range entries {
		if err := l.checkRecovered(entry, last); err != nil {
			return err
		}
		last = max(last, entry.Index)
	}
	for chunk := range slices.Chunk(entries, journalEntries) {
		if err := l.BoltStore.StoreLogs(chunk); err != nil {
			return err
		}
	}
	return l.journal.reset(last)
}

// checkRecovered makes sure that an entry of the journal goes with a log that ends at log index last.
func (l *journaledLog) checkRecovered(entry *raft.Log, last uint64) error {
	// An empty log may begin anywhere: behind a snapshot.
	if last > 0 && entry.Index > last+1 {
		return fmt.Errorf("%w: it has an entry at log index %d, and what is before ends at %d", ErrChecksum, entry.Index, last)
	}
	var known raft.Log
	err := l.BoltStore.GetLog(entry.Index, &known)
	if errors.Is(err, raft.ErrLogNotFound) {
		return nil
	}
	if err == nil && known.Term != entry.Term {
		err = fmt.Errorf("%w: its entry at log index %d is of term %d, and that of the log of term %d", ErrLogLost, entry.Index, entry.Term, known.Term)
	}
	return err
}

// StoreLog implements raft.LogStore.
func (l *journaledLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs appends entries durably: all or, after a crash or an error, maybe none of them. It keeps them.
func (l *journaledLog) StoreLogs(entries []*raft.Log) error {
	return l.write(func() error { return l.store(entries) })
}

// write runs a write, unless one has failed: nothing is written after that.
func (l *journaledLog) write(f func() error) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	select {
	case <-l.moved:
		l.failed = l.failed || l.moveErr != nil
	default: // await will see
	}
	if l.failed {
		return errors.Join(errors.New("an earlier write has failed"), l.moveErr)
	}
	err := f()
	l.failed = err != nil
	return err
}

func (l *journaledLog) store(entries []*raft.Log) error {
	switch {
	case len(entries) == 0:
		return nil
	case !follows(l.turn, entries):
		return fmt.Errorf("append at log index %d behind %d", entries[0].Index, l.turn[len(l.turn)-1].Index)
	case recordBytes(entries) > journalAreaBytes-recordHeaderBytes:
		if err := l.empty(nil); err != nil {
			return err
		}
		return l.BoltStore.StoreLogs(entries)
	case len(l.turn) > 0 && (len(l.turn)+len(entries) > journalEntries || !l.journal.fits(entries)):
		if err := l.begin(); err != nil {
			return err
		}
	}
	if err := l.journal.append(entries); err != nil {
		return err
	}
	l.mu.Lock()
	l.turn = append(l.turn, entries...)
	l.mu.Unlock()
	return nil
}

// follows reports whether entries have no gap, nor one to those before them, if any.
func follows(before, entries []*raft.Log) bool {
	next := entries[0].Index
	if n := len(before); n > 0 {
		next = before[n-1].Index + 1
	}
	for i, entry := range entries {
		if entry.Index != next+uint64(i) {
			return false
		}
	}
	return true
}

// begin begins the journal's next turn, once raft-boltdb has what the area holds. It gets
// the present turn meanwhile.
func (l *journaledLog) begin() error {
	if err := l.await(); err != nil {
		return err
	}
	base, err := l.BoltStore.LastIndex()
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.before, l.turn = l.turn, nil
	l.mu.Unlock()
	l.journal.next(base)
	l.moved = make(chan struct{})
	go l.move(l.before, l.moved) // ends with the write; waited for by await
	return nil
}

// move has raft-boltdb take a turn's entries.
func (l *journaledLog) move(entries []*raft.Log, moved chan struct{}) {
	defer close(moved)
	if l.moveErr = l.BoltStore.StoreLogs(entries); l.moveErr != nil {
		return
	}
	l.mu.Lock()
	l.before = nil
	l.mu.Unlock()
}

// await returns when no entries are on their way to raft-boltdb. l.writing is held.
func (l *journaledLog) await() error {
	<-l.moved
	if l.moveErr != nil {
		return fmt.Errorf("move journal to the log: %w", l.moveErr)
	}
	return nil
}

// empty moves all that the journal has to raft-boltdb, of which no more than what is up to log index keep is going to stay; nil
// if all is. l.writing is held.
func (l *journaledLog) empty(keep *uint64) error {
	if len(l.turn) > 0 {
		if err := l.begin(); err != nil {
			return err
		}
	}
	if err := l.await(); err != nil {
		return err
	}
	base, err := l.BoltStore.LastIndex()
	if err != nil {
		return err
	}
	if keep != nil {
		base = min(base, *keep)
	}
	return l.journal.reset(base)
}

// DeleteRange implements raft.LogStore.
func (l *journaledLog) DeleteRange(from, to uint64) error {
	return l.write(func() error {
		keep, err := l.keptBefore(from, to)
		if err != nil {
			return err
		}
		stored, err := l.BoltStore.LastIndex()
		// What raft-boltdb is said to end with stays, or it is said anew.
		if err == nil && (keep != nil || l.journal.holds(to) || to >= stored) {
			err = l.empty(keep)
		}
		if err != nil {
			return err
		}
		return l.BoltStore.DeleteRange(from, to)
	})
}

// keptBefore returns where the log ends once the range is deleted, 0 if it is empty then, or nil if its end
// stays where it is.
func (l *journaledLog) keptBefore(from, to uint64) (*uint64, error) {
	last, err := l.LastIndex()
	if err != nil || last == 0 || to < last {
		return nil, err
	}
	first, err := l.FirstIndex()
	keep := uint64(0)
	if from > first {
		keep = from - 1
	}
	return &keep, err
}

// GetLog implements raft.LogStore.
func (l *journaledLog) GetLog(index uint64, entry *raft.Log) error {
	l.mu.RLock()
	for _, entries := range [][]*raft.Log{l.turn, l.before} {
		if n := len(entries); n > 0 && entries[0].Index <= index && index <= entries[n-1].Index {
			*entry = *entries[index-entries[0].Index]
			l.mu.RUnlock()
			return nil
		}
	}
	l.mu.RUnlock()
	return l.BoltStore.GetLog(index, entry)
}

// FirstIndex implements raft.LogStore.
func (l *journaledLog) FirstIndex() (uint64, error) {
	// What is not in raft-boltdb yet was behind all that is.
	l.mu.RLock()
	defer l.mu.RUnlock()
	first, err := l.BoltStore.FirstIndex()
	if err != nil || first > 0 {
		return first, err
	}
	for _, entries := range [][]*raft.Log{l.before, l.turn} {
		if len(entries) > 0 {
			return entries[0].Index, nil
		}
	}
	return 0, nil
}

// LastIndex implements raft.LogStore.
func (l *journaledLog) LastIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, entries := range [][]*raft.Log{l.turn, l.before} {
		if n := len(entries); n > 0 {
			return entries[n-1].Index, nil
		}
	}
	return l.BoltStore.LastIndex()
}

// Close has raft-boltdb take what the journal holds, unless a write has failed, and closes both.
func (l *journaledLog) Close() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	var err error
	if !l.failed {
		err = l.empty(nil)
	}
	<-l.moved
	return errors.Join(err, l.journal.close(), l.BoltStore.Close())
}
