package consensus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
)

// snapshotSink takes a snapshot: only its position if it was taken here, and the
// whole state if the leader sends it.
type snapshotSink struct {
	store *snapshotStore
	meta  raft.SnapshotMeta
	taken bool // here
	file  *os.File
	timer *time.Timer // fires when the leader's stream stalls
}

// ID implements raft.SnapshotSink.
func (s *snapshotSink) ID() string { return s.meta.ID }

// Write takes a piece of the state that the leader sends.
func (s *snapshotSink) Write(p []byte) (int, error) {
	if s.file == nil {
		if err := s.begin(); err != nil {
			return 0, err
		}
	}
	s.timer.Reset(s.store.stall)
	return s.file.Write(p)
}

// begin opens the file. Of a snapshot that the log makes needless, nothing is
// written.
func (s *snapshotSink) begin() error {
	var last raft.Log
	r, err := s.store.logs.record.Load(), s.store.logs.GetLog(s.meta.Index, &last)
	if (r != nil && r.index >= s.meta.Index) || (err == nil && last.Term == s.meta.Term) {
		return fmt.Errorf("receive snapshot at log index %d: %w", s.meta.Index, errNotNeeded)
	}
	if s.file, err = os.Create(filepath.Join(s.store.dir, incomingFile)); err != nil {
		return fmt.Errorf("receive snapshot: %w", err)
	}
	s.timer = time.AfterFunc(s.store.stall, s.store.onStall)
	return nil
}

// Close ends the snapshot: it is recorded, or ready to be restored.
func (s *snapshotSink) Close() error {
	if s.taken {
		return s.store.keep(&s.meta)
	}
	if s.file == nil {
		return errors.New("receive snapshot: it is empty")
	}
	s.timer.Stop()
	info, err := s.file.Stat()
	if err := errors.Join(err, syncAndClose(s.file)); err != nil {
		return fmt.Errorf("receive snapshot: %w", err)
	}
	s.meta.Size = info.Size()
	s.store.mu.Lock()
	s.store.incoming = &s.meta
	s.store.mu.Unlock()
	return nil
}

// Cancel drops the snapshot.
func (s *snapshotSink) Cancel() error {
	if s.file == nil {
		return nil
	}
	s.timer.Stop()
	if err := errors.Join(s.file.Close(), os.Remove(s.file.Name())); err != nil {
		return fmt.Errorf("drop incoming snapshot: %w", err)
	}
	return nil
}

// takenSnapshot is what Raft gets from the state machine when it wants to cut the
// log: nothing but the leave to record where it is.
type takenSnapshot struct{}

// Persist implements raft.FSMSnapshot. Raft closes the sink.
func (takenSnapshot) Persist(sink raft.SnapshotSink) error {
	sink.(*snapshotSink).taken = true
	return nil
}

// Release implements raft.FSMSnapshot.
func (takenSnapshot) Release() {}
