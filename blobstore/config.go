package blobstore

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rs/zerolog"
)

// Config is what a store needs to know. Start from DefaultConfig.
type Config struct {
	// Dir is the folder for shards. It is made if need be, and belongs to one
	// process at a time; the caller sees to that.
	Dir string
	// MoreDirs are further folders, each on a disk of its own that may fail alone.
	MoreDirs []string
	Logger   zerolog.Logger

	// CellBytes is the size of a cell in new extents, in every stripe but the last.
	// At most MaxCellBytes. Extents keep the size they were written with.
	CellBytes int
	// MaxExtentBytes ends an extent; what follows goes into the next one.
	MaxExtentBytes int64
	// SmallBlobBytes is the largest blob that is mirrored, instead of being cut
	// into k data shards. At most CellBytes.
	SmallBlobBytes int
	// InlineBlobBytes is up to which byte of a blob what a client pushes may be kept in the
	// records instead, if nothing follows: on every node, but without a file or an fsync of
	// its own. 0 for none. At most SmallBlobBytes, and less than CellBytes and 32 KiB.
	InlineBlobBytes int
	// MaxDataShards bounds k.
	MaxDataShards int
	// Parity is m, the number of shards that may be lost; -1 takes it from the
	// number of nodes: 0 for one, 1 for two to four, 2 from five on.
	Parity int

	// BufferBytes is the budget for stripes in memory, of all readers and writers
	// together.
	BufferBytes int64
	// HedgeDelay is how long a read of a shard may take before it is worked around.
	HedgeDelay time.Duration
	// LateDelay is how long the last holders of an extent that is durable on the others
	// may take before they are left behind, at least. An extent that is short of a shard
	// can lose one node less until it is repaired, so that it covers what a sound disk
	// under load may take for an fsync.
	LateDelay time.Duration
	// StallTimeout is how long a holder may make no progress in a write before it is given up.
	StallTimeout time.Duration

	// ReadTimeout is how long one read of a shard may take before it is given up for
	// good. It only matters when there are no others to work around it with, after
	// HedgeDelay: then a slow answer is better than none, and on a node with more
	// to do than it can, giving up early would only make more to do.
	ReadTimeout time.Duration

	// CapacityBytes is how many bytes the node offers for shards, in equal parts on
	// its folders: its weight in placement. 0 means the size of the file systems.
	CapacityBytes uint64
	// ReserveBytes stays free on each file system, so that the Raft log can always be
	// written. 0 means 5 % of it, at most 4 GiB.
	ReserveBytes uint64
	// DiskProbeInterval is the time between two looks at whether a disk is there and
	// keeps what is written. DiskGrace is how long it must have failed before it is
	// taken out of service.
	DiskProbeInterval, DiskGrace time.Duration
	// MaxShardWriters bounds the shards being written on this node at once; one more
	// is refused with ErrBusy. Each costs an open file and its checksums.
	MaxShardWriters int
	// MaxShardReads bounds the reads that this node's disk serves to other nodes at
	// once; others wait for their turn.
	MaxShardReads int
	// MaxOpenShards bounds the files kept open for the next read.
	MaxOpenShards int

	// CacheDir is the folder for whole blobs that are sent from there, and CacheBytes bounds what is in it;
	// 0 for none.
	CacheDir   string
	CacheBytes uint64

	// ScrubPeriod is the time in which every shard on this node is read again; 0 for
	// only on request. ScrubBytesPerSecond bounds how fast.
	ScrubPeriod         time.Duration
	ScrubBytesPerSecond uint64

	// RebalanceThreshold is by which part of its capacity a node must be fuller than
	// the emptiest before shards are moved from it, and RebalanceMinBytes by how many
	// bytes at least.
	RebalanceThreshold float64
	RebalanceMinBytes  int64

	// SweepInterval is the time between two rounds of the sweep.
	SweepInterval time.Duration
	// SweepGrace is how long a shard must have been without a record before it is
	// deleted. It must be far longer than it takes to record an extent that has
	// become durable.
	SweepGrace time.Duration

	// WatchSteps is told of every step of writing and removing shards, from many
	// goroutines; nil for nobody. Tests end the process there. No setting leads here.
	WatchSteps func(Step)
}

const (
	// MaxCellBytes bounds a cell, so that any cell fits into one message.
	MaxCellBytes = 1 << 20
	// MaxDataShards bounds k. The erasure code could go up to 256 shards in all.
	MaxDataShards = 32
	// MaxParityShards bounds m.
	MaxParityShards = 8
	// MaxShardCells bounds the cells of one shard, and with them the size of a
	// trailer in a message and in memory: 1 MiB.
	MaxShardCells = 1 << 18
)

// DefaultConfig returns the configuration that a node uses unless told otherwise.
// Dir is left empty.
func DefaultConfig() Config {
	return Config{
		Logger:              zerolog.Nop(),
		CellBytes:           256 << 10,
		MaxExtentBytes:      1 << 30,
		SmallBlobBytes:      128 << 10,
		InlineBlobBytes:     16 << 10,
		MaxDataShards:       8,
		Parity:              -1,
		BufferBytes:         64 << 20,
		HedgeDelay:          300 * time.Millisecond,
		LateDelay:           2 * time.Second,
		StallTimeout:        5 * time.Second,
		ReadTimeout:         30 * time.Second,
		DiskProbeInterval:   10 * time.Second,
		DiskGrace:           time.Minute,
		MaxShardWriters:     1024,
		MaxShardReads:       32,
		MaxOpenShards:       256,
		ScrubPeriod:         14 * 24 * time.Hour,
		ScrubBytesPerSecond: 64 << 20,
		// Moving costs more than a few percent of difference are worth.
		RebalanceThreshold: 0.05,
		RebalanceMinBytes:  1 << 30,
		SweepInterval:      10 * time.Minute,
		SweepGrace:         time.Hour,
	}
}

// Validate returns all faults of the configuration, joined.
func (c *Config) Validate() error {
	var faults []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf("blob store: "+format+": %w", append(args, ErrInvalid)...))
		}
	}
	require(c.Dir != "", "Dir is empty")
	require(!slices.Contains(c.MoreDirs, ""), "MoreDirs has an empty name")
	require(!slices.Contains(c.MoreDirs, c.Dir) && !repeats(c.MoreDirs), "MoreDirs has a folder twice")
	require(c.DiskProbeInterval > 0, "DiskProbeInterval %s is not positive", c.DiskProbeInterval)
	require(c.DiskGrace > 0, "DiskGrace %s is not positive", c.DiskGrace)
	require(c.CellBytes > 0 && c.CellBytes <= MaxCellBytes, "CellBytes %d is not 1 to %d", c.CellBytes, MaxCellBytes)
	require(c.SmallBlobBytes >= 0 && c.SmallBlobBytes <= c.CellBytes, "SmallBlobBytes %d is not 0 to CellBytes", c.SmallBlobBytes)
	require(c.InlineBlobBytes >= 0 && c.InlineBlobBytes <= c.SmallBlobBytes, "InlineBlobBytes %d is not 0 to SmallBlobBytes", c.InlineBlobBytes)
	require(c.InlineBlobBytes == 0 || c.InlineBlobBytes < min(intakeBytes, c.CellBytes), "InlineBlobBytes %d is not less than %d and CellBytes", c.InlineBlobBytes, intakeBytes)
	require(c.MaxExtentBytes >= int64(c.CellBytes), "MaxExtentBytes %d is less than a cell", c.MaxExtentBytes)
	require(c.CellBytes <= 0 || c.MaxExtentBytes/int64(c.CellBytes) < MaxShardCells, "MaxExtentBytes %d has too many cells", c.MaxExtentBytes)
	require(c.MaxDataShards >= 1 && c.MaxDataShards <= MaxDataShards, "MaxDataShards %d is not 1 to %d", c.MaxDataShards, MaxDataShards)
	require(c.Parity >= -1 && c.Parity <= MaxParityShards, "Parity %d is not -1 to %d", c.Parity, MaxParityShards)
	require(c.BufferBytes > 0, "BufferBytes %d is not positive", c.BufferBytes)
	require(c.HedgeDelay > 0, "HedgeDelay %s is not positive", c.HedgeDelay)
	require(c.LateDelay > 0, "LateDelay %s is not positive", c.LateDelay)
	require(c.StallTimeout > 0, "StallTimeout %s is not positive", c.StallTimeout)
	require(c.ReadTimeout > 0, "ReadTimeout %s is not positive", c.ReadTimeout)
	require(c.MaxShardWriters > 0, "MaxShardWriters %d is not positive", c.MaxShardWriters)
	require(c.MaxShardReads > 0, "MaxShardReads %d is not positive", c.MaxShardReads)
	require(c.MaxOpenShards > 0, "MaxOpenShards %d is not positive", c.MaxOpenShards)
	require(c.ScrubPeriod >= 0, "ScrubPeriod %s is negative", c.ScrubPeriod)
	require(c.ScrubBytesPerSecond >= minScrubBytesPerSecond, "ScrubBytesPerSecond %d is less than %d", c.ScrubBytesPerSecond, minScrubBytesPerSecond)
	require(c.RebalanceThreshold > 0 && c.RebalanceThreshold <= 1, "RebalanceThreshold %g is not in (0, 1]", c.RebalanceThreshold)
	require(c.RebalanceMinBytes > 0, "RebalanceMinBytes %d is not positive", c.RebalanceMinBytes)
	require(c.CacheBytes == 0 || c.CacheDir != "", "CacheDir is empty")
	require(c.SweepInterval > 0, "SweepInterval %s is not positive", c.SweepInterval)
	require(c.SweepGrace >= 0, "SweepGrace %s is negative", c.SweepGrace)
	return errors.Join(faults...)
}

func repeats(names []string) bool {
	return len(slices.Compact(slices.Sorted(slices.Values(names)))) < len(names)
}
