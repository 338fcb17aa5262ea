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
	known bool // to this node already, to the last entry
	file  *os.File
	timer *time.Timer // fires when the leader's stream stalls
}

// ID implements raft.SnapshotSink.
func (s *snapshotSink) ID() string { return s.meta.ID }

// Write takes a piece of the state that the leader sends.
func (s *snapshotSink) Write(p []byte) (int, error) {
	if s.file == nil && !s.known {
		if err := s.begin(); err != nil {
			return 0, err
		}
	}
	s.timer.Reset(s.store.stall)
	if s.known {
		return len(p), nil
	}
	return s.file.Write(p)
}

// begin opens the file, unless the snapshot has nothing that this node has not.
// The leader sends the same snapshot again if the first answer got lost; it then
// has to be told that all is well. A snapshot of less than this node has can only
// be late, and installing it would drop entries that this node has acknowledged
// since, and that may be committed because it did.
func (s *snapshotSink) begin() error {
	logs := s.store.logs
	last, err := logs.LastIndex()
	if err != nil {
		return fmt.Errorf("receive snapshot: %w", err)
	}
	var entry raft.Log
	has := logs.GetLog(s.meta.Index, &entry) == nil && entry.Term == s.meta.Term
	r := logs.record.Load()
	switch {
	case r != nil && r.index > s.meta.Index, has && last > s.meta.Index:
		// The library reads what is left of the stream, without a limit.
		s.store.onStall()
		return fmt.Errorf("receive snapshot at log index %d: %w", s.meta.Index, errNotNeeded)
	case r != nil && r.index == s.meta.Index:
		s.known = true
		s.timer = time.AfterFunc(s.store.stall, s.store.onStall)
		return nil
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
	if s.timer != nil {
		s.timer.Stop()
	}
	if s.known {
		s.receive(true)
		return nil
	}
	if s.file == nil {
		return errors.New("receive snapshot: it is empty")
	}
	info, err := s.file.Stat()
	if err := errors.Join(err, syncAndClose(s.file)); err != nil {
		return fmt.Errorf("receive snapshot: %w", err)
	}
	s.meta.Size = info.Size()
	s.receive(false)
	return nil
}

// receive has the snapshot wait to be restored.
func (s *snapshotSink) receive(known bool) {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	s.store.incoming, s.store.known = &s.meta, known
}

// Cancel drops the snapshot.
func (s *snapshotSink) Cancel() error {
	if s.timer != nil {
		s.timer.Stop()
	}
	if s.file == nil {
		return nil
	}
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
