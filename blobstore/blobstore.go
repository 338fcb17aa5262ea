// Package blobstore keeps the bytes of blobs.
//
// A blob is a list of extents; an extent is cut into k data shards and m parity
// shards, each a file on another node. Append (writer.go) takes bytes from a
// client to the holders of the shards, Read (reader.go) brings them back from any
// k of them. Which extents make up which blob is not known here: the caller
// records what Append returns, and the sweep asks a Catalog what is recorded.
//
// The disk side is Disk (disk.go) with its file format (shardfile.go) and the
// gRPC service over it (server.go); DESIGN.md has the formats, the crash points
// and the reasons.
package blobstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc"
)

const (
	// nodeWait is how long a write waits for enough healthy nodes before it is
	// refused. It covers a node that restarts, and one that was suspected wrongly.
	nodeWait = 10 * time.Second
	// closeWait bounds how long Close waits for work that was cancelled. A disk that
	// hangs can't be waited for.
	closeWait = 5 * time.Second
)

// Store keeps blobs on the nodes of the cluster. It is safe for concurrent use.
type Store struct {
	cfg     Config
	cluster Cluster
	catalog Catalog
	disk    *Disk
	buffers *buffers
	erasure *erasure
	pace    *pace
	reports *reports
	scrub   *scrub
	log     zerolog.Logger

	// nodeWait is the constant, shorter in tests.
	nodeWait time.Duration
	// appends counts the appends under way, among which the budget is shared.
	appends atomic.Int64
	// readers counts the open readers, and reading the bytes of the budget that they
	// hold.
	readers, reading atomic.Int64
	// fetches has room for each group being fetched, diskReads for each read of this
	// node's disk by this node, rebuilds for each rebuild outside of the budget.
	fetches, diskReads, rebuilds chan struct{}
	// repairStatus is what the repairer knows, while this node leads.
	repairStatus atomic.Pointer[RepairStatus]
	// damaged counts the shards that turned out to be lost or rotten when read.
	damaged atomic.Uint64

	mu     sync.Mutex // guards closed and running, and work against Add after Wait
	closed bool
	// running ends the transfers under way.
	running map[*context.CancelCauseFunc]struct{}
	work    sync.WaitGroup
}

// Open opens the store of this node: its shards are in Config.Dir, those of the
// other nodes are reached through cluster. It starts nothing; see Run. It fails
// with ErrInvalid for a wrong configuration, and with ErrDisk.
func Open(cfg Config, cluster Cluster, catalog Catalog) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	disk, err := OpenDisk(cfg)
	if err != nil {
		return nil, fmt.Errorf("open blob store: %w", err)
	}
	s := &Store{
		cfg:       cfg,
		cluster:   cluster,
		catalog:   catalog,
		disk:      disk,
		buffers:   newBuffers(cfg.BufferBytes),
		erasure:   &erasure{},
		pace:      newPace(func() uint64 { return catalog.LocalSettings().GetRepairBytesPerSecond() }),
		log:       cfg.Logger,
		nodeWait:  nodeWait,
		diskReads: make(chan struct{}, cfg.MaxShardReads),
		fetches:   make(chan struct{}, maxFetches),
		rebuilds:  make(chan struct{}, maxRebuilds),
		reports:   newReports(catalog, cfg.Logger),
		running:   make(map[*context.CancelCauseFunc]struct{}),
	}
	s.scrub = newScrub(s)
	return s, nil
}

// Register offers this node's shards to the other nodes. The server must use
// Codec.
func (s *Store) Register(registrar grpc.ServiceRegistrar) {
	newServer(s.cfg, s.disk, s.buffers, s.repair, s.tellScrub).register(registrar)
}

// Run sweeps shards that no record names, reads all others again and again, and
// reports those that are damaged, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	var others sync.WaitGroup
	defer others.Wait()
	others.Go(func() { s.reports.run(ctx) })
	others.Go(func() { s.scrub.run(ctx) })
	return newSweep(s.cfg, s.cluster.Self(), s.disk, s.catalog).Run(ctx)
}

// Space returns the bytes free for new shards on this node, the reserve taken
// off, and the bytes that the node offers in all. A disk that does not even tell
// has none of either.
func (s *Store) Space() (free, capacity uint64) {
	free, capacity, err := s.disk.Space()
	if err != nil {
		s.log.Error().Err(err).Msg("disk does not tell its space")
		return 0, 0
	}
	return free, capacity
}

// DamagedShards returns how often this node has met a shard, on its own disk or on
// another node, that was lost or was not what had been written.
func (s *Store) DamagedShards() uint64 { return s.damaged.Load() }

// Close ends all transfers and closes the shards' files. Calls under way, and
// later ones, fail with ErrClosed. It may be called again.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	for cancel := range s.running {
		(*cancel)(ErrClosed)
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { // Ends with the work; a disk that hangs keeps it, as it keeps the work.
		s.work.Wait()
		close(done)
	}()
	timer := time.NewTimer(closeWait)
	defer timer.Stop()
	var err error
	select {
	case <-done:
	case <-timer.C:
		err = errors.New("close blob store: not all transfers have ended, a disk or a client hangs")
	}
	return errors.Join(err, s.disk.Close())
}

// begin announces a transfer. The context returned ends when ctx does, or when
// the store is closed. end must be called once; Close waits for it.
func (s *Store) begin(ctx context.Context) (working context.Context, end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, ErrClosed
	}
	working, cancel := context.WithCancelCause(ctx)
	s.running[&cancel] = struct{}{}
	s.work.Add(1)
	return working, func() {
		cancel(nil)
		s.mu.Lock()
		delete(s.running, &cancel)
		s.mu.Unlock()
		s.work.Done()
	}, nil
}

// goWork runs a part of a transfer on its own goroutine. Close waits for it.
func (s *Store) goWork(part func()) {
	s.work.Add(1)
	go func() {
		defer s.work.Done()
		part()
	}()
}
