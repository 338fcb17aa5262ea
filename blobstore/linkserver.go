package blobstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/status"

	"github.com/atollregistry/atoll/proto"
)

const (
	// serverLinkIdle is how long a link may be without a call before the server closes it: longer than clients keep it,
	// so that they don't run into that.
	serverLinkIdle = 2 * linkIdle
	// answerTimeout bounds how long a client may take to read an answer, with up to maxReadBytes of cells.
	answerTimeout = time.Minute
	// drainTimeout bounds how long what a client still sends is read, and dropped, after it was refused: it would not
	// get the answer if the link was closed on what it sends.
	drainTimeout = 5 * time.Second
	// linkBeat is how often a writer that has nothing to send says that it is there, and writerTimeout how long nothing may come
	// from it, be it in the middle of a message: the kernel of a process that was stopped still answers.
	linkBeat, writerTimeout = 5 * time.Second, 20 * time.Second
	// pieceBytes is how much of a shard is received before it is written.
	pieceBytes = 256 << 10
)

// Admit says whether who has opened a connection, as a node of that cluster, may read and write shards here.
type Admit func(conn net.Conn, clusterID string) error

// LinkServer answers what other nodes ask for over links. Safe for concurrent use.
type LinkServer struct {
	server *server
	admit  Admit

	mu sync.Mutex // guards the fields below
	// conns tells of each connection whether a call is under way.
	conns   map[net.Conn]bool
	closing bool
	idle    sync.Cond // signalled when a connection is gone, on mu
}

// LinkServer returns a server for the connections on which other nodes read and write shards.
func (s *Store) LinkServer(admit Admit) *LinkServer { return newLinkServer(s.server, admit) }

func newLinkServer(server *server, admit Admit) *LinkServer {
	l := &LinkServer{server: server, admit: admit, conns: make(map[net.Conn]bool)}
	l.idle.L = &l.mu
	return l
}

// Serve answers on the connections of a listener until that is closed, and returns its error.
func (s *LinkServer) Serve(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		if !s.begin(conn) {
			_ = conn.Close() // it may be told so
			continue
		}
		go s.serve(conn) // ends with the connection, or when a disk answers
	}
}

// Shutdown closes links as their calls end, and all that are left when ctx ends.
func (s *LinkServer) Shutdown(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = true
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.idle.Broadcast()
	})
	defer stop()
	for conn, busy := range s.conns {
		if !busy {
			newLink(conn).abort()
		}
	}
	for len(s.conns) > 0 && ctx.Err() == nil {
		s.idle.Wait()
	}
	for conn := range s.conns {
		newLink(conn).abort()
	}
}

func (s *LinkServer) begin(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.conns[conn] = false
	}
	return !s.closing
}

// note takes down whether a call is under way on a connection. It returns false if no other may follow.
func (s *LinkServer) note(conn net.Conn, busy bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[conn] = busy
	return busy || !s.closing
}

func (s *LinkServer) end(conn net.Conn) {
	_ = conn.Close() // it is over either way
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
	s.idle.Broadcast()
}

// serve answers the calls on one connection.
func (s *LinkServer) serve(conn net.Conn) {
	defer s.end(conn)
	l := newLink(conn)
	for {
		call := &proto.ShardCall{}
		if conn.SetReadDeadline(time.Now().Add(serverLinkIdle)) != nil {
			return
		}
		if _, bulk, err := l.receive(call, maxCallBytes); err != nil || bulk > 0 || conn.SetReadDeadline(time.Time{}) != nil {
			return // The client has gone, or does not speak this protocol.
		}
		s.note(conn, true)
		if !s.answer(l, call) || !s.note(conn, false) {
			return
		}
	}
}

// answer answers a call. It returns false if the link is of no use any more.
func (s *LinkServer) answer(l *link, call *proto.ShardCall) bool {
	ctx, cancel := context.Background(), context.CancelFunc(func() {})
	if timeout := call.GetTimeoutMs(); timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(min(timeout, uint64(time.Hour.Milliseconds())))*time.Millisecond)
	}
	defer cancel()
	err := s.admit(l.conn, call.GetClusterId())
	if err == nil {
		err = checkNode(call.GetNodeId(), s.server.node)
	}
	switch {
	case err != nil:
		return reply(l, nil, err)
	case call.GetRead() != nil:
		return s.server.answerRead(ctx, l, call.GetRead())
	case call.GetWrite() != nil:
		return s.server.answerWrite(l, call.GetWrite())
	}
	return reply(l, nil, fmt.Errorf("neither a read nor a write: %w", ErrInvalid))
}

// reply sends an answer, or an error in its place, with the bulk behind it.
func reply(l *link, answer *proto.ShardAnswer, err error, bulk ...[]byte) bool {
	if err != nil {
		s := status.Convert(toStatus(err))
		answer, bulk = &proto.ShardAnswer{Code: uint32(s.Code()), Error: s.Message()}, nil
	}
	return l.conn.SetWriteDeadline(time.Now().Add(answerTimeout)) == nil && l.send(answer, bulk...) == nil &&
		l.conn.SetWriteDeadline(time.Time{}) == nil
}

// answerRead sends cells from a buffer that then goes back to its pool.
func (s *server) answerRead(ctx context.Context, l *link, request *proto.ReadShardRequest) bool {
	if err := s.awaitTurn(ctx, l); err != nil {
		return reply(l, nil, fmt.Errorf("wait for disk: %w", err))
	}
	checksums, cells, err := s.readShard(request)
	<-s.reads
	if cells == nil {
		return reply(l, nil, err)
	}
	defer cells.release()
	return reply(l, &proto.ShardAnswer{CellChecksums: checksums}, err, cells.data)
}

// awaitTurn waits for a place among the reads under way. It fails when ctx ends, or the client goes.
func (s *server) awaitTurn(ctx context.Context, l *link) error {
	select {
	case s.reads <- struct{}{}:
		return nil
	default:
	}
	gone, stop := watchHangUp(l.conn)
	defer stop()
	select {
	case s.reads <- struct{}{}:
		return nil
	case <-gone:
		return context.Canceled
	case <-ctx.Done():
		return ctx.Err()
	}
}

// watchHangUp closes gone when the client closes the connection, on which it has nothing to say. stop ends that.
func watchHangUp(conn net.Conn) (gone <-chan struct{}, stop func()) {
	ended, hungUp := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		if _, err := conn.Read(make([]byte, 1)); !isTimeout(err) {
			close(hungUp)
		}
	}()
	return hungUp, func() {
		_ = conn.SetReadDeadline(time.Unix(1, 0)) // a connection that fails that is over
		<-ended
		_ = conn.SetReadDeadline(time.Time{}) // nor then
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// answerWrite takes one shard.
func (s *server) answerWrite(l *link, header *proto.ShardHeader) bool {
	w, err := s.disks.create(header)
	if err != nil {
		return reply(l, nil, err)
	}
	defer w.Abort()
	if !reply(l, &proto.ShardAnswer{}, nil) {
		return false
	}
	trailer, err := s.receiveShard(l, w)
	if err == nil {
		var fileBytes uint64
		if fileBytes, err = w.Commit(trailer); err == nil {
			return reply(l, &proto.ShardAnswer{FileBytes: fileBytes}, nil)
		}
	}
	if !errors.Is(err, errLinkBroken) && reply(l, nil, err) {
		drain(l.conn)
	}
	return false
}

// errLinkBroken says that nobody is there to be answered.
var errLinkBroken = errors.New("link broken")

// receiveShard writes what comes up to the trailer, which it returns.
func (s *server) receiveShard(l *link, w *ShardWriter) (*proto.ShardTrailer, error) {
	for {
		trailer := &proto.ShardTrailer{}
		if err := l.conn.SetReadDeadline(time.Now().Add(s.writerTimeout)); err != nil {
			return nil, fmt.Errorf("%w: %w", errLinkBroken, err)
		}
		last, bulk, err := l.receive(trailer, maxHeadBytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errLinkBroken, err)
		}
		if err := s.receivePieces(l, w, bulk); err != nil {
			return nil, err
		}
		if last {
			return trailer, nil
		}
	}
}

// receivePieces writes the bulk of a message. It has memory for as long as that comes.
func (s *server) receivePieces(l *link, w *ShardWriter, bulk int) error {
	if bulk == 0 {
		return nil
	}
	piece := s.buffers.overdraw(min(bulk, pieceBytes))
	defer piece.release()
	for bulk > 0 {
		data := piece.data[:min(bulk, pieceBytes)]
		err := l.conn.SetReadDeadline(time.Now().Add(s.writerTimeout))
		if err == nil {
			err = l.receiveBulk(data)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errLinkBroken, err)
		}
		if err := w.Write(data); err != nil {
			return err
		}
		bulk -= len(data)
	}
	return nil
}

// drain drops what still comes until the client has read why, and goes.
func drain(conn net.Conn) {
	if conn.SetReadDeadline(time.Now().Add(drainTimeout)) == nil {
		_, _ = io.Copy(io.Discard, conn) // nobody wants it
	}
}
