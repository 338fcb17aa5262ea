package blobstore

import (
	"bytes"
	"testing"
)

// TestStripeEncode encodes stripes, full and not, in memory that was used before.
func TestStripeEncode(t *testing.T) {
	var code erasure
	pool := newBuffers(1 << 20)
	for _, l := range []layout{{data: 1, cell: 4096}, {data: 1, parity: 2, cell: 4096}, {data: 3, parity: 2, cell: 4096}} {
		for _, filled := range []int{1, 2, 3, 4, 4096, l.stripeBytes() - 1, l.stripeBytes()} {
			st := newStripe(pool.overdraw(stripeMemory(l)), make(chan struct{}, 1))
			for i := range st.buf.data {
				st.buf.data[i] = 0xff
			}
			content := randomBytes(filled, 1)
			st.filled = copy(st.buf.data, content)
			got, err := st.encode(l, &code)
			if err != nil {
				t.Fatal(err)
			}
			size := (filled + l.data - 1) / l.data
			padded := make([]byte, l.data*size)
			copy(padded, content)
			want := make([][]byte, l.shards())
			for number := range want {
				want[number] = make([]byte, size)
				if number < l.data {
					copy(want[number], padded[number*size:])
				}
			}
			if err := code.encode(l, want); err != nil {
				t.Fatal(err)
			}
			for number := range want {
				if !bytes.Equal(got[number], want[number]) {
					t.Errorf("%d+%d, %d bytes: cell %d is wrong", l.data, l.parity, filled, number)
				}
			}
		}
	}
}

// TestStripeGoesBack sees that a stripe's memory and budget come back once, when
// the last one lets go, and that memory which a call that hangs may still read is not used again.
func TestStripeGoesBack(t *testing.T) {
	for _, abandoned := range []bool{false, true} {
		pool := newBuffers(1 << 20)
		buf := pool.tryAcquire(1 << 20)
		room := make(chan struct{}, 1)
		room <- struct{}{}
		st := newStripe(buf, room)
		one, two := st.newCell(buf.data[:10]), st.newCell(buf.data[10:2000])
		st.release()
		one.release()
		one.release()
		if abandoned {
			two.abandon()
		} else {
			if pool.tryAcquire(1) != nil {
				t.Error("the budget is back too early")
			}
			two.release()
		}
		if len(room) != 0 {
			t.Error("the room is not back")
		}
		again := pool.tryAcquire(1 << 20)
		if again == nil {
			t.Fatal("the budget is not back")
		}
		if abandoned {
			two.release() // Late, and without effect.
			if pool.tryAcquire(1) != nil {
				t.Error("the budget came back twice")
			}
		}
		again.release()
	}
}
