package metadata

import (
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/rs/zerolog"
)

// TestNoFlippedBitGoesUnseen flips single bits anywhere in the database. Each
// must be found, or be in a place that says nothing.
func TestNoFlippedBitGoesUnseen(t *testing.T) {
	t.Parallel()
	h := makeHistory(t, 5, 300)
	random := rand.New(rand.NewPCG(6, 0))
	found := 0
	whole := compacted(t, h.machine)
	for range 300 {
		var offset, bit int
		dir := copyState(t, whole, func(content []byte) []byte {
			offset, bit = random.IntN(len(content)), random.IntN(8)
			content[offset] ^= 1 << bit
			return content
		})
		m, err := OpenMachine(MachineConfig{Dir: dir, Logger: zerolog.Nop()})
		if err != nil {
			found++
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("bit %d at %d: error is %v", bit, offset, err)
			}
			continue
		}
		if err := m.Verify(); err == nil {
			h.checkSame(t, m)
		} else {
			found++
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("bit %d at %d: error is %v", bit, offset, err)
			}
			if err := m.Verify(); !errors.Is(err, ErrClosed) {
				t.Errorf("bit %d at %d: the machine goes on: %v", bit, offset, err)
			}
		}
		if err := m.Close(); err != nil {
			t.Errorf("bit %d at %d: %v", bit, offset, err)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d of 300 flipped bits were in use", found)
	if found < 40 { // the rest is room at the end of pages
		t.Errorf("only %d of 300 flipped bits were found", found)
	}
}

func TestSealCoversWhereAValueIs(t *testing.T) {
	sealed := seal("ab", []byte("key"), []byte("value"))
	if value, err := unseal("ab", []byte("key"), sealed); err != nil || string(value) != "value" {
		t.Fatalf("value is %q (%v)", value, err)
	}
	for _, place := range []struct {
		bucket bucket
		key    string
	}{{"ab", "kez"}, {"ac", "key"}, {"abk", "ey"}, {"ab", "ke"}} {
		if _, err := unseal(place.bucket, []byte(place.key), sealed); !errors.Is(err, ErrCorrupt) {
			t.Errorf("in bucket %q, key %q: error is %v", place.bucket, place.key, err)
		}
	}
	if _, err := unseal("ab", []byte("key"), sealed[:3]); !errors.Is(err, ErrCorrupt) {
		t.Errorf("cut off: error is %v", err)
	}
}

// TestDamageFoundByAReadEndsTheNode flips a bit of one tag and reads it.
func TestDamageFoundByAReadEndsTheNode(t *testing.T) {
	s, log := openStore(t, StoreConfig{})
	if err := s.PutManifest(t.Context(), putOf("app", "content of it", "v1")); err != nil {
		t.Fatal(err)
	}
	var sealed []byte
	err := log.machine.view(func(v view) error {
		value := v.tx.Bucket([]byte(bucketTags)).Get(keyOf("app", "v1"))
		sealed = append(sealed, value...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := copyState(t, log.machine, func(content []byte) []byte {
		return replaceAll(t, content, sealed, func(found []byte) { found[4] ^= 4 })
	})
	var fatal []error
	var m *Machine
	m, err = OpenMachine(MachineConfig{Dir: dir, Fatal: func(err error) {
		fatal = append(fatal, err, m.Close())
	}})
	if err != nil {
		t.Fatal(err)
	}
	s = NewStore(m, &localLog{machine: m}, StoreConfig{})
	if _, err := s.ManifestByTag(t.Context(), "app", "v1"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("error is %v, not %v", err, ErrCorrupt)
	}
	if _, err := s.Manifest(t.Context(), "app", digestOf("content of it")); !errors.Is(err, ErrClosed) {
		t.Errorf("the node goes on: %v", err)
	}
	if len(fatal) != 2 || !errors.Is(fatal[0], ErrCorrupt) || fatal[1] != nil {
		t.Errorf("fatal errors are %v", fatal)
	}
}

// TestSealIsCRC32C: the checksum is that of bucket, key and value in one piece, however
// it is computed. It is in every database.
func TestSealIsCRC32C(t *testing.T) {
	key, value := []byte("key"), []byte("value")
	for _, b := range stateBuckets() {
		whole := slices.Concat(recordPrefix(b, key), key, value)
		if want := crc32.Checksum(whole, crc32.MakeTable(crc32.Castagnoli)); checksum(b, key, value) != want {
			t.Errorf("bucket %q: %08x, want %08x", b, checksum(b, key, value), want)
		}
	}
}
