package blobstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"
)

// maxSuspects bounds the shards that the sweep remembers from one round to the
// next, and so its memory (about 6 MiB). More garbage than that takes more
// rounds.
const maxSuspects = 1 << 16

// sweep deletes the shards of this node that no record names: those of writes
// that failed or whose client went away, and those of deleted blobs.
//
// A shard is durable before its record is, so a shard without a record may be
// one whose record is on its way. So a shard is deleted only if two rounds, at
// least the grace apart, both found it without a record. The time between them
// is taken from the monotonic clock of this process: unlike the age of a file it
// does not jump when the wall clock is set, or when the machine slept in the
// middle of a push.
type sweep struct {
	disk     *Disk
	catalog  Catalog
	interval time.Duration
	grace    time.Duration
	logger   zerolog.Logger
	// now is the monotonic clock.
	now func() time.Time
	// suspects are, for each folder, the shards without a record, with the time
	// since when; count is how many there are in all.
	suspects [shardFolders]map[shardID]time.Time
	count    int
}

// swept tells what one round did.
type swept struct {
	shards, suspects, removed int
}

func newSweep(cfg Config, disk *Disk, catalog Catalog) *sweep {
	return &sweep{
		disk:     disk,
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

// findGarbage returns those shards whose extents no record names.
func (s *sweep) findGarbage(ctx context.Context, ids []shardID) ([]shardID, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	extents := make([][]byte, len(ids))
	for i := range ids {
		extents[i] = ids[i].extent[:]
	}
	live, err := s.catalog.LiveExtents(ctx, extents)
	if err != nil {
		return nil, fmt.Errorf("ask for live extents: %w", err)
	}
	if len(live) != len(ids) {
		return nil, fmt.Errorf("ask for live extents: %d answers to %d questions: %w", len(live), len(ids), ErrInvalid)
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
	before, after := s.suspects[folder], make(map[shardID]time.Time)
	s.count -= len(before)
	for _, id := range garbage {
		since, suspect := before[id]
		if !suspect {
			since = now
		}
		if !suspect || now.Sub(since) < s.grace {
			if s.count+len(after) < maxSuspects {
				after[id] = since
			}
			continue
		}
		if err := s.disk.remove(id); err == nil {
			removed++
		} else if !errors.Is(err, ErrShardUnknown) {
			faults = append(faults, err)
		}
	}
	s.suspects[folder] = after
	s.count += len(after)
	return removed, errors.Join(faults...)
}
