package consensus

import (
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

// fsm is the state machine as Raft sees it. Raft calls it on one goroutine.
type fsm struct {
	sm        StateMachine
	applied   *progress
	snapshots *snapshotStore
	// logs is the log with its cache on top, which has to forget as well.
	logs raft.LogStore
	life *life
}

var _ raft.BatchingFSM = (*fsm)(nil)

// outcome is what became of a proposed entry.
type outcome struct {
	result      []byte
	index, term uint64
	// skipped says that the state had applied another entry of that log index.
	skipped bool
}

// ApplyBatch applies committed commands and configurations. Entries of Raft's own
// (no-ops) never get here, so the state's log index lags behind Raft's.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	index, term := f.sm.Applied()
	entries := make([]Entry, len(logs))
	for i, log := range logs {
		entries[i] = Entry{Index: log.Index, Term: log.Term}
		if log.Type == raft.LogCommand {
			entries[i].Data = log.Data
		}
		// Terms never fall along a log. A skipped entry of a later term than the
		// applied one is not an entry that was applied before.
		if log.Index <= index && log.Term > term {
			f.life.fail(fmt.Errorf("apply log index %d of term %d: %w: it is at log index %d of term %d", log.Index, log.Term, ErrStateAhead, index, term))
		}
	}
	first, last := entries[0], entries[len(entries)-1]
	results, err := f.sm.Apply(entries)
	if err == nil && len(results) != len(entries) {
		err = fmt.Errorf("%d results for %d entries", len(results), len(entries))
	}
	if err != nil {
		f.life.fail(fmt.Errorf("apply log indexes %d to %d, term %d: %w", first.Index, last.Index, last.Term, err))
	}
	responses := make([]any, len(logs))
	for i, entry := range entries {
		responses[i] = outcome{result: results[i], index: entry.Index, term: entry.Term, skipped: entry.Index <= index}
	}
	f.applied.advance(last.Index)
	if last.Index > index {
		if err := f.snapshots.caughtUp(); err != nil {
			f.life.fail(err)
		}
	}
	return responses
}

// Apply implements raft.FSM. Raft uses ApplyBatch.
func (f *fsm) Apply(log *raft.Log) any { return f.ApplyBatch([]*raft.Log{log})[0] }

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return takenSnapshot{}, nil }

// Restore installs the snapshot that came in from the leader.
func (f *fsm) Restore(state io.ReadCloser) error {
	r, err := f.snapshots.install(state)
	if err != nil || r == nil {
		return err
	}
	index, _ := f.sm.Applied()
	f.applied.advance(index)
	return f.dropLog(r)
}

// dropLog deletes the log that a snapshot replaced.
//
// Raft would do this as well, but then carries on with the last log index that it
// remembers. If that entry is not the cluster's and not before the snapshot, the
// node would refuse all that the leader sends from there and fetch the snapshot
// again, for ever (hashicorp/raft issue 697). Only a new start makes it forget.
func (f *fsm) dropLog(r *record) error {
	last, err := f.snapshots.logs.disk.LastIndex()
	if err != nil {
		return fmt.Errorf("drop replaced log: %w", err)
	}
	var entry raft.Log
	if err := f.logs.GetLog(r.index, &entry); err != nil {
		return fmt.Errorf("drop replaced log: %w", err)
	}
	if err := f.logs.DeleteRange(0, last); err != nil {
		return err
	}
	if last >= r.index && entry.Term != r.term {
		f.life.fail(fmt.Errorf("%w: entries up to log index %d were never committed and gave way to a snapshot at %d", ErrLogDiverged, last, r.index))
	}
	return nil
}
