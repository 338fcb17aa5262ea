package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// A batch of commands is durable in Raft's log before it gets here, so the database need not sync
// each of its transactions. It is synced now and then, and only what it had then survives
// a crash: Raft applies the rest anew. But bbolt, unsynced, does not survive a power
// failure at all, as its pages get to the disk in any order. So there is an anchor: a copy, in a file of its own,
// of the database's root as it was when it was synced. As long as there is one,
//
//   - a read transaction, the pin, is open on the state that the anchor tells of. It keeps
//     bbolt from using any page of that state for something else (bbolt's
//     freelist.ReleasePendingPages);
//   - all pages of that state are on the disk, bbolt's list of free ones among them.
//
// Transactions in between don't write that list: with all that they freed and the pin keeps, it is what they would write most of.
//
// A database that is opened beside an anchor is put back to it: both of the roots in its file are
// overwritten by the anchor's. Without an anchor all of the database is synced.

// anchorFile has the anchor, anchorTemp is it while it is made.
const (
	anchorFile = "anchor"
	anchorTemp = "anchor.new"
)

// The file has two places, which are written in turns, so that one of them is whole whatever happens; the one with the
// higher number counts. It is never longer nor shorter, so that it can be written on a disk that is full.
//
//	offset  bytes
//	     0      8  magic; its last byte is the format's version
//	     8      8  number, big endian
//	    16     80  root, or zeros for no anchor
//	    96      4  CRC32C, see seal
const (
	anchorMagic      = "atollan\x01"
	anchorPlaceBytes = 4096
	anchorPlaces     = 2
)

// The root of a bbolt database (bbolt internal/common: page.go, meta.go) is in one of the first two pages,
// in turns: the header of a page, which begins with the page's number (8 bytes), then magic (4), version (4), size of
// a page (4), flags (4), root bucket (16), list of free pages (8), number of pages (8), transaction (8), and a checksum of all from the
// magic on (8), in the byte order of the machine.
const (
	rootBytes         = 80
	rootFreePagesAt   = 48
	rootTransactionAt = 64
	rootSlots         = 2
	// noFreePages in place of the list's page says that there is no list.
	noFreePages = math.MaxUint64
)

// anchorMargin is how close to the end of what is mapped a database is synced with every transaction. To
// map more, bbolt waits for all readers, and so would for the pin.
const anchorMargin = 1 << 30

// anchorGrowth is by how much a database grows before its anchor is moved, and anchorGrowthMost by how much at most: so many
// pages more than it needs, since those that a transaction takes at the end of the file are not used anew, when they
// are free, before the pin has moved.
const (
	anchorGrowth     = 4 << 20
	anchorGrowthMost = 64 << 20
)

// syncAfter is how soon what was applied is synced.
const syncAfter = time.Second

// readRoot returns the root of a transaction, the newest one. It is looked for in both places: in a database that
// was received it may be in the one that transactions of its number don't have else (bbolt's Tx.WriteTo).
func readRoot(file *os.File, transaction int) ([]byte, error) {
	root := make([]byte, rootBytes)
	for slot := range int64(rootSlots) {
		if _, err := file.ReadAt(root, slot*pageBytes); err != nil {
			return nil, err
		}
		if rootTransaction(root) == uint64(transaction) {
			return root, nil
		}
	}
	return nil, fmt.Errorf("%w: the root of transaction %d is not in its file", ErrCorrupt, transaction)
}

func rootTransaction(root []byte) uint64 {
	return binary.NativeEndian.Uint64(root[rootTransactionAt:])
}

// anchor is the anchor's file, open.
type anchor struct {
	file *os.File
	// number is that of the place that counts, root what it has, nil for no anchor.
	number uint64
	root   []byte
}

// openAnchor opens the anchor's file in dir, or makes one without an anchor. What it has is known after returnTo.
func openAnchor(dir string) (*anchor, error) {
	path := filepath.Join(dir, anchorFile)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createAnchor(dir); err != nil {
			return nil, err
		}
		file, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, err
	}
	return &anchor{file: file}, nil
}

// createAnchor makes a file without an anchor.
func createAnchor(dir string) error {
	content := make([]byte, anchorPlaces*anchorPlaceBytes)
	for number := range uint64(anchorPlaces) {
		copy(content[number*anchorPlaceBytes:], encodeAnchor(number, nil))
	}
	temp := filepath.Join(dir, anchorTemp)
	file, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, filepath.Join(dir, anchorFile)); err != nil {
		return err
	}
	return syncDir(dir)
}

func encodeAnchor(number uint64, root []byte) []byte {
	body := binary.BigEndian.AppendUint64([]byte(anchorMagic), number)
	body = append(body, root...)
	body = append(body, make([]byte, rootBytes-len(root))...)
	return seal(anchorFile, nil, body)
}

// load reads what the file has. Error: ErrCorrupt.
func (a *anchor) load() (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", a.file.Name(), err)
		}
	}()
	found := false
	for place := range int64(anchorPlaces) {
		content := make([]byte, len(encodeAnchor(0, nil)))
		if _, err := a.file.ReadAt(content, place*anchorPlaceBytes); err != nil {
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		body, err := unseal(anchorFile, nil, content)
		if err != nil {
			continue // Power may have failed while it was written.
		}
		rest, ok := bytes.CutPrefix(body, []byte(anchorMagic))
		if !ok {
			return errors.New("it is not an anchor of this version")
		}
		if number := binary.BigEndian.Uint64(rest); !found || number > a.number {
			found, a.number, a.root = true, number, rest[8:]
		}
	}
	if !found {
		return fmt.Errorf("%w: it has no place that is whole", ErrCorrupt)
	}
	if bytes.Equal(a.root, make([]byte, rootBytes)) {
		a.root = nil
	}
	return nil
}

// save has root take the anchor's place, durably; nil for no anchor. After an error, or a crash meanwhile, it is
// the one or the other.
func (a *anchor) save(root []byte) error {
	number := a.number + 1
	if _, err := a.file.WriteAt(encodeAnchor(number, root), int64(number%anchorPlaces)*anchorPlaceBytes); err != nil {
		return err
	}
	if err := a.file.Sync(); err != nil {
		return err
	}
	a.number, a.root = number, root
	return nil
}

// returnTo puts the database in dir back to its anchor, if it has one. Nobody else may have the
// database open: an anchor that was read before that was certain may be an old one. Error: ErrLocked.
func (a *anchor) returnTo(dir string) error {
	file, err := os.OpenFile(filepath.Join(dir, stateFile), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = lockDatabase(file)
	if err == nil {
		err = a.load()
	}
	switch {
	case err != nil:
	case a.root != nil:
		err = putRoot(file, a.root)
	default:
		err = checkUnanchored(file)
	}
	return errors.Join(err, file.Close())
}

// lockDatabase locks a database's file as bbolt does, until it is closed. Error: ErrLocked.
func lockDatabase(file *os.File) error {
	for deadline := time.Now().Add(lockTimeout); ; time.Sleep(lockTimeout / 20) {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case !errors.Is(err, unix.EWOULDBLOCK):
			return err
		case time.Now().After(deadline):
			return fmt.Errorf("open %s: %w", file.Name(), ErrLocked)
		}
	}
}

// checkUnanchored refuses a database that was not closed, and whose anchor is gone: nobody knows what of it is on
// the disk. It lists no free pages, which bbolt would look for in all of it, damaged or not. Error: ErrCorrupt.
func checkUnanchored(file *os.File) error {
	newest := make([]byte, rootBytes)
	for slot := range int64(rootSlots) {
		found := make([]byte, rootBytes)
		if _, err := file.ReadAt(found, slot*pageBytes); err != nil {
			return nil // bbolt says what is wrong with it
		}
		if rootTransaction(found) >= rootTransaction(newest) {
			newest = found
		}
	}
	if binary.NativeEndian.Uint64(newest[rootFreePagesAt:]) != noFreePages {
		return nil
	}
	return fmt.Errorf("%w: it was not closed, and %s beside it, which tells what of it is on the disk, is not the one it was used with", ErrCorrupt, anchorFile)
}

// putRoot writes a root to both of its places.
func putRoot(file *os.File, root []byte) error {
	var newest uint64
	for slot := range int64(rootSlots) {
		found := make([]byte, rootBytes)
		if _, err := file.ReadAt(found, slot*pageBytes); err != nil {
			return fmt.Errorf("%w: read root: %w", ErrCorrupt, err)
		}
		newest = max(newest, rootTransaction(found))
	}
	if newest < rootTransaction(root) {
		return fmt.Errorf("%w: its anchor is of transaction %d, and it ends at %d", ErrCorrupt, rootTransaction(root), newest)
	}
	for slot := range int64(rootSlots) {
		put := append([]byte(nil), root...)
		binary.NativeEndian.PutUint64(put, uint64(slot)) // the page's number
		if _, err := file.WriteAt(put, slot*pageBytes); err != nil {
			return err
		}
	}
	return file.Sync()
}

// dropAnchor has all of the database on the disk, and its transactions synced from here on. Neither Apply
// nor Sync overlaps.
func (m *Machine) dropAnchor() error {
	if err := m.listFreePages(); err != nil {
		return err
	}
	if err := m.db.Sync(); err != nil {
		return err
	}
	if err := m.anchor.save(nil); err != nil {
		return err
	}
	m.db.NoSync, m.db.NoFreelistSync = false, false
	return m.unpin()
}

// unpin ends the pins.
func (m *Machine) unpin() error {
	var errs []error
	for _, pin := range m.pins {
		errs = append(errs, pin.Rollback())
	}
	m.pins = nil
	return errors.Join(errs...)
}

// Sync has everything on the disk that Applied covered when it was called. An error is final.
func (m *Machine) Sync() error { return m.sync(func() {}) }

// sync is Sync; begun is called when what is applied from there on is not covered.
func (m *Machine) sync(begun func()) error {
	m.lock.RLock()
	defer m.lock.RUnlock()
	if err := m.moveAnchor(begun); err != nil {
		return fmt.Errorf("sync state: %w", err)
	}
	return nil
}

// moveAnchor anchors the database where it is now. An error is final, and known before anybody else syncs: the
// kernel tells only once of a page that it could not write, and the next sync succeeds. m.lock is held.
func (m *Machine) moveAnchor(begun func()) (err error) {
	m.syncing.Lock()
	defer m.syncing.Unlock()
	if err := m.usable(); err != nil {
		return err
	}
	if err = guard(func() error { return m.moveAnchorAlone(begun) }); err != nil {
		m.fail(err)
	}
	return err
}

// moveAnchorAlone is moveAnchor. m.syncing is held.
func (m *Machine) moveAnchorAlone(begun func()) error {
	begun()
	pin, root, err := m.pinNewest()
	if err != nil {
		return err
	}
	if pin.Size() > m.anchorLimit {
		return errors.Join(pin.Rollback(), m.applyAlone(m.dropAnchor))
	}
	err = m.db.Sync()
	// Apply may have failed on what the kernel told it instead of us: bbolt syncs when it grows its file.
	if err := errors.Join(err, m.applyAlone(m.usable)); err != nil {
		return errors.Join(err, pin.Rollback())
	}
	if err := m.anchor.save(root); err != nil {
		// Nobody knows which anchor is there now, so both keep their pages.
		return errors.Join(err, m.applyAlone(func() error { m.pins = append(m.pins, pin); return nil }))
	}
	return m.applyAlone(func() error {
		err := m.unpin()
		m.pins = []*bolt.Tx{pin}
		m.db.NoSync, m.db.NoFreelistSync = true, true
		return err
	})
}

// pinNewest opens a read transaction on the newest state, and returns its root.
func (m *Machine) pinNewest() (pin *bolt.Tx, root []byte, err error) {
	file, err := os.Open(filepath.Join(m.cfg.Dir, stateFile))
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	err = m.applyAlone(func() error { // so that the root stays where it is
		if pin, err = m.beginWholeAlone(); err != nil {
			return err
		}
		if root, err = readRoot(file, pin.ID()); err != nil {
			return errors.Join(err, pin.Rollback())
		}
		return nil
	})
	return pin, root, err
}

// listFreePages has the database list its free pages, where its transactions don't. Without a list bbolt reads the
// whole database when it opens it, and on a damaged page panics in a goroutine of its own. (So it does when it rolls back a transaction that
// it could not write, or that met damage: what ends the node as well, if with less of a message.) Nothing is applied meanwhile. An error is
// final.
func (m *Machine) listFreePages() error {
	if !m.db.NoFreelistSync {
		return nil
	}
	m.db.NoFreelistSync = false
	defer func() { m.db.NoFreelistSync = true }()
	return m.db.Update(func(*bolt.Tx) error { return nil })
}

// beginWholeAlone opens a read transaction on the newest state, which lists its free pages. Nothing is applied meanwhile.
// An error is final.
func (m *Machine) beginWholeAlone() (*bolt.Tx, error) {
	if err := m.listFreePages(); err != nil {
		m.fail(err)
		return nil, err
	}
	return m.db.Begin(false)
}

// applyAlone runs f while nothing is applied.
func (m *Machine) applyAlone(f func() error) error {
	m.applying.Lock()
	defer m.applying.Unlock()
	return f()
}

// tendAnchor sees to it that what has been applied is synced: soon, at once when the database has grown a good deal beyond its
// anchor, since pages at its end can't be used again before, and before it goes on if that is too slow. Only Apply
// calls it.
func (m *Machine) tendAnchor() error {
	m.applying.Lock()
	grown, large := int64(0), m.bytes > m.anchorLimit
	if len(m.pins) > 0 {
		grown = m.bytes - m.pins[0].Size()
	}
	m.applying.Unlock()
	if grown > anchorGrowthMost || grown > 0 && large {
		return m.moveAnchor(func() {})
	}
	if m.tending.CompareAndSwap(false, true) {
		m.soon, m.hurried = time.AfterFunc(m.syncAfter, m.tend), false
	}
	if grown > m.anchorGrowth && !m.hurried {
		m.hurried = true
		m.soon.Reset(0)
	}
	return nil
}

// tend syncs what has been applied.
func (m *Machine) tend() {
	err := m.sync(func() { m.tending.Store(false) })
	if err != nil && !errors.Is(err, ErrClosed) && m.cfg.Fatal != nil {
		m.fatalOnce.Do(func() { m.cfg.Fatal(err) })
	}
}
