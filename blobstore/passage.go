package blobstore

import (
	"os"
	"sync"
)

const (
	// passageBytes is how much of a shard that is read from beginning to end the kernel is left to keep behind the reader, and how
	// far reads may be out of order: the next groups of a transfer come in any, and other nodes often read the same
	// blob at the same time.
	passageBytes = 4 << 20
	// maxPassed bounds the shards of which a disk knows that they were read through.
	maxPassed = 4096
)

// passage follows the reads of an open shard, and has the kernel forget what one reader has read from the beginning on: what many
// clients want is kept as a whole blob, and the pages of that file serve them. Memory that is used again and again costs less than
// such that is new (see recent). As soon as anything else is read, as ranges are, or more than all of it, the kernel
// keeps what it thinks best, and so it does from the beginning if it has some of the shard already, and if the shard was
// read through before. Safe for concurrent use.
type passage struct {
	mu sync.Mutex // guards what follows
	// asked is how many bytes were asked for, high how far the shard has been read, and dropped up to where it was dropped.
	asked, high, dropped int64
	// kept says that the shard is the kernel's business.
	kept bool
}

// begin takes note of a read that is about to happen, in a shard of size bytes.
func (p *passage) begin(file *os.File, size, offset int64, length int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := p.asked == 0
	p.asked += int64(length)
	switch {
	case p.kept:
	case size < recentLeast, p.asked > size, offset > p.high+passageBytes, offset < p.high-passageBytes:
		p.kept = true
	case first: // A later read would find what this one has the kernel read ahead.
		p.kept = !isCold(file, size)
	}
}

// end takes note that the shard has been read up to a byte, and drops what lies behind. It says whether that was all.
func (p *passage) end(file *os.File, size, end int64) (passed bool) {
	p.mu.Lock()
	p.high = max(p.high, end)
	from, to := max(p.dropped-passageBytes, 0), p.high-passageBytes
	if passed = p.high >= size && !p.kept; passed {
		to = size
	}
	drop := !p.kept && to > from
	if drop {
		p.dropped = max(p.dropped, to)
	}
	p.mu.Unlock()
	if drop {
		dropFromCache(file, from, to-from)
	}
	return passed
}

// keep leaves the shard to the kernel.
func (p *passage) keep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept = true
}

func (p *passage) isKept() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kept
}
