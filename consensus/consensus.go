// Package consensus replicates commands to all nodes of a cluster and applies
// them everywhere in the same order. It knows nothing of what they mean.
//
// What it promises:
//   - A command that Propose acknowledged is applied on every node, once, in log
//     order, and survives the loss of any minority of the voters, and kill -9 or
//     power loss of all of them.
//   - After ReadIndex the local state shows everything that was acknowledged
//     anywhere before the call (linearizable reads, on any node).
//   - What is not certain is not claimed: see ErrOutcomeUnknown.
//   - A node whose disk fails, hangs or lies stops. It never goes on from what it
//     cannot trust.
//
// The state machine keeps its state on disk by itself. A snapshot therefore only
// records a position in the log (snapshot.go), and a copy of the state is
// streamed only to a node that fell behind the log.
package consensus

import (
	"context"
	"io"
	"net"
	"time"

	"google.golang.org/grpc"
)

// StateMachine is what consensus replicates. Its calls never overlap, except
// that a stream of Snapshot is read while Apply goes on.
type StateMachine interface {
	// Apply applies committed entries in log order, durably, in one transaction,
	// and returns one result per entry. An entry whose Index is not above
	// Applied() is skipped, with a nil result. An entry with empty Data only
	// advances the applied log index. An error is final: the node stops.
	Apply(entries []Entry) (results [][]byte, err error)
	// Applied is the log index and term of the last entry in the durable state,
	// zero for none. It may be called at any time.
	Applied() (index, term uint64)
	// Snapshot opens a consistent stream of the whole state as it is now, and
	// tells its size in bytes and the log index that it is applied to.
	Snapshot() (state io.ReadCloser, size int64, index uint64, err error)
	// Restore replaces the state by one from Snapshot, atomically and durably. On
	// an error the old state is still whole. If the incoming state is older than
	// the present one it is read to its end and dropped.
	Restore(state io.Reader) error
}

// Entry is a committed entry of the log.
type Entry struct {
	// Index is the log index: entries are numbered from 1.
	Index uint64
	// Term is the term of the leader that appended the entry.
	Term uint64
	// Data is the command; empty for an entry that has a meaning only to Raft. It
	// must not be changed or kept.
	Data []byte
}

// Network is how a replica reaches the others and is reached. It outlives the
// replica: closing it is up to its owner.
type Network interface {
	// Accept waits for the next connection that carries Raft's own messages. It
	// fails once the network is closed.
	Accept() (net.Conn, error)
	// Dial opens a connection for Raft's own messages to a node's address.
	Dial(address string, timeout time.Duration) (net.Conn, error)
	// Conn returns the gRPC connection to a node's address, where the service of
	// Replica.Register answers. It does not wait for the connection to stand.
	Conn(address string) (grpc.ClientConnInterface, error)
}

// Replica is this node's member of the Raft group.
type Replica struct {
	cfg Config
}

// Open opens the log and starts Raft. It neither forms nor joins a cluster.
func Open(cfg Config, sm StateMachine, network Network) (*Replica, error) {
	return &Replica{cfg: cfg}, nil
}

// HasState tells whether this node has ever been part of a cluster: if so it
// must neither bootstrap nor join as a new one.
func (r *Replica) HasState() bool { return false }

// Bootstrap forms a cluster with this node as its only voter.
func (r *Replica) Bootstrap() error { return ErrClosed }

// Propose has the leader append the command.
func (r *Replica) Propose(ctx context.Context, command []byte) (result []byte, logIndex uint64, err error) {
	return nil, 0, ErrClosed
}

// ReadIndex returns when the local state shows all that was acknowledged before.
func (r *Replica) ReadIndex(ctx context.Context) error { return ErrClosed }

// AddNode lets a node in.
func (r *Replica) AddNode(ctx context.Context, id, address string) error { return ErrClosed }

// RemoveNode takes a node out.
func (r *Replica) RemoveNode(ctx context.Context, id string) error { return ErrClosed }

// TransferLeadership hands leadership over.
func (r *Replica) TransferLeadership(ctx context.Context) error { return ErrClosed }

// Leader is the leader as far as this node knows.
func (r *Replica) Leader() (id, address string) { return "", "" }

// IsLeader tells whether this node leads.
func (r *Replica) IsLeader() bool { return false }

// Status describes the group.
func (r *Replica) Status() Status { return Status{} }

// WhileLeader runs f while this node leads.
func (r *Replica) WhileLeader(ctx context.Context, f func(ctx context.Context)) error {
	return ErrClosed
}

// Register adds the Consensus service to a gRPC server.
func (r *Replica) Register(s grpc.ServiceRegistrar) {}

// Run does the replica's own work until ctx ends.
func (r *Replica) Run(ctx context.Context) error { return ErrClosed }

// Close ends the replica.
func (r *Replica) Close(ctx context.Context) error { return ErrClosed }
