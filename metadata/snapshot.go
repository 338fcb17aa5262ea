package metadata

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
)

// A state on its way to another node: a header, the database file as one
// transaction sees it, and the SHA-256 of both.
//
//	offset  bytes
//	     0      8  magic
//	     8      4  version
//	    12      4  zero
//	    16      8  log index that the state is applied to
//	    24      8  term of that entry
//	    32      8  bytes of the database, n
//	    40      n  database
//	40 + n     32  SHA-256 of all before
//
// Numbers are big endian.
const (
	snapshotMagic       = "ATOLLST\n"
	snapshotVersion     = 1
	snapshotHeaderBytes = 40
	copyBufferBytes     = 256 << 10
)

type snapshotHeader struct {
	logIndex, term uint64
	databaseBytes  int64
}

func (h snapshotHeader) encode() []byte {
	out := append(make([]byte, 0, snapshotHeaderBytes), snapshotMagic...)
	out = binary.BigEndian.AppendUint32(out, snapshotVersion)
	out = binary.BigEndian.AppendUint32(out, 0)
	out = binary.BigEndian.AppendUint64(out, h.logIndex)
	out = binary.BigEndian.AppendUint64(out, h.term)
	return binary.BigEndian.AppendUint64(out, uint64(h.databaseBytes))
}

func decodeSnapshotHeader(encoded []byte) (snapshotHeader, error) {
	if len(encoded) != snapshotHeaderBytes || string(encoded[:8]) != snapshotMagic {
		return snapshotHeader{}, fmt.Errorf("%w: this is no snapshot of a state", ErrCorrupt)
	}
	if version := binary.BigEndian.Uint32(encoded[8:]); version != snapshotVersion {
		return snapshotHeader{}, fmt.Errorf("snapshot has version %d, this version of atoll knows version %d", version, snapshotVersion)
	}
	h := snapshotHeader{
		logIndex:      binary.BigEndian.Uint64(encoded[16:]),
		term:          binary.BigEndian.Uint64(encoded[24:]),
		databaseBytes: int64(binary.BigEndian.Uint64(encoded[32:])),
	}
	if h.databaseBytes < 0 {
		return snapshotHeader{}, fmt.Errorf("%w: snapshot of negative size", ErrCorrupt)
	}
	return h, nil
}

// Snapshot opens a stream of the whole state as it is now and tells its size in
// bytes and the log index that it is applied to. The state is first copied to a
// file without a name: a slow receiver would otherwise keep a transaction open,
// and the database would grow with every change meanwhile. Close frees the copy.
func (m *Machine) Snapshot() (state io.ReadCloser, size int64, logIndex uint64, err error) {
	file, err := os.CreateTemp(m.cfg.Dir, stateFile+".outgoing-")
	if err != nil {
		return nil, 0, 0, fmt.Errorf("take snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("take snapshot: %w", err)
			file.Close()
		}
	}()
	if err := os.Remove(file.Name()); err != nil {
		return nil, 0, 0, err
	}
	if err := m.viewWhole(func(v view) error {
		at, err := v.position()
		if err != nil {
			return err
		}
		logIndex = at.logIndex
		return writeSnapshot(file, v.tx, at)
	}); err != nil {
		return nil, 0, 0, err
	}
	if size, err = file.Seek(0, io.SeekCurrent); err != nil {
		return nil, 0, 0, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, 0, 0, err
	}
	return file, size, logIndex, nil
}

func writeSnapshot(w io.Writer, tx *bolt.Tx, at position) error {
	digest := sha256.New()
	buffered := bufio.NewWriterSize(io.MultiWriter(w, digest), copyBufferBytes)
	header := snapshotHeader{logIndex: at.logIndex, term: at.term, databaseBytes: tx.Size()}
	if _, err := buffered.Write(header.encode()); err != nil {
		return err
	}
	if _, err := tx.WriteTo(buffered); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	_, err := w.Write(digest.Sum(nil))
	return err
}

// Restore replaces the state with one from Snapshot. What comes in is checked
// to the last record before it takes the old state's place, which it does in one
// rename; on an error before that the old state is whole and in use. A state
// older than the present one is read to its end and dropped. Restore does not
// overlap with Apply.
func (m *Machine) Restore(state io.Reader) error {
	if err := m.restore(state); err != nil {
		return fmt.Errorf("restore state: %w", err)
	}
	return nil
}

func (m *Machine) restore(state io.Reader) error {
	encoded := make([]byte, snapshotHeaderBytes)
	if _, err := io.ReadFull(state, encoded); err != nil {
		return fmt.Errorf("read header: %w", err)
	}
	header, err := decodeSnapshotHeader(encoded)
	if err != nil {
		return err
	}
	if applied, _ := m.Applied(); header.logIndex < applied {
		m.cfg.Logger.Info().Uint64("index", header.logIndex).Uint64("applied", applied).Msg("dropped a snapshot older than the state")
		_, err := io.Copy(io.Discard, state)
		return err
	}
	incoming := filepath.Join(m.cfg.Dir, incomingFile)
	db, err := receive(incoming, header, state)
	if err != nil {
		if removeErr := os.Remove(incoming); !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
		return err
	}
	return m.exchange(db)
}

// receive writes the database to a file, makes it durable, and opens it once it
// is known to be whole.
func receive(path string, header snapshotHeader, state io.Reader) (*bolt.DB, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(receiveFile(file, header, state), file.Close()); err != nil {
		return nil, err
	}
	db, err := openDatabase(path)
	if err != nil {
		return nil, err
	}
	if err := viewDatabase(db, func(v view) error { return verify(v, header) }); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func receiveFile(file *os.File, header snapshotHeader, state io.Reader) error {
	digest := sha256.New()
	digest.Write(header.encode())
	buffer := make([]byte, copyBufferBytes)
	// Hiding the file's ReadFrom makes CopyBuffer use the buffer.
	to := struct{ io.Writer }{io.MultiWriter(file, digest)}
	n, err := io.CopyBuffer(to, io.LimitReader(state, header.databaseBytes), buffer)
	if err != nil {
		return err
	}
	if n != header.databaseBytes {
		return fmt.Errorf("%w: snapshot ends after %d of %d bytes", ErrCorrupt, n, header.databaseBytes)
	}
	var sum [sha256.Size]byte
	if _, err := io.ReadFull(state, sum[:]); err != nil {
		return fmt.Errorf("read digest: %w", err)
	}
	if !bytes.Equal(sum[:], digest.Sum(nil)) {
		return fmt.Errorf("%w: snapshot's digest does not match", ErrCorrupt)
	}
	switch _, err := io.ReadFull(state, make([]byte, 1)); {
	case err == nil:
		return fmt.Errorf("%w: snapshot goes on after its end", ErrCorrupt)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("read end: %w", err)
	}
	return file.Sync()
}

// exchange puts a database that is open and whole in the place of the present
// one. A crash leaves the one or the other.
func (m *Machine) exchange(db *bolt.DB) error {
	m.lock.Lock()
	defer m.lock.Unlock()
	if err := m.usable(); err != nil {
		return errors.Join(err, db.Close())
	}
	// What is anchored is the file that goes: an anchor must not be there when another has its name.
	if err := m.dropAnchor(); err != nil {
		m.fail(err)
		return errors.Join(err, db.Close())
	}
	if err := os.Rename(filepath.Join(m.cfg.Dir, incomingFile), filepath.Join(m.cfg.Dir, stateFile)); err != nil {
		return errors.Join(err, db.Close())
	}
	// From here on the new database is the state. bbolt holds the file by its
	// descriptor and does not mind its new name.
	old := m.db
	m.db = db
	err := errors.Join(syncDir(m.cfg.Dir), old.Close())
	if err == nil {
		err = m.publish()
	}
	if err == nil {
		err = m.moveAnchor(func() {})
	}
	if err != nil {
		m.fail(err)
	}
	return err
}

// Verify reads the whole state and checks every record and the state hash. It
// takes time in proportion to the state. Error: ErrCorrupt.
func (m *Machine) Verify() error {
	if err := m.view(verifyAll); err != nil {
		return fmt.Errorf("verify state: %w", err)
	}
	return nil
}

// verifyAll is verify for a state without a header.
func verifyAll(v view) error {
	at, err := v.position()
	if err != nil {
		return err
	}
	return verify(v, snapshotHeader{logIndex: at.logIndex, term: at.term})
}

// verify checks that a state is the one that its header tells of, that every
// record has its checksum, and that together they have the state's hash: records
// that went missing would show nowhere else.
func verify(v view, header snapshotHeader) error {
	at, err := v.position()
	if err != nil {
		return err
	}
	if at.logIndex != header.logIndex || at.term != header.term {
		return fmt.Errorf("%w: state is applied to log index %d of term %d, its header says %d of term %d",
			ErrCorrupt, at.logIndex, at.term, header.logIndex, header.term)
	}
	var hash stateHash
	for _, b := range stateBuckets() {
		err := v.scan(b, span{}, func(key, value []byte) error {
			hash.add(b, key, value)
			return nil
		})
		if err != nil {
			return err
		}
	}
	if hash != at.hash {
		return fmt.Errorf("%w: records have the hash %x, the state's hash is %x", ErrCorrupt, hash.bytes(), at.hash.bytes())
	}
	return nil
}
