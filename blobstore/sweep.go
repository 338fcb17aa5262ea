package blobstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/proto"
)

// maxSuspects bounds the shards that the sweep remembers from one round to the
// next, and so its memory (about 6 MiB). More garbage than that takes more
// rounds.
const maxSuspects = 1 << 16

// sweep deletes the shards of this node that are here by no record: those of
// writes that failed or whose client went away, those of deleted blobs, and those
// that were moved to another node.
//
// A shard is durable before its record is, so a shard without a record may be
// one whose record is on its way. So a shard is deleted only if two rounds, at
// least the grace apart, both found the same file without a record. The time
// between them is taken from the monotonic clock of this process: unlike the age
// of a file it does not jump when the wall clock is set, or when the machine slept
// in the middle of a push. A shard that left and comes back is another file, with
// a grace of its own.
type sweep struct {
	disk *Disk
	// node is this node's id.
	node     string
	catalog  Catalog
	interval time.Duration
	grace    time.Duration
	logger   zerolog.Logger
	// now is the monotonic clock.
	now func() time.Time
	// suspects are, for each folder, the shards without a record; count is how many
	// there are in all.
	suspects [shardFolders]map[shardID]suspect
	count    int
}

// suspect is a shard's file that was found without a record, and since when.
type suspect struct {
	file  fileIdentity
	since time.Time
}

// swept tells what one round did.
type swept struct {
	shards, suspects, removed int
}

func newSweep(cfg Config, node string, disk *Disk, catalog Catalog) *sweep {
	return &sweep{
		disk:     disk,
		node:     node,
		catalog:  catalog,
		interval: cfg.SweepInterval,
		grace:    cfg.SweepGrace,
		logger:   cfg.Logger,
		now:      time.Now,
	}
}

// Run sweeps at every interval until ctx ends, and then returns nil. A round that
// fails is logged and left to the next.
func (s *sweep) Run(ctx context.Context) error {
	ticker := time.NewTicker(s.interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		done, err := s.round(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.logger.Warn().Err(err).Msg("sweep stopped early")
		case done.removed > 0:
			s.logger.Info().Int("shards", done.shards).Int("removed", done.removed).Int("suspects", done.suspects).Msg("swept shards that no record names")
		}
	}
}

// round looks at all shards once. On error, what was found so far is kept.
func (s *sweep) round(ctx context.Context) (swept, error) {
	var done swept
	for folder := range shardFolders {
		var garbage []shardID
		err := s.disk.list(byte(folder), func(ids []shardID) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			done.shards += len(ids)
			dead, err := s.findGarbage(ctx, ids)
			garbage = append(garbage, dead...)
			return err
		})
		if err != nil {
			return done, fmt.Errorf("sweep: %w", err)
		}
		removed, err := s.judge(folder, garbage)
		done.removed += removed
		if err != nil {
			return done, fmt.Errorf("sweep: %w", err)
		}
	}
	done.suspects = s.count
	return done, nil
}

// findGarbage returns those shards that no record says are here.
func (s *sweep) findGarbage(ctx context.Context, ids []shardID) ([]shardID, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	shards := make([]*proto.ShardRef, len(ids))
	for i := range ids {
		shards[i] = &proto.ShardRef{ExtentId: ids[i].extent[:], ShardNumber: ids[i].number, NodeId: s.node}
	}
	live, err := s.catalog.LiveShards(ctx, shards)
	if err != nil {
		return nil, fmt.Errorf("ask for live shards: %w", err)
	}
	if len(live) != len(ids) {
		return nil, fmt.Errorf("ask for live shards: %d answers to %d questions: %w", len(live), len(ids), ErrInvalid)
	}
	var garbage []shardID
	for i, id := range ids {
		if !live[i] {
			garbage = append(garbage, id)
		}
	}
	return garbage, nil
}

// judge removes those shards of a folder that have been suspects for the grace.
// The rest of the garbage are the folder's suspects from now on: who is not among
// it has a record now, or is gone.
func (s *sweep) judge(folder int, garbage []shardID) (removed int, err error) {
	var faults []error
	now := s.now()
	before, after := s.suspects[folder], make(map[shardID]suspect)
	s.count -= len(before)
	for _, id := range garbage {
		found, known := before[id]
		if known && now.Sub(found.since) >= s.grace {
			err := s.disk.removeFile(id, found.file)
			if err == nil {
				removed++
				continue
			}
			if !errors.Is(err, ErrShardUnknown) {
				faults = append(faults, err)
				continue
			}
			known = false // It is another file now, or none.
		}
		if !known {
			file, err := s.disk.identify(id)
			if err != nil {
				continue // gone meanwhile
			}
			found = suspect{file: file, since: now}
		}
		if s.count+len(after) < maxSuspects {
			after[id] = found
		}
	}
	s.suspects[folder] = after
	s.count += len(after)
	return removed, errors.Join(faults...)
}
