package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

// diskOfLog is a folder with a journaled log that is open.
type diskOfLog struct {
	dir string
	log *journaledLog
}

func openDiskOfLog(t *testing.T, dir string) *diskOfLog {
	t.Helper()
	log, err := openJournaledLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() }) // Most are closed by then.
	return &diskOfLog{dir: dir, log: log}
}

// crash returns a copy of the folder as it is now.
func (d *diskOfLog) crash(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(d.dir)); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{journalFile, logFile} {
		if err := os.Chmod(filepath.Join(dir, file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// holds fails the test unless the log has exactly these entries.
func (d *diskOfLog) holds(t *testing.T, want []*raft.Log) {
	t.Helper()
	first, err := d.log.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := d.log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	if len(want) == 0 {
		if first != 0 || last != 0 {
			t.Fatalf("the log has %d to %d, want none", first, last)
		}
		return
	}
	if first != want[0].Index || last != want[len(want)-1].Index {
		t.Fatalf("the log has %d to %d, want %d to %d", first, last, want[0].Index, want[len(want)-1].Index)
	}
	for _, entry := range want {
		var got raft.Log
		if err := d.log.GetLog(entry.Index, &got); err != nil {
			t.Fatalf("log index %d: %v", entry.Index, err)
		}
		if !sameEntry(&got, entry) {
			t.Fatalf("log index %d: got term %d, type %d, %d bytes; want term %d, type %d, %d bytes", entry.Index, got.Term, got.Type, len(got.Data), entry.Term, entry.Type, len(entry.Data))
		}
	}
	for _, index := range []uint64{first - 1, last + 1} {
		if err := d.log.GetLog(index, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
			t.Fatalf("log index %d: err %v", index, err)
		}
	}
}

func sameEntry(a, b *raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && bytes.Equal(a.Data, b.Data) && bytes.Equal(a.Extensions, b.Extensions) && a.AppendedAt.Equal(b.AppendedAt)
}

// bulky returns entries of some KiB each.
func bulky(random *rand.Rand, first uint64, count int, term uint64) []*raft.Log {
	logs := entries(first, first+uint64(count)-1, term)
	for _, entry := range logs {
		entry.Data = append(entry.Data, bytes.Repeat([]byte{byte(entry.Index), byte(term)}, random.IntN(16<<10))...)
	}
	return logs
}

// Whatever is done to a log, and whenever the process is killed, it has what was appended and not deleted.
func TestJournaledLogKeepsWhatWasAppended(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			d := openDiskOfLog(t, t.TempDir())
			var want []*raft.Log
			next, term := uint64(1), uint64(1)
			for range 150 {
				switch n := random.IntN(40); {
				case n < 30 || len(want) == 0:
					logs := bulky(random, next, 1+random.IntN(64), term)
					if err := d.log.StoreLogs(logs); err != nil {
						t.Fatal(err)
					}
					want, next = append(want, logs...), next+uint64(len(logs))
				case n < 33: // the front is cut off
					cut := random.IntN(len(want))
					if err := d.log.DeleteRange(want[0].Index, want[cut].Index); err != nil {
						t.Fatal(err)
					}
					want = want[cut+1:]
				case n < 35: // another leader had other entries
					from := random.IntN(len(want))
					if err := d.log.DeleteRange(want[from].Index, want[len(want)-1].Index); err != nil {
						t.Fatal(err)
					}
					next, want, term = want[from].Index, slices.Clone(want[:from]), term+1
				case n < 36: // a snapshot took the log's place
					if err := d.log.DeleteRange(0, next); err != nil {
						t.Fatal(err)
					}
					want, next = nil, next+uint64(random.IntN(1000))
				case n < 38:
					d = openDiskOfLog(t, d.crash(t))
				default:
					if err := d.log.Close(); err != nil {
						t.Fatal(err)
					}
					d = openDiskOfLog(t, d.dir)
				}
				d.holds(t, want)
			}
		})
	}
}

// Readers see every entry at every moment, also while it is moved.
func TestJournaledLogIsReadWhileItMoves(t *testing.T) {
	d := openDiskOfLog(t, t.TempDir())
	written := make(chan uint64, 1000)
	go func() { // ends with the entries
		defer close(written)
		for index := uint64(1); index < 300*20; index += 20 {
			if err := d.log.StoreLogs(bulky(rand.New(rand.NewPCG(index, 0)), index, 20, 1)); err != nil {
				t.Error(err)
				return
			}
			written <- index
		}
	}()
	for index := range written {
		var entry raft.Log
		if err := d.log.GetLog(index, &entry); err != nil || entry.Index != index {
			t.Fatalf("log index %d: got %d, %v", index, entry.Index, err)
		}
		if last, err := d.log.LastIndex(); err != nil || last < index {
			t.Fatalf("log ends at %d, %v, and has %d", last, err, index)
		}
		if first, err := d.log.FirstIndex(); err != nil || first != 1 {
			t.Fatalf("log begins at %d, %v", first, err)
		}
	}
}

func TestEntriesLargerThanTheJournal(t *testing.T) {
	d := openDiskOfLog(t, t.TempDir())
	logs := entries(1, 9, 1)
	logs[4].Data = make([]byte, journalAreaBytes-recordHeaderBytes-journalEntryHeader+1)
	logs[5].Data = make([]byte, journalAreaBytes-recordHeaderBytes-journalEntryHeader)
	logs[6].Data = make([]byte, journalAreaBytes-recordHeaderBytes-journalEntryHeader-recordHeaderBytes)
	for _, entry := range logs {
		if err := d.log.StoreLog(entry); err != nil {
			t.Fatal(err)
		}
		openDiskOfLog(t, d.crash(t)).holds(t, logs[:entry.Index])
	}
	d.holds(t, logs)
}

func TestGapsAreNotAppended(t *testing.T) {
	d := openDiskOfLog(t, t.TempDir())
	if err := d.log.StoreLogs(entries(1, 3, 1)); err != nil {
		t.Fatal(err)
	}
	if err := d.log.StoreLogs(entries(5, 6, 1)); err == nil {
		t.Fatal("a gap was appended")
	}
	openDiskOfLog(t, d.crash(t)).holds(t, entries(1, 3, 1))
}

// damageJournal overwrites bytes of a journal in dir, from an offset in its area on.
func damageJournal(t *testing.T, dir string, offset int64, with []byte) {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(dir, journalFile), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = file.WriteAt(with, offset)
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
}

// Power may fail while a record is written: any part of it may be there.
func TestTornAppend(t *testing.T) {
	whole := entries(1, 10000, 1)
	torn := entries(10001, 10004, 1)
	for _, entry := range torn {
		entry.Data = bytes.Repeat([]byte("entry"), 500)
	}
	d := openDiskOfLog(t, t.TempDir())
	for chunk := range slices.Chunk(whole, 5) { // Records of earlier turns are behind the present one.
		if err := d.log.StoreLogs(chunk); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(filepath.Join(d.dir, journalFile))
	if err != nil {
		t.Fatal(err)
	}
	begin := d.log.journal.at(d.log.journal.area) + d.log.journal.offset
	if err := d.log.StoreLogs(torn); err != nil {
		t.Fatal(err)
	}
	size := recordBytes(torn)
	for _, from := range []int64{0, 8, 16, 24, 512, size - 8} {
		dir := d.crash(t)
		damageJournal(t, dir, begin+from, content[begin+from:begin+size])
		after := openDiskOfLog(t, dir)
		after.holds(t, whole)
		if err := after.log.StoreLogs(torn); err != nil {
			t.Fatal(err)
		}
		openDiskOfLog(t, after.crash(t)).holds(t, append(slices.Clone(whole), torn...))
	}
}

// Of what is damaged before the last record, nothing is lost in silence.
func TestDamagedJournalIsRefused(t *testing.T) {
	d := openDiskOfLog(t, t.TempDir())
	for _, entry := range entries(1, 20, 1) {
		if err := d.log.StoreLog(entry); err != nil {
			t.Fatal(err)
		}
	}
	area := d.log.journal.at(d.log.journal.area)
	end := d.log.journal.offset
	last := end - aligned(recordBytes(entries(20, 20, 1)))
	for offset := int64(0); offset < last; offset += 37 {
		dir := d.crash(t)
		content, err := os.ReadFile(filepath.Join(dir, journalFile))
		if err != nil {
			t.Fatal(err)
		}
		damageJournal(t, dir, area+offset, []byte{content[area+offset] ^ 1})
		log, err := openJournaledLog(dir)
		if err == nil {
			// Not every byte matters: those between records don't.
			(&diskOfLog{dir: dir, log: log}).holds(t, entries(1, 20, 1))
			_ = log.Close()
		} else if !errors.Is(err, ErrChecksum) {
			t.Fatalf("offset %d: err %v", offset, err)
		}
	}
}

// A turn that is damaged, and was not moved before the next one ended, leaves a gap.
func TestDamagedTurnIsRefused(t *testing.T) {
	d := openDiskOfLog(t, t.TempDir())
	if err := d.log.StoreLogs(entries(1, 2, 1)); err != nil {
		t.Fatal(err)
	}
	if err := d.log.empty(nil); err != nil {
		t.Fatal(err)
	}
	j := d.log.journal
	if err := errors.Join(j.append(entries(3, 3, 1)), j.append(entries(4, 4, 1))); err != nil {
		t.Fatal(err)
	}
	before := j.at(j.area) + j.offset - recordAlign
	j.next(j.base)
	if err := j.append(entries(5, 5, 1)); err != nil {
		t.Fatal(err)
	}
	openDiskOfLog(t, d.crash(t)).holds(t, entries(1, 5, 1))
	dir := d.crash(t)
	damageJournal(t, dir, before-40, make([]byte, 40))
	if _, err := openJournaledLog(dir); !errors.Is(err, ErrChecksum) {
		t.Fatalf("err %v", err)
	}
}

func TestJournalBelongsToItsLog(t *testing.T) {
	d, other := openDiskOfLog(t, t.TempDir()), openDiskOfLog(t, t.TempDir())
	for _, log := range []*diskOfLog{d, other} {
		if err := log.log.StoreLogs(entries(1, 3, 1)); err != nil {
			t.Fatal(err)
		}
	}
	gone := d.crash(t)
	if err := os.Remove(filepath.Join(gone, journalFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := openJournaledLog(gone); !errors.Is(err, ErrLogLost) {
		t.Errorf("without journal: %v", err)
	}
	strange := d.crash(t)
	if err := os.Rename(filepath.Join(other.crash(t), journalFile), filepath.Join(strange, journalFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := openJournaledLog(strange); !errors.Is(err, ErrLogLost) {
		t.Errorf("with the journal of another: %v", err)
	}
	short := d.crash(t)
	if err := os.Truncate(filepath.Join(short, journalFile), journalHeaderBytes+journalAreaBytes); err != nil {
		t.Fatal(err)
	}
	if _, err := openJournaledLog(short); !errors.Is(err, ErrChecksum) {
		t.Errorf("with half a journal: %v", err)
	}
}

// After a failed write nothing is written any more: the journal has what was acknowledged.
func TestNothingIsWrittenAfterAFailure(t *testing.T) {
	d := openDiskOfLog(t, t.TempDir())
	if err := d.log.StoreLogs(entries(1, 3, 1)); err != nil {
		t.Fatal(err)
	}
	dir := d.crash(t)
	eio := errors.New("input/output error")
	if err := d.log.write(func() error { return eio }); !errors.Is(err, eio) {
		t.Fatalf("err %v", err)
	}
	if d.log.StoreLogs(entries(4, 4, 1)) == nil || d.log.DeleteRange(1, 3) == nil {
		t.Error("the log goes on")
	}
	_ = d.log.Close()
	for _, file := range []string{journalFile, logFile} {
		was, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		is, err := os.ReadFile(filepath.Join(d.dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(was, is) {
			t.Errorf("%s was written to", file)
		}
	}
	openDiskOfLog(t, d.dir).holds(t, entries(1, 3, 1))
}

// A write in the background that failed ends the log as well.
func TestFailedMoveIsFinal(t *testing.T) {
	d := openDiskOfLog(t, t.TempDir())
	if err := d.log.StoreLogs(entries(1, 3, 1)); err != nil {
		t.Fatal(err)
	}
	if err := d.log.BoltStore.Close(); err != nil {
		t.Fatal(err)
	}
	d.log.moved = make(chan struct{})
	d.log.move(d.log.turn, d.log.moved)
	if err := d.log.StoreLogs(entries(4, 4, 1)); err == nil {
		t.Error("the log goes on")
	}
	openDiskOfLog(t, d.crash(t)).holds(t, entries(1, 3, 1))
}

// bbolt takes an older root for the newest if that is damaged: what it had is lost then, and the journal, which
// does not have it any more, tells.
func TestLostWriteOfTheLogIsRefused(t *testing.T) {
	d := openDiskOfLog(t, t.TempDir())
	if err := d.log.StoreLogs(entries(1, 3, 1)); err != nil {
		t.Fatal(err)
	}
	old := d.crash(t)
	if err := d.log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(old, logFile), filepath.Join(d.dir, logFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := openJournaledLog(d.dir); !errors.Is(err, ErrLogLost) {
		t.Errorf("err %v", err)
	}
}

// The log may have gone on without its journal, as an older version would have it.
func TestJournalOfAnotherPastIsRefused(t *testing.T) {
	d := openDiskOfLog(t, t.TempDir())
	if err := d.log.StoreLogs(entries(1, 3, 1)); err != nil {
		t.Fatal(err)
	}
	if err := d.log.BoltStore.StoreLogs(entries(1, 5, 2)); err != nil {
		t.Fatal(err)
	}
	if _, err := openJournaledLog(d.crash(t)); !errors.Is(err, ErrLogLost) {
		t.Errorf("err %v", err)
	}
}

// All that raft-boltdb has may be cut off the front, and what is behind is in the journal.
func TestFrontIsCutUpToTheJournal(t *testing.T) {
	d := openDiskOfLog(t, t.TempDir())
	if err := d.log.StoreLogs(entries(1, 100, 1)); err != nil {
		t.Fatal(err)
	}
	if err := d.log.Close(); err != nil {
		t.Fatal(err)
	}
	d = openDiskOfLog(t, d.dir)
	if err := d.log.StoreLogs(entries(101, 200, 1)); err != nil {
		t.Fatal(err)
	}
	if err := d.log.DeleteRange(1, 100); err != nil {
		t.Fatal(err)
	}
	openDiskOfLog(t, d.crash(t)).holds(t, entries(101, 200, 1))
}

func TestJournalWithoutItsLogIsRefused(t *testing.T) {
	d := openDiskOfLog(t, t.TempDir())
	if err := d.log.StoreLogs(entries(1, 3, 1)); err != nil {
		t.Fatal(err)
	}
	gone := d.crash(t)
	if err := os.Remove(filepath.Join(gone, logFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := openJournaledLog(gone); !errors.Is(err, ErrLogLost) {
		t.Errorf("err %v", err)
	}
	// One that the process had just made when it ended is nobody's.
	made := t.TempDir()
	if err := createJournal(made, make([]byte, journalSaltBytes)); err != nil {
		t.Fatal(err)
	}
	openDiskOfLog(t, made).holds(t, nil)
}
