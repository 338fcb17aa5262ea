package metadata

import (
	"bytes"
	"context"
	"fmt"

	"github.com/atollregistry/atoll/proto"
)

// checkpoint compares this node's state with the majority's, and remembers the
// state's hash for the next comparison. A node that restored a snapshot, or that
// sees its first checkpoint, has nothing to compare. Neither has one whose state
// passed the previous checkpoint as a replayed entry.
func (c *change) checkpoint(command *proto.Checkpoint) error {
	if command.GetPreviousIndex() != 0 && len(command.GetPreviousHash()) != stateHashBytes {
		return invalid("hash of the previous checkpoint has %d bytes", len(command.GetPreviousHash()))
	}
	if command.GetPreviousIndex() != 0 && command.GetPreviousIndex() == c.at.checkpointIndex &&
		!bytes.Equal(command.GetPreviousHash(), c.at.checkpointHash.bytes()) {
		return fmt.Errorf("%w: at log index %d this node has the hash %x, the majority %x; "+
			"this node must not go on with its state", ErrDiverged,
			c.at.checkpointIndex, c.at.checkpointHash.bytes(), command.GetPreviousHash())
	}
	c.at.checkpointIndex, c.at.checkpointHash = c.at.logIndex, c.at.hash
	return nil
}

// CheckpointReport is what one node said of its newest checkpoint.
type CheckpointReport struct {
	// LogIndex of the checkpoint, 0 if the node has applied none.
	LogIndex uint64
	// Hash of the node's state there.
	Hash []byte
}

// Checkpoint has every node compare its state at its newest checkpoint with what
// the majority had there, and starts a new checkpoint. The leader calls it now
// and then with the reports of all nodes that answer, itself included; members
// is the number of nodes, whether they answer or not.
func (s *Store) Checkpoint(ctx context.Context, members int, reports []CheckpointReport) error {
	previous := majorityReport(members, reports)
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_Checkpoint{Checkpoint: &proto.Checkpoint{
		PreviousIndex: previous.LogIndex, PreviousHash: previous.Hash,
	}}})
	if err != nil {
		return fmt.Errorf("checkpoint state: %w", err)
	}
	return nil
}

// majorityReport returns the newest report that more than half of the members
// made alike. Without one nothing can be compared: with two nodes that differ,
// nobody knows which of them is wrong, and stopping either would be a guess.
func majorityReport(members int, reports []CheckpointReport) (majority CheckpointReport) {
	for _, report := range reports {
		alike := 0
		for _, other := range reports {
			if other.LogIndex == report.LogIndex && bytes.Equal(other.Hash, report.Hash) {
				alike++
			}
		}
		if report.LogIndex > majority.LogIndex && len(report.Hash) == stateHashBytes && 2*alike > members {
			majority = report
		}
	}
	return majority
}
