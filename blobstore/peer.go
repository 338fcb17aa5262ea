package blobstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/proto"
)

// errStalled says that a node made no progress for Config.StallTimeout in a write,
// or for Config.ReadTimeout in a read.
var errStalled = errors.New("no progress")

// shardSink takes one shard to the node that is to hold it. One goroutine uses
// it; cancelling the context that it was opened with ends a call that hangs,
// unless a disk hangs.
type shardSink interface {
	// write appends cells, and releases them.
	write(cells []*cell) error
	// beat says that more is to come. It fails if the shard can't become durable any more.
	beat() error
	// commit makes the shard durable.
	commit(trailer *proto.ShardTrailer) error
	// close drops the shard unless commit succeeded.
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
	call, err := s.links.call(ctx, node, &proto.ShardCall{Write: header})
	if err != nil {
		return nil, err
	}
	sink := &peerSink{call: call, answered: make(chan struct{})}
	go sink.await() // ends with the answer, or when the link is broken
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

func (d *diskSink) beat() error { return nil }

func (d *diskSink) commit(trailer *proto.ShardTrailer) error {
	_, err := d.writer.Commit(trailer)
	return err
}

func (d *diskSink) close() { d.writer.Abort() }

// refusalWait is how long a node may take to say why it refused a shard once its link is broken.
const refusalWait = time.Second

// peerSink is a shardSink on another node.
type peerSink struct {
	call *shardCall
	// answered is closed when the node has answered, mostly to commit, with answer or err.
	answered chan struct{}
	answer   proto.ShardAnswer
	err      error
	over     bool
}

// await receives the answer, which comes early if the node refuses the shard.
func (p *peerSink) await() {
	defer close(p.answered)
	_, bulk, err := p.call.link.receive(&p.answer, maxHeadBytes)
	switch {
	case err == nil && bulk > 0:
		p.err = p.call.fault(fmt.Errorf("%w: %d bytes that nobody asked for", errLink, bulk))
	case err != nil:
		p.err = p.call.fault(err)
	case p.answer.GetCode() != 0:
		p.err = answerError(&p.answer)
	}
}

func (p *peerSink) write(cells []*cell) error {
	data := make([][]byte, 0, len(cells))
	for _, c := range cells {
		defer c.release()
		data = append(data, c.data)
	}
	return p.send(nil, data...)
}

func (p *peerSink) beat() error { return p.send(nil) }

// send sends a message unless the node has refused the shard.
func (p *peerSink) send(head pb.Message, bulk ...[]byte) error {
	select {
	case <-p.answered:
		return p.refusal()
	default:
	}
	err := p.call.link.send(head, bulk...)
	if err == nil {
		return nil
	}
	select {
	case <-p.answered:
		if p.err != nil {
			return p.err
		}
	case <-time.After(refusalWait):
	}
	return p.call.fault(err)
}

// refusal is why the node answered before it had all of the shard.
func (p *peerSink) refusal() error {
	if p.err != nil {
		return p.err
	}
	return p.call.fault(fmt.Errorf("answer before the end: %w", errLink))
}

func (p *peerSink) commit(trailer *proto.ShardTrailer) error {
	if err := p.send(trailer); err != nil {
		return err
	}
	<-p.answered
	if p.err != nil {
		return p.err
	}
	p.over = true
	p.call.end()
	return nil
}

func (p *peerSink) close() {
	if !p.over {
		p.call.abort()
		<-p.answered
	}
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
	call, err := s.links.call(ctx, node, &proto.ShardCall{Read: run.request()})
	if err != nil {
		return nil, err
	}
	if call.bulkBytes != len(buf) {
		call.abort()
		return nil, fmt.Errorf("%d bytes instead of %d: %w", call.bulkBytes, len(buf), ErrChecksum)
	}
	if err := call.link.receiveBulk(buf); err != nil {
		call.abort()
		return nil, call.fault(err)
	}
	call.end()
	return call.answer.GetCellChecksums(), nil
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
