package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"

	bolt "go.etcd.io/bbolt"
	pb "google.golang.org/protobuf/proto"
)

// view reads one consistent state. What it returns is checked against its seal;
// slices are valid until the transaction ends, decoded messages for ever.
type view struct {
	tx *bolt.Tx
}

// viewDatabase runs read in a read transaction.
func viewDatabase(db *bolt.DB, read func(view) error) error {
	return guard(func() error {
		return db.View(func(tx *bolt.Tx) error { return read(view{tx}) })
	})
}

// guard turns a panic into ErrCorrupt. bbolt panics on pages that make no sense,
// and reading a page that the file has lost or the disk can't deliver is a fault
// at a mapped address. Both must end the node with a message, not go on behind a
// handler that contains panics.
func guard(run func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%w: %v\n%s", ErrCorrupt, cause, debug.Stack())
		}
	}()
	return run()
}

// value returns the bytes stored under key.
func (v view) value(b bucket, key []byte) (value []byte, found bool, err error) {
	sealed := v.tx.Bucket([]byte(b)).Get(key)
	if sealed == nil {
		return nil, false, nil
	}
	value, err = unseal(b, key, sealed)
	return value, err == nil, err
}

// has reports whether there is a record under key.
func (v view) has(b bucket, key []byte) (bool, error) {
	_, found, err := v.value(b, key)
	return found, err
}

// record decodes the message stored under key. Without one, into is left alone.
func (v view) record(b bucket, key []byte, into pb.Message) (found bool, err error) {
	value, found, err := v.value(b, key)
	if err != nil || !found {
		return false, err
	}
	return true, decode(b, key, value, into)
}

// mustRecord is record for what another record names: it must be there.
func (v view) mustRecord(b bucket, key []byte, into pb.Message) error {
	found, err := v.record(b, key, into)
	if err == nil && !found {
		err = fmt.Errorf("%w: bucket %q, key %q: record is named by another and missing", ErrCorrupt, b, key)
	}
	return err
}

func decode(b bucket, key, value []byte, into pb.Message) error {
	if err := pb.Unmarshal(value, into); err != nil {
		return fmt.Errorf("%w: bucket %q, key %q: %w", ErrCorrupt, b, key, err)
	}
	return nil
}

// number returns a counter, 0 if it was never set.
func (v view) number(b bucket, key string) (uint64, error) {
	value, found, err := v.value(b, []byte(key))
	if err != nil || !found {
		return 0, err
	}
	if len(value) != 8 {
		return 0, fmt.Errorf("%w: bucket %q, key %q: number of %d bytes", ErrCorrupt, b, key, len(value))
	}
	return binary.BigEndian.Uint64(value), nil
}

// position returns how far this state is.
func (v view) position() (position, error) {
	value, found, err := v.value(bucketMachine, []byte(keyPosition))
	if err != nil || !found {
		return position{}, err
	}
	return decodePosition(value)
}

// span is a run of keys: those with a prefix whose rest comes after another.
type span struct {
	prefix []byte
	// after is the rest of the last key that is not wanted; nil for all.
	after []byte
}

// errStop ends a scan early.
var errStop = errors.New("stop")

// scan calls visit for each record of the span in the order of keys, with the
// part of the key behind the prefix. visit must not change the bucket; errStop
// ends the scan without an error.
func (v view) scan(b bucket, s span, visit func(rest, value []byte) error) error {
	start := s.prefix
	if s.after != nil {
		start = append(bytes.Clone(s.prefix), s.after...)
		start = append(start, 0) // the smallest key behind it
	}
	cursor := v.tx.Bucket([]byte(b)).Cursor()
	for key, sealed := cursor.Seek(start); key != nil && bytes.HasPrefix(key, s.prefix); key, sealed = cursor.Next() {
		if sealed == nil {
			continue // the bucket that every bucket has, see createDatabase
		}
		value, err := unseal(b, key, sealed)
		if err != nil {
			return err
		}
		if err := visit(key[len(s.prefix):], value); err != nil {
			if errors.Is(err, errStop) {
				return nil
			}
			return err
		}
	}
	return nil
}

// rests returns at most limit rests of the span's keys, and whether there are
// more. The strings are copies.
func (v view) rests(b bucket, s span, limit int) (rests []string, more bool, err error) {
	err = v.scan(b, s, func(rest, _ []byte) error {
		if len(rests) == limit {
			more = true
			return errStop
		}
		rests = append(rests, string(rest))
		return nil
	})
	return rests, more, err
}
