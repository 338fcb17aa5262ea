package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/proto"
)

const testServerID = "self"

// testServer is a disk behind a LinkServer on a TCP port.
type testServer struct {
	disk    *Disk
	server  *server
	links   *LinkServer
	address string
	end     func()
}

func startTestServer(t testing.TB, cfg Config) *testServer {
	t.Helper()
	s := &testServer{disk: openTestDisk(t, cfg), address: "127.0.0.1:0"}
	s.server = newServer(cfg, testServerID, &disks{all: []*Disk{s.disk}}, newBuffers(cfg.BufferBytes), nil, nil)
	s.serveAgain(t)
	t.Cleanup(func() { s.end() })
	return s
}

// serve answers on the address that the server had before, until end is called.
func (s *testServer) serve(t testing.TB) (end func()) {
	t.Helper()
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	s.address = listener.Addr().String()
	s.links = newLinkServer(s.server, func(_ net.Conn, clusterID string) error {
		if clusterID != "" {
			return status.Error(codes.PermissionDenied, "another cluster")
		}
		return nil
	})
	links, ended := s.links, make(chan error, 1)
	go func() { ended <- links.Serve(listener) }()
	return sync.OnceFunc(func() {
		_ = listener.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("serve: %v", err)
		}
		hardStop(links)
	})
}

// hardStop breaks all links of a server.
func hardStop(links *LinkServer) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	links.Shutdown(ctx)
}

// soloCluster is one node that is elsewhere.
type soloCluster struct {
	Cluster
	address, clusterID string
	dials              *int
}

func (s soloCluster) ClusterID() string { return s.clusterID }

func (s soloCluster) Dial(ctx context.Context, _ string) (net.Conn, error) {
	if s.dials != nil {
		*s.dials++
	}
	return new(net.Dialer).DialContext(ctx, "tcp", s.address)
}

// connect returns links to the server.
func (s *testServer) connect(t testing.TB) *links {
	t.Helper()
	l := newLinks(soloCluster{address: s.address})
	t.Cleanup(l.close)
	return l
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// shardMessage is a message of a write.
type shardMessage struct {
	data    []byte
	trailer *proto.ShardTrailer
}

func (m shardMessage) send(l *link) error {
	if m.trailer == nil {
		return l.send(nil, m.data)
	}
	return l.send(m.trailer, m.data)
}

// send writes a shard by messages and returns the answer.
func send(t testing.TB, links *links, node string, header *proto.ShardHeader, messages ...shardMessage) (*proto.ShardAnswer, error) {
	t.Helper()
	call, err := links.call(testContext(t), node, &proto.ShardCall{Write: header})
	if err != nil {
		return nil, err
	}
	for _, message := range messages {
		if err := message.send(call.link.link); err != nil {
			break // The answer says why.
		}
	}
	answer := &proto.ShardAnswer{}
	if _, _, err := call.link.receive(answer, maxHeadBytes); err != nil {
		call.abort()
		return nil, err
	}
	if answer.GetCode() != 0 {
		call.abort()
		return nil, answerError(answer)
	}
	call.end()
	return answer, nil
}

// messages returns those of a shard, in pieces.
func (s *shardContent) messages(pieceBytes int) (messages []shardMessage) {
	for piece := range slices.Chunk(s.data, pieceBytes) {
		messages = append(messages, shardMessage{data: piece})
	}
	return append(messages, shardMessage{trailer: s.trailer()})
}

// checkRemote reads cells over a link.
func (s *shardContent) checkRemote(ctx context.Context, links *links, first, cells int) error {
	call, err := links.call(ctx, testServerID, &proto.ShardCall{Read: &proto.ReadShardRequest{
		ExtentId: s.header.GetExtentId(), ShardNumber: s.header.GetShardNumber(), FirstCell: uint32(first), Cells: uint32(cells),
	}})
	if err != nil {
		return err
	}
	data := make([]byte, call.bulkBytes)
	if err := call.link.receiveBulk(data); err != nil {
		call.abort()
		return call.fault(err)
	}
	call.end()
	if !bytes.Equal(data, s.cells(first, cells)) || !slices.Equal(call.answer.GetCellChecksums(), s.sums[first:first+cells]) {
		return fmt.Errorf("cells %d+%d differ", first, cells)
	}
	return nil
}

func TestServerTakesAndGives(t *testing.T) {
	s := startTestServer(t, diskConfig(filepath.Dir(newShardsDir(t))))
	links := s.connect(t)
	for i, size := range []int{1, 1000, 256 << 10, 3<<20 + 1} {
		shard := newShardContent(t, byte(i), 256<<10, size)
		answer, err := send(t, links, testServerID, shard.header, shard.messages(1<<20)...)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if want := shardFileBytes(shard.layout); answer.GetFileBytes() != uint64(want) {
			t.Errorf("%d bytes: file of %d, want %d", size, answer.GetFileBytes(), want)
		}
		if err := shard.check(s.disk, 0, shard.layout.stripes()); err != nil {
			t.Error(err)
		}
		for first := 0; first < shard.layout.stripes(); first += 4 {
			if err := shard.checkRemote(testContext(t), links, first, min(4, shard.layout.stripes()-first)); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
	}
}

// TestServerTakesOneMessage: a small shard comes in a single message.
func TestServerTakesOneMessage(t *testing.T) {
	s := startTestServer(t, diskConfig(filepath.Dir(newShardsDir(t))))
	shard := newShardContent(t, 1, 256<<10, 700)
	if _, err := send(t, s.connect(t), testServerID, shard.header, shardMessage{data: shard.data, trailer: shard.trailer()}); err != nil {
		t.Fatal(err)
	}
	if err := shard.check(s.disk, 0, 1); err != nil {
		t.Error(err)
	}
}

func TestServerRefusesShards(t *testing.T) {
	s := startTestServer(t, diskConfig(filepath.Dir(newShardsDir(t))))
	links := s.connect(t)
	shard := newShardContent(t, 1, 16, 40)
	all := shard.messages(16)
	data, trailer := all[:len(all)-1], all[len(all)-1]
	tests := []struct {
		name     string
		node     string
		header   *proto.ShardHeader
		messages []shardMessage
		want     error
	}{
		{"impossible header", testServerID, &proto.ShardHeader{}, nil, ErrInvalid},
		{"trailer too early", testServerID, shard.header, []shardMessage{data[0], trailer}, ErrChecksum},
		{"wrong bytes", testServerID, shard.header, append(append([]shardMessage{}, data[1:]...), shardMessage{data: []byte("wrong")}, trailer), ErrChecksum},
		{"trailer of nothing", testServerID, shard.header, append(append([]shardMessage{}, data...), shardMessage{trailer: &proto.ShardTrailer{ExtentSize: 1}}), ErrChecksum},
		{"another node", "other", shard.header, nil, errUnavailable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := send(t, links, test.node, test.header, test.messages...)
			if !errors.Is(err, test.want) && (test.want != errUnavailable || status.Code(err) != codes.Unavailable) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			waitFor(t, "the shard to go", func() bool {
				shards, unfinished := diskFiles(t, s.disk)
				return len(shards)+len(unfinished) == 0
			})
		})
	}
	foreign := newLinks(soloCluster{address: s.address, clusterID: "another"})
	defer foreign.close()
	if _, err := send(t, foreign, testServerID, shard.header, all...); status.Code(err) != codes.PermissionDenied {
		t.Errorf("somebody who may not: %v", err)
	}
}

var errUnavailable = errors.New("unavailable")

// TestServerEndsNonsense: who speaks no such protocol is cut off, and leaves nothing behind.
func TestServerEndsNonsense(t *testing.T) {
	s := startTestServer(t, diskConfig(filepath.Dir(newShardsDir(t))))
	shard := newShardContent(t, 1, 16, 40)
	encode := func(head pb.Message, bulk ...[]byte) []byte {
		var out bytes.Buffer
		if err := newLink(bufferConn{Writer: &out}).send(head, bulk...); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	write := encode(&proto.ShardCall{NodeId: testServerID, Write: shard.header})
	for name, sent := range map[string][]byte{
		"no call":            []byte("GET / HTTP/1.1\r\n\r\n"),
		"head beyond all":    {0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0},
		"bulk beyond all":    append(slices.Clone(write), 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff),
		"bulk with the call": encode(&proto.ShardCall{NodeId: testServerID, Write: shard.header}, shard.data),
		"no protobuf":        {0, 0, 0, 4, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
		"a call in a write":  append(slices.Clone(write), encode(&proto.ShardCall{NodeId: "abc"})...),
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", s.address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(waitLimit))
			if _, err := conn.Write(sent); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
				t.Error("the connection is still open")
			}
			waitFor(t, "the shard to go", func() bool {
				shards, unfinished := diskFiles(t, s.disk)
				return len(shards)+len(unfinished) == 0
			})
		})
	}
	links := s.connect(t)
	call, err := links.call(testContext(t), testServerID, &proto.ShardCall{})
	if !errors.Is(err, ErrInvalid) || call != nil {
		t.Errorf("neither a read nor a write: %v", err)
	}
	if _, err := send(t, links, testServerID, shard.header, shard.messages(16)...); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

// bufferConn is a connection that is written to memory.
type bufferConn struct {
	net.Conn
	io.Writer
}

func (b bufferConn) Write(p []byte) (int, error) { return b.Writer.Write(p) }

func TestServerRefusesReads(t *testing.T) {
	s := startTestServer(t, diskConfig(filepath.Dir(newShardsDir(t))))
	links := s.connect(t)
	shard := newShardContent(t, 1, 256<<10, 2<<20)
	if _, err := shard.write(s.disk); err != nil {
		t.Fatal(err)
	}
	if err := shard.checkRemote(testContext(t), links, 0, 5); !errors.Is(err, ErrInvalid) {
		t.Errorf("more than fits into an answer: %v", err)
	}
	if err := shard.checkRemote(testContext(t), links, 8, 1); !errors.Is(err, ErrInvalid) {
		t.Errorf("beyond the end: %v", err)
	}
	if err := newShardContent(t, 2, 16, 1).checkRemote(testContext(t), links, 0, 1); !errors.Is(err, ErrShardUnknown) {
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
	for name, abandon := range map[string]func(call *shardCall, cancel context.CancelFunc){
		"cancelled":       func(_ *shardCall, cancel context.CancelFunc) { cancel() },
		"connection lost": func(call *shardCall, _ context.CancelFunc) { call.abort() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(testContext(t))
			defer cancel()
			links := s.connect(t)
			call, err := links.call(ctx, testServerID, &proto.ShardCall{Write: shard.header})
			if err != nil {
				t.Fatal(err)
			}
			if err := shard.messages(1 << 20)[0].send(call.link.link); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the shard to begin", func() bool {
				_, unfinished := diskFiles(t, s.disk)
				return len(unfinished) == 1
			})
			if _, err := send(t, links, testServerID, shard.header, shard.messages(1<<20)...); !errors.Is(err, ErrBusy) {
				t.Errorf("beyond the bound of writers: got %v, want ErrBusy", err)
			}
			abandon(call, cancel)
			waitFor(t, "the shard to go", func() bool {
				shards, unfinished := diskFiles(t, s.disk)
				return len(shards)+len(unfinished) == 0
			})
		})
	}
	if _, err := send(t, s.connect(t), testServerID, shard.header, shard.messages(1<<20)...); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestServerSaysNoSpace: a full disk is not taken for a dead node, however much is still on its way to it.
func TestServerSaysNoSpace(t *testing.T) {
	s := startTestServer(t, diskConfig(filepath.Dir(newShardsDir(t))))
	s.disk.calls.space = func(string) (uint64, uint64, error) { return 1 << 17, 1 << 30, nil }
	shard := newShardContent(t, 1, 256<<10, 32<<20)
	if _, err := send(t, s.connect(t), testServerID, shard.header, shard.messages(2<<20)...); !errors.Is(err, ErrNoSpace) {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
}

// TestServerBoundsReads: reads beyond the bound wait, and give up with their
// caller.
func TestServerBoundsReads(t *testing.T) {
	cfg := diskConfig(t.TempDir())
	cfg.MaxShardReads = 1
	s := startTestServer(t, cfg)
	links := s.connect(t)
	shard := newShardContent(t, 1, 16, 40)
	if _, err := shard.write(s.disk); err != nil {
		t.Fatal(err)
	}
	s.server.reads <- struct{}{}
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	if err := shard.checkRemote(ctx, links, 0, 1); !errors.Is(err, context.DeadlineExceeded) && status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("got %v, want DeadlineExceeded", err)
	}
	hungUp, hangUp := context.WithCancel(testContext(t))
	waiting := make(chan error, 1)
	go func() { waiting <- shard.checkRemote(hungUp, links, 0, 1) }()
	waitFor(t, "the read to wait", func() bool { return s.busy() == 1 })
	hangUp()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want Canceled", err)
	}
	waitFor(t, "the server to notice", func() bool { return s.busy() == 0 })
	ended := make(chan error, 1)
	go func() { ended <- shard.checkRemote(testContext(t), links, 0, 1) }()
	waitFor(t, "the read to wait", func() bool { return s.busy() == 1 })
	<-s.server.reads
	if err := <-ended; err != nil {
		t.Errorf("after its turn came: %v", err)
	}
	if err := shard.checkRemote(testContext(t), links, 1, 1); err != nil {
		t.Errorf("the next one on the same link: %v", err)
	}
}

// busy counts the calls under way.
func (s *testServer) busy() (calls int) {
	s.links.mu.Lock()
	defer s.links.mu.Unlock()
	for _, busy := range s.links.conns {
		if busy {
			calls++
		}
	}
	return calls
}

// TestLinksAreKept: calls one after the other need one connection, which is not used when it is old, and a new one when the
// server has gone meanwhile.
func TestLinksAreKept(t *testing.T) {
	s := startTestServer(t, diskConfig(filepath.Dir(newShardsDir(t))))
	shard := newShardContent(t, 1, 16, 40)
	dials := 0
	end := s.serveAgain(t)
	links := newLinks(soloCluster{address: s.address, dials: &dials})
	defer links.close()
	read := func(want int) {
		t.Helper()
		if err := shard.checkRemote(testContext(t), links, 0, 3); err != nil {
			t.Error(err)
		}
		if dials != want {
			t.Errorf("%d connections were made, want %d", dials, want)
		}
	}
	if _, err := send(t, links, testServerID, shard.header, shard.messages(16)...); err != nil {
		t.Fatal(err)
	}
	read(1)
	if err := shard.checkRemote(testContext(t), links, 7, 1); !errors.Is(err, ErrInvalid) {
		t.Errorf("a read that is refused: %v", err)
	}
	read(1)
	links.idle[testServerID][0].opened = time.Now().Add(-2 * linkAge)
	read(2)
	links.idle[testServerID][0].used = time.Now().Add(-2 * linkIdle)
	read(3)
	end()
	if err := shard.checkRemote(testContext(t), links, 0, 1); status.Code(err) != codes.Unavailable || !isNodeFault(err) {
		t.Errorf("with nobody there: %v", err)
	}
	links.prolong(t, testServerID)
	if err := shard.checkRemote(testContext(t), links, 0, 1); status.Code(err) != codes.Unavailable || dials != 4 {
		t.Errorf("with nobody there, a moment later: %v, %d connections", err, dials)
	}
	links.mu.Lock()
	clear(links.failed)
	links.mu.Unlock()
	s.serveAgain(t)
	eventually(t, waitLimit, "the server is back", func() bool { return shard.checkRemote(testContext(t), links, 0, 3) == nil })
	before := dials
	end = s.serveAgain(t) // breaks the link that is kept
	read(before + 1)
	end()
}

// serveAgain ends the server's links and has it serve anew at the same address.
func (s *testServer) serveAgain(t testing.TB) (end func()) {
	t.Helper()
	if s.end != nil {
		s.end()
	}
	s.end = s.serve(t)
	return s.end
}

// TestShutdown: links without a call end at once, others with their call, and all when time is over.
func TestShutdown(t *testing.T) {
	s := startTestServer(t, diskConfig(filepath.Dir(newShardsDir(t))))
	links := s.connect(t)
	shard := newShardContent(t, 1, 256<<10, 2<<20)
	begin := func() *shardCall {
		t.Helper()
		call, err := links.call(testContext(t), testServerID, &proto.ShardCall{Write: shard.header})
		if err != nil {
			t.Fatal(err)
		}
		return call
	}
	idle, busy, late := begin(), begin(), begin()
	if err := (shardMessage{data: shard.data, trailer: shard.trailer()}).send(idle.link.link); err != nil {
		t.Fatal(err)
	}
	if _, _, err := idle.link.receive(idle.answer, maxHeadBytes); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a link without a call", func() bool { return s.busy() == 2 })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	over := make(chan struct{})
	go func() {
		s.links.Shutdown(ctx)
		close(over)
	}()
	if _, _, err := idle.link.receive(idle.answer, maxHeadBytes); err == nil || isTimeout(err) {
		t.Errorf("a link without a call: %v", err)
	}
	if err := (shardMessage{data: shard.data, trailer: shard.trailer()}).send(busy.link.link); err != nil {
		t.Fatal(err)
	}
	if _, _, err := busy.link.receive(busy.answer, maxHeadBytes); err != nil || busy.answer.GetCode() != 0 {
		t.Errorf("the call under way: %v, %v", err, busy.answer)
	}
	if _, _, err := busy.link.receive(busy.answer, maxHeadBytes); err == nil {
		t.Error("a link stays open after its call")
	}
	select {
	case <-over:
		t.Error("Shutdown did not wait for a call")
	default:
	}
	cancel()
	<-over
	if _, _, err := late.link.receive(late.answer, maxHeadBytes); err == nil {
		t.Error("a call goes on after its time")
	}
	for _, call := range []*shardCall{idle, busy, late} {
		call.abort()
	}
}

// TestServerUnderLoad writes and reads many shards at once.
func TestServerUnderLoad(t *testing.T) {
	s := startTestServer(t, diskConfig(filepath.Dir(newShardsDir(t))))
	links := s.connect(t)
	var all sync.WaitGroup
	for worker := range 16 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 0))
			for i := range 4 {
				shard := newShardContent(t, byte(worker*4+i), 32<<10, 1+random.IntN(1<<20))
				if _, err := send(t, links, testServerID, shard.header, shard.messages(1+random.IntN(1<<20))...); err != nil {
					t.Error(err)
					return
				}
				for range 8 {
					first := random.IntN(shard.layout.stripes())
					cells := 1 + random.IntN(min(32, shard.layout.stripes()-first))
					if err := shard.checkRemote(testContext(t), links, first, cells); err != nil {
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

// BenchmarkWriteShard measures a shard's way over a link, without TLS, to the disk.
func BenchmarkWriteShard(b *testing.B) {
	s := startTestServer(b, diskConfig(b.TempDir()))
	links := s.connect(b)
	shard := newShardContent(b, 1, 256<<10, 64<<20)
	b.SetBytes(int64(len(shard.data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := send(b, links, testServerID, shard.header, shard.messages(1<<20)...); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadShard measures the way back.
func BenchmarkReadShard(b *testing.B) {
	s := startTestServer(b, diskConfig(b.TempDir()))
	links := s.connect(b)
	shard := newShardContent(b, 1, 256<<10, 64<<20)
	if _, err := shard.write(s.disk); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	ctx := context.Background()
	request := &proto.ReadShardRequest{ExtentId: shard.header.GetExtentId(), ShardNumber: 1, Cells: 4}
	buf := make([]byte, 1<<20)
	for b.Loop() {
		request.FirstCell = (request.GetFirstCell() + 4) % uint32(shard.layout.stripes())
		call, err := links.call(ctx, testServerID, &proto.ShardCall{Read: request})
		if err == nil {
			err = call.link.receiveBulk(buf)
		}
		if err != nil {
			b.Fatal(err)
		}
		call.end()
	}
}
