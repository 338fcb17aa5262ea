package metadata

import (
	"context"
	"fmt"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// Eras keep a record from coming after the sweep. A writer can be stopped for any
// time between making shards durable and recording them, and no clock need have
// gone on for it: not in a virtual machine that was paused. So time is counted in
// the log. An extent is of the era that its writer knew before any of its shards
// had a name, and is refused once that is erasUntilLate ago; the sweep removes a
// shard only erasUntilLate after it was first seen to be in no record.

// erasUntilLate is in how many eras an extent is too old to be recorded. One is not
// enough: its era may end just after it was made.
const erasUntilLate = 2

// eraSeen is the era as this node knows it, and since when by its own clock.
type eraSeen struct {
	era   uint64
	since time.Time
}

// advanceEra begins the next era, unless somebody was faster.
func (c *change) advanceEra(command *proto.AdvanceEra) error {
	era, err := c.era()
	if err != nil || era != command.GetFrom() {
		return err
	}
	c.republish = true
	return c.count(bucketCluster, keyEra, 1)
}

// checkEra refuses an extent whose shards the sweep may have taken.
func checkEra(e *proto.Extent, era uint64) error {
	switch {
	case e.GetEra() > era:
		return invalid("extent %x is of era %d, and this is era %d", e.GetId(), e.GetEra(), era)
	case era-e.GetEra() >= erasUntilLate:
		return refuse(proto.Refusal_REFUSAL_EXTENT_LATE, "extent %x is of era %d, and this is era %d", e.GetId(), e.GetEra(), era)
	}
	return nil
}

// era returns the number of the era; the first is 0.
func (v view) era() (uint64, error) { return v.number(bucketCluster, keyEra) }

// noteEra publishes the era. What is known already keeps its time.
func (m *Machine) noteEra(era uint64) {
	if seen := m.eraSeen.Load(); seen == nil || seen.era != era {
		m.eraSeen.Store(&eraSeen{era: era, since: time.Now()})
	}
}

// Era returns the era that this node knows of, without waiting for anybody.
func (s *Store) Era() uint64 { return s.machine.eraSeen.Load().era }

// AdvanceEra begins the next era if this one has lasted for so long by the clock of
// this process. The leader calls it again and again. Errors: ErrUnavailable,
// ErrOutcomeUnknown.
func (s *Store) AdvanceEra(ctx context.Context, length time.Duration) error {
	seen := s.machine.eraSeen.Load()
	if time.Since(seen.since) < length {
		return nil
	}
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_AdvanceEra{AdvanceEra: &proto.AdvanceEra{From: seen.era}}})
	if err != nil {
		return fmt.Errorf("begin the next era: %w", err)
	}
	return nil
}
