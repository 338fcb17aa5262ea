package metadata

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/atollregistry/atoll/consensus"
)

// stateFiles are the files of a state, by name.
type stateFiles map[string][]byte

func readState(t *testing.T, m *Machine) stateFiles {
	t.Helper()
	files := make(stateFiles)
	for _, name := range []string{stateFile, anchorFile} {
		content, err := os.ReadFile(filepath.Join(m.cfg.Dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if err == nil {
			files[name] = content
		}
	}
	return files
}

// write returns a new folder with the files.
func (f stateFiles) write(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, content := range f {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// isAnchored reports whether there is an anchor in dir.
func isAnchored(t *testing.T, dir string) bool {
	t.Helper()
	a, err := openAnchor(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.load(), a.file.Close()); err != nil {
		t.Fatal(err)
	}
	return a.root != nil
}

// Of an anchor that was being written when power failed, the one before is left.
func TestTornAnchor(t *testing.T) {
	h := makeHistory(t, 57, 40)
	m := openMachine(t, t.TempDir())
	still(m)
	for i := range h.entries {
		want, before := dump(t, m), readState(t, m)
		if _, err := m.Apply(h.entries[i : i+1]); err != nil {
			t.Fatal(err)
		}
		if err := m.Sync(); err != nil {
			t.Fatal(err)
		}
		left := readState(t, m)
		if len(left[anchorFile]) != len(before[anchorFile]) {
			t.Fatalf("the anchor's file has %d bytes", len(left[anchorFile]))
		}
		for at := range left[anchorFile] {
			if left[anchorFile][at] != before[anchorFile][at] {
				left[anchorFile][at] ^= 0x40
				break
			}
		}
		if again := openMachine(t, left.write(t)); dump(t, again) != want {
			t.Fatalf("entry %d: the state is not that of the anchor before", i)
		}
	}
}

// powerFailure returns what a disk may have of a database that was synced when it was before, and is now
// after: any of the pages that were written since, and of those parts.
func powerFailure(random *rand.Rand, before, after []byte) []byte {
	const sector = 512
	mixed := bytes.Clone(after)
	lost := random.Float64()
	for at := 0; at < len(after); at += sector {
		if at%pageBytes == 0 && random.IntN(8) == 0 {
			lost = random.Float64()
		}
		if random.Float64() >= lost {
			continue
		}
		clear(mixed[at : at+sector])
		if at < len(before) {
			copy(mixed[at:at+sector], before[at:])
		}
	}
	return mixed
}

// still has nothing move the anchor but the test.
func still(m *Machine) { m.anchorGrowth, m.syncAfter = math.MaxInt64, time.Hour }

// After a power failure the state is as it was when it was synced, whatever was written since.
func TestPowerFailure(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			h := makeHistory(t, 40+seed, 120)
			random := rand.New(rand.NewPCG(seed, 2))
			m := openMachine(t, t.TempDir())
			still(m)
			for done := 0; done < len(h.entries); {
				synced := done
				if err := m.Sync(); err != nil {
					t.Fatal(err)
				}
				before := readState(t, m)
				want := dump(t, m)
				for range 1 + random.IntN(20) {
					if done < len(h.entries) {
						if _, err := m.Apply(h.entries[done : done+1]); err != nil {
							t.Fatal(err)
						}
						done++
					}
				}
				after := readState(t, m)
				for range 4 {
					left := stateFiles{stateFile: powerFailure(random, before[stateFile], after[stateFile]), anchorFile: before[anchorFile]}
					again := openMachine(t, left.write(t))
					if err := again.Verify(); err != nil {
						t.Fatal(err)
					}
					if dump(t, again) != want {
						t.Fatalf("after entry %d the state is not that of entry %d", done, synced)
					}
					if _, err := again.Apply(h.entries[synced:]); err != nil {
						t.Fatal(err)
					}
					h.checkSame(t, again)
				}
			}
		})
	}
}

// Power may fail while the anchor is moved, and more is applied meanwhile: with the old anchor or the new one, any of the pages
// that were written since the old one's sync, or the new one's, may be there.
func TestPowerFailureWhileTheAnchorMoves(t *testing.T) {
	h := makeHistory(t, 45, 200)
	random := rand.New(rand.NewPCG(45, 2))
	m := openMachine(t, t.TempDir())
	still(m)
	apply := func(entries []consensus.Entry) {
		t.Helper()
		if _, err := m.Apply(entries); err != nil {
			t.Fatal(err)
		}
	}
	comesBack := func(files stateFiles, before []byte, anchor []byte, want string) {
		t.Helper()
		left := stateFiles{stateFile: powerFailure(random, before, files[stateFile]), anchorFile: anchor}
		again := openMachine(t, left.write(t))
		if err := again.Verify(); err != nil {
			t.Fatal(err)
		}
		if dump(t, again) != want {
			t.Fatal("the state is not the one that was synced")
		}
	}
	for done := 0; done+20 <= len(h.entries); done += 20 {
		if err := m.Sync(); err != nil {
			t.Fatal(err)
		}
		old, oldState := readState(t, m), dump(t, m)
		apply(h.entries[done : done+5])
		pin, root, err := m.pinNewest()
		if err != nil {
			t.Fatal(err)
		}
		synced, newState := readState(t, m), dump(t, m)
		for i := done + 5; i < done+20; i++ {
			apply(h.entries[i : i+1])
		}
		during := readState(t, m)
		comesBack(during, old[stateFile], old[anchorFile], oldState)
		comesBack(during, synced[stateFile], old[anchorFile], oldState)
		if err := m.anchor.save(root); err != nil {
			t.Fatal(err)
		}
		comesBack(during, synced[stateFile], readState(t, m)[anchorFile], newState)
		if err := pin.Rollback(); err != nil {
			t.Fatal(err)
		}
	}
}

// What a sync failed to write, no later sync may take for written.
func TestFailedSyncIsFinal(t *testing.T) {
	h := makeHistory(t, 54, 30)
	m := openMachine(t, t.TempDir())
	still(m)
	if _, err := m.Apply(h.entries[:10]); err != nil {
		t.Fatal(err)
	}
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	anchor := readState(t, m)[anchorFile]
	// One sync is on its way when Apply fails.
	eio := errors.New("input/output error")
	m.syncing.Lock()
	waiting := make(chan error)
	go func() { waiting <- m.Sync() }() // ends with the sync
	if _, err := m.Apply(h.entries[10:20]); err != nil {
		t.Fatal(err)
	}
	m.fail(eio)
	m.syncing.Unlock()
	if err := <-waiting; !errors.Is(err, eio) {
		t.Errorf("a sync that came after the failure: %v", err)
	}
	if _, err := m.Apply(h.entries[20:]); !errors.Is(err, eio) {
		t.Errorf("apply: %v", err)
	}
	if !bytes.Equal(readState(t, m)[anchorFile], anchor) {
		t.Error("the anchor has moved")
	}
}

// An anchor of which nobody knows whether it is there leaves both states whole.
func TestFailedAnchorKeepsBothPins(t *testing.T) {
	h := makeHistory(t, 55, 40)
	m := openMachine(t, t.TempDir())
	still(m)
	if _, err := m.Apply(h.entries[:20]); err != nil {
		t.Fatal(err)
	}
	readOnly, err := os.Open(m.anchor.file.Name())
	if err := errors.Join(err, m.anchor.file.Close()); err != nil {
		t.Fatal(err)
	}
	m.anchor.file = readOnly
	if err := m.Sync(); err == nil {
		t.Fatal("the anchor's file can't be written")
	}
	if len(m.pins) != 2 {
		t.Errorf("there are %d pins", len(m.pins))
	}
	if _, err := m.Apply(h.entries[20:]); !errors.Is(err, ErrClosed) {
		t.Errorf("apply: %v", err)
	}
}

// What is applied is synced soon, also when nothing else happens.
func TestStateIsSyncedSoon(t *testing.T) {
	h := makeHistory(t, 56, 60)
	m := openMachine(t, t.TempDir())
	m.anchorGrowth = math.MaxInt64
	for i, entry := range h.entries {
		if _, err := m.Apply(h.entries[i : i+1]); err != nil {
			t.Fatal(err)
		}
		if i%20 != 19 {
			continue
		}
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			m.syncing.Lock()
			left := readState(t, m)
			m.syncing.Unlock()
			if index, _ := openMachine(t, left.write(t)).Applied(); index == entry.Index {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("log index %d is not synced", entry.Index)
			}
		}
	}
}

// What is applied while the state is synced is not taken for synced, and nothing is lost of what was applied before.
func TestSyncWhileEntriesAreApplied(t *testing.T) {
	h := makeHistory(t, 46, 600)
	m := openMachine(t, t.TempDir())
	over := make(chan struct{})
	go func() { // ends with the entries
		defer close(over)
		for i := range h.entries {
			if _, err := m.Apply(h.entries[i : i+1]); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for running := true; running; {
		select {
		case <-over:
			running = false
		default:
		}
		applied, _ := m.Applied()
		if err := m.Sync(); err != nil {
			t.Fatal(err)
		}
		// The database may change while it is read, and the anchor not.
		m.syncing.Lock()
		left := readState(t, m)
		m.syncing.Unlock()
		again := openMachine(t, left.write(t))
		if err := again.Verify(); err != nil {
			t.Fatal(err)
		}
		if index, _ := again.Applied(); index < applied {
			t.Fatalf("log index %d was applied before a sync, and after it is %d", applied, index)
		}
	}
	h.checkSame(t, m)
}

func TestClosedStateHasNoAnchor(t *testing.T) {
	h := makeHistory(t, 47, 30)
	want := dump(t, h.machine)
	if err := h.machine.Close(); err != nil {
		t.Fatal(err)
	}
	left := readState(t, h.machine)
	if isAnchored(t, h.machine.cfg.Dir) {
		t.Error("an anchor is left")
	}
	if again := openMachine(t, left.write(t)); dump(t, again) != want {
		t.Error("the state is another one")
	}
}

// A machine that failed has not synced what it has, and must not say so.
func TestFailedStateKeepsItsAnchor(t *testing.T) {
	h := makeHistory(t, 48, 30)
	if err := h.machine.Sync(); err != nil {
		t.Fatal(err)
	}
	want := dump(t, h.machine)
	h.add(h.command())
	h.machine.fail(errors.New("input/output error"))
	if err := h.machine.Sync(); !errors.Is(err, ErrClosed) {
		t.Errorf("sync: %v", err)
	}
	if err := h.machine.Close(); err != nil {
		t.Fatal(err)
	}
	if again := openMachine(t, h.machine.cfg.Dir); dump(t, again) != want {
		t.Error("the state is not the one that was synced")
	}
}

// What bbolt has mapped does not grow under a pin.
func TestLargeStateHasNoAnchor(t *testing.T) {
	h := makeHistory(t, 49, 60)
	m := openMachine(t, t.TempDir())
	m.anchorLimit = 256 << 10
	for i := range h.entries {
		if _, err := m.Apply(h.entries[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if m.pins != nil || m.db.NoSync || isAnchored(t, m.cfg.Dir) {
		t.Error("it has an anchor")
	}
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	again := openMachine(t, readState(t, m).write(t))
	h.checkSame(t, again)
}

func TestAnchorBelongsToItsState(t *testing.T) {
	young, old := makeHistory(t, 50, 10).machine, makeHistory(t, 51, 100).machine
	if err := old.Sync(); err != nil {
		t.Fatal(err)
	}
	harms := map[string]func(f stateFiles){
		"of a later state": func(f stateFiles) { f[anchorFile] = readState(t, old)[anchorFile] },
		"flipped bits":     func(f stateFiles) { f[anchorFile][40] ^= 1; f[anchorFile][anchorPlaceBytes+40] ^= 1 },
		"cut off":          func(f stateFiles) { f[anchorFile] = f[anchorFile][:20] },
		"empty":            func(f stateFiles) { f[anchorFile] = nil },
	}
	for name, harm := range harms {
		t.Run(name, func(t *testing.T) {
			files := readState(t, young)
			harm(files)
			m, err := OpenMachine(MachineConfig{Dir: files.write(t)})
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error is %v", err)
			}
			if err == nil {
				_ = m.Close()
			}
		})
	}
	t.Run("state is gone", func(t *testing.T) {
		files := readState(t, old)
		delete(files, stateFile)
		if index, _ := openMachine(t, files.write(t)).Applied(); index != 0 {
			t.Errorf("an empty state is at log index %d", index)
		}
	})
}

// A state that was received is anchored anew, and the anchor of the one before is gone by then.
func TestRestoredStateIsAnchored(t *testing.T) {
	h := makeHistory(t, 52, 100)
	snapshot := snapshotOf(t, h.machine)
	m := openMachine(t, t.TempDir())
	if _, err := m.Apply(h.entries[:30]); err != nil {
		t.Fatal(err)
	}
	if err := m.Restore(bytes.NewReader(snapshot)); err != nil {
		t.Fatal(err)
	}
	left := readState(t, m)
	h.checkSame(t, openMachine(t, left.write(t)))
	delete(left, anchorFile)
	h.checkSame(t, openMachine(t, left.write(t)))
	h.add(h.command())
	if _, err := m.Apply(h.entries[len(h.entries)-1:]); err != nil {
		t.Fatal(err)
	}
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	h.checkSame(t, openMachine(t, readState(t, m).write(t)))
}

// However often little is changed, the file does not grow with it.
func TestUnsyncedStateDoesNotGrow(t *testing.T) {
	h := makeHistory(t, 53, 3000)
	for deadline := time.Now().Add(20 * time.Second); h.machine.tending.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the anchor moves on and on")
		}
	}
	if h.machine.bytes > 16<<20 {
		t.Errorf("the database has %d KiB", h.machine.bytes>>10)
	}
	if err := h.machine.Verify(); err != nil {
		t.Error(err)
	}
}

// One process waits for the state while another one, which is about to end, still moves its anchor.
func TestAnchorCountsOnceTheStateIsLocked(t *testing.T) {
	h := makeHistory(t, 58, 60)
	m := openMachine(t, t.TempDir())
	still(m)
	if _, err := m.Apply(h.entries[:30]); err != nil {
		t.Fatal(err)
	}
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	waiting, err := openAnchor(m.cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Apply(h.entries[30:]); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(waiting.returnTo(m.cfg.Dir), waiting.file.Close()); err != nil {
		t.Fatal(err)
	}
	h.checkSame(t, openMachine(t, m.cfg.Dir))
}

// Free pages are listed where a state may be opened anew: at an anchor, in a snapshot, and once the machine is closed.
func TestFreePagesAreListed(t *testing.T) {
	h := makeHistory(t, 58, 60)
	m := openMachine(t, t.TempDir())
	still(m)
	apply := func(from, to int) {
		t.Helper()
		if _, err := m.Apply(h.entries[from:to]); err != nil {
			t.Fatal(err)
		}
	}
	listed := func(content []byte) bool {
		t.Helper()
		newest := content[:rootBytes]
		if other := content[pageBytes:][:rootBytes]; rootTransaction(other) > rootTransaction(newest) {
			newest = other
		}
		return binary.NativeEndian.Uint64(newest[rootFreePagesAt:]) != noFreePages
	}
	apply(0, 20)
	if listed(readState(t, m)[stateFile]) {
		t.Error("a transaction beside an anchor lists free pages")
	}
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	if !listed(readState(t, m)[stateFile]) {
		t.Error("what is anchored lists no free pages")
	}
	apply(20, 40)
	state, _, _, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(state)
	if err := errors.Join(err, state.Close()); err != nil {
		t.Fatal(err)
	}
	if !listed(content[snapshotHeaderBytes:]) {
		t.Error("a snapshot lists no free pages")
	}
	apply(40, 60)
	if listed(readState(t, m)[stateFile]) {
		t.Error("a transaction after a snapshot lists free pages")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if !listed(readState(t, m)[stateFile]) {
		t.Error("what was closed lists no free pages")
	}
}

// A state that was not closed is not opened without its anchor.
func TestLostAnchor(t *testing.T) {
	h := makeHistory(t, 59, 60)
	m := openMachine(t, t.TempDir())
	still(m)
	if _, err := m.Apply(h.entries); err != nil {
		t.Fatal(err)
	}
	left := readState(t, m)
	delete(left, anchorFile)
	if _, err := OpenMachine(MachineConfig{Dir: left.write(t)}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("error is %v, not %v", err, ErrCorrupt)
	}
	want := dump(t, m)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	left = readState(t, m)
	delete(left, anchorFile)
	closed := openMachine(t, left.write(t))
	if got := dump(t, closed); got != want {
		t.Errorf("what was closed is\n%s\nnot\n%s", got, want)
	}
}
