package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/atollregistry/atoll/proto"
)

const testServerID = "self"

// testServer is a disk behind a gRPC server on a TCP port.
type testServer struct {
	disk    *Disk
	server  *server
	address string
}

func startTestServer(t testing.TB, cfg Config, options ...grpc.ServerOption) *testServer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &testServer{disk: openTestDisk(t, cfg), address: listener.Addr().String()}
	s.server = newServer(cfg, testServerID, &disks{all: []*Disk{s.disk}}, newBuffers(cfg.BufferBytes), nil, nil)
	g := grpc.NewServer(append(options, grpc.ForceServerCodecV2(Codec()))...)
	s.server.register(g)
	ended := make(chan error, 1)
	go func() { ended <- g.Serve(listener) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// connect returns a connection with our codec, or with the ordinary one.
func (s *testServer) connect(t testing.TB, ordinary bool) *grpc.ClientConn {
	t.Helper()
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, request, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(withAddressee(ctx, testServerID), method, request, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return stream(withAddressee(ctx, testServerID), desc, cc, method, opts...)
		}),
	}
	if !ordinary {
		options = append(options, grpc.WithDefaultCallOptions(grpc.ForceCodecV2(Codec())))
	}
	conn, err := grpc.NewClient(s.address, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// send writes messages to a new stream and returns the answer.
func send(t testing.TB, conn grpc.ClientConnInterface, messages ...any) (*proto.WriteShardResponse, error) {
	t.Helper()
	stream, err := proto.NewShardsClient(conn).WriteShard(testContext(t))
	if err != nil {
		return nil, err
	}
	for _, message := range messages {
		if err := stream.SendMsg(message); err != nil {
			break // The answer says why.
		}
	}
	response, err := stream.CloseAndRecv()
	return response, fromStatus(err)
}

// frames returns the messages of a shard, as the writer sends them.
func (s *shardContent) frames(pieceBytes int) []any {
	messages := []any{&frame{message: &proto.WriteShardRequest{Header: s.header}}}
	for piece := range slices.Chunk(s.data, pieceBytes) {
		messages = append(messages, &frame{message: &proto.WriteShardRequest{}, data: mem.BufferSlice{mem.SliceBuffer(piece)}})
	}
	return append(messages, &frame{message: &proto.WriteShardRequest{Trailer: s.trailer()}})
}

// checkRemote reads cells through a connection.
func (s *shardContent) checkRemote(ctx context.Context, conn grpc.ClientConnInterface, first, cells int) error {
	answer := new(proto.ReadShardResponse)
	f := &frame{message: answer}
	defer f.free()
	request := &proto.ReadShardRequest{ExtentId: s.header.GetExtentId(), ShardNumber: s.header.GetShardNumber(), FirstCell: uint32(first), Cells: uint32(cells)}
	if err := conn.Invoke(ctx, proto.Shards_ReadShard_FullMethodName, request, f); err != nil {
		return fromStatus(err)
	}
	if !bytes.Equal(f.data.Materialize(), s.cells(first, cells)) || !slices.Equal(answer.GetCellChecksums(), s.sums[first:first+cells]) {
		return fmt.Errorf("cells %d+%d differ", first, cells)
	}
	return nil
}

func TestServerTakesAndGives(t *testing.T) {
	s := startTestServer(t, diskConfig(t.TempDir()))
	conn := s.connect(t, false)
	for i, size := range []int{1, 1000, 256 << 10, 3<<20 + 1} {
		shard := newShardContent(t, byte(i), 256<<10, size)
		response, err := send(t, conn, shard.frames(1<<20)...)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if want := shardFileBytes(shard.layout); response.GetFileBytes() != uint64(want) {
			t.Errorf("%d bytes: file of %d, want %d", size, response.GetFileBytes(), want)
		}
		if err := shard.check(s.disk, 0, shard.layout.stripes()); err != nil {
			t.Error(err)
		}
		for first := 0; first < shard.layout.stripes(); first += 4 {
			if err := shard.checkRemote(testContext(t), conn, first, min(4, shard.layout.stripes()-first)); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
	}
}

// TestServerTakesOneMessage: a small shard comes in a single message.
func TestServerTakesOneMessage(t *testing.T) {
	s := startTestServer(t, diskConfig(t.TempDir()))
	shard := newShardContent(t, 1, 256<<10, 700)
	whole := &frame{message: &proto.WriteShardRequest{Header: shard.header, Trailer: shard.trailer()}, data: mem.BufferSlice{mem.SliceBuffer(shard.data)}}
	if _, err := send(t, s.connect(t, false), whole); err != nil {
		t.Fatal(err)
	}
	if err := shard.check(s.disk, 0, 1); err != nil {
		t.Error(err)
	}
}

// TestServerSpeaksProtobuf uses the generated client with gRPC's own codec.
func TestServerSpeaksProtobuf(t *testing.T) {
	s := startTestServer(t, diskConfig(t.TempDir()))
	conn := s.connect(t, true)
	shard := newShardContent(t, 1, 256<<10, 1<<20+5)
	messages := []any{&proto.WriteShardRequest{Header: shard.header}}
	for piece := range slices.Chunk(shard.data, 300000) {
		messages = append(messages, &proto.WriteShardRequest{Data: piece})
	}
	messages = append(messages, &proto.WriteShardRequest{Trailer: shard.trailer()})
	if _, err := send(t, conn, messages...); err != nil {
		t.Fatal(err)
	}
	answer, err := proto.NewShardsClient(conn).ReadShard(testContext(t), &proto.ReadShardRequest{ExtentId: shard.header.GetExtentId(), ShardNumber: 1, FirstCell: 1, Cells: 3})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(answer.GetData(), shard.cells(1, 3)) || !slices.Equal(answer.GetCellChecksums(), shard.sums[1:4]) {
		t.Error("wrong cells")
	}
}

func TestServerRefusesStreams(t *testing.T) {
	s := startTestServer(t, diskConfig(t.TempDir()))
	conn := s.connect(t, false)
	shard := newShardContent(t, 1, 16, 40)
	all := shard.frames(16)
	header, data, trailer := all[0], all[1:len(all)-1], all[len(all)-1]
	wrong := &frame{message: &proto.WriteShardRequest{}, data: mem.BufferSlice{mem.SliceBuffer("wrong")}}
	tests := []struct {
		name     string
		messages []any
		want     error
	}{
		{"no header", []any{data[0], trailer}, ErrInvalid},
		{"impossible header", []any{&frame{message: &proto.WriteShardRequest{Header: &proto.ShardHeader{}}}}, ErrInvalid},
		{"two headers", []any{header, header}, ErrInvalid},
		{"no trailer", append([]any{header}, data...), ErrInvalid},
		{"trailer too early", []any{header, data[0], trailer}, ErrChecksum},
		{"wrong bytes", append(append([]any{header}, data[1:]...), wrong, trailer), ErrChecksum},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, err := send(t, conn, test.messages...); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if shards, unfinished := diskFiles(t, s.disk); len(shards)+len(unfinished) > 0 {
				t.Errorf("left behind: %v %v", shards, unfinished)
			}
		})
	}
	stream, err := proto.NewShardsClient(conn).WriteShard(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndRecv(); status.Code(err) != codes.Internal {
		t.Errorf("no message at all: %v", err)
	}
}

func TestServerRefusesReads(t *testing.T) {
	s := startTestServer(t, diskConfig(t.TempDir()))
	conn := s.connect(t, false)
	shard := newShardContent(t, 1, 256<<10, 2<<20)
	if _, err := shard.write(s.disk); err != nil {
		t.Fatal(err)
	}
	if err := shard.checkRemote(testContext(t), conn, 0, 5); !errors.Is(err, ErrInvalid) {
		t.Errorf("more than fits into an answer: %v", err)
	}
	if err := shard.checkRemote(testContext(t), conn, 8, 1); !errors.Is(err, ErrInvalid) {
		t.Errorf("beyond the end: %v", err)
	}
	if err := newShardContent(t, 2, 16, 1).checkRemote(testContext(t), conn, 0, 1); !errors.Is(err, ErrShardUnknown) {
		t.Errorf("unknown shard: %v", err)
	}
}

// TestServerDropsAbandonedShards: a client that goes away in the middle leaves
// nothing behind, on a node that goes on.
func TestServerDropsAbandonedShards(t *testing.T) {
	cfg := diskConfig(t.TempDir())
	cfg.MaxShardWriters = 1
	s := startTestServer(t, cfg)
	shard := newShardContent(t, 1, 256<<10, 2<<20)
	for name, abandon := range map[string]func(conn *grpc.ClientConn, cancel context.CancelFunc){
		"cancelled":       func(_ *grpc.ClientConn, cancel context.CancelFunc) { cancel() },
		"connection lost": func(conn *grpc.ClientConn, _ context.CancelFunc) { _ = conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(testContext(t))
			defer cancel()
			conn := s.connect(t, false)
			stream, err := proto.NewShardsClient(conn).WriteShard(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, message := range shard.frames(1 << 20)[:2] {
				if err := stream.SendMsg(message); err != nil {
					t.Fatal(err)
				}
			}
			waitFor(t, "the shard to begin", func() bool {
				_, unfinished := diskFiles(t, s.disk)
				return len(unfinished) == 1
			})
			if _, err := send(t, s.connect(t, false), shard.frames(1<<20)...); !errors.Is(err, ErrBusy) {
				t.Errorf("beyond the bound of writers: got %v, want ErrBusy", err)
			}
			abandon(conn, cancel)
			waitFor(t, "the shard to go", func() bool {
				shards, unfinished := diskFiles(t, s.disk)
				return len(shards)+len(unfinished) == 0
			})
		})
	}
	if _, err := send(t, s.connect(t, false), shard.frames(1<<20)...); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestServerSaysNoSpace: a full disk is not taken for a dead node.
func TestServerSaysNoSpace(t *testing.T) {
	s := startTestServer(t, diskConfig(t.TempDir()))
	s.disk.calls.space = func(string) (uint64, uint64, error) { return 1 << 20, 1 << 30, nil }
	shard := newShardContent(t, 1, 256<<10, 3<<20)
	if _, err := send(t, s.connect(t, false), shard.frames(2<<20)...); !errors.Is(err, ErrNoSpace) {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
}

// TestServerBoundsReads: reads beyond the bound wait, and give up with their
// caller.
func TestServerBoundsReads(t *testing.T) {
	cfg := diskConfig(t.TempDir())
	cfg.MaxShardReads = 1
	s := startTestServer(t, cfg)
	conn := s.connect(t, false)
	shard := newShardContent(t, 1, 16, 40)
	if _, err := shard.write(s.disk); err != nil {
		t.Fatal(err)
	}
	s.server.reads <- struct{}{}
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	if err := shard.checkRemote(ctx, conn, 0, 1); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v, want DeadlineExceeded", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- shard.checkRemote(testContext(t), conn, 0, 1) }()
	<-s.server.reads
	if err := <-ended; err != nil {
		t.Errorf("after its turn came: %v", err)
	}
}

// TestServerRunsInterceptors: the node's checks apply to these handlers too.
func TestServerRunsInterceptors(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	note := func(method string) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, method)
	}
	s := startTestServer(t, diskConfig(t.TempDir()),
		grpc.UnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			note(info.FullMethod)
			return handle(ctx, request)
		}),
		grpc.StreamInterceptor(func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			note(info.FullMethod)
			return handle(server, stream)
		}))
	conn := s.connect(t, false)
	shard := newShardContent(t, 1, 16, 40)
	if _, err := send(t, conn, shard.frames(16)...); err != nil {
		t.Fatal(err)
	}
	if err := shard.checkRemote(testContext(t), conn, 0, 3); err != nil {
		t.Fatal(err)
	}
	if want := []string{proto.Shards_WriteShard_FullMethodName, proto.Shards_ReadShard_FullMethodName}; !slices.Equal(seen, want) {
		t.Errorf("seen were %v", seen)
	}
}

// TestServerUnderLoad writes and reads many shards at once over one connection.
func TestServerUnderLoad(t *testing.T) {
	s := startTestServer(t, diskConfig(t.TempDir()))
	conn := s.connect(t, false)
	var all sync.WaitGroup
	for worker := range 16 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 0))
			for i := range 4 {
				shard := newShardContent(t, byte(worker*4+i), 32<<10, 1+random.IntN(1<<20))
				if _, err := send(t, conn, shard.frames(1+random.IntN(1<<20))...); err != nil {
					t.Error(err)
					return
				}
				for range 8 {
					first := random.IntN(shard.layout.stripes())
					cells := 1 + random.IntN(min(32, shard.layout.stripes()-first))
					if err := shard.checkRemote(testContext(t), conn, first, cells); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	all.Wait()
	waitFor(t, "the buffers to come back", func() bool { return s.server.buffers.used.Load() == 0 })
	if _, unfinished := diskFiles(t, s.disk); len(unfinished) > 0 {
		t.Errorf("left behind: %v", unfinished)
	}
}

// BenchmarkWriteShard measures a shard's way through gRPC to the disk.
func BenchmarkWriteShard(b *testing.B) {
	for _, ordinary := range []bool{false, true} {
		b.Run(map[bool]string{false: "frames", true: "protobuf"}[ordinary], func(b *testing.B) {
			s := startTestServer(b, diskConfig(b.TempDir()))
			conn := s.connect(b, ordinary)
			shard := newShardContent(b, 1, 256<<10, 64<<20)
			b.SetBytes(int64(len(shard.data)))
			b.ReportAllocs()
			for b.Loop() {
				messages := shard.frames(1 << 20)
				if ordinary {
					messages = []any{&proto.WriteShardRequest{Header: shard.header}}
					for piece := range slices.Chunk(shard.data, 1<<20) {
						messages = append(messages, &proto.WriteShardRequest{Data: piece})
					}
					messages = append(messages, &proto.WriteShardRequest{Trailer: shard.trailer()})
				}
				if _, err := send(b, conn, messages...); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReadShard measures the way back.
func BenchmarkReadShard(b *testing.B) {
	s := startTestServer(b, diskConfig(b.TempDir()))
	conn := s.connect(b, false)
	shard := newShardContent(b, 1, 256<<10, 64<<20)
	if _, err := shard.write(s.disk); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	ctx := context.Background()
	request := &proto.ReadShardRequest{ExtentId: shard.header.GetExtentId(), ShardNumber: 1, Cells: 4}
	for b.Loop() {
		f := &frame{message: new(proto.ReadShardResponse)}
		request.FirstCell = (request.GetFirstCell() + 4) % uint32(shard.layout.stripes())
		if err := conn.Invoke(ctx, proto.Shards_ReadShard_FullMethodName, request, f); err != nil {
			b.Fatal(err)
		}
		f.free()
	}
}
