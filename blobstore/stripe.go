package blobstore

import (
	"sync/atomic"
	"time"
)

// stripe is the memory of one stripe on its way from the client to the holders.
//
// The bytes are copied once, from the client's connection into buf. After that
// the hash, the erasure code, the disk and the links all use them in place. So a
// stripe is counted: whoever still needs it holds a reference, and the last one
// to let go gives the memory back.
type stripe struct {
	buf *buffer
	// filled is how many bytes of data are in buf, from its start on.
	filled int
	// acquired is when the memory was.
	acquired time.Time
	// room is given back with the memory: a place among the stripes that one
	// transfer may have in flight.
	room chan struct{}
	refs atomic.Int32
	// tainted says that a call that hangs may read the memory for ever.
	tainted atomic.Bool
}

// newStripe returns a stripe with one reference, the caller's.
func newStripe(buf *buffer, room chan struct{}) *stripe {
	st := &stripe{buf: buf, acquired: time.Now(), room: room}
	st.refs.Store(1)
	return st
}

// stripeMemory returns how many bytes the stripes of a layout need. The shards of
// a mirrored layout share the bytes of their one cell.
func stripeMemory(l layout) int {
	if l.mirrored() {
		return l.cell
	}
	return l.shards() * l.cell
}

// encode cuts the filled stripe into one cell for each shard number, the parity
// computed. Like the last stripe of an extent, a stripe that is not full has
// shorter cells (see layout). Padding and parity go behind the data.
func (st *stripe) encode(l layout, code *erasure) ([][]byte, error) {
	size := (st.filled + l.data - 1) / l.data
	memory := st.buf.data
	clear(memory[st.filled : l.data*size])
	cells := make([][]byte, l.shards())
	for number := range cells {
		switch {
		case number < l.data:
			cells[number] = memory[number*size:][:size]
		case l.mirrored():
			cells[number] = cells[0]
		default:
			cells[number] = memory[number*l.cell:][:size]
		}
	}
	return cells, code.encode(l, cells)
}

// retain adds a reference.
func (st *stripe) retain() { st.refs.Add(1) }

// release drops a reference.
func (st *stripe) release() {
	if st.refs.Add(-1) > 0 {
		return
	}
	if st.tainted.Load() {
		st.buf.forfeit()
	} else {
		st.buf.release()
	}
	<-st.room
}

// cell is one cell of a stripe on its way to one holder. It holds a reference
// on its stripe, which is dropped once, by release or abandon, whichever is first.
type cell struct {
	stripe *stripe
	data   []byte
	// checksum is that of the cell in its shard.
	checksum uint32
	done     atomic.Bool
}

// newCell returns a cell with these bytes of the stripe.
func (st *stripe) newCell(data []byte) *cell {
	st.retain()
	return &cell{stripe: st, data: data}
}

// release says that nobody needs the cell's bytes any more.
func (c *cell) release() {
	if c.done.CompareAndSwap(false, true) {
		c.stripe.release()
	}
}

// abandon is release for a cell whose bytes a disk, or a connection, that hangs may still be reading.
func (c *cell) abandon() {
	if !c.done.Load() {
		c.stripe.tainted.Store(true)
	}
	c.release()
}
