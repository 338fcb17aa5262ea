package consensus

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// A snapshot costs nothing that grows with the state, because the state machine
// *is* on disk. Taking one only writes a record (record.go) of a log index that
// the state has reached; the log before it may then be cut. Only sending one to a
// node that fell behind streams the state, as it is by then: beyond the record.
// The entries in between reach that node once more through the log, and its state
// machine skips them.
//
// Installing a snapshot goes through these steps, and a crash after each of them
// is safe:
//
//  1. The stream is written to the file "incoming" and synced. Open deletes it;
//     the leader sends it again.
//  2. StateMachine.Restore swaps the state. The state is then ahead of log and
//     record. What it has is committed, so nothing is lost or wrong; the leader
//     sends the snapshot again, or the entries, which are skipped.
//  3. The record is replaced. The log may now hold entries before the record
//     that the cluster never committed; Open drops them (storage.go).
//  4. The log is dropped, from its back.

// incomingFile is a state on its way in.
const incomingFile = "incoming"

// incomingID is the id of the snapshot in that file.
const incomingID = "incoming"

// errNotNeeded refuses a snapshot of less than this node has.
var errNotNeeded = errors.New("this node has more than the snapshot")

// snapshotStore is Raft's idea of a store of snapshots.
type snapshotStore struct {
	dir  string
	sm   StateMachine
	logs *logStore
	// stall is how long an incoming stream may pause. Raft's main loop waits for
	// the stream, and nothing else would ever end that.
	stall time.Duration
	// onStall breaks the connections that a stream may come in by.
	onStall func()
	// awaited returns when a node is there that the state can be sent to.
	awaited func()

	mu       sync.Mutex // guards what follows, and writes of logs.record
	incoming *raft.SnapshotMeta
	known    bool // what came in is what this node has; nothing was kept of it
	outgoing map[*outgoing]struct{}
	swapping bool // the state is about to be swapped

	// installing says that the mark of beginInstall may be there.
	installing atomic.Bool
}

// caughtUp tells that the state has applied an entry of the log: that is no longer
// behind it, as it may be after an install.
func (s *snapshotStore) caughtUp() error {
	if !s.installing.Load() {
		return nil
	}
	if err := endInstall(s.dir); err != nil {
		return err
	}
	s.installing.Store(false)
	return nil
}

// Create implements raft.SnapshotStore, for snapshots taken here and for those
// that the leader sends; which of them it is shows in what is done with the sink.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, servers raft.Configuration,
	serversIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	return &snapshotSink{store: s, meta: raft.SnapshotMeta{
		Version: version, ID: incomingID, Index: index, Term: term,
		Configuration: servers, ConfigurationIndex: serversIndex,
	}}, nil
}

// List implements raft.SnapshotStore: there is one snapshot at most.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	r := s.logs.record.Load()
	if r == nil {
		return nil, nil
	}
	return []*raft.SnapshotMeta{r.meta()}, nil
}

func (r *record) meta() *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: fmt.Sprintf("%d-%d", r.term, r.index), Index: r.index, Term: r.term,
		Configuration: r.servers, ConfigurationIndex: r.serversIndex,
	}
}

// Open implements raft.SnapshotStore. The incoming snapshot is opened to restore
// it, the record to send the state.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if id == incomingID {
		return s.received()
	}
	s.awaited()
	return s.send(id)
}

// send opens the state to send it. The record may have moved on since its id was
// given out; it is then all the better.
func (s *snapshotStore) send(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	// Holding the lock keeps install from swapping the state meanwhile.
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.logs.record.Load()
	if r == nil || s.swapping {
		return nil, nil, fmt.Errorf("open snapshot %s: there is none", id)
	}
	meta := r.meta()
	state, size, index, err := s.sm.Snapshot()
	if err != nil {
		return nil, nil, fmt.Errorf("open state to send it: %w", err)
	}
	if index < meta.Index {
		return nil, nil, errors.Join(fmt.Errorf("open state to send it: %w: %d is before the snapshot's %d", ErrStateBehind, index, meta.Index), state.Close())
	}
	meta.Size = size
	out := &outgoing{store: s, state: state}
	s.outgoing[out] = struct{}{}
	s.logs.held.Add(1)
	return meta, out, nil
}

// received opens the snapshot that came in.
func (s *snapshotStore) received() (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.incoming == nil {
		return nil, nil, errors.New("open snapshot: none has come in")
	}
	if s.known {
		return s.incoming, io.NopCloser(strings.NewReader("")), nil
	}
	file, err := os.Open(filepath.Join(s.dir, incomingFile))
	if err != nil {
		return nil, nil, fmt.Errorf("open incoming snapshot: %w", err)
	}
	return s.incoming, file, nil
}

// keep records a snapshot that Raft took here, once the state is durable that far: the log before it may
// then go.
func (s *snapshotStore) keep(meta *raft.SnapshotMeta) error {
	if err := s.sm.Sync(); err != nil {
		s.logs.disk.life.fail(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.logs.record.Load(); r != nil && r.index >= meta.Index {
		return nil // nothing new; and whether it was installed must stay known
	}
	return s.replace(&record{index: meta.Index, term: meta.Term, servers: meta.Configuration, serversIndex: meta.ConfigurationIndex})
}

// replace makes r the record. s.mu is held.
func (s *snapshotStore) replace(r *record) error {
	if err := r.save(s.dir); err != nil {
		return err
	}
	s.logs.record.Store(r)
	return nil
}

// install swaps in the incoming state and then records it. It returns nil without
// an error if there was nothing to do.
func (s *snapshotStore) install(state io.Reader) (*record, error) {
	s.closeOutgoing()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.swapping = false }()
	meta := s.incoming
	if meta == nil {
		return nil, errors.New("install snapshot: none has come in")
	}
	s.incoming = nil
	if s.known {
		if err := s.sm.Sync(); err != nil { // Raft drops the log as if the state had come in.
			s.logs.disk.life.fail(err)
		}
		return nil, nil
	}
	defer os.Remove(filepath.Join(s.dir, incomingFile)) // Open deletes what stays
	if err := beginInstall(s.dir); err != nil {
		return nil, err
	}
	s.installing.Store(true)
	if err := s.sm.Restore(state); err != nil {
		return nil, fmt.Errorf("install snapshot: %w", err)
	}
	if index, _ := s.sm.Applied(); index < meta.Index {
		return nil, fmt.Errorf("install snapshot: %w: its state is at log index %d, not at %d", ErrStateBehind, index, meta.Index)
	}
	if err := s.sm.Sync(); err != nil { // It may have had more than what came in.
		s.logs.disk.life.fail(err)
	}
	r := &record{index: meta.Index, term: meta.Term, servers: meta.Configuration, serversIndex: meta.ConfigurationIndex, installed: true}
	if err := s.replace(r); err != nil {
		s.logs.disk.life.fail(err) // the state has moved on: only a new start brings them together
	}
	return r, nil
}

// closeOutgoing ends the streams to other nodes and allows no new ones: this node does not lead them any
// more, and the state that they read is about to go.
func (s *snapshotStore) closeOutgoing() {
	s.mu.Lock()
	s.swapping = true
	var open []*outgoing
	for out := range s.outgoing {
		open = append(open, out)
	}
	s.mu.Unlock()
	for _, out := range open {
		_ = out.Close() // it was only read from
	}
}

// outgoing is the state on its way to another node.
type outgoing struct {
	store *snapshotStore

	mu     sync.Mutex // held while reading, so that closing waits for it
	state  io.ReadCloser
	closed bool
}

// Read implements io.Reader.
func (o *outgoing) Read(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return 0, errors.New("read state to send it: this node does not lead any more")
	}
	return o.state.Read(p)
}

// Close implements io.Closer. It may be called more than once.
func (o *outgoing) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	o.closed = true
	o.store.mu.Lock()
	delete(o.store.outgoing, o)
	o.store.mu.Unlock()
	o.store.logs.held.Add(-1)
	return o.state.Close()
}
