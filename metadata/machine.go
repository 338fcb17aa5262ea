package metadata

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	bolt "go.etcd.io/bbolt"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/proto"
)

// MachineConfig says where a state machine lives.
type MachineConfig struct {
	// Dir is the folder of the state database; it is made when absent.
	Dir string
	// Logger receives what is worth knowing besides returned errors.
	Logger zerolog.Logger
	// Fatal is called once, when a read finds the state damaged: the node must not
	// go on. Errors of Apply and Restore are only returned. It may be nil.
	Fatal func(error)
	// Published is called whenever what Nodes, ClusterID, Recoveries and Authority return
	// may have changed. It must not block. It may be nil.
	Published func()
	// Verify has the machine read the whole state before it is opened, in time in proportion to it.
	Verify bool
}

// Machine is the replicated state on this node's disk. Reads may overlap with
// each other and with everything else.
type Machine struct {
	cfg MachineConfig

	// lock is held for reading while a transaction is open, for writing while
	// Restore or Close exchanges the database.
	lock sync.RWMutex
	db   *bolt.DB // nil once closed
	// applying is held while a transaction is written, syncing while Sync is at work.
	applying, syncing sync.Mutex
	anchor            *anchor // guarded by syncing, but for Restore and Close
	// pins keep what the anchor tells of: one, or none if there is no anchor. They are guarded by applying.
	pins []*bolt.Tx
	// anchorLimit is how large a database that has one may be, in bytes.
	anchorLimit int64
	// anchorGrowth is the constant, less in tests.
	anchorGrowth int64
	// tending says that soon is going to sync, hurried that it does so at once. Only Apply sets them.
	tending atomic.Bool
	hurried bool
	soon    *time.Timer
	// syncAfter is the constant, more in tests.
	syncAfter time.Duration
	// bytes is how large the database was when the last transaction began.
	bytes int64

	// failure is the first error after which the state may not be used. bbolt
	// itself would carry on after a failed fdatasync, with pages that the kernel
	// has dropped.
	failure   atomic.Pointer[error]
	fatalOnce sync.Once

	// What readers need at every turn, published after each commit.
	at        atomic.Pointer[position]
	nodes     atomic.Pointer[[]*proto.Node]
	clusterID atomic.Pointer[string]
	settings  atomic.Pointer[proto.Settings]
	eraSeen   atomic.Pointer[eraSeen]

	recoveries atomic.Pointer[[]*proto.Recovery]
	access     access
	// clusterAuthority is secret.
	clusterAuthority atomic.Pointer[proto.ClusterAuthority]
}

var _ consensus.StateMachine = (*Machine)(nil)

// OpenMachine opens the state in cfg.Dir, or creates an empty one. How long it
// takes does not depend on the size of the state. Errors: ErrLocked, ErrCorrupt.
func OpenMachine(cfg MachineConfig) (*Machine, error) {
	path := filepath.Join(cfg.Dir, stateFile)
	for _, leftover := range []string{incomingFile, anchorTemp} {
		if err := os.Remove(filepath.Join(cfg.Dir, leftover)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open state: %w", err)
		}
	}
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = createDatabase(cfg.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	anchor, err := openAnchor(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	if err := anchor.returnTo(cfg.Dir); err != nil {
		return nil, errors.Join(fmt.Errorf("open state: %w", err), anchor.file.Close())
	}
	db, err := openDatabase(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open state: %w", err), anchor.file.Close())
	}
	m := &Machine{cfg: cfg, db: db, anchor: anchor, anchorLimit: mapBytes - anchorMargin, anchorGrowth: anchorGrowth, syncAfter: syncAfter}
	if cfg.Verify {
		err = viewDatabase(db, verifyAll)
	}
	if err == nil {
		err = m.publish()
	}
	if err == nil {
		err = m.moveAnchor(func() {})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open state: %w", err), m.unpin(), db.Close(), anchor.file.Close())
	}
	return m, nil
}

// publish takes over what readers need from the database. No Restore overlaps.
func (m *Machine) publish() error {
	err := viewDatabase(m.db, func(v view) error {
		at, err := v.position()
		if err != nil {
			return err
		}
		nodes, err := v.nodes()
		if err != nil {
			return err
		}
		id, err := v.clusterID()
		if err != nil {
			return err
		}
		settings, err := v.settings()
		if err != nil {
			return err
		}
		era, err := v.era()
		if err != nil {
			return err
		}
		m.noteEra(era)
		recoveries, err := v.recoveries()
		if err != nil {
			return err
		}
		authority, err := v.authority()
		if err != nil {
			return err
		}
		if err := m.access.publish(v); err != nil {
			return err
		}
		m.settings.Store(settings)
		m.clusterAuthority.Store(authority)
		m.recoveries.Store(&recoveries)
		m.nodes.Store(&nodes)
		m.clusterID.Store(&id)
		m.at.Store(&at)
		return nil
	})
	if err == nil && m.cfg.Published != nil {
		m.cfg.Published()
	}
	return err
}

// transactionWork bounds the work of one transaction, as change.work counts it, by
// the command that exceeds it: what a transaction has written is in memory until
// its commit.
const transactionWork = 1 << 15

// Apply carries out committed entries in log order, in one transaction
// unless they are much work, and returns one encoded proto.Result per entry; nil
// for entries without data and for those that the state has seen already. An error
// is final: the transaction was not carried out, and the machine can't be used any
// more. What was applied is durable after Sync; a crash before takes all back that was
// applied since the last one.
func (m *Machine) Apply(entries []consensus.Entry) (results [][]byte, err error) {
	m.lock.RLock()
	defer m.lock.RUnlock()
	if err := m.usable(); err != nil {
		return nil, err
	}
	results = make([][]byte, len(entries))
	for done := 0; done < len(entries); {
		applied, err := m.applySome(entries[done:], results[done:])
		if err == nil {
			err = m.tendAnchor()
		}
		if err != nil {
			return nil, fmt.Errorf("apply after log index %d: %w", m.at.Load().logIndex, err)
		}
		done += applied
	}
	return results, nil
}

// applySome carries out entries in one transaction, and returns how many.
func (m *Machine) applySome(entries []consensus.Entry, results [][]byte) (applied int, err error) {
	m.applying.Lock()
	defer m.applying.Unlock()
	if err := m.usable(); err != nil {
		return 0, err
	}
	defer func() { // before anybody syncs: see moveAnchor
		if err != nil {
			m.fail(err)
		}
	}()
	c := &change{at: *m.at.Load(), policy: m.access.policy.Load()}
	err = guard(func() error {
		return m.db.Update(func(tx *bolt.Tx) error {
			c.tx, m.bytes = tx, tx.Size()
			applied, err = c.applyAll(entries, results)
			return err
		})
	})
	switch {
	case errors.Is(err, errNothing):
		return applied, nil
	case err != nil:
		return 0, err
	}
	if c.republish {
		return applied, m.publish()
	}
	m.at.Store(&c.at)
	return applied, nil
}

// errNothing ends a transaction in which nothing happened, without a commit.
var errNothing = errors.New("nothing to apply")

// applyAll carries out entries until the transaction is large enough.
func (c *change) applyAll(entries []consensus.Entry, results [][]byte) (applied int, err error) {
	before, work := c.at.logIndex, 0
	for i, entry := range entries {
		if work >= transactionWork {
			break
		}
		applied++
		if entry.Index <= c.at.logIndex {
			continue // replayed after a restart
		}
		result, err := c.apply(entry)
		if err != nil {
			return 0, fmt.Errorf("log index %d, term %d: %w", entry.Index, entry.Term, err)
		}
		results[i] = result
		work += c.work
	}
	if c.at.logIndex == before {
		return applied, errNothing
	}
	return applied, c.savePosition()
}

// Check implements consensus.StateMachine: what is no whole command of this version must
// not get into the log, where it would end every node.
func (m *Machine) Check(command []byte) error {
	_, err := decodeCommand(command)
	return err
}

// Applied returns the log index and term of the last entry in the state.
func (m *Machine) Applied() (logIndex, term uint64) {
	at := m.at.Load()
	return at.logIndex, at.term
}

// Checkpoint returns the log index of the newest checkpoint that this node has
// applied, 0 if none, and the hash of its state there.
func (m *Machine) Checkpoint() (logIndex uint64, hash []byte) {
	at := m.at.Load()
	return at.checkpointIndex, at.checkpointHash.bytes()
}

// StateHash returns the hash of the whole state and the log index that the state
// is applied to. Nodes at the same log index have the same hash.
func (m *Machine) StateHash() (logIndex uint64, hash []byte) {
	at := m.at.Load()
	return at.logIndex, at.hash.bytes()
}

// view reads the state as it is now. Damage found in it ends the node.
func (m *Machine) view(read func(view) error) error {
	return m.reading(func() error { return viewDatabase(m.db, read) })
}

// viewWhole is view of a state that lists its free pages, as one has to that another process is going to open.
func (m *Machine) viewWhole(read func(view) error) error {
	return m.reading(func() error {
		return guard(func() (err error) {
			var tx *bolt.Tx
			if err := m.applyAlone(func() error {
				tx, err = m.beginWholeAlone()
				return err
			}); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, tx.Rollback()) }()
			return read(view{tx})
		})
	})
}

// reading runs read while the database is not exchanged.
func (m *Machine) reading(read func() error) error {
	err := m.readingLocked(read)
	if errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrClosed) && m.cfg.Fatal != nil {
		m.fatalOnce.Do(func() { m.cfg.Fatal(err) }) // without the lock: it may close the machine
	}
	return err
}

func (m *Machine) readingLocked(read func() error) error {
	m.lock.RLock()
	defer m.lock.RUnlock()
	if err := m.usable(); err != nil {
		return err
	}
	err := read()
	if errors.Is(err, ErrCorrupt) {
		m.fail(err)
	}
	return err
}

// usable returns why the machine can't be used; nil if it can.
func (m *Machine) usable() error {
	if failure := m.failure.Load(); failure != nil {
		return fmt.Errorf("%w: %w", ErrClosed, *failure)
	}
	if m.db == nil {
		return ErrClosed
	}
	return nil
}

func (m *Machine) fail(err error) { m.failure.CompareAndSwap(nil, &err) }

// Close has everything on the disk and closes the database, once running reads have ended. It is safe to call
// twice.
func (m *Machine) Close() error {
	m.lock.Lock()
	defer m.lock.Unlock()
	if m.db == nil {
		return nil
	}
	if m.soon != nil {
		m.soon.Stop()
	}
	var err error
	if m.failure.Load() == nil {
		err = m.dropAnchor()
	}
	err = errors.Join(err, m.unpin(), m.db.Close(), m.anchor.file.Close())
	m.db = nil
	if err != nil {
		return fmt.Errorf("close state: %w", err)
	}
	return nil
}
