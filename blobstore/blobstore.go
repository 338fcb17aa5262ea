// Package blobstore keeps the bytes of blobs.
//
// A blob is a list of extents; an extent is cut into k data shards and m parity
// shards, each a file on another node. Append (writer.go) takes bytes from a
// client to the holders of the shards, Read (reader.go) brings them back from any
// k of them. Which extents make up which blob is not known here: the caller
// records what Append returns, and the sweep asks a Catalog what is recorded.
//
// The disk side is Disk (disk.go) with its file format (shardfile.go) and what
// answers other nodes over it (linkserver.go, server.go); DESIGN.md has the formats, the crash points
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
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"

	"github.com/atollregistry/atoll/blobstore/cache"
	"github.com/atollregistry/atoll/proto"
)

const (
	// nodeWait is how long a write waits for enough healthy nodes before it is
	// refused. It covers a node that restarts, and one that was suspected wrongly.
	nodeWait = 10 * time.Second
	// memoryWait is how long an append waits for memory before it is refused. Slow
	// clients hold memory for as long as patience while others wait.
	memoryWait = 10 * time.Second
	// closeWait bounds how long Close waits for work that was cancelled. A disk that
	// hangs can't be waited for.
	closeWait = 5 * time.Second
	// lostDiskInterval is how often the records are compared with the files while a
	// disk is out of service.
	lostDiskInterval = time.Hour
)

// Store keeps blobs on the nodes of the cluster. It is safe for concurrent use.
type Store struct {
	cfg     Config
	cluster Cluster
	catalog Catalog
	disks   *disks
	cache   *cache.Cache // nil for none
	buffers *buffers
	erasure *erasure
	pace    *pace
	reports *reports
	scrub   *scrub
	server  *server
	links   *links
	log     zerolog.Logger

	// nodeWait, reconnectWait, memoryWait and patience are the constants, others in
	// tests.
	nodeWait, reconnectWait, memoryWait, patience time.Duration
	// directReads bounds the memory of stripes that clients are read into at once.
	directReads *semaphore.Weighted
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

// Open opens the store of this node: its shards are in Config.Dir and
// Config.MoreDirs, those of the other nodes are reached through cluster. It starts nothing; see Run. It fails
// with ErrInvalid for a wrong configuration, and with ErrDisk.
func Open(cfg Config, cluster Cluster, catalog Catalog) (*Store, error) {
	disks, err := openDisks(cfg, cluster.Self())
	if err != nil {
		return nil, fmt.Errorf("open blob store: %w", err)
	}
	s := &Store{
		cfg:       cfg,
		cluster:   cluster,
		catalog:   catalog,
		disks:     disks,
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

		reconnectWait: reconnectWait,
		memoryWait:    memoryWait,
		patience:      patience,
		directReads:   semaphore.NewWeighted(cfg.BufferBytes / directShare),
	}
	s.scrub = newScrub(s)
	s.server = newServer(s.cfg, s.cluster.Self(), s.disks, s.buffers, s.repair, s.tellScrub)
	s.links = newLinks(cluster)
	s.cache = openCache(cfg, disks.all[0])
	return s, nil
}

// Register offers the other nodes what they ask of this one by gRPC. Shards they read and write
// over links: see LinkServer.
func (s *Store) Register(registrar grpc.ServiceRegistrar) {
	proto.RegisterShardsServer(registrar, s.server)
}

// Run sweeps shards that no record names, reads all others again and again, reports
// those that are damaged, and watches the disks, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	var others sync.WaitGroup
	defer others.Wait()
	others.Go(func() { s.reports.run(ctx) })
	others.Go(func() { s.scrub.run(ctx) })
	if s.cache != nil {
		others.Go(func() { s.cache.Run(ctx) })
	}
	for _, d := range s.disks.all {
		others.Go(func() { s.watch(ctx, d) })
		others.Go(func() { newSweep(s.cfg, s.cluster.Self(), d, s.disks, s.catalog).Run(ctx) })
	}
	return nil
}

// watch watches a disk. When it is taken out of service its shards are reported as
// missing, and again later, for records that were on their way.
func (s *Store) watch(ctx context.Context, d *Disk) {
	if !d.watch(ctx) {
		return
	}
	ticker := time.NewTicker(lostDiskInterval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		s.CompareShards()
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// Space returns the bytes free for new shards on this node, the reserve taken
// off, and the bytes that the node offers in all, of which the shards that the records
// say are here take their part. Disks that are out of service, or do not even tell,
// have none of either.
func (s *Store) Space() (free, capacity uint64) {
	free, capacity = s.disks.space()
	if s.cfg.CapacityBytes == 0 {
		return free, capacity
	}
	usage, err := s.catalog.ShardUsage()
	if err != nil {
		s.log.Error().Err(err).Msg("no record of what this node holds, offering nothing")
		return 0, capacity
	}
	held := usage[s.cluster.Self()].GetBytes()
	return min(free, capacity-min(capacity, held)), capacity
}

// Disks tells of every folder for shards, in no order.
func (s *Store) Disks() []DiskStatus { return s.disks.status() }

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
	if s.cache != nil {
		s.goWork(s.cache.Close)
	}
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
	s.links.close()
	return errors.Join(err, s.disks.close())
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
