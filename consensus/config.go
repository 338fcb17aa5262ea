package consensus

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/raft"
	"github.com/rs/zerolog"
)

// Config says who a replica is, where its log is, and how patient it is.
type Config struct {
	// NodeID identifies this node for all time: a voter that lost its log must
	// come back under another id.
	NodeID string
	// Address is HOST:PORT at which the others reach this node. It is written
	// into the Raft configuration.
	Address string
	// Dir is the folder of the log, the votes and the snapshot record. It is made
	// when absent and must belong to this process alone.
	Dir string
	// GroupID tells which group this node belongs to, empty as long as that is not known.
	// It is called for each connection. A node that knows its own refuses Raft's messages
	// from nodes of any other, and its own don't get there: the members of a group whose
	// quorum was lost, and that another has taken the place of (Offline.Recover), have
	// the same ids and addresses. Nil for a group without an id.
	GroupID func() string
	// Holds returns an error unless the node with that id is at the other end of a
	// connection of the Network. It is asked on both sides of each. Nil if nobody has to
	// prove who he is.
	Holds func(conn net.Conn, nodeID string) error
	// MustHaveState refuses to open an empty log: this node has been a member, and
	// whoever asks for its vote would get one that knows of nothing.
	MustHaveState bool
	// Logger takes what the replica has to say.
	Logger zerolog.Logger
	// Fatal is called once, on an error after which this node must not go on,
	// most often one of its disk. It should end the process. It may be called on
	// any goroutine, and on one that never runs again after it.
	Fatal func(error)

	// HeartbeatTimeout is how long a follower goes without a word of its leader
	// before it stands for election. Raft waits up to twice as long, at random.
	// Too short a time makes elections out of hiccups. Default 1 s.
	HeartbeatTimeout time.Duration
	// ElectionTimeout is how long a candidate waits for votes; not below
	// HeartbeatTimeout. Default 1 s.
	ElectionTimeout time.Duration
	// LeaderLease is how long a leader that reaches no majority stays leader; not
	// above HeartbeatTimeout. Reads do not depend on it. Default 500 ms.
	LeaderLease time.Duration
	// CommitTimeout is how soon an idle leader tells the followers its commit
	// index; they wait for it before they answer a read. Default 50 ms.
	CommitTimeout time.Duration
	// NetworkTimeout bounds one of Raft's own calls; one that carries a snapshot
	// gets as much for every 4 MiB. Default 5 s.
	NetworkTimeout time.Duration

	// ProposeTimeout bounds a Propose whose context allows more. It covers an
	// election and the retry after it. Default 10 s.
	ProposeTimeout time.Duration
	// ReadTimeout bounds a ReadIndex in the same way. Default 10 s.
	ReadTimeout time.Duration
	// ConfirmTimeout bounds one question to the voters or to the leader, after
	// which a read asks again. Default 2 s.
	ConfirmTimeout time.Duration

	// LogWriteTimeout is how long one write to the log may take. A hung disk
	// under a leader would otherwise hang the cluster without an election, since
	// heartbeats go on. Default 10 s.
	LogWriteTimeout time.Duration
	// SnapshotInterval is how often, up to twice as long at random, the log is
	// looked at for compaction. Default 1 s: a snapshot costs next to nothing, and what the
	// log has grown to by then its file, which is mapped, keeps.
	SnapshotInterval time.Duration
	// SnapshotThreshold is how many entries must have come since the last
	// snapshot for another one. Default 4096.
	SnapshotThreshold uint64
	// TrailingLogs is how many entries stay behind a snapshot, so that a follower
	// that was away for a moment needs no copy of the whole state. Default 4096. While a copy is
	// sent, all that comes stays.
	TrailingLogs uint64

	// MaxVoters is how many nodes vote at most; the others follow without a vote.
	// More voters make commits slower and few clusters safer. Default 5.
	MaxVoters int
	// AutopilotInterval is how often the leader asks all nodes how far they are.
	// It changes who votes half as often. Default 1 s.
	AutopilotInterval time.Duration
	// StabilizationTime is how long a node must have kept up before it gets a
	// vote, once the leader has led for that long. Default 10 s.
	StabilizationTime time.Duration
	// ReplaceVoterAfter is how long a voter must have been out of reach before
	// its vote goes to a node that has none. Default 60 s.
	ReplaceVoterAfter time.Duration

	// wrapLog puts a failing disk under the log, in tests.
	wrapLog func(diskLog) diskLog
}

// DefaultConfig returns the defaults. NodeID, Address, Dir and Fatal have none.
func DefaultConfig() Config {
	return Config{
		Logger:            zerolog.Nop(),
		HeartbeatTimeout:  time.Second,
		ElectionTimeout:   time.Second,
		LeaderLease:       500 * time.Millisecond,
		CommitTimeout:     50 * time.Millisecond,
		NetworkTimeout:    5 * time.Second,
		ProposeTimeout:    10 * time.Second,
		ReadTimeout:       10 * time.Second,
		ConfirmTimeout:    2 * time.Second,
		LogWriteTimeout:   10 * time.Second,
		SnapshotInterval:  time.Second,
		SnapshotThreshold: 4096,
		TrailingLogs:      4096,
		MaxVoters:         5,
		AutopilotInterval: time.Second,
		StabilizationTime: 10 * time.Second,
		ReplaceVoterAfter: 60 * time.Second,
	}
}

// maxAppendEntries bounds one message to a follower, one write to the log and
// one batch for the state machine. Batches beyond 64 brought no more throughput
// when they were measured.
const maxAppendEntries = 64

// validate returns all faults, joined.
func (c *Config) validate() error {
	var faults []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf(format, args...))
		}
	}
	require(c.NodeID != "", "consensus: no node id")
	require(c.Address != "", "consensus: no address")
	require(c.Dir != "", "consensus: no folder")
	require(c.Fatal != nil, "consensus: no Fatal function")
	// Without any trailing log an empty log could mean a lost one.
	require(c.TrailingLogs > 0, "consensus: TrailingLogs is not positive")
	require(c.MaxVoters > 0, "consensus: MaxVoters %d is not positive", c.MaxVoters)
	for name, d := range map[string]time.Duration{
		"NetworkTimeout": c.NetworkTimeout, "ProposeTimeout": c.ProposeTimeout, "ReadTimeout": c.ReadTimeout,
		"ConfirmTimeout": c.ConfirmTimeout, "LogWriteTimeout": c.LogWriteTimeout, "AutopilotInterval": c.AutopilotInterval,
		"StabilizationTime": c.StabilizationTime, "ReplaceVoterAfter": c.ReplaceVoterAfter,
	} {
		require(d > 0, "consensus: %s %s is not positive", name, d)
	}
	if err := raft.ValidateConfig(c.raft()); err != nil {
		faults = append(faults, fmt.Errorf("consensus: %w", err))
	}
	return errors.Join(faults...)
}

// raft spells out every option of the library: none is inherited.
func (c *Config) raft() *raft.Config {
	return &raft.Config{
		ProtocolVersion:    raft.ProtocolVersionMax,
		LocalID:            raft.ServerID(c.NodeID),
		HeartbeatTimeout:   c.HeartbeatTimeout,
		ElectionTimeout:    c.ElectionTimeout,
		LeaderLeaseTimeout: c.LeaderLease,
		CommitTimeout:      c.CommitTimeout,
		MaxAppendEntries:   maxAppendEntries,
		// So that a group that is handed over one by one is taken as one: see groupCommit.
		// What is in that queue when Raft ends is never answered, and what nobody waits for any
		// more is appended all the same.
		BatchApplyCh: true,
		// A removed node stays up and tells its clients so; the process decides.
		ShutdownOnRemove:  false,
		TrailingLogs:      c.TrailingLogs,
		SnapshotInterval:  c.SnapshotInterval,
		SnapshotThreshold: c.SnapshotThreshold,
		Logger:            newRaftLogger(c.Logger),
		// The state is on disk already; a snapshot record only says from where on
		// the log is to be replayed.
		NoSnapshotRestoreOnStart: true,
		PreVoteDisabled:          false,
		NoLegacyTelemetry:        true,
	}
}
