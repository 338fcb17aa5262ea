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
// next, and so its memory (about 25 MiB a disk). More garbage than that takes more
// rounds.
const maxSuspects = 1 << 18

// sweep deletes the shards on one disk of this node that are here by no record: those of
// writes that failed or whose client went away, those of deleted blobs, and those
// that were moved to another node, or are on another disk of this one, too.
//
// A shard is durable before its record is, so a shard without a record may be
// one whose record is on its way. So a shard is deleted only if two rounds both found
// the same file without a record, and two eras have begun between them: from then on
// a record of it is refused, however long its writer was held up. They must also be
// the grace apart, for those who read a shard that has moved. That time is taken from
// the monotonic clock of this process: unlike the age of a file it does not jump when
// the wall clock is set. A shard that left and comes back is another file, with eras
// and a grace of its own.
type sweep struct {
	disk *Disk
	// all are the node's disks, this one among them.
	all *disks
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

// suspect is a shard's file that was found without a record, since when, and in which
// era.
type suspect struct {
	file  fileIdentity
	since time.Time
	era   uint64
}

// erasToGarbage is how many eras must have begun since a shard was found without a
// record, until nobody can record it any more.
const erasToGarbage = 2

// unrecorded is a shard that is in no record in an era.
type unrecorded struct {
	shardID
	era uint64
}

// swept tells what one round did.
type swept struct {
	shards, suspects, removed int
}

func newSweep(cfg Config, node string, disk *Disk, all *disks, catalog Catalog) *sweep {
	return &sweep{
		disk:     disk,
		all:      all,
		node:     node,
		catalog:  catalog,
		interval: cfg.SweepInterval,
		grace:    cfg.SweepGrace,
		logger:   cfg.Logger,
		now:      time.Now,
	}
}

// Run sweeps at every interval until ctx ends or the disk is out of service. A round
// that fails is logged and left to the next.
func (s *sweep) Run(ctx context.Context) {
	ticker := time.NewTicker(s.interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if s.disk.retired() != nil {
			return
		}
		done, err := s.round(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.logger.Warn().Err(err).Int("removed", done.removed).Msg("sweep did not see to all shards")
		case done.removed > 0:
			s.logger.Info().Int("shards", done.shards).Int("removed", done.removed).Int("suspects", done.suspects).Msg("swept shards that no record names")
		}
	}
}

// round looks at all shards once. A folder that can't be listed, or from which
// something can't be removed, is told of in the end, and keeps nothing in the others.
// On error, what was found so far is kept.
func (s *sweep) round(ctx context.Context) (swept, error) {
	var done swept
	var first error
	failed := 0
	for folder := range shardFolders {
		err := s.folder(ctx, folder, &done)
		if err == nil {
			continue
		}
		if !errors.Is(err, ErrDisk) && !errors.Is(err, ErrBusy) { // There are no answers, or ctx ends.
			return done, fmt.Errorf("sweep: %w", err)
		}
		if failed++; first == nil {
			first = err
		}
	}
	done.suspects = s.count
	if failed > 0 {
		return done, fmt.Errorf("sweep: %d folders were not swept, the first: %w", failed, first)
	}
	return done, nil
}

// folder is round for one folder. It fails with ErrDisk and ErrBusy, and when it is not
// told which shards are on record.
func (s *sweep) folder(ctx context.Context, folder int, done *swept) error {
	var garbage []unrecorded
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
		return err
	}
	removed, err := s.judge(folder, garbage)
	done.removed += removed
	return err
}

// findGarbage returns those shards that no record says are here, and those that
// nobody reads from here.
func (s *sweep) findGarbage(ctx context.Context, ids []shardID) ([]unrecorded, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	shards := make([]*proto.ShardRef, len(ids))
	for i := range ids {
		shards[i] = &proto.ShardRef{ExtentId: ids[i].extent[:], ShardNumber: ids[i].number, NodeId: s.node}
	}
	live, era, err := s.catalog.LiveShards(ctx, shards)
	if err != nil {
		return nil, fmt.Errorf("ask for live shards: %w", err)
	}
	if len(live) != len(ids) {
		return nil, fmt.Errorf("ask for live shards: %d answers to %d questions: %w", len(live), len(ids), ErrInvalid)
	}
	var garbage []unrecorded
	for i, id := range ids {
		if !live[i] || s.all.hasBefore(s.disk, id) {
			garbage = append(garbage, unrecorded{id, era})
		}
	}
	return garbage, nil
}

// judge removes those shards of a folder that have been suspects for the grace and
// two eras.
// The rest of the garbage are the folder's suspects from now on: who is not among
// it has a record now, or is gone.
func (s *sweep) judge(folder int, garbage []unrecorded) (removed int, err error) {
	var faults []error
	now := s.now()
	before, after := s.suspects[folder], make(map[shardID]suspect)
	s.count -= len(before)
	for _, shard := range garbage {
		id := shard.shardID
		found, known := before[id]
		if known && now.Sub(found.since) >= s.grace && shard.era >= found.era+erasToGarbage {
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
			found = suspect{file: file, since: now, era: shard.era}
		}
		if s.count+len(after) < maxSuspects {
			after[id] = found
		}
	}
	s.suspects[folder] = after
	s.count += len(after)
	return removed, errors.Join(faults...)
}
