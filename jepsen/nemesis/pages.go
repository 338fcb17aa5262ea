package nemesis

import (
	"encoding/binary"
	"errors"
	"hash/fnv"
	"io"
)

// What is known of a bbolt file: pages, each with a header, of which the first two tell where the
// newest tree begins.
const (
	pageHeader    = 16 // id of 8 bytes, flags of 2, count of 2, overflow of 4
	branchPage    = 1
	leafPage      = 2
	pageElement   = 16 // of a branch: position of 4, key size of 4, page of 8; of a leaf: flags, position, key and value size
	bucketElement = 1
	metaSize      = 64 // with its checksum
	metaMagic     = 0xED0CDAED
	// maxPages is how many pages of a file are looked at, maxPageSize how large one may be.
	maxPages    = 4096
	maxPageSize = 1 << 16
)

// page is a page that is in use, up to a size.
type page struct {
	at, size int64
	leaf     bool
}

// errNoTree is that a file is no bbolt file with a tree.
var errNoTree = errors.New("no page of the file is in use")

// pagesInUse returns the pages of a bbolt file that its tree reaches, from the root on. The file may
// change meanwhile: pages that make no sense are left out.
func pagesInUse(file io.ReaderAt) ([]page, error) {
	size, root, ok := newestRoot(file)
	if !ok {
		return nil, errNoTree
	}
	var found []page
	seen := make(map[uint64]bool)
	for queue := []uint64{root}; len(queue) > 0 && len(found) < maxPages; queue = queue[1:] {
		if id := queue[0]; !seen[id] {
			seen[id] = true
			if one, below, ok := readPage(file, size, id); ok {
				found, queue = append(found, one), append(queue, below...)
			}
		}
	}
	if len(found) == 0 {
		return nil, errNoTree
	}
	return found, nil
}

// newestRoot returns the page size and the root page of the newer one of the two meta pages, of
// those that are whole.
func newestRoot(file io.ReaderAt) (size int64, root uint64, ok bool) {
	var newest uint64
	for _, at := range []int64{0, 4096, 8192, 16384, 32768, maxPageSize} {
		meta := make([]byte, metaSize)
		if _, err := file.ReadAt(meta, at+pageHeader); err != nil || binary.LittleEndian.Uint32(meta) != metaMagic {
			continue
		}
		sum := fnv.New64a()
		_, _ = sum.Write(meta[:metaSize-8])
		transaction := binary.LittleEndian.Uint64(meta[48:])
		pageSize := int64(binary.LittleEndian.Uint32(meta[8:]))
		if sum.Sum64() != binary.LittleEndian.Uint64(meta[56:]) || pageSize < metaSize || pageSize > maxPageSize || at != 0 && at != pageSize {
			continue
		}
		if !ok || transaction > newest {
			size, root, newest, ok = pageSize, binary.LittleEndian.Uint64(meta[16:]), transaction, true
		}
	}
	return size, root, ok
}

// readPage returns a branch or leaf page, and the pages that it names.
func readPage(file io.ReaderAt, pageSize int64, id uint64) (found page, below []uint64, ok bool) {
	if id < 2 || id > 1<<32 {
		return page{}, nil, false
	}
	at := int64(id) * pageSize
	header := make([]byte, pageHeader)
	if _, err := file.ReadAt(header, at); err != nil || binary.LittleEndian.Uint64(header) != id {
		return page{}, nil, false
	}
	flags, count := binary.LittleEndian.Uint16(header[8:]), int64(binary.LittleEndian.Uint16(header[10:]))
	overflow := int64(binary.LittleEndian.Uint32(header[12:]))
	if flags != branchPage && flags != leafPage || overflow > maxPages {
		return page{}, nil, false
	}
	content := make([]byte, (1+overflow)*pageSize)
	if _, err := file.ReadAt(content, at); err != nil || pageHeader+count*pageElement > int64(len(content)) {
		return page{}, nil, false
	}
	found = page{at: at, size: pageHeader + count*pageElement, leaf: flags == leafPage}
	for i := range count {
		begin := pageHeader + i*pageElement
		element := content[begin : begin+pageElement]
		if !found.leaf {
			end := begin + number(element) + number(element[4:])
			found.size = max(found.size, min(end, int64(len(content))))
			below = append(below, binary.LittleEndian.Uint64(element[8:]))
			continue
		}
		value := begin + number(element[4:]) + number(element[8:])
		end := value + number(element[12:])
		if end > int64(len(content)) {
			continue
		}
		found.size = max(found.size, end)
		if number(element)&bucketElement != 0 && end-value >= 8 {
			below = append(below, binary.LittleEndian.Uint64(content[value:])) // 0 if it is in here itself
		}
	}
	return found, below, true
}

func number(b []byte) int64 { return int64(binary.LittleEndian.Uint32(b)) }
