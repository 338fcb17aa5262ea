package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// recordFile holds the snapshot record, recordTemp a new one being written.
const (
	recordFile = "snapshot"
	recordTemp = "snapshot.new"
)

// installingFile is there while a snapshot of the leader's is installed: from before
// the state is swapped until the log has caught up with it. The state that comes
// may be beyond the snapshot's position. Only then may it be ahead of log and record.
const installingFile = "installing"

// beginInstall makes the mark, durably.
func beginInstall(dir string) error {
	if err := errors.Join(writeFile(filepath.Join(dir, installingFile), nil), syncDir(dir)); err != nil {
		return fmt.Errorf("begin to install snapshot: %w", err)
	}
	return nil
}

// endInstall takes the mark away. One that a crash brings back does no harm: it is
// taken away again once log and state agree.
func endInstall(dir string) error {
	if err := os.Remove(filepath.Join(dir, installingFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("end installing snapshot: %w", err)
	}
	return nil
}

// isInstalling reports whether the mark is there.
func isInstalling(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, installingFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// recordMagic begins a snapshot record; its last byte is the format's version.
const recordMagic = "atollsn\x01"

// record is all that a snapshot is on disk: a position in the log that the state
// has reached, and the Raft configuration there. The state itself is the state
// machine's, and at this position or beyond it.
type record struct {
	index, term  uint64
	servers      raft.Configuration
	serversIndex uint64
	// installed says that the leader sent the snapshot: the log before it is not
	// this node's own and may have had other entries.
	installed bool
}

// encode returns the file's content: magic, the numbers as 8 bytes each, flag,
// configuration, and the checksum of all of it.
func (r *record) encode() []byte {
	body := []byte(recordMagic)
	for _, n := range []uint64{r.index, r.term, r.serversIndex} {
		body = binary.BigEndian.AppendUint64(body, n)
	}
	flag := byte(0)
	if r.installed {
		flag = 1
	}
	body = append(body, flag)
	body = append(body, raft.EncodeConfiguration(r.servers)...)
	return seal(nil, body)
}

// decodeRecord is the reverse of encode.
func decodeRecord(file []byte) (r *record, err error) {
	body, err := unseal(nil, file)
	if err != nil {
		return nil, err
	}
	rest, ok := bytes.CutPrefix(body, []byte(recordMagic))
	if !ok || len(rest) < 3*8+1 || rest[24] > 1 {
		return nil, errors.New("not a snapshot record of this version")
	}
	r = &record{
		index: binary.BigEndian.Uint64(rest), term: binary.BigEndian.Uint64(rest[8:]),
		serversIndex: binary.BigEndian.Uint64(rest[16:]), installed: rest[24] == 1,
	}
	// The decoder panics on what it can't read, which a checksum that is right
	// does not rule out for a file that was not made here.
	defer func() {
		if p := recover(); p != nil {
			r, err = nil, fmt.Errorf("decode configuration: %v", p)
		}
	}()
	r.servers = raft.DecodeConfiguration(rest[25:])
	return r, nil
}

// loadRecord reads the record; nil if there is none.
func loadRecord(dir string) (*record, error) {
	path := filepath.Join(dir, recordFile)
	file, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read snapshot record: %w", err)
	}
	r, err := decodeRecord(file)
	if err != nil {
		return nil, fmt.Errorf("read snapshot record %s: %w", path, err)
	}
	return r, nil
}

// save replaces the record on disk, durably and at once: after a crash it is the
// old or the new one, never a mixture.
func (r *record) save(dir string) error {
	temp := filepath.Join(dir, recordTemp)
	if err := writeFile(temp, r.encode()); err != nil {
		return fmt.Errorf("write snapshot record: %w", err)
	}
	if err := os.Rename(temp, filepath.Join(dir, recordFile)); err != nil {
		return fmt.Errorf("write snapshot record: %w", err)
	}
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("write snapshot record: %w", err)
	}
	return nil
}

// writeFile writes a file and has it on disk when it returns.
func writeFile(path string, content []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := file.Write(content); err != nil {
		return errors.Join(err, file.Close())
	}
	return syncAndClose(file)
}

func syncAndClose(file *os.File) error {
	return errors.Join(file.Sync(), file.Close())
}

// syncDir makes the names in a folder durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return syncAndClose(dir)
}
