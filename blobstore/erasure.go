package blobstore

import (
	"fmt"
	"sync"

	"github.com/klauspost/reedsolomon"
)

// erasureCodec is the number by which shard files name the code below:
// Reed-Solomon over GF(2^8) with the Vandermonde matrix of klauspost/reedsolomon.
// Its output is part of the format: another matrix needs another number, and
// TestErasureGolden holds it fast.
const erasureCodec = 1

// erasure encodes and rebuilds stripes. It keeps one encoder for each (k, m) in
// use, at most MaxDataShards*MaxParityShards. Safe for concurrent use.
type erasure struct {
	encoders sync.Map // shardCounts -> reedsolomon.Encoder
}

type shardCounts struct{ data, parity int }

// encode fills the parity cells of a stripe from its data cells. There is one
// cell for each shard number, all equally long. In a mirrored layout the parity
// cells are copies, and may be the very slice of the data cell.
func (e *erasure) encode(l layout, cells [][]byte) error {
	if len(cells) != l.shards() {
		return fmt.Errorf("encode stripe: %d cells for %d shards: %w", len(cells), l.shards(), ErrInvalid)
	}
	if l.parity == 0 {
		return nil
	}
	if l.mirrored() {
		for _, parity := range cells[1:] {
			if len(parity) != len(cells[0]) {
				return fmt.Errorf("encode stripe: cells differ in size: %w", ErrInvalid)
			}
			if len(parity) > 0 && &parity[0] == &cells[0][0] {
				continue // the same memory, which the hash may be reading now
			}
			copy(parity, cells[0])
		}
		return nil
	}
	encoder, err := e.encoder(l)
	if err != nil {
		return err
	}
	if err := encoder.Encode(cells); err != nil {
		return fmt.Errorf("encode stripe %d+%d: %w", l.data, l.parity, err)
	}
	return nil
}

// reconstruct rebuilds the wanted cells of a stripe from any k others. A missing
// cell has length 0; if its capacity suffices, the rebuilt cell is put there.
// wanted has one entry for each shard number; cells that are there are left
// alone. Nothing is verified: wrong input gives wrong output, so the caller must
// have checked every cell that is there.
//
// It fails with ErrTooFewShards when fewer than k cells are there.
func (e *erasure) reconstruct(l layout, cells [][]byte, wanted []bool) error {
	if len(cells) != l.shards() || len(wanted) != l.shards() {
		return fmt.Errorf("reconstruct stripe: %d cells for %d shards: %w", len(cells), l.shards(), ErrInvalid)
	}
	present := 0
	for _, cell := range cells {
		if len(cell) > 0 {
			present++
		}
	}
	if present < l.data {
		return fmt.Errorf("reconstruct stripe: %d of %d cells: %w", present, l.data, ErrTooFewShards)
	}
	if l.parity == 0 {
		return nil
	}
	if l.mirrored() {
		restoreMirrors(cells, wanted)
		return nil
	}
	encoder, err := e.encoder(l)
	if err != nil {
		return err
	}
	if err := encoder.ReconstructSome(cells, wanted); err != nil {
		return fmt.Errorf("reconstruct stripe %d+%d: %w", l.data, l.parity, err)
	}
	return nil
}

func restoreMirrors(cells [][]byte, wanted []bool) {
	var whole []byte
	for _, cell := range cells {
		if len(cell) > 0 {
			whole = cell
			break
		}
	}
	for number, want := range wanted {
		if want && len(cells[number]) == 0 {
			cells[number] = append(cells[number], whole...)
		}
	}
}

func (e *erasure) encoder(l layout) (reedsolomon.Encoder, error) {
	counts := shardCounts{data: l.data, parity: l.parity}
	if encoder, ok := e.encoders.Load(counts); ok {
		return encoder.(reedsolomon.Encoder), nil
	}
	// One goroutine: stripes of different transfers already run in parallel, and a
	// stripe takes less than a goroutine switch would save.
	encoder, err := reedsolomon.New(l.data, l.parity, reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, fmt.Errorf("make encoder %d+%d: %w", l.data, l.parity, err)
	}
	kept, _ := e.encoders.LoadOrStore(counts, encoder)
	return kept.(reedsolomon.Encoder), nil
}
