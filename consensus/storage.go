package consensus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// logFile holds the log, the term and the vote; logTemp is it while it is made.
const (
	logFile = "raft.db"
	logTemp = "raft.db.new"
)

const (
	// logLockTimeout is how long another process may still hold the log.
	logLockTimeout = time.Second
	// logMmapBytes is mapped from the start, so that a young log does not stop
	// for readers each time it doubles. It costs address space only.
	logMmapBytes = 64 << 20
	// logCacheEntries are kept in memory. A follower that keeps up, and the state
	// machine, read from there and not from disk.
	logCacheEntries = 256
)

// storage is all that a replica has on disk.
type storage struct {
	disk   *disk
	logs   *logStore
	cache  *raft.LogCache // on top of logs
	stable *stableStore
	// hasState says that the node has been part of a cluster.
	hasState bool
}

// openStorage opens the log in dir and brings it in line with the snapshot record
// and the state.
func openStorage(cfg *Config, sm StateMachine, life *life) (s *storage, err error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of the Raft log: %w", err)
	}
	if err := syncDir(filepath.Dir(cfg.Dir)); err != nil {
		return nil, fmt.Errorf("make folder of the Raft log: %w", err)
	}
	for _, leftover := range []string{incomingFile, recordTemp, logTemp, journalTemp} {
		if err := os.Remove(filepath.Join(cfg.Dir, leftover)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("delete leftover: %w", err)
		}
	}
	db, err := openJournaledLog(cfg.Dir)
	if err != nil {
		return nil, err
	}
	var lowest diskLog = db
	if cfg.wrapLog != nil {
		lowest = cfg.wrapLog(db)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	d := &disk{diskLog: lowest, timeout: cfg.LogWriteTimeout, life: life}
	s = &storage{disk: d, logs: &logStore{disk: d}, stable: &stableStore{disk: d}}
	if s.cache, err = raft.NewLogCache(logCacheEntries, s.logs); err != nil {
		return nil, fmt.Errorf("make log cache: %w", err)
	}
	r, err := loadRecord(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s.logs.record.Store(r)
	// A store that can't be trusted ends the goroutine that reads it, so it gets
	// one of its own.
	if err := unlessFailed(life, func() error { return s.check(sm) }); err != nil {
		return nil, err
	}
	if err := unlessFailed(life, func() error { return s.checkEnd(cfg.Dir, sm) }); err != nil {
		return nil, err
	}
	return s, nil
}

// openJournaledLog opens the log with its journal.
func openJournaledLog(dir string) (*journaledLog, error) {
	db, err := openLog(dir)
	if err != nil {
		return nil, err
	}
	log, err := openJournaled(dir, db)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return log, nil
}

// openLog opens the log's file. A new one is made under another name first:
// bbolt does not survive a power loss while it writes its first pages.
func openLog(dir string) (*raftboltdb.BoltStore, error) {
	path, temp := filepath.Join(dir, logFile), filepath.Join(dir, logTemp)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		db, err := openBolt(temp)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(db.Sync(), db.Close()); err != nil {
			return nil, fmt.Errorf("make Raft log %s: %w", temp, err)
		}
		if err := os.Rename(temp, path); err != nil {
			return nil, fmt.Errorf("make Raft log: %w", err)
		}
		if err := syncDir(dir); err != nil {
			return nil, fmt.Errorf("make Raft log: %w", err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("open Raft log: %w", err)
	} else if err := checkLog(path); err != nil {
		return nil, err
	}
	return openBolt(path)
}

// checkLog makes sure that the log's file is as long as it says, and that bbolt finds its
// way through its pages. bbolt maps the file, and on what is not so the process
// would die on a goroutine of bbolt's own.
func checkLog(path string) (err error) {
	defer damaged(path, &err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: logLockTimeout, ReadOnly: true})
	if err != nil {
		return logError(path, err)
	}
	info, err := os.Stat(path)
	if err == nil {
		err = db.View(func(tx *bbolt.Tx) error {
			if info.Size() < tx.Size() {
				return fmt.Errorf("it is damaged: it has %d bytes and says %d", info.Size(), tx.Size())
			}
			return checkPages(path, db, tx)
		})
	}
	if err := errors.Join(err, db.Close()); err != nil {
		return logError(path, err)
	}
	return nil
}

// damaged turns a panic into an error: bbolt panics on some damaged files.
func damaged(path string, err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("open Raft log %s: it is damaged: %v", path, p)
	}
}

func logError(path string, err error) error {
	if errors.Is(err, berrors.ErrTimeout) {
		return fmt.Errorf("open Raft log %s: another process holds it", path)
	}
	return fmt.Errorf("open Raft log %s: %w", path, err)
}

func openBolt(path string) (db *raftboltdb.BoltStore, err error) {
	defer damaged(path, &err)
	db, err = raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout: logLockTimeout,
			// The list of free pages is made anew at every start instead of being
			// written with every append, which costs four times the append itself
			// once the log has been cut. It is as safe: this is not NoSync.
			NoFreelistSync:  true,
			FreelistType:    bbolt.FreelistMapType,
			InitialMmapSize: logMmapBytes,
		},
	})
	if err != nil {
		return nil, logError(path, err)
	}
	return db, nil
}

// check compares what log, snapshot record and state say of each other, and
// refuses to start on what no crash can have left behind.
func (s *storage) check(sm StateMachine) error {
	first, err := s.disk.FirstIndex()
	if err != nil {
		return fmt.Errorf("read Raft log: %w", err)
	}
	last, err := s.disk.LastIndex()
	if err != nil {
		return fmt.Errorf("read Raft log: %w", err)
	}
	term, err := s.stable.GetUint64([]byte(termKey))
	if err != nil && err.Error() != notFound {
		return fmt.Errorf("read term: %w", err)
	}
	applied, _ := sm.Applied()
	s.hasState = last > 0 || term > 0
	switch r := s.logs.record.Load(); {
	case !s.hasState && r != nil:
		return fmt.Errorf("%w: there is a snapshot record at log index %d", ErrLogLost, r.index)
	case !s.hasState && applied > 0:
		return fmt.Errorf("%w: the state is at log index %d", ErrLogLost, applied)
	case r == nil && first > 1:
		return fmt.Errorf("%w: it begins at log index %d, and no snapshot record tells what was before", ErrLogLost, first)
	case r == nil:
		return nil
	case applied < r.index:
		return fmt.Errorf("%w: it is at log index %d, but what was before %d has been cut off the log", ErrStateBehind, applied, r.index)
	case first > r.index+1:
		return fmt.Errorf("%w: it begins at log index %d, the snapshot record ends at %d", ErrLogLost, first, r.index)
	case r.installed:
		return s.finishInstall(r, first, last)
	case last < r.index:
		return fmt.Errorf("%w: it ends at log index %d, before the snapshot taken of it at %d", ErrLogLost, last, r.index)
	default:
		return s.checkRecordTerm(r, first)
	}
}

// checkEnd refuses a log that ends before the state. bbolt takes an older root of
// the file for the newest if that is damaged, which takes back one write: entries
// that this node has acknowledged, or a vote.
func (s *storage) checkEnd(dir string, sm StateMachine) error {
	last, err := s.disk.LastIndex()
	if err != nil {
		return fmt.Errorf("read Raft log: %w", err)
	}
	if r := s.logs.record.Load(); r != nil {
		last = max(last, r.index)
	}
	if applied, _ := sm.Applied(); applied <= last {
		return endInstall(dir)
	}
	installing, err := isInstalling(dir)
	if err == nil && !installing {
		applied, _ := sm.Applied()
		err = fmt.Errorf("%w: it ends at log index %d, before the state at %d. %s", ErrLogLost, last, applied, startAnew)
	}
	return err
}

// startAnew is what an operator does about a log that can't be trusted.
const startAnew = "Start this node on an empty data folder: it joins as a new node under its old name"

// finishInstall drops a log that an installed snapshot replaced, in case that
// the process ended before it did so: one that does not have the snapshot's last
// entry.
func (s *storage) finishInstall(r *record, first, last uint64) error {
	if last == 0 || first > r.index {
		return nil // empty, or begun after the snapshot
	}
	var entry raft.Log
	if last >= r.index {
		if err := s.logs.GetLog(r.index, &entry); err != nil {
			return fmt.Errorf("read entry of the snapshot record: %w", err)
		}
		if entry.Term == r.term {
			return nil
		}
	}
	return s.cache.DeleteRange(first, last)
}

func (s *storage) checkRecordTerm(r *record, first uint64) error {
	if first > r.index {
		return nil
	}
	var entry raft.Log
	if err := s.logs.GetLog(r.index, &entry); err != nil {
		return fmt.Errorf("read entry of the snapshot record: %w", err)
	}
	if entry.Term != r.term {
		return fmt.Errorf("%w: its entry at log index %d is of term %d, the snapshot taken of it says %d",
			ErrLogLost, entry.Index, entry.Term, r.term)
	}
	return nil
}

// unlessFailed runs f on a goroutine of its own, which a failing store may end,
// and returns its error, that failure, or what it panicked with.
func unlessFailed(life *life, f func() error) (err error) {
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v", p)
			}
		}()
		err = f()
	}()
	<-done
	if failure := life.failure(); failure != nil {
		return failure
	}
	return err
}
