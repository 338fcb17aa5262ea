package metadata

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/atollregistry/atoll/consensus"
)

func snapshotOf(t testing.TB, m *Machine) []byte {
	t.Helper()
	state, size, index, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(state)
	if err := errors.Join(err, state.Close()); err != nil {
		t.Fatal(err)
	}
	header, err := decodeSnapshotHeader(content[:snapshotHeaderBytes])
	if err != nil || int64(len(content)) != size || header.logIndex != index {
		t.Fatalf("snapshot has %d bytes and header %+v, it said %d bytes, log index %d (%v)", len(content), header, size, index, err)
	}
	return content
}

// checkFolder fails if there is anything but the database and its anchor in the folder.
func checkFolder(t testing.TB, m *Machine) {
	t.Helper()
	var names []string
	for deadline := time.Now().Add(10 * time.Second); !slices.Equal(names, []string{anchorFile, stateFile}); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("folder has %v", names)
		}
		files, err := os.ReadDir(m.cfg.Dir)
		if err != nil {
			t.Fatal(err)
		}
		names = nil // while the state is synced there is also a new anchor
		for _, file := range files {
			names = append(names, file.Name())
		}
	}
}

func TestRestoredStateGoesOn(t *testing.T) {
	h := makeHistory(t, 20, 200)
	early, applied := snapshotOf(t, h.machine), h.entries[len(h.entries)-1].Index
	rest := len(h.entries)
	for range 100 {
		h.add(h.command())
	}
	m := openMachine(t, t.TempDir())
	if _, err := m.Apply(h.entries[:50]); err != nil {
		t.Fatal(err)
	}
	if err := m.Restore(bytes.NewReader(early)); err != nil {
		t.Fatal(err)
	}
	if index, _ := m.Applied(); index != applied {
		t.Fatalf("state is at log index %d, not %d", index, applied)
	}
	checkFolder(t, m)
	if _, err := m.Apply(h.entries[rest-20:]); err != nil { // 20 of them twice
		t.Fatal(err)
	}
	h.checkSame(t, m)
	checkInvariants(t, m)

	// What was restored is what is there after a restart, and can be passed on.
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = openMachine(t, m.cfg.Dir)
	h.checkSame(t, m)
	third := openMachine(t, t.TempDir())
	if err := third.Restore(bytes.NewReader(snapshotOf(t, m))); err != nil {
		t.Fatal(err)
	}
	h.checkSame(t, third)
	if len(*third.nodes.Load()) == 0 {
		t.Error("the nodes were not taken over")
	}
}

func TestOlderStateIsDropped(t *testing.T) {
	h := makeHistory(t, 21, 100)
	early := snapshotOf(t, h.machine)
	h.add(h.command())
	before := dump(t, h.machine)
	reader := bytes.NewReader(early)
	if err := h.machine.Restore(reader); err != nil {
		t.Fatal(err)
	}
	if reader.Len() != 0 {
		t.Errorf("%d bytes were not read", reader.Len())
	}
	if dump(t, h.machine) != before {
		t.Error("the state went back")
	}
}

func TestDamagedSnapshotLeavesTheStateWhole(t *testing.T) {
	t.Parallel()
	h := makeHistory(t, 22, 150)
	good := snapshotOf(t, h.machine)
	m := openMachine(t, t.TempDir())
	if _, err := m.Apply(h.entries[:40]); err != nil {
		t.Fatal(err)
	}
	before := dump(t, m)
	random := rand.New(rand.NewPCG(7, 0))
	harms := map[string][]byte{
		"empty":         nil,
		"header only":   good[:snapshotHeaderBytes],
		"no digest":     good[:len(good)-sha256.Size],
		"half":          good[:len(good)/2],
		"last byte":     good[:len(good)-1],
		"goes on":       append(bytes.Clone(good), 0),
		"other version": append(append([]byte(snapshotMagic), 0, 0, 0, 9), good[12:]...),
	}
	for i := range 60 {
		flipped := bytes.Clone(good)
		flipped[random.IntN(len(flipped))] ^= 1 << random.IntN(8)
		harms[fmt.Sprintf("bit flip %d", i)] = flipped
	}
	for name, content := range harms {
		if err := m.Restore(bytes.NewReader(content)); err == nil {
			t.Fatalf("%s: was restored", name)
		}
		if dump(t, m) != before {
			t.Fatalf("%s: changed the state", name)
		}
		checkFolder(t, m)
	}
	if _, err := m.Apply(h.entries[40:]); err != nil {
		t.Fatal(err)
	}
	h.checkSame(t, m)
}

// TestDamageIsNotPassedOn restores states that were damaged before they were
// sent, so that their digest is right.
func TestDamageIsNotPassedOn(t *testing.T) {
	t.Parallel()
	h := makeHistory(t, 23, 150)
	good := snapshotOf(t, compacted(t, h.machine))
	random := rand.New(rand.NewPCG(8, 0))
	var used []int // most of the pages is room, that says nothing
	for offset := snapshotHeaderBytes; offset < len(good)-sha256.Size; offset++ {
		if good[offset] != 0 {
			used = append(used, offset)
		}
	}
	refused := 0
	for range 100 {
		flipped := bytes.Clone(good[:len(good)-sha256.Size])
		offset := used[random.IntN(len(used))]
		flipped[offset] ^= 1 << random.IntN(8)
		sum := sha256.Sum256(flipped)
		m := openMachine(t, t.TempDir())
		err := m.Restore(bytes.NewReader(append(flipped, sum[:]...)))
		switch {
		case err == nil:
			h.checkSame(t, m)
		case !errors.Is(err, ErrCorrupt):
			t.Errorf("byte %d: error is %v", offset, err)
		default:
			refused++
			if index, _ := m.Applied(); index != 0 {
				t.Errorf("byte %d: state is at log index %d", offset, index)
			}
		}
	}
	t.Logf("%d of 100 damaged states were refused", refused)
	if refused < 90 {
		t.Errorf("only %d of 100 damaged states were refused", refused)
	}
}

// TestSnapshotWhileTheStateChanges takes snapshots and restores them while
// entries are applied and read.
func TestSnapshotWhileTheStateChanges(t *testing.T) {
	t.Parallel()
	h := makeHistory(t, 24, 250)
	m := openMachine(t, t.TempDir())
	applied := make(chan error, 1)
	go func() { // waited for by the receive below
		for i := range h.entries {
			if _, err := m.Apply([]consensus.Entry{h.entries[i]}); err != nil {
				applied <- err
				return
			}
		}
		applied <- nil
	}()
	for done := false; !done; {
		select {
		case err := <-applied:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		default:
		}
		content := snapshotOf(t, m)
		follower := openMachine(t, t.TempDir())
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() {
				for range 20 {
					if err := follower.Verify(); err != nil {
						t.Error(err)
					}
				}
			})
		}
		if err := follower.Restore(bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		readers.Wait()
		if _, err := follower.Apply(h.entries); err != nil {
			t.Fatal(err)
		}
		h.checkSame(t, follower)
		if err := follower.Close(); err != nil {
			t.Fatal(err)
		}
	}
	h.checkSame(t, m)
}
