package consensus

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var (
	// ErrNoLeader means that no leader took the command within the time allowed.
	// It was definitely not appended and will never be applied.
	ErrNoLeader = errors.New("no leader")
	// ErrOutcomeUnknown means that the command may or may not be in the log. It
	// may still be applied after this error was returned. Only a command that is
	// safe to repeat may be proposed again.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrNoQuorum means that no leader could prove within the time allowed that
	// it still leads, so that a linearizable read was not possible.
	ErrNoQuorum = errors.New("no quorum")
	// ErrNotLeader means that this node does not lead, and only the leader can do
	// what was asked. Nothing was done.
	ErrNotLeader = errors.New("not the leader")
	// ErrCommandRefused means that the leader did not append the command, since the state
	// machine takes no such command.
	ErrCommandRefused = errors.New("command refused")
	// ErrClosed means that the replica is closed or has failed.
	ErrClosed = errors.New("replica is closed")

	// ErrLogLost means that there is a state or a snapshot record, but not the
	// log that belongs to it. The node must not vote under its id again.
	ErrLogLost = errors.New("the Raft log is lost")
	// ErrStateBehind means that entries which the state has not applied are no
	// longer in the log: the state was rolled back or lost.
	ErrStateBehind = errors.New("the state is behind the Raft log")
	// ErrStateAhead means that the log gave a new entry a log index that the
	// state has applied already: the log was rolled back.
	ErrStateAhead = errors.New("the state is ahead of the Raft log")
	// ErrChecksum means that what was read from disk is not what was written.
	ErrChecksum = errors.New("checksum mismatch")
	// ErrLogDiverged means that a snapshot replaced entries which this node had
	// in its log but the cluster never committed. The node's data is right, but
	// the process has to start again with it.
	ErrLogDiverged = errors.New("the Raft log was replaced, start the node again")
	// ErrLogWriteTimeout means that the disk did not take a write to the log
	// within Config.LogWriteTimeout.
	ErrLogWriteTimeout = errors.New("write to the Raft log takes too long")
)

// toStatus turns an error of this package into what goes over the wire, so that
// the caller can tell what is certain from what is not.
func toStatus(err error) error {
	switch {
	case err == nil:
		return nil
	// First, since the reason beside it may be one of those below.
	case errors.Is(err, ErrOutcomeUnknown):
		return status.Error(codes.Aborted, err.Error())
	case errors.Is(err, ErrNotLeader), errors.Is(err, ErrNoLeader), errors.Is(err, ErrClosed):
		return status.Error(codes.FailedPrecondition, err.Error())
	case errors.Is(err, ErrCommandRefused):
		return status.Error(codes.InvalidArgument, err.Error())
	default:
		return status.Error(codes.Unavailable, err.Error())
	}
}

// fromStatus is the reverse of toStatus. Any other failure of a call leaves open
// whether it was carried out: a connection that breaks says nothing.
func fromStatus(err error) error {
	switch status.Code(err) {
	case codes.OK:
		return nil
	case codes.FailedPrecondition:
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	case codes.InvalidArgument:
		return fmt.Errorf("%w: %w", ErrCommandRefused, err)
	default:
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
}
