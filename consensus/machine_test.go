package consensus

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/bbolt"
)

// diary is a small state machine on disk that keeps the contract of
// StateMachine: it keeps every command under its log index. A command "fail" is
// an error; one of "add KEY" answers how often that key was added.
type diary struct {
	dir string

	mu sync.RWMutex // guards db, not what is in it
	db *bbolt.DB

	// beforeRestore, if set, is called by Restore before it swaps the state.
	beforeRestore func() error
}

var (
	bucketMeta    = []byte("meta")
	bucketEntries = []byte("entries")
	bucketCounts  = []byte("counts")
	keyApplied    = []byte("applied")
)

func openDiary(dir string) (*diary, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	j := &diary{dir: dir}
	return j, j.open()
}

func (j *diary) path() string { return filepath.Join(j.dir, "state.db") }

func (j *diary) open() error {
	db, err := bbolt.Open(j.path(), 0o600, &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return err
	}
	j.db = db
	return db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketEntries, bucketCounts} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
}

func (j *diary) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.db.Close()
}

func (j *diary) Apply(entries []Entry) ([][]byte, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	results := make([][]byte, len(entries))
	return results, j.db.Update(func(tx *bbolt.Tx) error {
		applied, _ := appliedIn(tx)
		for i, entry := range entries {
			if entry.Index <= applied {
				continue
			}
			command := string(entry.Data)
			if command == "fail" {
				return errors.New("told to fail")
			}
			key := binary.BigEndian.AppendUint64(nil, entry.Index)
			if err := tx.Bucket(bucketEntries).Put(key, entry.Data); err != nil {
				return err
			}
			results[i] = []byte("ok")
			if added, ok := strings.CutPrefix(command, "add "); ok {
				count := append(bytes.Clone(tx.Bucket(bucketCounts).Get([]byte(added))), '+')
				results[i] = fmt.Appendf(nil, "%d", len(count))
				if err := tx.Bucket(bucketCounts).Put([]byte(added), count); err != nil {
					return err
				}
			}
		}
		last := entries[len(entries)-1]
		if last.Index <= applied {
			return nil
		}
		value := binary.BigEndian.AppendUint64(nil, last.Index)
		return tx.Bucket(bucketMeta).Put(keyApplied, binary.BigEndian.AppendUint64(value, last.Term))
	})
}

func appliedIn(tx *bbolt.Tx) (index, term uint64) {
	value := tx.Bucket(bucketMeta).Get(keyApplied)
	if value == nil {
		return 0, 0
	}
	return binary.BigEndian.Uint64(value), binary.BigEndian.Uint64(value[8:])
}

// noCommand is what the diary takes for no command.
const noCommand = "no command"

func (j *diary) Check(command []byte) error {
	if string(command) == noCommand {
		return errors.New("it says so")
	}
	return nil
}

func (j *diary) Applied() (index, term uint64) {
	j.view(func(tx *bbolt.Tx) { index, term = appliedIn(tx) })
	return index, term
}

// Sync has nothing to do: every Apply is synced.
func (j *diary) Sync() error { return nil }

func (j *diary) view(f func(tx *bbolt.Tx)) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	if err := j.db.View(func(tx *bbolt.Tx) error { f(tx); return nil }); err != nil {
		panic(err)
	}
}

// count is how often a key was added.
func (j *diary) count(key string) (n int) {
	j.view(func(tx *bbolt.Tx) { n = len(tx.Bucket(bucketCounts).Get([]byte(key))) })
	return n
}

// dump is the whole state as text.
func (j *diary) dump() string {
	var text strings.Builder
	j.view(func(tx *bbolt.Tx) {
		_ = tx.Bucket(bucketEntries).ForEach(func(k, v []byte) error {
			if len(v) > 0 { // configurations and the openings of terms
				fmt.Fprintf(&text, "%d %s\n", binary.BigEndian.Uint64(k), v)
			}
			return nil
		})
		_ = tx.Bucket(bucketCounts).ForEach(func(k, v []byte) error {
			fmt.Fprintf(&text, "%s=%d\n", k, len(v))
			return nil
		})
	})
	return text.String()
}

func (j *diary) Snapshot() (io.ReadCloser, int64, uint64, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	file, err := os.CreateTemp(j.dir, "outgoing-")
	if err != nil {
		return nil, 0, 0, err
	}
	var index uint64
	err = errors.Join(os.Remove(file.Name()), j.db.View(func(tx *bbolt.Tx) error {
		index, _ = appliedIn(tx)
		sum := sha256.New()
		if _, err := tx.WriteTo(io.MultiWriter(file, sum)); err != nil {
			return err
		}
		_, err := file.Write(sum.Sum(nil))
		return err
	}))
	size, seek := file.Seek(0, io.SeekCurrent)
	_, rewind := file.Seek(0, io.SeekStart)
	return file, size, index, errors.Join(err, seek, rewind)
}

func (j *diary) Restore(state io.Reader) error {
	content, err := io.ReadAll(state)
	if err != nil {
		return err
	}
	if len(content) < sha256.Size {
		return errors.New("state is short")
	}
	content, sum := content[:len(content)-sha256.Size], content[len(content)-sha256.Size:]
	if got := sha256.Sum256(content); !bytes.Equal(got[:], sum) {
		return errors.New("state is damaged")
	}
	if j.beforeRestore != nil {
		if err := j.beforeRestore(); err != nil {
			return err
		}
	}
	temp := j.path() + ".new"
	if err := writeFile(temp, content); err != nil {
		return err
	}
	incoming, err := bbolt.Open(temp, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	var index uint64
	_ = incoming.View(func(tx *bbolt.Tx) error { index, _ = appliedIn(tx); return nil })
	if err := incoming.Close(); err != nil {
		return err
	}
	if present, _ := j.Applied(); index < present {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.db.Close(); err != nil {
		return err
	}
	if err := os.Rename(temp, j.path()); err != nil {
		return err
	}
	if err := syncDir(j.dir); err != nil {
		return err
	}
	return j.open()
}

func TestJournalKeepsTheContract(t *testing.T) {
	a, err := openDiary(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	results, err := a.Apply([]Entry{{1, 1, nil}, {2, 1, []byte("add x")}, {4, 1, []byte("add x")}})
	if err != nil || string(results[2]) != "2" {
		t.Fatalf("results %q, err %v", results, err)
	}
	if results, err = a.Apply([]Entry{{4, 1, []byte("add x")}}); err != nil || results[0] != nil || a.count("x") != 2 {
		t.Fatalf("an applied entry is not skipped: %q, %v", results, err)
	}
	state, _, index, err := a.Snapshot()
	if err != nil || index != 4 {
		t.Fatal(index, err)
	}
	b, err := openDiary(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Restore(state); err != nil || b.dump() != a.dump() {
		t.Fatalf("restored %q, want %q, err %v", b.dump(), a.dump(), err)
	}
}
