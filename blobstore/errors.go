package blobstore

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var (
	// ErrInsufficientNodes says that fewer nodes are healthy than the redundancy
	// needs. Redundancy is never traded for progress, so nothing was written.
	ErrInsufficientNodes = errors.New("not enough healthy nodes")
	// ErrNoSpace says that a disk, or too many disks of the cluster, have no room
	// beside the reserve.
	ErrNoSpace = errors.New("no space for shards")
	// ErrTooFewShards says that an extent can't be read now: fewer than k of its
	// shards can be reached or are sound.
	ErrTooFewShards = errors.New("too few shards")
	// ErrShardUnknown says that the node has no such shard.
	ErrShardUnknown = errors.New("shard unknown")
	// ErrChecksum says that stored or received bytes are not those that were
	// written.
	ErrChecksum = errors.New("checksum mismatch")
	// ErrDisk says that a disk reported an input/output error. It is final for the
	// shard that was being written.
	ErrDisk = errors.New("disk error")
	// ErrBusy says that a bound on concurrent work was reached and a try later, or
	// on another node, may succeed.
	ErrBusy = errors.New("busy")
	// ErrInvalid says that a request makes no sense, such as an impossible layout.
	ErrInvalid = errors.New("invalid request")
	// ErrHashState says that the running hash of an upload can't be loaded or was
	// not kept.
	ErrHashState = errors.New("hash state unusable")
	// ErrClosed says that the store was closed.
	ErrClosed = errors.New("blob store closed")
)

// wireErrors lists the errors that cross the wire between nodes, each with the
// code that carries it. Codes that gRPC itself uses for the state of a
// connection (Unavailable, DeadlineExceeded, Canceled) are not among them.
func wireErrors() []wireError {
	return []wireError{
		{ErrNoSpace, codes.ResourceExhausted},
		{ErrShardUnknown, codes.NotFound},
		{ErrChecksum, codes.DataLoss},
		{ErrDisk, codes.FailedPrecondition},
		{ErrBusy, codes.Aborted},
		{ErrInvalid, codes.InvalidArgument},
	}
}

type wireError struct {
	err  error
	code codes.Code
}

// toStatus turns an error into one that keeps its identity on the way to another
// node. A context's end becomes the code that gRPC has for it, ErrClosed that of a
// node that is down; what is not in the table becomes Internal.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	for _, wire := range wireErrors() {
		if errors.Is(err, wire.err) {
			return status.Error(wire.code, err.Error())
		}
	}
	if errors.Is(err, ErrClosed) {
		return status.Error(codes.Unavailable, err.Error())
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	if s := status.FromContextError(err); s.Code() != codes.Unknown {
		return s.Err()
	}
	return status.Error(codes.Internal, err.Error())
}

// fromStatus gives an error that came from another node its identity back. What
// is not in the table is returned as it is.
func fromStatus(err error) error {
	if err == nil {
		return nil
	}
	for _, wire := range wireErrors() {
		if status.Code(err) == wire.code {
			return fmt.Errorf("%w: %w", wire.err, err)
		}
	}
	return err
}
