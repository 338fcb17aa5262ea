package blobstore

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/atollregistry/atoll/proto"
)

// errStalled says that a node made no progress for Config.StallTimeout in a write,
// or for Config.ReadTimeout in a read.
var errStalled = errors.New("no progress")

// shardSink takes one shard to the node that is to hold it. One goroutine uses
// it; cancelling the context that it was opened with ends a call that hangs,
// unless a disk hangs.
type shardSink interface {
	// write appends cells, and releases them once their bytes are not needed any
	// more, even after an error.
	write(cells []*cell) error
	// pending returns the cells written and not released yet, never nil.
	pending() []*cell
	// commit makes the shard durable.
	commit(trailer *proto.ShardTrailer) error
	// close drops the shard unless commit succeeded, and lets go of all cells.
	close()
}

// openSink begins a shard on a node, and returns when the node has taken it on.
func (s *Store) openSink(ctx context.Context, node string, header *proto.ShardHeader) (shardSink, error) {
	if node == s.cluster.Self() {
		writer, err := s.disks.create(header)
		if err != nil {
			return nil, err
		}
		return &diskSink{writer: writer}, nil
	}
	conn, err := s.connTo(node)
	if err != nil {
		return nil, err
	}
	stream, err := proto.NewShardsClient(conn).WriteShard(ctx)
	if err != nil {
		return nil, fromStatus(err)
	}
	sink := &peerSink{stream: stream}
	if err := sink.send(&frame{message: &proto.WriteShardRequest{Header: header}}); err != nil {
		return nil, err
	}
	// The server sends its header when it has made the file. A stream that ends
	// before has none, and the reason comes with the answer.
	if md, err := stream.Header(); err != nil || md == nil {
		return nil, sink.refusal()
	}
	return sink, nil
}

// diskSink is a shardSink on this node's disk.
type diskSink struct {
	writer    *ShardWriter
	pieces    [][]byte
	checksums []uint32
}

func (d *diskSink) write(cells []*cell) error {
	d.pieces, d.checksums = d.pieces[:0], d.checksums[:0]
	for _, c := range cells {
		defer c.release()
		d.pieces, d.checksums = append(d.pieces, c.data), append(d.checksums, c.checksum)
	}
	return d.writer.writeCells(d.pieces, d.checksums)
}

func (d *diskSink) pending() []*cell { return []*cell{} }

func (d *diskSink) commit(trailer *proto.ShardTrailer) error {
	_, err := d.writer.Commit(trailer)
	return err
}

func (d *diskSink) close() { d.writer.Abort() }

// peerSink is a shardSink on another node.
type peerSink struct {
	stream grpc.ClientStreamingClient[proto.WriteShardRequest, proto.WriteShardResponse]
	// sent are the cells that gRPC may not be done with.
	sent []*cell
}

func (p *peerSink) write(cells []*cell) error {
	p.sent = append(p.pending(), cells...)
	data := make(mem.BufferSlice, 0, len(cells))
	for _, c := range cells {
		data = append(data, c.message())
	}
	request := &frame{message: &proto.WriteShardRequest{}, data: data}
	defer request.free()
	return p.send(request)
}

func (p *peerSink) pending() []*cell {
	pending := make([]*cell, 0, len(p.sent))
	for _, c := range p.sent {
		if !c.done.Load() {
			pending = append(pending, c)
		}
	}
	return pending
}

func (p *peerSink) send(request *frame) error {
	err := p.stream.SendMsg(request)
	if errors.Is(err, io.EOF) { // The stream is over; the reason comes with the answer.
		return p.refusal()
	}
	return fromStatus(err)
}

// refusal returns why the node ended the stream early.
func (p *peerSink) refusal() error {
	if err := p.stream.RecvMsg(&proto.WriteShardResponse{}); err != nil && !errors.Is(err, io.EOF) {
		return fromStatus(err)
	}
	return fmt.Errorf("stream ended early: %w", io.ErrUnexpectedEOF)
}

func (p *peerSink) commit(trailer *proto.ShardTrailer) error {
	if err := p.send(&frame{message: &proto.WriteShardRequest{Trailer: trailer}}); err != nil {
		return err
	}
	_, err := p.stream.CloseAndRecv()
	return fromStatus(err)
}

// close gives up the cells that gRPC did not free. The stream itself ends with
// its context.
func (p *peerSink) close() {
	for _, c := range p.sent {
		c.abandon()
	}
	p.sent = nil
}

// readRun reads cells of a shard from the node that holds it into buf, which has
// the size of the run, and checks each against its checksum.
func (s *Store) readRun(ctx context.Context, node string, run shardRun, buf []byte) error {
	read := s.readPeer
	if node == s.cluster.Self() {
		read = s.readDisk
	}
	checksums, err := read(ctx, node, run, buf)
	if err != nil {
		return err
	}
	return run.verify(checksums, buf)
}

func (s *Store) readDisk(_ context.Context, _ string, run shardRun, buf []byte) ([]uint32, error) {
	checksums, data, err := s.disks.ReadCells(run.request(), buf)
	if err == nil && len(data) != len(buf) {
		err = fmt.Errorf("%d bytes instead of %d: %w", len(data), len(buf), ErrChecksum)
	}
	return checksums, err
}

func (s *Store) readPeer(ctx context.Context, node string, run shardRun, buf []byte) ([]uint32, error) {
	conn, err := s.connTo(node)
	if err != nil {
		return nil, err
	}
	answer := &proto.ReadShardResponse{}
	reply := &frame{message: answer}
	defer reply.free()
	if err := conn.Invoke(ctx, proto.Shards_ReadShard_FullMethodName, run.request(), reply); err != nil {
		return nil, fromStatus(err)
	}
	if got := reply.data.Len(); got != len(buf) {
		return nil, fmt.Errorf("%d bytes instead of %d: %w", got, len(buf), ErrChecksum)
	}
	reply.data.CopyTo(buf)
	return answer.GetCellChecksums(), nil
}

// isNodeFault says whether an error is the fault of the node or of the way to
// it, so that new work should avoid the node. A full, busy or slow node is well,
// and a lost or rotten shard is the shard's own trouble.
func isNodeFault(err error) bool {
	for _, harmless := range []error{
		ErrNoSpace, ErrShardUnknown, ErrChecksum, ErrBusy, ErrInvalid, ErrClosed, errLate, context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, harmless) {
			return false
		}
	}
	var answer interface{ GRPCStatus() *status.Status }
	if errors.As(err, &answer) {
		code := answer.GRPCStatus().Code()
		return code != codes.Canceled && code != codes.DeadlineExceeded
	}
	return true
}

// suspect reports a node that failed a transfer.
func (s *Store) suspect(node string, err error) {
	if node == s.cluster.Self() {
		s.log.Error().Err(err).Msg("this node's disk failed a transfer")
		return
	}
	s.cluster.Suspect(node, err)
}
