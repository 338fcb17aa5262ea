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
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/rs/zerolog"
	"google.golang.org/grpc"
)

const (
	// maxProposals bounds the entries that Raft has not answered yet.
	maxProposals = 4096
	// retryInterval paces what waits for a leader.
	retryInterval = 50 * time.Millisecond
	// stallTimeouts is how many Config.NetworkTimeouts a snapshot that comes in
	// may pause.
	stallTimeouts = 2
)

// StateMachine is what consensus replicates. Its calls never overlap, except that
// Snapshot and Sync are called, and the stream is read, while Apply goes on, and that Check and
// Applied are called at any time.
type StateMachine interface {
	// Check says why a command is none that Apply takes; nil if it is one. The leader
	// asks before it appends a command, since what Apply fails on ends every node. It is
	// called at any time, and does not look at the state.
	Check(command []byte) error
	// Apply applies committed entries in log order, and returns one result per
	// entry. An entry whose Index is not above Applied() is skipped, with a nil
	// result. An entry with empty Data only advances the applied log index. A crash may
	// take back the last entries, those of one or more whole calls, as far as the last Sync or Restore: the
	// log has them, and they are applied again. An error is final: the node stops.
	Apply(entries []Entry) (results [][]byte, err error)
	// Applied is the log index and term of the last entry in the state, zero for
	// none.
	Applied() (index, term uint64)
	// Sync makes durable what Applied covers when it is called. An error is final.
	Sync() error
	// Snapshot opens a consistent stream of the whole state as it is now, and
	// tells its size in bytes and the log index that it is applied to. The stream
	// may be open for minutes and must not hold up Apply meanwhile: an open
	// transaction of bbolt does, whenever the file grows.
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
	cfg     Config
	log     zerolog.Logger
	network Network
	// check is StateMachine.Check.
	check func(command []byte) error

	life     *life
	storage  *storage
	streams  *streams
	raft     *raft.Raft
	applied  *progress
	lead     *leadership
	election *signal

	// leaderReads are the rounds in which this node, leading, proves it.
	// localReads are the rounds in which this node learns a read index, from
	// itself or the leader.
	leaderReads, localReads *rounds
	// responders are the voters that answer this node, leading.
	responders responders
	// proposals has a token for each entry that Raft has not answered yet.
	proposals chan struct{}
	// groupCommit is how they get to Raft.
	groupCommit *groupCommit
	notices     *notices
	// membership is held by whoever changes the configuration.
	membership chan struct{}
	handover   handover
	autopilot  *pilot
}

// Open opens the log and starts Raft. It neither forms nor joins a cluster: on an
// empty log the replica waits for Bootstrap here, or for AddNode on a leader.
// Errors that no new attempt will mend: ErrLogLost, ErrStateBehind, ErrChecksum.
func Open(cfg Config, sm StateMachine, network Network) (r *Replica, err error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.GroupID == nil {
		cfg.GroupID = func() string { return "" }
	}
	if cfg.Holds == nil {
		cfg.Holds = func(net.Conn, string) error { return nil }
	}
	r = &Replica{
		cfg: cfg, log: cfg.Logger, network: network, life: newLife(cfg.Fatal), streams: newStreams(network, &cfg),
		lead: newLeadership(), election: newSignal(), check: sm.Check,
		proposals: make(chan struct{}, maxProposals), membership: make(chan struct{}, 1),
	}
	if r.storage, err = openStorage(&r.cfg, sm, r.life); err != nil {
		return nil, err
	}
	if cfg.MustHaveState && !r.storage.hasState {
		return nil, errors.Join(fmt.Errorf("%w: this node has been a member of a cluster, and a node must not vote again without its log. %s", ErrLogLost, startAnew), r.storage.disk.Close())
	}
	index, _ := sm.Applied()
	r.applied = newProgress(index)
	r.leaderReads = newRounds(cfg.ConfirmTimeout, r.provenIndex)
	r.localReads = newRounds(cfg.ConfirmTimeout, r.fetchIndex)
	r.autopilot = newPilot(r)
	if err := r.start(sm); err != nil {
		if r.raft != nil {
			r.raft.Shutdown() // it fails on what it reads at its start
		}
		r.life.end() // and with it what hands messages to Raft
		_ = r.streams.Close()
		return nil, errors.Join(err, r.storage.disk.Close())
	}
	return r, nil
}

// start runs the Raft library on what is open.
func (r *Replica) start(sm StateMachine) error {
	s := r.storage
	snapshots := &snapshotStore{
		dir: r.cfg.Dir, sm: sm, logs: s.logs, outgoing: make(map[*outgoing]struct{}),
		stall: stallTimeouts * r.cfg.NetworkTimeout, onStall: r.streams.breakIncoming, awaited: r.awaitLagging,
	}
	snapshots.installing.Store(true) // as far as is known; the first entry tells
	machine := &fsm{sm: sm, applied: r.applied, snapshots: snapshots, logs: s.cache, life: r.life}
	transport := newTransport(&r.cfg, r.streams)
	r.notices = newNotices(s.logs, transport.inbox, r.life.over)
	s.logs.stored = r.notices.stored
	go transport.forward(r.life.over)
	// The library panics on an entry that it can't read at the start.
	err := unlessFailed(r.life, func() (err error) {
		r.raft, err = raft.NewRaft(r.cfg.raft(), machine, s.cache, s.stable, snapshots, transport)
		return err
	})
	if err != nil {
		_ = transport.Close() // it only ends goroutines
		return fmt.Errorf("start Raft: %w", err)
	}
	r.groupCommit = newGroupCommit(r.raft)
	go r.notices.run(r.raft) // ends with the replica
	r.watchElections()
	return r.life.arm(func() {
		r.raft.Shutdown()
		_ = r.streams.Close()
	})
}

// HasState tells whether this node has ever been part of a cluster, as far as the
// log that Open found can tell: if so it must neither bootstrap nor join as new.
func (r *Replica) HasState() bool { return r.storage.hasState }

// Bootstrap forms a cluster with this node as its only voter. It fails if the
// node has state.
func (r *Replica) Bootstrap() error {
	self := raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(r.cfg.NodeID), Address: raft.ServerAddress(r.cfg.Address)}
	future := r.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{self}})
	if err := future.Error(); err != nil {
		return fmt.Errorf("bootstrap cluster: %w", err)
	}
	return nil
}

// Leader is the leader as far as this node knows; empty if there is none.
func (r *Replica) Leader() (id, address string) {
	leaderAddress, leaderID := r.raft.LeaderWithID()
	return string(leaderID), string(leaderAddress)
}

// IsLeader tells whether this node leads as far as it knows. That is a hint: only
// what goes through the log is certain.
func (r *Replica) IsLeader() bool { return r.raft.State() == raft.Leader }

// Run does the replica's own work until ctx ends: without it no leader answers
// reads and no node gets a vote. It returns nil, or the error that Config.Fatal
// was called with.
func (r *Replica) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running.Go(func() { r.watchLeadership(ctx) })
	running.Go(func() { r.autopilot.run(ctx) })
	select {
	case <-ctx.Done():
		return nil
	case <-r.life.over:
		return r.life.failure()
	}
}

// Close hands leadership over if this node leads, ends Raft and closes the log.
// When ctx ends before that is done, because the disk hangs, the log stays open
// and the process should end. Close may be called more than once; the network has
// to stay open until it returns.
func (r *Replica) Close(ctx context.Context) error {
	if r.IsLeader() && r.otherVoters() > 0 {
		if err := r.TransferLeadership(ctx); err != nil {
			r.log.Info().Err(err).Msg("leadership not handed over, the others will elect")
		}
	}
	if !r.life.end() && r.life.failure() == nil {
		return nil
	}
	var closed error
	stopped := make(chan struct{})
	go func() { // ends when Raft has; waited for below unless the disk hangs
		defer close(stopped)
		ended := r.raft.Shutdown()
		_ = r.streams.Close() // whoever waits for the network waits no longer
		_ = ended.Error()     // it has none
		r.localReads.close()
		r.leaderReads.close()
		closed = r.storage.disk.Close()
	}()
	select {
	case <-stopped:
	case <-ctx.Done():
		return fmt.Errorf("close replica: %w", context.Cause(ctx))
	}
	if closed != nil {
		return fmt.Errorf("close Raft log: %w", closed)
	}
	return nil
}
