package blobstore

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/atollregistry/atoll/proto"
)

// maxReadBytes bounds the cells of one answer, so that a message stays far below
// gRPC's limit of 4 MiB.
const maxReadBytes = 1 << 20

// server is the Shards service over this node's disks. The gRPC server it is
// registered with must use Codec, and bounds how many calls one connection makes
// at once (grpc.MaxConcurrentStreams): answers wait there for a slow peer.
type server struct {
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
}

// What the server needs of the store beside its disks.
type (
	repairCall func(context.Context, *proto.RepairRequest) (*proto.RepairResponse, error)
	scrubCall  func(now bool) *proto.ScrubResponse
)

func newServer(cfg Config, node string, disks *disks, buffers *buffers, repair repairCall, scrub scrubCall) *server {
	return &server{node: node, disks: disks, buffers: buffers, repair: repair, scrub: scrub, reads: make(chan struct{}, cfg.MaxShardReads)}
}

// register adds the service to a gRPC server. It is the generated description
// with handlers that deal in frames, so that bulk is not copied into messages and
// buffers can be used again.
func (s *server) register(registrar grpc.ServiceRegistrar) {
	registrar.RegisterService(&grpc.ServiceDesc{
		ServiceName: proto.Shards_ServiceDesc.ServiceName,
		HandlerType: (*any)(nil),
		Metadata:    proto.Shards_ServiceDesc.Metadata,
		Methods: []grpc.MethodDesc{
			{MethodName: "ReadShard", Handler: unary(proto.Shards_ReadShard_FullMethodName, (*server).readShard)},
			{MethodName: "Repair", Handler: unary(proto.Shards_Repair_FullMethodName, (*server).carryOut)},
			{MethodName: "Scrub", Handler: unary(proto.Shards_Scrub_FullMethodName, (*server).tellScrub)},
		},
		Streams: []grpc.StreamDesc{{StreamName: "WriteShard", Handler: handleWriteShard, ClientStreams: true}},
	}, s)
}

// unary is the handler that protoc would generate, for answers that may be frames.
func unary[Request, Answer any](method string, call func(*server, context.Context, *Request) (Answer, error)) grpc.MethodHandler {
	return func(handler any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		request := new(Request)
		if err := decode(request); err != nil {
			return nil, err
		}
		handle := func(ctx context.Context, request any) (any, error) {
			s := handler.(*server)
			if err := checkAddressee(ctx, s.node); err != nil {
				return nil, err
			}
			answer, err := call(s, ctx, request.(*Request))
			return answer, toStatus(err)
		}
		if interceptor == nil {
			return handle(ctx, request)
		}
		return interceptor(ctx, request, &grpc.UnaryServerInfo{Server: handler, FullMethod: method}, handle)
	}
}

// carryOut is the Repair call.
func (s *server) carryOut(ctx context.Context, request *proto.RepairRequest) (*proto.RepairResponse, error) {
	return s.repair(ctx, request)
}

// tellScrub is the Scrub call.
func (s *server) tellScrub(_ context.Context, request *proto.ScrubRequest) (*proto.ScrubResponse, error) {
	return s.scrub(request.GetNow()), nil
}

func handleWriteShard(handler any, stream grpc.ServerStream) error {
	s := handler.(*server)
	if err := checkAddressee(stream.Context(), s.node); err != nil {
		return err
	}
	return toStatus(s.writeShard(stream))
}

// readShard reads cells into a buffer that goes back to its pool once gRPC has
// sent it.
func (s *server) readShard(ctx context.Context, request *proto.ReadShardRequest) (*frame, error) {
	select {
	case s.reads <- struct{}{}:
		defer func() { <-s.reads }()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for disk: %w", ctx.Err())
	}
	var answer *buffer
	checksums, _, err := s.disks.readCells(request, func(size int) ([]byte, error) {
		if size > maxReadBytes {
			return nil, fmt.Errorf("%d bytes at once: %w", size, ErrInvalid)
		}
		answer = s.buffers.overdraw(size)
		return answer.data, nil
	})
	if answer != nil {
		defer answer.release()
	}
	if err != nil {
		return nil, err
	}
	return &frame{
		message:  &proto.ReadShardResponse{CellChecksums: checksums},
		data:     mem.BufferSlice{answer.share(0, len(answer.data))},
		handOver: true,
	}, nil
}

// writeShard takes one shard: a header, data, a trailer, each in its own message
// or together.
func (s *server) writeShard(stream grpc.ServerStream) error {
	message := new(proto.WriteShardRequest)
	in := &frame{message: message}
	defer in.free()
	if err := stream.RecvMsg(in); err != nil {
		return fmt.Errorf("receive shard: %w", err)
	}
	if message.GetHeader() == nil {
		return fmt.Errorf("receive shard: no header: %w", ErrInvalid)
	}
	w, err := s.disks.create(message.GetHeader())
	if err != nil {
		return err
	}
	defer w.Abort()
	// It tells the sender that the shard was taken on.
	if err := stream.SendHeader(nil); err != nil {
		return fmt.Errorf("receive shard: %w", err)
	}
	for {
		if err := w.Write(in.pieces()...); err != nil {
			return err
		}
		if message.GetTrailer() != nil {
			break
		}
		if err := stream.RecvMsg(in); err != nil {
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("receive shard: no trailer: %w", ErrInvalid)
			}
			return fmt.Errorf("receive shard: %w", err)
		}
		if message.GetHeader() != nil {
			return fmt.Errorf("receive shard: a second header: %w", ErrInvalid)
		}
	}
	in.free()
	fileBytes, err := w.Commit(message.GetTrailer())
	if err != nil {
		return err
	}
	return stream.SendMsg(&proto.WriteShardResponse{FileBytes: fileBytes})
}
