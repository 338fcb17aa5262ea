package blobstore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/atollregistry/atoll/proto"
)

const (
	// messageBytes bounds what goes to a holder at once. Larger messages cost less
	// processor time a byte, but are more to lose and to keep in memory.
	messageBytes = 1 << 20
	// commitStalls is how many times Config.StallTimeout a holder may take to make a
	// shard durable: an fsync shows no progress.
	commitStalls = 4
)

// holder feeds one shard of an extent to the node that is to hold it, on a
// goroutine of its own, so that a slow node holds nobody up before its queue is
// full. A holder is settled once: the shard is durable, or it is given up.
type holder struct {
	store  *Store
	node   string
	header *proto.ShardHeader
	// cells is the queue. It is closed when the extent ends or is dropped; size is
	// set before.
	cells chan *cell
	size  uint64
	// dropped is set before cells is closed, if the extent is not wanted any more.
	dropped bool

	// opened is closed when the node has taken the shard on.
	opened chan struct{}
	// settled is closed when err is final; nil means durable. changed gets one value
	// for it.
	settled chan struct{}
	changed chan<- struct{}
	once    sync.Once
	err     error
	watch   watchdog
}

// run feeds the shard until it is settled and the queue is closed. It returns
// late when a disk hangs, since that can't be cancelled; the holder is settled
// nevertheless.
func (h *holder) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h.watch.init(func(stuck []*cell) {
		h.settle(errStalled)
		cancel()
		h.abandon(stuck)
	})
	defer h.watch.disarm()
	h.settle(h.feed(ctx))
	for c := range h.cells {
		c.release()
	}
}

// abandon lets go of all cells, those still to come included, while run may hang
// in a write to a disk.
func (h *holder) abandon(stuck []*cell) {
	for _, c := range stuck {
		c.abandon()
	}
	for c := range h.cells {
		c.release()
	}
}

// settle ends the holder. Only the first call counts.
func (h *holder) settle(err error) {
	h.once.Do(func() {
		if err != nil {
			h.err = fmt.Errorf("shard %d on node %s: %w", h.header.GetShardNumber(), h.node, err)
		}
		close(h.settled)
		h.changed <- struct{}{}
	})
}

// isSettled says whether err is final.
func (h *holder) isSettled() bool {
	select {
	case <-h.settled:
		return true
	default:
		return false
	}
}

// feed is the shard's way, in one line.
func (h *holder) feed(ctx context.Context) error {
	stall := h.store.cfg.StallTimeout
	h.watch.arm(stall, nil)
	sink, err := h.store.openSink(ctx, h.node, h.header)
	h.watch.disarm()
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer sink.close()
	close(h.opened)
	trailer := &proto.ShardTrailer{}
	beat := time.NewTicker(linkBeat)
	defer beat.Stop()
	for {
		batch, err := h.next(sink, beat)
		if err != nil {
			return fmt.Errorf("wait for more: %w", err)
		}
		if len(batch) == 0 {
			break
		}
		for _, c := range batch {
			trailer.CellChecksums = append(trailer.CellChecksums, c.checksum)
		}
		h.watch.arm(stall, batch)
		err = sink.write(batch)
		h.watch.disarm()
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	// A disk does not look at the context.
	if ctx.Err() != nil || h.dropped {
		return context.Canceled
	}
	trailer.ExtentSize = h.size
	h.watch.arm(commitStalls*stall, nil)
	err = sink.commit(trailer)
	h.watch.disarm()
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// next waits for a cell and returns it with those behind it, as many as a message
// takes. It returns none when the queue is closed.
func (h *holder) next(sink shardSink, beat *time.Ticker) ([]*cell, error) {
	for {
		select {
		case first, ok := <-h.cells:
			if !ok {
				return nil, nil
			}
			return h.gather(first), nil
		case <-beat.C:
			h.watch.arm(h.store.cfg.StallTimeout, nil)
			err := sink.beat()
			h.watch.disarm()
			if err != nil {
				return nil, err
			}
		}
	}
}

// gather returns a cell with those that wait behind it.
func (h *holder) gather(first *cell) []*cell {
	batch, size := []*cell{first}, len(first.data)
	for size+len(first.data) <= messageBytes {
		select {
		case c, ok := <-h.cells:
			if !ok {
				return batch
			}
			batch, size = append(batch, c), size+len(c.data)
		default:
			return batch
		}
	}
	return batch
}
