package consensus

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/rs/zerolog"
)

const (
	// raftConnPool is how many idle connections are kept to each node: for
	// heartbeats, for entries, and one in reserve.
	raftConnPool = 3
	// raftCallsInFlight of 1 turns the library's pipelining off. It brings nothing
	// measurable, and it can deadlock: when a follower refuses a message, sender and
	// receiver may wait for each other for ever, while heartbeats go on and nobody
	// elects another leader (hashicorp/raft issue 612, grafana/pyroscope pull 5518).
	raftCallsInFlight = 1
	// dialPatience is how long a connection to a node that is away is tried for, and
	// dialInterval how often. The library waits up to 10 s longer after each failure,
	// and a node that comes back would be left without entries for as long.
	dialPatience = 30 * time.Second
	dialInterval = 200 * time.Millisecond
	// dialTimeout bounds each attempt, so that a lost packet does not cost more.
	dialTimeout = 2 * time.Second
	// snapshotBytesPerTimeout is how much of a snapshot a node must take within
	// each Config.NetworkTimeout, on average.
	snapshotBytesPerTimeout = 4 << 20
)

// transport is the library's, but asks for nodes by id and address, so that a
// connection is one to that node and not to whoever listens there now. A node with
// a wiped disk answers at its old address under a new id, and has forgotten what it
// acknowledged: its vote must not count as the old one's.
type transport struct {
	*raft.NetworkTransport
	// inbox is what Raft gets: what comes from other nodes, and from notices.
	inbox chan raft.RPC
}

var _ raft.WithPreVote = transport{}

// idSeparator stands between id and address of what streams.Dial is asked for.
const idSeparator = "@"

func nodeAt(id raft.ServerID, address raft.ServerAddress) raft.ServerAddress {
	return raft.ServerAddress(id) + idSeparator + address
}

// AppendEntriesPipeline implements raft.Transport.
func (t transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	return t.NetworkTransport.AppendEntriesPipeline(id, nodeAt(id, target))
}

// AppendEntries implements raft.Transport.
func (t transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return t.NetworkTransport.AppendEntries(id, nodeAt(id, target), args, resp)
}

// RequestVote implements raft.Transport.
func (t transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.NetworkTransport.RequestVote(id, nodeAt(id, target), args, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (t transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.NetworkTransport.RequestPreVote(id, nodeAt(id, target), args, resp)
}

// InstallSnapshot implements raft.Transport.
func (t transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	return t.NetworkTransport.InstallSnapshot(id, nodeAt(id, target), args, resp, data)
}

// TimeoutNow implements raft.Transport.
func (t transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.NetworkTransport.TimeoutNow(id, nodeAt(id, target), args, resp)
}

// newTransport starts Raft's own transport on the network.
func newTransport(cfg *Config, streams *streams) transport {
	library := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:                  streams,
		MaxPool:                 raftConnPool,
		MaxRPCsInFlight:         raftCallsInFlight,
		Timeout:                 cfg.NetworkTimeout,
		Logger:                  newRaftLogger(cfg.Logger),
		MsgpackUseNewTimeFormat: true,
	})
	library.TimeoutScale = snapshotBytesPerTimeout
	return transport{library, make(chan raft.RPC)}
}

// Consumer implements raft.Transport.
func (t transport) Consumer() <-chan raft.RPC { return t.inbox }

// forward hands on what comes from other nodes until the replica is over.
func (t transport) forward(over <-chan struct{}) {
	from := t.NetworkTransport.Consumer()
	for {
		select {
		case message := <-from:
			select {
			case t.inbox <- message:
			case <-over:
				return
			}
		case <-over:
			return
		}
	}
}

// streams carries Raft's messages over a Network. It knows all connections, so
// that it can break them: the library waits without a limit for the next byte of
// a connection that it accepted, even in the middle of a snapshot.
type streams struct {
	network Network
	id      string
	group   func() string                // Config.GroupID
	holds   func(net.Conn, string) error // Config.Holds
	address address                      // at which the others know this node
	log     zerolog.Logger
	// attempts are those of Dial, by what it was asked for.
	attempts *attempts

	closing chan struct{} // closed by Close

	mu     sync.Mutex // guards both
	conns  map[*streamConn]struct{}
	closed bool
}

var _ raft.StreamLayer = (*streams)(nil)

// address is a node's address as it stands in the configuration. The library
// takes the listener's address for it, which may be one of all interfaces.
type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

func newStreams(network Network, cfg *Config) *streams {
	return &streams{network: network, id: cfg.NodeID, group: cfg.GroupID, holds: cfg.Holds, address: address(cfg.Address), log: cfg.Logger, attempts: newAttempts(), closing: make(chan struct{}), conns: make(map[*streamConn]struct{})}
}

// Accept implements net.Listener.
func (s *streams) Accept() (net.Conn, error) {
	if s.isClosed() {
		return nil, net.ErrClosed
	}
	conn, err := s.network.Accept()
	if err != nil {
		return nil, err
	}
	return s.track(conn, true)
}

// Dial implements raft.StreamLayer, for what nodeAt returns. It is patient: a node
// that is away may come back while it tries.
func (s *streams) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, address, found := strings.Cut(string(to), idSeparator)
	if !found {
		return nil, fmt.Errorf("dial %s: it is no node and address", to)
	}
	ticker := time.NewTicker(dialInterval)
	defer ticker.Stop()
	for deadline := time.Now().Add(dialPatience); ; {
		if s.isClosed() {
			return nil, net.ErrClosed
		}
		var err error = errOtherNode
		if s.attempts.begin(to, time.Now()) {
			var conn net.Conn
			conn, err = s.dialNode(id, address, min(timeout, dialTimeout))
			s.attempts.end(to, err, time.Now())
			if err == nil {
				return s.track(conn, false)
			}
		}
		if time.Now().After(deadline) {
			return nil, err
		}
		select {
		case <-ticker.C:
		case <-s.closing:
			return nil, net.ErrClosed
		}
	}
}

// Addr implements net.Listener.
func (s *streams) Addr() net.Addr { return s.address }

// Close breaks all connections and allows no new ones. The network stays open.
func (s *streams) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	s.mu.Unlock()
	s.breakConns(func(*streamConn) bool { return true })
	return nil
}

// breakIncoming breaks the connections that others opened. They open new ones.
func (s *streams) breakIncoming() {
	s.breakConns(func(c *streamConn) bool { return c.incoming })
}

func (s *streams) breakConns(which func(*streamConn) bool) {
	s.mu.Lock()
	var broken []*streamConn
	for conn := range s.conns {
		if which(conn) {
			broken = append(broken, conn)
		}
	}
	s.mu.Unlock()
	for _, conn := range broken {
		_ = conn.Close() // whoever uses it gets the error
	}
}

func (s *streams) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *streams) track(conn net.Conn, incoming bool) (net.Conn, error) {
	tracked := &streamConn{Conn: conn, owner: s, incoming: incoming}
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.conns[tracked] = struct{}{}
	}
	s.mu.Unlock()
	if closed {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	return tracked, nil
}

// streamConn is a connection that its owner forgets when it is closed.
type streamConn struct {
	net.Conn
	owner    *streams
	incoming bool
	// An incoming connection is greeted before its first byte is read, by the
	// goroutine that reads it.
	greeting sync.Once
	refused  error
}

// Read implements net.Conn.
func (c *streamConn) Read(p []byte) (int, error) {
	if c.incoming {
		c.greeting.Do(func() { c.refused = c.owner.greet(c.Conn) })
		if c.refused != nil {
			return 0, c.refused
		}
	}
	return c.Conn.Read(p)
}

// Close implements net.Conn.
func (c *streamConn) Close() error {
	c.owner.mu.Lock()
	delete(c.owner.conns, c)
	c.owner.mu.Unlock()
	return c.Conn.Close()
}
