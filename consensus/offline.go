package consensus

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// What an operator does to one node that is stopped, after the majority of the voters
// was lost for good. It is the library's RecoverCluster, for a state that is on disk
// and is never copied.
//
// Recover goes through these steps, and a crash after each of them is safe: begun
// anew, it goes through all of them again, on what is there by then.
//
//  1. The mark of an install is made: the state may now be ahead of log and record.
//  2. The state applies all that the log holds, committed or not: nobody is left who
//     could tell, and what was acknowledged is committed.
//  3. The term is raised above all that was.
//  4. The state applies one entry more, which no log has: the caller's.
//  5. The record is replaced by one at that entry, with this node as the only voter.
//     It counts as installed, so that Open drops a log before it.
//  6. The log is dropped and the mark taken away.

// Offline is the log of a node that does not run, beside its state.
type Offline struct {
	cfg     Config
	sm      StateMachine
	life    *life
	storage *storage
}

// OpenOffline opens the log of a node that does not run. Of cfg, the timeouts of
// Raft's own count for nothing. It refuses what Open refuses.
func OpenOffline(cfg Config, sm StateMachine) (*Offline, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	o := &Offline{cfg: cfg, sm: sm, life: newLife(cfg.Fatal)}
	var err error
	if o.storage, err = openStorage(&o.cfg, sm, o.life); err != nil {
		return nil, err
	}
	return o, nil
}

// OfflineStatus is how far a node got.
type OfflineStatus struct {
	// LastIndex and LastTerm are the last entry that the node has in its log or in its
	// state. Of two nodes the one with the higher term has more, and in the same term
	// the one with the higher log index.
	LastIndex, LastTerm uint64
	// AppliedIndex is how much of that its state has.
	AppliedIndex uint64
	// Term is the last one that the node knows of.
	Term uint64
	// Appended is when the leader of then appended the last entry, by its clock; zero
	// if that is not known, since the log is empty.
	Appended time.Time
	// Members are all nodes of the group by the last configuration in the log, sorted
	// by id, each as far as this node can know.
	Members []Member
}

// Status tells how far the node got. Errors: ErrChecksum, and those of the disk.
func (o *Offline) Status() (status OfflineStatus, err error) {
	err = unlessFailed(o.life, func() error {
		status, _, err = o.status()
		return err
	})
	return status, err
}

// status also returns the last log index of the log itself, 0 if it is empty.
func (o *Offline) status() (status OfflineStatus, lastOfLog uint64, err error) {
	s := o.storage
	term, err := s.stable.GetUint64([]byte(termKey))
	if err != nil && err.Error() != notFound {
		return status, 0, fmt.Errorf("read term: %w", err)
	}
	status.Term = term
	if r := s.logs.record.Load(); r != nil {
		status.LastIndex, status.LastTerm = r.index, r.term
	}
	if lastOfLog, err = s.disk.LastIndex(); err != nil {
		return status, 0, fmt.Errorf("read Raft log: %w", err)
	}
	if lastOfLog > 0 {
		var entry raft.Log
		if err := s.logs.GetLog(lastOfLog, &entry); err != nil {
			return status, 0, fmt.Errorf("read last entry: %w", err)
		}
		status.Appended = entry.AppendedAt
		if entry.Index > status.LastIndex {
			status.LastIndex, status.LastTerm = entry.Index, entry.Term
		}
	}
	index, term := o.sm.Applied()
	status.AppliedIndex = index
	if index > status.LastIndex { // a snapshot was being installed
		status.LastIndex, status.LastTerm = index, term
	}
	status.Term = max(status.Term, status.LastTerm)
	status.Members, err = o.members(lastOfLog)
	return status, lastOfLog, err
}

// members reads the last configuration.
func (o *Offline) members(lastOfLog uint64) ([]Member, error) {
	var servers []raft.Server
	var after uint64
	if r := o.storage.logs.record.Load(); r != nil {
		servers, after = r.servers.Servers, r.index
	}
	for index := lastOfLog; index > after; index-- {
		var entry raft.Log
		if err := o.storage.logs.GetLog(index, &entry); err != nil {
			return nil, fmt.Errorf("read entry at log index %d: %w", index, err)
		}
		if entry.Type == raft.LogConfiguration {
			servers = raft.DecodeConfiguration(entry.Data).Servers
			break
		}
	}
	members := make([]Member, 0, len(servers))
	for _, server := range servers {
		members = append(members, Member{
			ID: string(server.ID), Address: string(server.Address), Voter: server.Suffrage == raft.Voter, LastContact: -1,
		})
	}
	slices.SortFunc(members, byID)
	return members, nil
}

// Recover makes this node the only voter of a group of its own, with all that it has,
// and applies one entry more to the state: the one that last returns once the state
// has all before it. That entry has to see to it that nodes of the old group are
// refused (Config.GroupID), and to bear being applied again. done is told of each
// step that is done. After an error or a crash Recover is to be called again; until
// it has returned nil once, the node must not be opened.
func (o *Offline) Recover(last func() ([]byte, error), done func(step string)) error {
	return unlessFailed(o.life, func() error { return o.recover(last, done) })
}

func (o *Offline) recover(last func() ([]byte, error), done func(step string)) error {
	status, lastOfLog, err := o.status()
	if err != nil {
		return err
	}
	if err := beginInstall(o.cfg.Dir); err != nil {
		return err
	}
	done("recovery begun")
	if err := o.replay(lastOfLog); err != nil {
		return err
	}
	done(fmt.Sprintf("log applied to the state up to log index %d", status.LastIndex))
	data, err := last()
	if err != nil {
		return err
	}
	entry := Entry{Index: status.LastIndex + 1, Term: status.Term + 1, Data: data}
	if err := o.storage.stable.SetUint64([]byte(termKey), entry.Term); err != nil {
		return err
	}
	done(fmt.Sprintf("term raised to %d", entry.Term))
	if _, err := o.sm.Apply([]Entry{entry}); err != nil {
		return fmt.Errorf("apply the recovery's entry at log index %d: %w", entry.Index, err)
	}
	if err := o.sm.Sync(); err != nil { // The record to come needs it.
		return err
	}
	done(fmt.Sprintf("recovery recorded in the state at log index %d", entry.Index))
	if err := o.reconfigure(entry.Index, entry.Term); err != nil {
		return err
	}
	done("this node made the only voter")
	if err := o.storage.cache.DeleteRange(0, lastOfLog); err != nil {
		return fmt.Errorf("drop the log: %w", err)
	}
	if err := endInstall(o.cfg.Dir); err != nil {
		return err
	}
	done("old log dropped")
	return nil
}

// replay applies what the log has beyond the state.
func (o *Offline) replay(lastOfLog uint64) error {
	applied, _ := o.sm.Applied()
	for first := applied + 1; first <= lastOfLog; first += maxAppendEntries {
		var entries []Entry
		for index := first; index <= min(lastOfLog, first+maxAppendEntries-1); index++ {
			var log raft.Log
			if err := o.storage.logs.GetLog(index, &log); err != nil {
				return fmt.Errorf("read entry at log index %d: %w", index, err)
			}
			entry := Entry{Index: log.Index, Term: log.Term}
			if log.Type == raft.LogCommand {
				entry.Data = log.Data
			}
			entries = append(entries, entry)
		}
		if _, err := o.sm.Apply(entries); err != nil {
			return fmt.Errorf("apply log from log index %d: %w", first, err)
		}
	}
	return nil
}

// reconfigure replaces the snapshot record by one in which only this node votes.
func (o *Offline) reconfigure(index, term uint64) error {
	self := raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(o.cfg.NodeID), Address: raft.ServerAddress(o.cfg.Address)}
	r := &record{
		index: index, term: term, serversIndex: index, installed: true,
		servers: raft.Configuration{Servers: []raft.Server{self}},
	}
	if err := r.save(o.cfg.Dir); err != nil {
		return err
	}
	o.storage.logs.record.Store(r)
	return nil
}

// Close closes the log.
func (o *Offline) Close() error {
	o.life.end()
	if err := o.storage.disk.Close(); err != nil {
		return errors.Join(fmt.Errorf("close Raft log: %w", err), o.life.failure())
	}
	return nil
}
