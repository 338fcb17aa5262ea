package blobstore

import (
	"os"
	"sync"
)

// passageBytes is how much of a shard that is read from beginning to end the kernel is left to keep behind the reader: the next
// groups of the same transfer come in any order, and other nodes often read the same blob at the same time. A shard
// of less is the kernel's business.
const passageBytes = 4 << 20

// passage follows the reads of an open shard, and has the kernel forget what one reader has read from the beginning on: what many
// clients want is kept as a whole blob, and the pages of that file serve them. Memory that is used again and again costs less than
// such that is new (see recent). As soon as anything else is read, as ranges are, or what another has read before, the kernel
// keeps what it thinks best, and so it does from the beginning if it has the shard already. Safe for concurrent use.
type passage struct {
	mu sync.Mutex // guards what follows
	// high is how far the shard has been read.
	high int64
	// kept says that the kernel keeps it.
	kept bool
}

// begin takes note of a read that is about to happen.
func (p *passage) begin(file *os.File, size, offset int64, length int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.kept:
	case size < passageBytes, offset > p.high+passageBytes, offset < p.high-passageBytes:
		p.kept = true
	case p.high == 0:
		p.kept = !isCold(file, offset, length)
	}
}

// end takes note that a read has happened, and drops what lies behind it.
func (p *passage) end(file *os.File, size, offset int64, length int) {
	if to := p.advance(size, offset+int64(length)); to > 0 {
		dropFromCache(file, 0, to)
	}
}

// advance returns up to where the shard may be dropped, now that it was read up to a byte.
func (p *passage) advance(size, end int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.high = max(p.high, end)
	switch {
	case p.kept:
		return 0
	case p.high >= size:
		return size
	}
	return p.high - passageBytes
}
