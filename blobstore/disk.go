package blobstore

import (
	"errors"

	"github.com/atollregistry/atoll/proto"
)

// Disk is the folder with this node's shards. Safe for concurrent use.
type Disk struct{}

// OpenDisk opens the folder Config.Dir, makes it if need be, and drops what
// unfinished writes left. It does not look at the shards, so its cost does not
// grow with their number.
func OpenDisk(cfg Config) (*Disk, error) { return nil, errors.ErrUnsupported }

// Create begins a new shard. The caller must end it with Commit or Abort. It fails
// with ErrNoSpace when the reserve would be touched, with ErrBusy when too many
// shards are being written, with ErrDisk shortly after the disk failed, and with
// ErrInvalid.
func (d *Disk) Create(header *proto.ShardHeader) (*ShardWriter, error) {
	return nil, errors.ErrUnsupported
}

// ReadCells reads whole cells of a shard into buf, which must have room for them,
// and returns the part of buf that they fill, one after the other, with their
// stored checksums. The caller compares these with cellChecksum. It fails with
// ErrShardUnknown, ErrChecksum (the file is not what was written), ErrDisk and
// ErrInvalid (there are no such cells, or buf is too small).
func (d *Disk) ReadCells(request *proto.ReadShardRequest, buf []byte) (checksums []uint32, data []byte, err error) {
	return nil, nil, errors.ErrUnsupported
}

// Has says whether there is a file for the shard.
func (d *Disk) Has(extentID []byte, shardNumber uint32) bool { return false }

// Remove deletes a shard. It fails with ErrShardUnknown.
func (d *Disk) Remove(extentID []byte, shardNumber uint32) error { return errors.ErrUnsupported }

// Space returns the bytes free for new shards, the reserve taken off, and the
// bytes that the node offers in all.
func (d *Disk) Space() (free, capacity uint64, err error) { return 0, 0, errors.ErrUnsupported }

// Close closes the files kept open for reading.
func (d *Disk) Close() error { return errors.ErrUnsupported }

// ShardWriter writes one shard. It is not safe for concurrent use. After an error
// only Abort is left.
type ShardWriter struct{}

// Write appends bytes of the shard's cells. The pieces need not end where cells
// end, and may be reused when Write returns.
func (w *ShardWriter) Write(pieces ...[]byte) error { return errors.ErrUnsupported }

// Commit makes the shard durable under its name and returns the size of its
// file. It fails with ErrChecksum when the bytes written are not those that the
// trailer tells of, and with ErrDisk or ErrNoSpace. After a failed Commit
// nothing is left behind; Abort is then not needed but allowed.
func (w *ShardWriter) Commit(trailer *proto.ShardTrailer) (fileBytes uint64, err error) {
	return 0, errors.ErrUnsupported
}

// Abort drops the shard. It does nothing after Commit.
func (w *ShardWriter) Abort() {}
