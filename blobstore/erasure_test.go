package blobstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"testing"
)

// encodedStripe returns the cells of one stripe of pseudo-random data.
func encodedStripe(t *testing.T, e *erasure, l layout) [][]byte {
	t.Helper()
	random := rand.NewChaCha8([32]byte{byte(l.data), byte(l.parity)})
	cells := make([][]byte, l.shards())
	for i := range cells {
		cells[i] = make([]byte, l.cellBytes(0))
		if i < l.data {
			_, _ = random.Read(cells[i])
		}
	}
	if err := e.encode(l, cells); err != nil {
		t.Fatalf("encode %d+%d: %v", l.data, l.parity, err)
	}
	return cells
}

// TestErasureGolden holds the output of the erasure code fast: shards written by
// one version are read by the next. If it fails, erasureCodec needs a new number
// and the old code must stay.
func TestErasureGolden(t *testing.T) {
	golden := map[string]string{
		"1+1": "1a06e65814b98c45",
		"2+1": "57fe7737620fc3a6",
		"3+2": "d5699a10faf6850a",
		"8+2": "50e029508b0c1f48",
		"5+4": "27697bb5d852e099",
	}
	for _, c := range []shardCounts{{1, 1}, {2, 1}, {3, 2}, {8, 2}, {5, 4}} {
		l := testLayout(t, c.data, c.parity, 64, uint64(c.data*64))
		hash := sha256.New()
		for _, cell := range encodedStripe(t, &erasure{}, l)[l.data:] {
			hash.Write(cell)
		}
		name := fmt.Sprintf("%d+%d", c.data, c.parity)
		if got := hex.EncodeToString(hash.Sum(nil)[:8]); got != golden[name] {
			t.Errorf("%q: %q,", name, got)
		}
	}
}

// TestErasureSurvivesEveryLoss loses every set of up to m cells.
func TestErasureSurvivesEveryLoss(t *testing.T) {
	e := &erasure{}
	for _, c := range []shardCounts{{1, 0}, {1, 1}, {1, 2}, {2, 1}, {3, 0}, {3, 1}, {3, 2}, {6, 2}, {4, 3}} {
		l := testLayout(t, c.data, c.parity, 33, uint64(c.data*33))
		whole := encodedStripe(t, e, l)
		for lost := range 1 << l.shards() {
			if bits.OnesCount(uint(lost)) > l.parity {
				continue
			}
			cells, wanted := make([][]byte, l.shards()), make([]bool, l.shards())
			for i := range cells {
				if lost&(1<<i) == 0 {
					cells[i] = bytes.Clone(whole[i])
				} else {
					cells[i] = make([]byte, 0, 33)
					wanted[i] = true
				}
			}
			if err := e.reconstruct(l, cells, wanted); err != nil {
				t.Fatalf("%d+%d without %b: %v", l.data, l.parity, lost, err)
			}
			for i := range cells {
				if !bytes.Equal(cells[i], whole[i]) {
					t.Fatalf("%d+%d without %b: cell %d is wrong", l.data, l.parity, lost, i)
				}
			}
		}
	}
}

func TestErasureRebuildsOnlyWhatIsWanted(t *testing.T) {
	for _, c := range []shardCounts{{1, 2}, {3, 2}} {
		e := &erasure{}
		l := testLayout(t, c.data, c.parity, 16, uint64(c.data*16))
		whole := encodedStripe(t, e, l)
		cells, wanted := append([][]byte(nil), whole...), make([]bool, l.shards())
		cells[0], cells[l.shards()-1] = nil, nil
		wanted[0] = true
		if err := e.reconstruct(l, cells, wanted); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(cells[0], whole[0]) || len(cells[l.shards()-1]) != 0 {
			t.Errorf("%d+%d: the wanted cell has %d bytes, the other %d", l.data, l.parity, len(cells[0]), len(cells[l.shards()-1]))
		}
	}
}

func TestErasureRefuses(t *testing.T) {
	e := &erasure{}
	for _, c := range []shardCounts{{1, 1}, {2, 0}, {3, 2}} {
		l := testLayout(t, c.data, c.parity, 16, uint64(c.data*16))
		cells := encodedStripe(t, e, l)
		if err := e.encode(l, cells[1:]); !errors.Is(err, ErrInvalid) {
			t.Errorf("encode %d+%d with a cell less: %v", l.data, l.parity, err)
		}
		for i := range l.parity + 1 {
			cells[i] = nil
		}
		if err := e.reconstruct(l, cells, make([]bool, l.shards())); !errors.Is(err, ErrTooFewShards) {
			t.Errorf("reconstruct %d+%d from k-1: got %v, want ErrTooFewShards", l.data, l.parity, err)
		}
	}
}

// TestErasureMirrorShares: a mirror may be the very cell that it mirrors.
func TestErasureMirrorShares(t *testing.T) {
	l := testLayout(t, 1, 2, 16, 16)
	cell := []byte("sixteen bytes...")
	if err := (&erasure{}).encode(l, [][]byte{cell, cell, cell}); err != nil || string(cell) != "sixteen bytes..." {
		t.Errorf("got %q, %v", cell, err)
	}
}
