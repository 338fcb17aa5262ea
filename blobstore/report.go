package blobstore

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/proto"
)

const (
	// maxReports bounds the damaged shards that wait to be reported. What does not
	// find room is found again, by the next reader or the scrub.
	maxReports = 10_000
	// reportInterval is how long a report may wait for others to go with.
	reportInterval = time.Second
	// reportsAtOnce bounds the shards of one command.
	reportsAtOnce = 500
)

// reports takes down shards that are lost or rotten and tells the catalog, which
// has them repaired. A report is a reason to look, and no more: the records know
// whether the shard should be there at all, and its holder reads it before it does
// anything. Safe for concurrent use.
type reports struct {
	catalog Catalog
	log     zerolog.Logger

	mu      sync.Mutex
	waiting map[report]bool
}

// report names a shard on a node.
type report struct {
	shard shardID
	node  string
}

func newReports(catalog Catalog, log zerolog.Logger) *reports {
	return &reports{catalog: catalog, log: log, waiting: make(map[report]bool)}
}

// add takes a report. It returns at once.
func (r *reports) add(extentID []byte, number int, node string) {
	id, err := newShardID(extentID, uint32(number))
	if err != nil {
		return // There is no such shard.
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) < maxReports {
		r.waiting[report{shard: id, node: node}] = true
	}
}

// run passes reports on until ctx ends.
func (r *reports) run(ctx context.Context) {
	ticker := time.NewTicker(reportInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := r.flush(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn().Err(err).Msg("could not report damaged shards, trying again")
		}
	}
}

// flush passes on what waits. What could not be passed on waits again.
func (r *reports) flush(ctx context.Context) error {
	for {
		some := r.take()
		if len(some) == 0 {
			return nil
		}
		if err := r.catalog.ReportShards(ctx, some); err != nil {
			for _, shard := range some {
				r.add(shard.GetExtentId(), int(shard.GetShardNumber()), shard.GetNodeId())
			}
			return err
		}
	}
}

func (r *reports) take() (some []*proto.ShardRef) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for one := range r.waiting {
		if len(some) == reportsAtOnce {
			break
		}
		delete(r.waiting, one)
		some = append(some, &proto.ShardRef{ExtentId: one.shard.extent[:], ShardNumber: one.shard.number, NodeId: one.node})
	}
	return some
}
