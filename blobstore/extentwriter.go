package blobstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// maxOpenAttempts bounds how often the shards of an extent are placed anew
// because a node did not take its shard.
const maxOpenAttempts = 4

// extentPlan says what an extent is wanted for.
type extentPlan struct {
	// key steers placement.
	key string
	// small extents are mirrored.
	small bool
	// parity is how many parity shards the extent had that this one replaces; 0 if it
	// replaces none.
	parity int
	// patient writers wait for every holder that makes progress: nobody waits for them.
	patient bool
	// avoid are nodes that just failed, full those that had no room for it.
	avoid, full []string
}

// extentWriter takes stripes to the holders of one extent.
type extentWriter struct {
	store   *Store
	id      []byte
	layout  layout // its size grows with every stripe
	holders []*holder
	patient bool
	// plannedFull are the nodes that were known to have no room.
	plannedFull []string
	// changed gets a value for each holder that is settled.
	changed chan struct{}
	cancel  context.CancelFunc
	ended   bool
}

// openExtent places a new extent and returns when every holder has taken its
// shard on. A node that does not is replaced, which may change the layout; too
// few nodes are waited for (Store.nodeWait). It fails with ErrInsufficientNodes,
// ErrNoSpace, or what the last node answered.
func (s *Store) openExtent(ctx context.Context, plan extentPlan) (*extentWriter, error) {
	plan.avoid = slices.Clone(plan.avoid)
	var refused error
	for attempt := 1; attempt <= maxOpenAttempts; attempt++ {
		l, nodes, err := s.planExtent(ctx, plan)
		if err != nil {
			return nil, errors.Join(err, refused)
		}
		w := s.newExtentWriter(ctx, l, nodes)
		w.patient, w.plannedFull = plan.patient, plan.full
		if err := w.waitOpen(ctx); err != nil {
			w.drop()
			return nil, err
		}
		failed := w.failed()
		if len(failed) == 0 {
			return w, nil
		}
		refused = w.holderErrors()
		w.drop()
		plan.avoid, plan.full = append(plan.avoid, failed...), w.full()
	}
	return nil, fmt.Errorf("open extent: no placement of %d worked: %w", maxOpenAttempts, refused)
}

// planExtent chooses layout and nodes. While too few nodes are healthy it waits,
// and then takes those to be avoided as well: they may be back. Those without room
// it leaves out to the end, since waiting gives them none.
func (s *Store) planExtent(ctx context.Context, plan extentPlan) (layout, []string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.nodeWait)
	defer cancel()
	for {
		nodes := s.nodesWithout(plan)
		chosen, err := chooseLayout(nodes, plan.small, plan.parity, s.cfg)
		if err == nil {
			l := layout{data: int(chosen.GetDataShards()), parity: int(chosen.GetParityShards()), cell: int(chosen.GetCellBytes())}
			if !plan.small {
				l.cell = shareCell(l, s.cfg, s.appends.Load())
			}
			ids, err := place(nodes, plan.key, l.shards())
			return l, ids, err
		}
		if !errors.Is(err, ErrInsufficientNodes) {
			return layout{}, nil, err
		}
		plan.avoid = nil
		select {
		case <-ctx.Done():
			return layout{}, nil, errors.Join(err, context.Cause(ctx))
		case <-time.After(nodePoll):
		}
	}
}

// nodePoll is how often the nodes are looked at while too few are healthy.
const nodePoll = 100 * time.Millisecond

// nodesWithout returns the nodes, those to be avoided as unhealthy ones and those
// without room as full: they still count for the redundancy.
func (s *Store) nodesWithout(plan extentPlan) []NodeInfo {
	nodes := s.cluster.Nodes()
	for i := range nodes {
		if slices.Contains(plan.full, nodes[i].ID) {
			nodes[i].FreeBytes = 0
		} else if slices.Contains(plan.avoid, nodes[i].ID) {
			nodes[i].Healthy = false
		}
	}
	return nodes
}

func (s *Store) newExtentWriter(ctx context.Context, l layout, nodes []string) *extentWriter {
	ctx, cancel := context.WithCancel(ctx)
	w := &extentWriter{store: s, id: newExtentID(), layout: l, changed: make(chan struct{}, len(nodes)), cancel: cancel}
	for number, node := range nodes {
		h := &holder{
			store: s,
			node:  node,
			header: &proto.ShardHeader{ExtentId: w.id, ShardNumber: uint32(number), Layout: &proto.Layout{
				DataShards: uint32(l.data), ParityShards: uint32(l.parity), CellBytes: uint32(l.cell),
			}},
			cells:   make(chan *cell, maxStripesInFlight),
			opened:  make(chan struct{}),
			settled: make(chan struct{}),
			changed: w.changed,
		}
		w.holders = append(w.holders, h)
		s.goWork(func() { h.run(ctx) })
	}
	return w
}

func newExtentID() []byte {
	id := make([]byte, ExtentIDBytes)
	_, _ = rand.Read(id) // Never fails: see crypto/rand.
	return id
}

// waitOpen returns when every node has taken its shard on or was given up.
func (w *extentWriter) waitOpen(ctx context.Context) error {
	for _, h := range w.holders {
		select {
		case <-h.opened:
		case <-h.settled:
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("open extent: %w", context.Cause(ctx))
	}
	return nil
}

// write hands a stripe to all holders that are well, and waits while the queue of
// one of them is full. A stripe that is not full must be the last. The caller
// keeps its reference. It fails with ErrTooFewShards when so many holders failed
// that the extent is lost.
func (w *extentWriter) write(st *stripe) error {
	data, err := st.encode(w.layout, w.store.erasure)
	if err != nil {
		return err
	}
	well := 0
	for number, c := range w.sum(st, data) {
		h := w.holders[number]
		select {
		case <-h.settled:
			c.release()
			continue
		default:
		}
		select {
		case h.cells <- c:
			well++
		case <-h.settled:
			c.release()
		}
	}
	w.layout.size += uint64(st.filled)
	if well < w.layout.data {
		return fmt.Errorf("write extent: %d of %d holders are left: %w: %w", well, len(w.holders), ErrTooFewShards, w.holderErrors())
	}
	return nil
}

// sum returns the cells of the next stripe with their checksums: worked out here, at once for all, while the processor has the
// bytes in its cache since they were encoded.
func (w *extentWriter) sum(st *stripe, data [][]byte) []*cell {
	number := uint32(w.layout.size / uint64(w.layout.stripeBytes()))
	cells := make([]*cell, len(data))
	for shard, bytes := range data {
		cells[shard] = st.newCell(bytes)
		cells[shard].checksum = cellChecksum(w.id, uint32(shard), number, bytes)
	}
	return cells
}

// broken says that a holder has failed, so that the extent should end.
func (w *extentWriter) broken() bool { return len(w.failed()) > 0 }

// failed returns the nodes of the holders that failed so far.
func (w *extentWriter) failed() []string {
	var nodes []string
	for _, h := range w.holders {
		if h.isSettled() && h.err != nil {
			nodes = append(nodes, h.node)
		}
	}
	return nodes
}

// full returns the nodes that are known to have no room, those of holders that
// found none included.
func (w *extentWriter) full() []string {
	nodes := slices.Clone(w.plannedFull)
	for _, h := range w.holders {
		if h.isSettled() && errors.Is(h.err, ErrNoSpace) {
			nodes = append(nodes, h.node)
		}
	}
	return nodes
}

func (w *extentWriter) holderErrors() error {
	var errs []error
	for _, h := range w.holders {
		if h.isSettled() && h.err != nil {
			errs = append(errs, h.err)
		}
	}
	return errors.Join(errs...)
}

// safeShards returns how many durable shards an extent needs to count: one may
// be lost at once, unless there is no redundancy at all.
func (l layout) safeShards() int { return l.data + min(1, l.parity) }

// finish ends the extent and returns it with those holders whose shard is
// durable. Once enough are, the others get as much time again as these took, and
// at least Config.LateDelay, unless the writer is patient. It fails with ErrTooFewShards when the extent can't
// be read.
func (w *extentWriter) finish(ctx context.Context) (extent *proto.Extent, durable int, err error) {
	era := w.store.catalog.Era() // before any shard gets its name, so that the sweep sees it in no earlier one
	w.end(false)
	defer w.cancel()
	began := time.Now()
	var late <-chan time.Time
	for settled := 0; settled < len(w.holders); {
		select {
		case <-w.changed:
			settled++
		case <-late:
			w.giveUpLate()
			late = nil
		case <-ctx.Done():
			return nil, 0, fmt.Errorf("finish extent: %w", context.Cause(ctx))
		}
		if late == nil && !w.patient && w.durable() >= w.layout.safeShards() {
			timer := time.NewTimer(max(w.store.cfg.LateDelay, time.Since(began)))
			defer timer.Stop()
			late = timer.C
		}
	}
	w.suspectFailed()
	if durable = w.durable(); durable < w.layout.data {
		return nil, durable, fmt.Errorf("finish extent: %d of %d shards are durable: %w: %w", durable, len(w.holders), ErrTooFewShards, w.holderErrors())
	}
	extent = &proto.Extent{Id: w.id, Size: w.layout.size, Layout: w.holders[0].header.GetLayout(), Era: era}
	for _, h := range w.holders {
		if h.err != nil {
			extent.Holders = append(extent.Holders, "")
			continue
		}
		extent.Holders = append(extent.Holders, h.node)
	}
	return extent, durable, nil
}

// durable returns how many shards are durable.
func (w *extentWriter) durable() int {
	durable := 0
	for _, h := range w.holders {
		if h.isSettled() && h.err == nil {
			durable++
		}
	}
	return durable
}

// errLate says that a holder was given up because the others were done long ago.
var errLate = errors.New("later than the others")

func (w *extentWriter) giveUpLate() {
	for _, h := range w.holders {
		h.settle(errLate)
	}
}

// suspectFailed reports the nodes that are to be avoided.
func (w *extentWriter) suspectFailed() {
	for _, h := range w.holders {
		if h.isSettled() && h.err != nil && isNodeFault(h.err) {
			w.store.suspect(h.node, h.err)
		}
	}
}

// drop gives the extent up, unless it has ended. The holders let go of their
// cells on their own.
func (w *extentWriter) drop() {
	if w.ended {
		return
	}
	w.end(true)
	w.suspectFailed()
	w.cancel()
}

// end tells the holders that there are no more stripes.
func (w *extentWriter) end(dropped bool) {
	w.ended = true
	for _, h := range w.holders {
		h.size, h.dropped = w.layout.size, dropped
		close(h.cells)
	}
}
