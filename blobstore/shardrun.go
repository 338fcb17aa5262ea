package blobstore

import (
	"fmt"

	"github.com/atollregistry/atoll/proto"
)

// shardRun is a run of cells of one shard of an extent.
type shardRun struct {
	extentID []byte
	layout   layout
	// number is the shard's; first is the first cell's, which is its stripe's.
	number, first, cells int
}

// bytes returns the size of the run.
func (r shardRun) bytes() int { return r.layout.cellsBytes(r.first, r.cells) }

// cell returns the i-th cell of the run.
func (r shardRun) cell(buf []byte, i int) []byte {
	return buf[i*r.layout.cell:][:r.layout.cellBytes(r.first+i)]
}

func (r shardRun) request() *proto.ReadShardRequest {
	return &proto.ReadShardRequest{
		ExtentId: r.extentID, ShardNumber: uint32(r.number), FirstCell: uint32(r.first), Cells: uint32(r.cells),
	}
}

// verify compares the cells with their checksums. It fails with ErrChecksum.
func (r shardRun) verify(checksums []uint32, buf []byte) error {
	if len(checksums) != r.cells {
		return fmt.Errorf("%d checksums for %d cells: %w", len(checksums), r.cells, ErrChecksum)
	}
	for i, sum := range checksums {
		number := r.first + i
		if cellChecksum(r.extentID, uint32(r.number), uint32(number), r.cell(buf, i)) != sum {
			return fmt.Errorf("cell %d: %w", number, ErrChecksum)
		}
	}
	return nil
}
