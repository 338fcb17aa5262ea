package metadata

import (
	"context"

	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/proto"
)

// Settings of a new cluster. What is repaired by default leaves most of a disk
// and of a gigabit link to clients.
const (
	// DefaultRepairBytesPerSecond is Settings.repair_bytes_per_second.
	DefaultRepairBytesPerSecond = 64 << 20
	// DefaultRepairConcurrency is Settings.repair_concurrency.
	DefaultRepairConcurrency = 4
	// minRepairBytesPerSecond is the slowest pace: below it, a change to a faster one
	// would show only after minutes.
	minRepairBytesPerSecond = 1 << 20
	// maxRepairConcurrency bounds it: each extent needs memory and open files.
	maxRepairConcurrency = 64
)

// putSettings changes the settings, unless somebody else has meanwhile.
func (c *change) putSettings(command *proto.PutSettings) error {
	current, err := c.settings()
	if err != nil {
		return err
	}
	next := command.GetSettings()
	switch {
	case next.GetRepairConcurrency() < 1 || next.GetRepairConcurrency() > maxRepairConcurrency:
		return invalid("repair concurrency %d is not 1 to %d", next.GetRepairConcurrency(), maxRepairConcurrency)
	case next.GetRepairBytesPerSecond() > 0 && next.GetRepairBytesPerSecond() < minRepairBytesPerSecond:
		return invalid("repair at %d bytes a second is slower than %d", next.GetRepairBytesPerSecond(), minRepairBytesPerSecond)
	case !pb.Equal(current, command.GetPrevious()):
		return refuse(proto.Refusal_REFUSAL_PRECONDITION, "somebody else has changed the settings")
	}
	c.republish = true
	return c.put(bucketCluster, []byte(keySettings), next)
}

// settings returns the cluster's settings.
func (v view) settings() (*proto.Settings, error) {
	settings := &proto.Settings{}
	found, err := v.record(bucketCluster, []byte(keySettings), settings)
	if err == nil && !found {
		settings.RepairBytesPerSecond, settings.RepairConcurrency = DefaultRepairBytesPerSecond, DefaultRepairConcurrency
	}
	return settings, err
}

// LocalSettings returns the cluster's settings as this node knows them, without
// waiting for anybody. The message is shared: it must not be changed.
func (s *Store) LocalSettings() *proto.Settings { return s.machine.settings.Load() }

// ChangeSettings has edit change the cluster's settings. It fails with
// ErrPrecondition if somebody else changes them at the same time, and with
// ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) ChangeSettings(ctx context.Context, edit func(*proto.Settings)) error {
	if err := s.CatchUp(ctx); err != nil {
		return err
	}
	previous := s.LocalSettings()
	next := pb.Clone(previous).(*proto.Settings)
	edit(next)
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_PutSettings{PutSettings: &proto.PutSettings{
		Settings: next, Previous: previous,
	}}})
	return err
}
