package consensus

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"go.etcd.io/bbolt"
)

// bbolt's file format (bbolt internal/common: page.go, bucket.go), in the byte order of
// the machine, which is little endian wherever atoll runs. A page begins with its number (8
// bytes), flags (2), count of elements (2) and how many pages more it takes (4). A branch's
// element is the position of its key from the element on (4), the key's length (4), and the
// page below (8); a leaf's is flags (4), position (4), and the lengths of key (4) and value (4). The
// value of a bucket begins with its root page (8) and a sequence (8); behind the root page 0 comes the
// only page itself.
const (
	pageHeaderBytes  = 16
	pageElementBytes = 16
	bucketBytes      = 16
	branchPage       = 0x01
	leafPage         = 0x02
	bucketElement    = 0x01
	// maxPageDepth is more than a tree of 2^48 pages needs.
	maxPageDepth = 64
)

// pageWalk follows every page of a database's file that can be reached, as bbolt does when it looks
// for the free ones, and fails on what bbolt could not live with there: it does that on
// goroutines of its own, whose panics nobody can catch.
type pageWalk struct {
	file      io.ReaderAt
	pageBytes uint64
	// pages are there, and seen those that were.
	pages uint64
	seen  map[uint64]bool
}

func newPageWalk(file io.ReaderAt, tx *bbolt.Tx, pageBytes int) *pageWalk {
	return &pageWalk{file: file, pageBytes: uint64(pageBytes), pages: uint64(tx.Size()) / uint64(pageBytes), seen: make(map[uint64]bool)}
}

// all goes through the file.
func (w *pageWalk) all(tx *bbolt.Tx) error {
	return w.visit(uint64(tx.Cursor().Bucket().Root()), keyRange{}, 0)
}

// keyRange is where the keys below a branch's element lie: from and up to, that one not
// included. Nil is no bound.
type keyRange struct{ from, to []byte }

// visit checks a page and all below it.
func (w *pageWalk) visit(number uint64, keys keyRange, depth int) error {
	if depth > maxPageDepth {
		return fmt.Errorf("page %d is %d pages below the first", number, depth)
	}
	content, err := w.read(number)
	if err != nil {
		return err
	}
	return w.page(number, content, keys, depth)
}

// read returns a page with what it overflows to.
func (w *pageWalk) read(number uint64) ([]byte, error) {
	if number < 2 || number >= w.pages {
		return nil, fmt.Errorf("page %d is referred to, and there are %d", number, w.pages)
	}
	header := make([]byte, pageHeaderBytes)
	if _, err := w.file.ReadAt(header, int64(number*w.pageBytes)); err != nil {
		return nil, fmt.Errorf("read page %d: %w", number, err)
	}
	if own := binary.LittleEndian.Uint64(header); own != number {
		return nil, fmt.Errorf("page %d says that it is %d", number, own)
	}
	size := uint64(binary.LittleEndian.Uint32(header[12:])) + 1
	if size > w.pages-number {
		return nil, fmt.Errorf("page %d takes %d pages, and there are %d", number, size, w.pages)
	}
	for one := number; one < number+size; one++ {
		if w.seen[one] {
			return nil, fmt.Errorf("page %d is referred to twice", one)
		}
		w.seen[one] = true
	}
	content := make([]byte, size*w.pageBytes)
	if _, err := w.file.ReadAt(content, int64(number*w.pageBytes)); err != nil {
		return nil, fmt.Errorf("read page %d: %w", number, err)
	}
	return content, nil
}

// page checks the elements of a page, and what is below them.
func (w *pageWalk) page(number uint64, content []byte, keys keyRange, depth int) error {
	if len(content) < pageHeaderBytes {
		return fmt.Errorf("page %d has %d bytes", number, len(content))
	}
	flags, count := binary.LittleEndian.Uint16(content[8:]), int(binary.LittleEndian.Uint16(content[10:]))
	if flags != branchPage && flags != leafPage {
		return fmt.Errorf("page %d is of no known kind: %#x", number, flags)
	}
	elements := make([]pageElement, count)
	for i := range elements {
		e, err := elementOf(content, i, flags == branchPage)
		if err != nil {
			return fmt.Errorf("page %d: %w", number, err)
		}
		ordered := i == 0 || bytes.Compare(elements[i-1].key, e.key) < 0
		if !ordered || bytes.Compare(e.key, keys.from) < 0 || keys.to != nil && bytes.Compare(e.key, keys.to) >= 0 {
			return fmt.Errorf("page %d: element %d is out of order", number, i)
		}
		elements[i] = e
	}
	if flags == leafPage {
		return w.buckets(number, elements, depth)
	}
	return w.branches(number, elements, keys.to, depth)
}

// branches visits the pages below a branch, which has some.
func (w *pageWalk) branches(number uint64, elements []pageElement, to []byte, depth int) error {
	if len(elements) == 0 {
		return fmt.Errorf("page %d is a branch with nothing below", number)
	}
	for i, e := range elements {
		below := keyRange{from: e.key, to: to}
		if i+1 < len(elements) {
			below.to = elements[i+1].key
		}
		if err := w.visit(e.below, below, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// buckets visits the pages of the buckets among a leaf's elements.
func (w *pageWalk) buckets(number uint64, elements []pageElement, depth int) error {
	for i, e := range elements {
		if !e.bucket {
			continue
		}
		if len(e.value) < bucketBytes {
			return fmt.Errorf("page %d: element %d is a bucket of %d bytes", number, i, len(e.value))
		}
		root := binary.LittleEndian.Uint64(e.value)
		var err error
		if root == 0 {
			err = w.page(number, e.value[bucketBytes:], keyRange{}, depth+1)
		} else {
			err = w.visit(root, keyRange{}, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pageElement is one of a branch, with the page below, or of a leaf, with its value.
type pageElement struct {
	key, value []byte
	below      uint64
	bucket     bool
}

// elementOf reads an element, all of which must be in the page.
func elementOf(content []byte, i int, branch bool) (e pageElement, err error) {
	at := pageHeaderBytes + i*pageElementBytes
	if at+pageElementBytes > len(content) {
		return e, fmt.Errorf("element %d is beyond its end", i)
	}
	field := func(n int) uint64 { return uint64(binary.LittleEndian.Uint32(content[at+4*n:])) }
	var position, key, value uint64
	if branch {
		position, key = field(0), field(1)
		e.below = binary.LittleEndian.Uint64(content[at+8:])
	} else {
		position, key, value = field(1), field(2), field(3)
		e.bucket = field(0)&bucketElement != 0
	}
	from := uint64(at) + position
	if from+key+value > uint64(len(content)) {
		return e, fmt.Errorf("element %d is beyond its end", i)
	}
	e.key, e.value = content[from:from+key], content[from+key:from+key+value]
	return e, nil
}

// checkPages goes through a file that bbolt has opened.
func checkPages(path string, db *bbolt.DB, tx *bbolt.Tx) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := newPageWalk(file, tx, db.Info().PageSize).all(tx); err != nil {
		return fmt.Errorf("it is damaged: %w", err)
	}
	return nil
}
