package nemesis

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

const testPage = 4096

// testTree makes the content of a bbolt file: an old meta page with its root at page 2, and a new one
// with page 3, a leaf with one bucket in page 4, a branch, which has the leaves 5 and 7, of which 5 is
// two pages long. Page 8 is free.
func testTree() []byte {
	file := make([]byte, 9*testPage)
	le := binary.LittleEndian
	header := func(id uint64, flags, count uint16, overflow uint32) []byte {
		page := file[id*testPage:]
		le.PutUint64(page, id)
		le.PutUint16(page[8:], flags)
		le.PutUint16(page[10:], count)
		le.PutUint32(page[12:], overflow)
		return page
	}
	meta := func(id, root, transaction uint64) {
		page := header(id, 4, 0, 0)[pageHeader:]
		le.PutUint32(page, metaMagic)
		le.PutUint32(page[4:], 2)
		le.PutUint32(page[8:], testPage)
		le.PutUint64(page[16:], root)
		le.PutUint64(page[48:], transaction)
		sum := fnv.New64a()
		_, _ = sum.Write(page[:56])
		le.PutUint64(page[56:], sum.Sum64())
	}
	leaf := func(id uint64, overflow, flags uint32, value []byte) {
		element := header(id, leafPage, 1, overflow)[pageHeader:]
		le.PutUint32(element, flags)
		le.PutUint32(element[4:], 100) // from the element on
		le.PutUint32(element[8:], 3)
		le.PutUint32(element[12:], uint32(len(value)))
		copy(element[100:], "key")
		copy(element[103:], value)
	}
	meta(0, 3, 11)
	meta(1, 2, 10)
	leaf(2, 0, 0, []byte("old"))
	leaf(3, 0, bucketElement, le.AppendUint64(le.AppendUint64(nil, 4), 0))
	branch := header(4, branchPage, 3, 0)[pageHeader:]
	for i, child := range []uint64{5, 7, 1000} { // of which the last is none
		le.PutUint32(branch[i*pageElement:], uint32(200-i*pageElement))
		le.PutUint32(branch[i*pageElement+4:], 5)
		le.PutUint64(branch[i*pageElement+8:], child)
	}
	leaf(5, 1, 0, bytes.Repeat([]byte("x"), testPage))
	leaf(7, 0, 0, []byte("value"))
	leaf(8, 0, 0, []byte("free"))
	return file
}

func TestPagesInUse(t *testing.T) {
	file := testTree()
	want := []page{
		{at: 3 * testPage, size: pageHeader + 100 + 3 + 16, leaf: true},
		{at: 4 * testPage, size: pageHeader + 200 + 5},
		{at: 5 * testPage, size: pageHeader + 100 + 3 + testPage, leaf: true},
		{at: 7 * testPage, size: pageHeader + 100 + 3 + 5, leaf: true},
	}
	if got, err := pagesInUse(bytes.NewReader(file)); err != nil || !slices.Equal(got, want) {
		t.Errorf("pages %+v, %v, want %+v", got, err, want)
	}
	file[pageHeader+20] ^= 1 // the newer meta page is damaged, so the older one counts
	if got, err := pagesInUse(bytes.NewReader(file)); err != nil || len(got) != 1 || got[0].at != 2*testPage {
		t.Errorf("pages %+v, %v", got, err)
	}
	file[testPage+pageHeader+20] ^= 1
	if got, err := pagesInUse(bytes.NewReader(file)); !errors.Is(err, errNoTree) {
		t.Errorf("pages %+v, %v", got, err)
	}
	if got, err := pagesInUse(bytes.NewReader(nil)); !errors.Is(err, errNoTree) {
		t.Errorf("pages %+v, %v", got, err)
	}
}

// Whatever a file has, looking at it ends well: it changes meanwhile.
func TestPagesInUseOfAnything(t *testing.T) {
	f := testField()
	for range 2000 {
		file := testTree()
		for range 1 + f.Rand.IntN(20) {
			file[2*testPage+f.Rand.IntN(len(file)-2*testPage)] = byte(f.Rand.IntN(256))
		}
		for i := 2; i < 9; i++ { // where it matters most
			file[i*testPage+8+f.Rand.IntN(40)] = byte(f.Rand.IntN(256))
		}
		pages, err := pagesInUse(bytes.NewReader(file[:len(file)-f.Rand.IntN(testPage)]))
		for _, one := range pages {
			if err != nil || one.at < 2*testPage || one.size < pageHeader || one.at+one.size > int64(len(file)) {
				t.Fatalf("page %+v, %v", one, err)
			}
		}
	}
}

func TestRot(t *testing.T) {
	f := testField()
	path := filepath.Join(t.TempDir(), "state.db")
	var strewn, only int
	for range 40 {
		before := testTree()
		writeFile(t, path, string(before))
		words, err := f.rot(path)
		if err != nil || words == "" {
			t.Fatalf("%q, %v", words, err)
		}
		after := readFile(t, path)
		bits := bitsBetween(string(before), after)
		switch {
		case bits > rotBits:
			strewn++
		case bits > 0:
			only++
		}
		used := []byte(after[3*testPage : 8*testPage])
		if bits <= rotBits && bitsBetween(string(before[3*testPage:8*testPage]), string(used)) != bits {
			t.Errorf("%s: %d bits, of which some are in no page in use", words, bits)
		}
	}
	if strewn == 0 || only == 0 {
		t.Errorf("%d times anywhere, %d times only in pages in use", strewn, only)
	}
	writeFile(t, path, string(testTree()))
	if words, err := f.cutTree(path); err != nil || words == "" || len(readFile(t, path)) > 7*testPage+pageHeader+108 {
		t.Errorf("%q, %v", words, err)
	}
	if err := os.WriteFile(path, []byte("no tree"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.rot(path); !errors.Is(err, errNoTree) {
		t.Errorf("a file without a tree: %v", err)
	}
}
