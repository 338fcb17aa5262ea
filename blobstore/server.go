package blobstore

import (
	"context"
	"fmt"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// maxReadBytes bounds the cells of one answer, and so the memory that it takes.
const maxReadBytes = 1 << 20

// server answers other nodes over this node's disks: by gRPC, and for shards over links (linkserver.go).
type server struct {
	proto.UnimplementedShardsServer
	// node is this node's id.
	node    string
	disks   *disks
	buffers *buffers
	// repair carries out tasks that the leader has for this node, scrub tells of its
	// scrub.
	repair repairCall
	scrub  scrubCall
	// reads has room for each read that may be under way on the disks at once.
	reads chan struct{}
	// writerTimeout is the constant, less in tests.
	writerTimeout time.Duration
}

// What the server needs of the store beside its disks.
type (
	repairCall func(context.Context, *proto.RepairRequest) (*proto.RepairResponse, error)
	scrubCall  func(now bool) *proto.ScrubResponse
)

func newServer(cfg Config, node string, disks *disks, buffers *buffers, repair repairCall, scrub scrubCall) *server {
	return &server{node: node, disks: disks, buffers: buffers, repair: repair, scrub: scrub, reads: make(chan struct{}, cfg.MaxShardReads), writerTimeout: writerTimeout}
}

// Repair is the call of the Shards service.
func (s *server) Repair(ctx context.Context, request *proto.RepairRequest) (*proto.RepairResponse, error) {
	if err := checkAddressee(ctx, s.node); err != nil {
		return nil, err
	}
	answer, err := s.repair(ctx, request)
	return answer, toStatus(err)
}

// Scrub is the call of the Shards service.
func (s *server) Scrub(ctx context.Context, request *proto.ScrubRequest) (*proto.ScrubResponse, error) {
	if err := checkAddressee(ctx, s.node); err != nil {
		return nil, err
	}
	return s.scrub(request.GetNow()), nil
}

// readShard reads cells into a buffer, which the caller releases if there is one, even after an error.
func (s *server) readShard(request *proto.ReadShardRequest) (checksums []uint32, cells *buffer, err error) {
	checksums, _, err = s.disks.readCells(request, func(size int) ([]byte, error) {
		if size > maxReadBytes {
			return nil, fmt.Errorf("%d bytes at once: %w", size, ErrInvalid)
		}
		cells = s.buffers.overdraw(size)
		return cells.data, nil
	})
	return checksums, cells, err
}
