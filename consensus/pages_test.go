package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// writtenLog returns the file of a log that was written, cut off and written again.
func writtenLog(t *testing.T) []byte {
	dir := t.TempDir()
	db, err := openLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	for batch := range uint64(40) {
		var logs []*raft.Log
		for i := range uint64(20) {
			logs = append(logs, &raft.Log{Index: 1 + batch*20 + i, Term: 1, Data: bytes.Repeat([]byte{byte(i)}, int(50+i*i*i))})
		}
		if err := db.StoreLogs(logs); err != nil {
			t.Fatal(err)
		}
		if batch == 20 {
			if err := db.DeleteRange(1, 150); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := db.SetUint64([]byte(termKey), 1); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(dir, logFile))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// pagesInUse returns the numbers of the pages that a sound log's file uses.
func pagesInUse(t *testing.T, path string) (pages []uint64) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	err = db.View(func(tx *bbolt.Tx) error {
		w := newPageWalk(file, tx, db.Info().PageSize)
		defer func() { pages = slices.Sorted(maps.Keys(w.seen)) }()
		return w.all(tx)
	})
	if err := errors.Join(err, file.Close(), db.Close()); err != nil {
		t.Fatal(err)
	}
	return pages
}

// Whatever bits are flipped in the log's file, opening it returns: bbolt's own goroutines, which
// look for free pages, would end this very process.
func TestDamagedLogDoesNotCrash(t *testing.T) {
	const rounds = 60
	content := writtenLog(t)
	sound := filepath.Join(t.TempDir(), logFile)
	if err := os.WriteFile(sound, content, 0o600); err != nil {
		t.Fatal(err)
	}
	pages := pagesInUse(t, sound)
	refused := 0
	for seed := range uint64(rounds) {
		random := rand.New(rand.NewPCG(seed, 1))
		damaged := bytes.Clone(content)
		for range 1 + random.IntN(4) {
			// Near the beginning of a page are what leads to others, and where its elements are.
			at := pages[random.IntN(len(pages))]*uint64(os.Getpagesize()) + random.Uint64N(48)
			damaged[at] ^= 1 << random.IntN(8)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, logFile), damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := openLog(dir)
		if err != nil {
			refused++
			continue
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	if refused < rounds/4 {
		t.Errorf("only %d of %d damaged logs were refused", refused, rounds)
	}
}

// A branch that leads to itself, or a page that leads nowhere, is found.
func TestPagesThatLeadAstray(t *testing.T) {
	page := func(number byte, flags byte, below ...byte) []byte {
		p := make([]byte, 64+len(below)*pageElementBytes)
		p[0], p[8], p[10] = number, flags, byte(len(below))
		for i, to := range below {
			at := pageHeaderBytes + i*pageElementBytes
			p[at], p[at+4] = byte(len(p)-at-len(below)+i), 1 // its key is one byte
			p[at+8] = to
			p[len(p)-len(below)+i] = byte(i)
		}
		return append(p, make([]byte, 128-len(p))...)
	}
	for name, c := range map[string]struct {
		pages [][]byte
		sound bool
	}{
		"sound":            {[][]byte{page(2, branchPage, 3, 4), page(3, leafPage), page(4, leafPage)}, true},
		"in a circle":      {[][]byte{page(2, branchPage, 2), page(3, leafPage), page(4, leafPage)}, false},
		"twice":            {[][]byte{page(2, branchPage, 3, 3), page(3, leafPage), page(4, leafPage)}, false},
		"beyond the end":   {[][]byte{page(2, branchPage, 3, 5), page(3, leafPage), page(4, leafPage)}, false},
		"to the roots":     {[][]byte{page(2, branchPage, 1), page(3, leafPage), page(4, leafPage)}, false},
		"of another kind":  {[][]byte{page(2, branchPage, 3), page(3, 4), page(4, leafPage)}, false},
		"a stranger":       {[][]byte{page(2, branchPage, 3), page(4, leafPage), page(4, leafPage)}, false},
		"nothing below it": {[][]byte{page(2, branchPage), page(3, leafPage), page(4, leafPage)}, false},
	} {
		file := append(make([]byte, 256), bytes.Join(c.pages, nil)...)
		w := &pageWalk{file: bytes.NewReader(file), pageBytes: 128, pages: uint64(len(file) / 128), seen: make(map[uint64]bool)}
		if err := w.visit(2, keyRange{}, 0); (err == nil) != c.sound {
			t.Error(fmt.Errorf("%s: %w", name, err))
		}
	}
}
