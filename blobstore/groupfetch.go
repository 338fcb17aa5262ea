package blobstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// maxFetches bounds the groups that a store fetches at once. More would not make
// the nodes faster, and each has its bytes in memory twice: where they
// go, and on the node that sends them.
const maxFetches = 32

// maxRebuilds bounds the groups that are rebuilt with memory outside of the
// budget at once.
const maxRebuilds = 16

// groupFetch fetches the shards of one group: first the wanted ones, and when one
// of them fails, is late or can't be counted on, as many others as it takes to
// rebuild it. All of it is used by one goroutine.
type groupFetch struct {
	*group
	shards  []shardFetch
	results chan shardResult // has room for every shard
	spares  []int            // shards not asked for yet, the best first
	// rebuilding says that a place in Store.rebuilds is held.
	rebuilding bool
}

type fetchState int

const (
	fetchIdle    fetchState = iota // not asked for
	fetchRunning                   // asked for
	fetchLate                      // asked for longer than Config.HedgeDelay ago
	fetchGood                      // there, and verified
	fetchFailed
)

// shardFetch is the fetch of one shard's run. A shard is asked for once a group,
// unless its holder was away and there is no other.
type shardFetch struct {
	state fetchState
	err   error // the last one, once it failed
	// away says that the holder could not be reached.
	away    bool
	buf     []byte
	memory  *readMemory
	started time.Time
}

type shardResult struct {
	number int
	err    error
}

// fetch fills the group and closes done. It returns when the bytes are there, or
// can't be had, or ctx ends; reads that hang are left behind with their memory.
func (g *group) fetch(ctx context.Context) {
	defer close(g.done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	select {
	case g.store.fetches <- struct{}{}:
		defer func() { <-g.store.fetches }()
	case <-ctx.Done():
		g.err = context.Cause(ctx)
		return
	}
	g.err = g.fetchSpan(ctx)
	if g.stripes > 1 && errors.Is(g.err, ErrTooFewShards) && errors.Is(g.err, ErrChecksum) {
		g.err = g.fetchStripes(ctx)
	}
}

// fetchSpan fills the group at once.
func (g *group) fetchSpan(ctx context.Context) error {
	if g.memory == nil {
		g.memory = g.store.overdrawReadMemory(g.memoryBytes(g.source.layout))
	}
	shards := g.source.layout.shards()
	f := &groupFetch{group: g, shards: make([]shardFetch, shards), results: make(chan shardResult, shards)}
	defer f.end()
	if err := f.gather(ctx); err != nil {
		return err
	}
	return f.finish()
}

// fetchStripes fills the group stripe by stripe: shards with rotten cells in
// different stripes may do together what none does for all of them.
func (g *group) fetchStripes(ctx context.Context) error {
	left := g.bytes
	for i := range g.stripes {
		sp := g.span
		sp.first, sp.stripes = g.first+i, 1
		sp.bytes = min(left, (sp.lastShard-sp.firstShard+1)*g.source.layout.cellBytes(sp.first))
		left -= sp.bytes
		one := &group{span: sp, store: g.store, source: g.source, offset: g.offset}
		err := one.fetchSpan(ctx)
		g.pieces, g.kept = append(g.pieces, one.pieces...), append(append(g.kept, one.memory), one.kept...)
		if err != nil {
			return err
		}
	}
	return nil
}

// gather asks for shards until enough are there. It fails with ErrTooFewShards.
func (f *groupFetch) gather(ctx context.Context) error {
	first, spares := f.source.choose(f.firstShard, f.lastShard)
	f.spares = spares
	for _, number := range first {
		if err := f.ask(ctx, number); err != nil {
			return err
		}
	}
	began := time.Now()
	hedge := time.NewTicker(f.store.cfg.HedgeDelay)
	defer hedge.Stop()
	for !f.complete() {
		if err := f.topUp(ctx); err != nil {
			return err
		}
		if f.count(fetchRunning)+f.count(fetchLate) == 0 {
			if err := f.askAgain(ctx, began); err != nil {
				return err
			}
		}
		select {
		case result := <-f.results:
			f.settle(ctx, result)
		case <-hedge.C:
			f.noteLate()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// Bounds of the wait for holders that are away when there are no others.
const (
	reconnectWait  = 3 * time.Second
	reconnectPause = 100 * time.Millisecond
)

// askAgain asks the holders again that could not be reached: one that was started
// again a moment ago may not be connected yet, and without it the read fails. It
// fails with ErrTooFewShards when that can't help, or has not for long enough.
func (f *groupFetch) askAgain(ctx context.Context, began time.Time) error {
	var away []int
	var errs []error
	for number := range f.shards {
		if shard := &f.shards[number]; shard.state == fetchFailed {
			errs = append(errs, shard.err)
			if shard.away {
				away = append(away, number)
			}
		}
	}
	wait := f.store.reconnectWait
	if f.source.hasty {
		wait = 0
	}
	if f.count(fetchGood)+len(away) < f.source.layout.data || time.Since(began) > wait {
		return fmt.Errorf("%d of %d shards: %w: %w", f.count(fetchGood), f.source.layout.data, ErrTooFewShards, errors.Join(errs...))
	}
	select {
	case <-time.After(reconnectPause):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for _, number := range away {
		f.shards[number].memory.release()
		f.shards[number].memory = nil
		if err := f.ask(ctx, number); err != nil {
			return err
		}
	}
	return nil
}

// complete says that the wanted shards are there, or enough to rebuild them.
func (f *groupFetch) complete() bool {
	return f.count(fetchGood) >= f.source.layout.data || !f.source.layout.mirrored() && f.all(fetchGood)
}

// all says that all wanted shards are in one of these states.
func (f *groupFetch) all(states ...fetchState) bool {
	for number := f.firstShard; number <= f.lastShard; number++ {
		in := false
		for _, state := range states {
			in = in || f.shards[number].state == state
		}
		if !in {
			return false
		}
	}
	return true
}

func (f *groupFetch) count(state fetchState) int {
	n := 0
	for i := range f.shards {
		if f.shards[i].state == state {
			n++
		}
	}
	return n
}

// topUp asks for more shards if those asked for will not do.
func (f *groupFetch) topUp(ctx context.Context) error {
	if !f.source.layout.mirrored() && f.all(fetchGood, fetchRunning) {
		return nil
	}
	for f.count(fetchGood)+f.count(fetchRunning) < f.source.layout.data && len(f.spares) > 0 {
		next := f.spares[0]
		f.spares = f.spares[1:]
		if err := f.ask(ctx, next); err != nil {
			return err
		}
	}
	return nil
}

// ask begins to read a shard. It fails only when ctx ends.
func (f *groupFetch) ask(ctx context.Context, number int) error {
	run, shard := f.run(number), &f.shards[number]
	if number >= f.firstShard && number <= f.lastShard {
		shard.buf, shard.memory = f.room(number), f.memory
		shard.memory.retain()
	} else {
		memory, err := f.spareMemory(ctx, run.bytes())
		if err != nil {
			return err
		}
		shard.buf, shard.memory = memory.buf.data, memory
	}
	shard.state, shard.started = fetchRunning, time.Now()
	buf, memory := shard.buf, shard.memory
	memory.retain()
	f.store.goWork(func() { // Ends with ctx, or when the disk answers.
		err := f.store.readShard(ctx, f.source.holders[number], run, buf)
		memory.release()
		f.results <- shardResult{number: number, err: err}
	})
	return nil
}

// readShard is readRun with the bounds on reads from this node's disk, which may
// hang, and on the time that another node may take.
func (s *Store) readShard(ctx context.Context, node string, run shardRun, buf []byte) error {
	if node == s.cluster.Self() {
		select {
		case s.diskReads <- struct{}{}:
			defer func() { <-s.diskReads }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	limited, cancel := context.WithTimeoutCause(ctx, s.cfg.ReadTimeout, errStalled)
	defer cancel()
	err := s.readRun(limited, node, run, buf)
	if err != nil && ctx.Err() == nil && errors.Is(context.Cause(limited), errStalled) {
		return errStalled
	}
	return err
}

// spareMemory returns memory for a shard that stands in for another one. Outside
// of the budget it is bounded by maxRebuilds: whoever waits for his turn waits for
// reads, never for a client.
func (f *groupFetch) spareMemory(ctx context.Context, bytes int) (*readMemory, error) {
	if memory := f.store.tryReadMemory(bytes); memory != nil {
		return memory, nil
	}
	if !f.rebuilding {
		select {
		case f.store.rebuilds <- struct{}{}:
			f.rebuilding = true
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return f.store.overdrawReadMemory(bytes), nil
}

func (f *groupFetch) settle(ctx context.Context, result shardResult) {
	shard := &f.shards[result.number]
	switch {
	case result.err == nil:
		shard.state = fetchGood
	case ctx.Err() == nil && shard.state != fetchFailed:
		f.fail(result.number, result.err)
	}
}

func (f *groupFetch) fail(number int, err error) {
	shard := &f.shards[number]
	err = fmt.Errorf("shard %d on node %s: %w", number, f.source.holders[number], err)
	if !shard.away { // else it is known
		f.store.noteFailure(f.source, number, err)
	}
	shard.state, shard.err, shard.away = fetchFailed, err, status.Code(err) == codes.Unavailable
}

// noteLate looks for reads that take long. One that has taken longer than it may
// hangs in a disk and is given up; its result may still come.
func (f *groupFetch) noteLate() {
	for number := range f.shards {
		shard := &f.shards[number]
		took := time.Since(shard.started)
		switch {
		case shard.state == fetchRunning && took >= f.store.cfg.HedgeDelay:
			shard.state = fetchLate
			f.source.noteLate(number)
		case shard.state == fetchLate && took >= f.store.cfg.ReadTimeout+f.store.cfg.HedgeDelay:
			f.fail(number, errStalled)
		}
	}
}

// finish rebuilds what is missing and arranges what was wanted.
func (f *groupFetch) finish() error {
	l := f.source.layout
	runs, wanted := make([][]byte, l.shards()), make([]bool, l.shards())
	var whole *shardFetch
	for number := range f.shards {
		if shard := &f.shards[number]; shard.state == fetchGood {
			runs[number], whole = shard.buf, shard
		}
	}
	if l.mirrored() {
		whole.memory.retain()
		f.kept = append(f.kept, whole.memory)
		runs[f.firstShard] = whole.buf
		f.arrange(runs)
		return nil
	}
	for number := f.firstShard; number <= f.lastShard; number++ {
		if runs[number] == nil {
			wanted[number] = true
			runs[number] = f.rebuildRoom(number)
		}
	}
	for i := range f.stripes {
		if err := f.rebuild(i, runs, wanted); err != nil {
			return err
		}
	}
	f.arrange(runs)
	return nil
}

// rebuildRoom returns memory for a shard that is rebuilt: its own, unless a read
// that came late may still write there.
func (f *groupFetch) rebuildRoom(number int) []byte {
	if f.shards[number].state == fetchIdle {
		return f.room(number)
	}
	size := f.run(number).bytes()
	memory := f.store.tryReadMemory(size)
	if memory == nil {
		memory = f.store.overdrawReadMemory(size)
	}
	f.kept = append(f.kept, memory)
	return memory.buf.data
}

// rebuild rebuilds the wanted cells of the i-th stripe in their runs.
func (f *groupFetch) rebuild(i int, runs [][]byte, wanted []bool) error {
	cells, missing := make([][]byte, len(runs)), false
	for number, run := range runs {
		if run == nil {
			continue
		}
		cells[number] = f.run(number).cell(run, i)
		if wanted[number] {
			missing = true
			cells[number] = cells[number][:0]
		}
	}
	if !missing {
		return nil
	}
	return f.store.erasure.reconstruct(f.source.layout, cells, wanted)
}

// end lets go of what only the fetch needed.
func (f *groupFetch) end() {
	for i := range f.shards {
		if memory := f.shards[i].memory; memory != nil {
			memory.release()
		}
	}
	if f.rebuilding {
		<-f.store.rebuilds
	}
}
