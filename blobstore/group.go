package blobstore

import (
	"sync/atomic"
)

// span says what of an extent is fetched at once: cells of one stripe, or a run of
// whole stripes. All its shards have the same run of cells.
type span struct {
	// first is the first stripe's number.
	first, stripes int
	// firstShard and lastShard bound the data shards wanted, both included.
	firstShard, lastShard int
	// skip is how many bytes of the first cell are not wanted, bytes how many are
	// wanted behind them.
	skip, bytes int
}

// cutSpan returns what to fetch first of a range of the extent's bytes, which must
// be in the extent and not be empty. It is about maxBytes, but at least one cell.
func (l layout) cutSpan(offset, length uint64, maxBytes int) span {
	first := int(offset / uint64(l.stripeBytes()))
	r, cell := l.stripeRange(first, offset, length), l.cellBytes(first)
	if r.from > 0 || r.to < l.dataBytes(first) || r.to > maxBytes {
		cells := max(1, maxBytes/cell)
		last := min(r.lastShard, r.firstShard+cells-1)
		return span{
			first: first, stripes: 1, firstShard: r.firstShard, lastShard: last,
			skip: r.from - r.firstShard*cell, bytes: min(r.to, (last+1)*cell) - r.from,
		}
	}
	whole := span{first: first, stripes: 1, firstShard: 0, lastShard: r.lastShard, bytes: r.to}
	for next := first + 1; next < l.stripes(); next++ {
		bytes := whole.bytes + l.dataBytes(next)
		if uint64(bytes) > length || bytes > maxBytes || l.cellsBytes(first, whole.stripes+1) > maxReadBytes {
			break
		}
		whole.stripes, whole.bytes, whole.lastShard = whole.stripes+1, bytes, l.data-1
	}
	return whole
}

// run returns the cells of the span in one shard.
func (g *group) run(number int) shardRun {
	return shardRun{extentID: g.source.id, layout: g.source.layout, number: number, first: g.first, cells: g.stripes}
}

// group is a span that is fetched for a reader.
type group struct {
	span
	store  *Store
	source *extentSource
	// offset is the first byte's in the extent.
	offset uint64
	// memory has room for the wanted shards, from the fetch on; kept is what else
	// pieces lie in.
	memory *readMemory
	kept   []*readMemory

	// done is closed when the fetch is over. Then err says how, and pieces are the
	// bytes wanted that were not consumed yet.
	done   chan struct{}
	err    error
	pieces [][]byte
}

// newGroup takes the next group off a part. It returns nil if there is no memory
// for it, unless the group must be had: then it is one cell, outside of the budget.
func (s *Store) newGroup(p *part, must bool) *group {
	l := p.layout
	sp := l.cutSpan(p.offset, p.length, s.groupBytes())
	memory := s.tryReadMemory(sp.memoryBytes(l))
	if memory == nil && !must {
		return nil
	}
	if memory == nil { // fetch overdraws it.
		sp = l.cutSpan(p.offset, p.length, 1)
	}
	if p.source == nil {
		p.source = s.newExtentSource(p.extent, l)
	}
	g := &group{span: sp, store: s, source: p.source, offset: p.offset, memory: memory, done: make(chan struct{})}
	p.offset += uint64(sp.bytes)
	p.length -= uint64(sp.bytes)
	return g
}

// memoryBytes returns the size of the wanted shards' runs.
func (sp span) memoryBytes(l layout) int {
	return (sp.lastShard - sp.firstShard + 1) * l.cellsBytes(sp.first, sp.stripes)
}

// room returns where in the group's memory the run of a wanted shard goes.
func (g *group) room(number int) []byte {
	size := g.run(number).bytes()
	return g.memory.buf.data[(number-g.firstShard)*size:][:size]
}

// groupBytes returns how much a reader should fetch at once, so that all readers
// find memory for the groups that they want.
func (s *Store) groupBytes() int {
	each := s.cfg.BufferBytes / readersShare / max(1, s.readers.Load()) / (1 + groupsAhead)
	return int(min(maxGroupBytes, each))
}

// arrange sets pieces to the bytes wanted, given the runs of the wanted shards.
func (g *group) arrange(shards [][]byte) {
	skip, left := g.skip, g.bytes
	for i := range g.stripes {
		for number := g.firstShard; number <= g.lastShard && left > 0; number++ {
			piece := g.run(number).cell(shards[number], i)[skip:]
			piece = piece[:min(left, len(piece))]
			g.pieces = append(g.pieces, piece)
			skip, left = 0, left-len(piece)
		}
	}
}

// consume drops the first bytes, which lie in one piece.
func (g *group) consume(n int) {
	if n < len(g.pieces[0]) {
		g.pieces[0] = g.pieces[0][n:]
		return
	}
	g.pieces = g.pieces[1:]
}

// exhausted says that the group was fetched and consumed.
func (g *group) exhausted() bool {
	select {
	case <-g.done:
		return g.err == nil && len(g.pieces) == 0
	default:
		return false
	}
}

// release gives the group's memory back once it is done.
func (g *group) release() {
	g.pieces = nil
	if g.memory != nil {
		g.memory.release()
	}
	for _, memory := range g.kept {
		memory.release()
	}
	g.kept = nil
}

// readMemory is memory that a read, which may come late, fills for a group. It is
// counted: it goes back when neither needs it.
type readMemory struct {
	buf  *buffer
	refs atomic.Int32
	// counted is what is to be taken off Store.reading then.
	counted int64
	store   *Store
}

// tryReadMemory returns memory from the readers' share of the budget, or nil.
func (s *Store) tryReadMemory(bytes int) *readMemory {
	counted := int64(bytes)
	if s.reading.Add(counted) > s.cfg.BufferBytes/readersShare {
		s.reading.Add(-counted)
		return nil
	}
	buf := s.buffers.tryAcquire(bytes)
	if buf == nil {
		s.reading.Add(-counted)
		return nil
	}
	return s.newReadMemory(buf, counted)
}

// overdrawReadMemory returns memory outside of the budget.
func (s *Store) overdrawReadMemory(bytes int) *readMemory {
	return s.newReadMemory(s.buffers.overdraw(bytes), 0)
}

func (s *Store) newReadMemory(buf *buffer, counted int64) *readMemory {
	m := &readMemory{buf: buf, counted: counted, store: s}
	m.refs.Store(1)
	return m
}

func (m *readMemory) retain() { m.refs.Add(1) }

func (m *readMemory) release() {
	if m.refs.Add(-1) > 0 {
		return
	}
	m.buf.release()
	m.store.reading.Add(-m.counted)
}
