package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	atoll "github.com/atollregistry/atoll/proto"
)

const (
	// maxMessageBytes bounds one gRPC message. The largest command carries a manifest of 128 KiB.
	maxMessageBytes = 8 << 20
	// streamWindowBytes is the flow-control window of a stream.
	streamWindowBytes = 2 << 20
	// connWindowBytes bounds what a peer can have in flight to this node, and so
	// the memory that a slow disk here can tie up.
	connWindowBytes = 16 << 20
	// maxStreams bounds one peer's calls at a time.
	maxStreams = 4096
	// keepaliveTime and keepaliveTimeout find a peer that vanished without a
	// word: after at most 8 s its streams fail.
	keepaliveTime    = 5 * time.Second
	keepaliveTimeout = 3 * time.Second
	// connectionAge is how long a connection lasts, before the calls to come move to
	// another one: which shows the certificates of that time. connectionGrace is how long
	// those that are under way may go on.
	connectionAge   = 10 * time.Minute
	connectionGrace = 24 * time.Hour
	// identifyTimeout bounds the question who is at an address.
	identifyTimeout = 2 * time.Second
)

// clusterHeader carries the caller's cluster id in every call, so that nodes of
// two clusters with one authority don't mix.
const clusterHeader = "atoll-cluster"

// newGRPCServer makes the server for all services between nodes. clusterID
// returns "" while the node belongs to no cluster; mayCall says whether the node with
// that certificate may call a method.
func newGRPCServer(clusterID func() string, mayCall func(caller certified, method string) error) *grpc.Server {
	check := func(ctx context.Context, method string) error {
		caller, err := callerOf(ctx)
		if err == nil {
			err = mayCall(caller, method)
		}
		if err != nil {
			return err
		}
		return checkCluster(ctx, method, clusterID())
	}
	return grpc.NewServer(
		grpc.Creds(admittedCredentials{}),
		grpc.MaxRecvMsgSize(maxMessageBytes), grpc.MaxSendMsgSize(maxMessageBytes),
		grpc.InitialWindowSize(streamWindowBytes), grpc.InitialConnWindowSize(connWindowBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout, MaxConnectionAge: connectionAge, MaxConnectionAgeGrace: connectionGrace,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := check(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return next(ctx, request)
		}),
		grpc.StreamInterceptor(func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := check(stream.Context(), info.FullMethod); err != nil {
				return err
			}
			return next(server, stream)
		}),
	)
}

// checkCluster refuses calls from another cluster. A node that is about to join
// has no id yet and may only ask who is there, and to join.
func checkCluster(ctx context.Context, method, own string) error {
	if method == atoll.Membership_Identify_FullMethodName || method == atoll.Membership_Join_FullMethodName {
		return nil
	}
	return sameCluster(strings.Join(metadata.ValueFromIncomingContext(ctx, clusterHeader), " "), own)
}

// sameCluster refuses a caller of another cluster than this node's own, if it has one.
func sameCluster(callers, own string) error {
	if own != "" && callers != own {
		return status.Errorf(codes.PermissionDenied, "the caller belongs to cluster %q, this node to %q", callers, own)
	}
	return nil
}

// admittedCredentials are for connections that did their handshake before gRPC
// got them.
type admittedCredentials struct{}

func (admittedCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	admitted, ok := conn.(*nodeConn)
	if !ok {
		return nil, nil, errors.New("connection did not come by the cluster port")
	}
	return conn, callerInfo{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, node: admitted.node,
	}, nil
}

// callerInfo says whose certificate was shown on a connection.
type callerInfo struct {
	credentials.CommonAuthInfo
	node certified
}

// AuthType implements credentials.AuthInfo.
func (callerInfo) AuthType() string { return "tls" }

// callerOf is who has made a call, by the certificate.
func callerOf(ctx context.Context) (certified, error) {
	if from, ok := grpcpeer.FromContext(ctx); ok {
		if info, ok := from.AuthInfo.(callerInfo); ok {
			return info.node, nil
		}
	}
	return certified{}, status.Error(codes.Unauthenticated, "the call came without a certificate")
}

func (admittedCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("admitted credentials are a server's")
}

func (admittedCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}
func (c admittedCredentials) Clone() credentials.TransportCredentials { return c }
func (admittedCredentials) OverrideServerName(string) error           { return nil }

// connPool keeps one gRPC connection to each node, and one to each address at which a
// node is looked for.
type connPool struct {
	tls       *clusterTLS
	dial      Dialer
	clusterID func() string
	// nodeAt is the node that the records have at an address, of which id and name
	// count; nothing if they have none.
	nodeAt func(address string) certified

	mu     sync.Mutex // guards conns and closed
	conns  map[target]*grpc.ClientConn
	closed bool
}

// target is an address and the node that is expected there. No other than that node is
// talked to; an empty one stands for whichever of the cluster is there.
type target struct {
	address string
	node    certified
}

func newConnPool(identity *clusterTLS, dial Dialer, clusterID func() string, nodeAt func(address string) certified) *connPool {
	return &connPool{tls: identity, dial: dial, clusterID: clusterID, nodeAt: nodeAt, conns: make(map[target]*grpc.ClientConn)}
}

// Conn returns the connection to the node at an address. It connects in the background:
// errors come from the calls made on it.
func (p *connPool) Conn(address string) (grpc.ClientConnInterface, error) {
	return p.conn(target{address, p.nodeAt(address)})
}

func (p *connPool) conn(to target) (grpc.ClientConnInterface, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errors.New("connect: node is closing")
	}
	if conn, ok := p.conns[to]; ok {
		return conn, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+to.address, p.options(to.node)...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to.address, err)
	}
	p.conns[to] = conn
	for other, former := range p.conns { // whom the records had there before is not there any more
		if other.address == to.address && other.node != to.node && other.node != (certified{}) && to.node != (certified{}) {
			delete(p.conns, other)
			_ = former.Close() // its calls fail
		}
	}
	return conn, nil
}

// identify asks who is at an address, whichever cluster that belongs to.
func (p *connPool) identify(ctx context.Context, address string) (*atoll.IdentifyResponse, error) {
	return p.identifyAs(ctx, target{address: address})
}

// identifyAs asks a node who it is, and sees to it that its certificate says the same.
func (p *connPool) identifyAs(ctx context.Context, to target) (*atoll.IdentifyResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, identifyTimeout)
	defer cancel()
	conn, err := p.conn(to)
	if err != nil {
		return nil, err
	}
	var from grpcpeer.Peer
	answer, err := atoll.NewMembershipClient(conn).Identify(ctx, &atoll.IdentifyRequest{}, grpc.Peer(&from))
	if err != nil {
		return nil, err
	}
	info, ok := from.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return nil, fmt.Errorf("ask who is at %s: no certificate", to.address)
	}
	node, err := certifiedNode(info.State.PeerCertificates[0])
	if err == nil {
		err = node.fault(certified{id: answer.NodeId, name: answer.Name})
	}
	if err != nil {
		return nil, fmt.Errorf("ask who is at %s: %w", to.address, err)
	}
	return answer, nil
}

// connected tells whether there is a connection to the node at an address right now.
func (p *connPool) connected(address string) bool {
	to := target{address, p.nodeAt(address)}
	p.mu.Lock()
	defer p.mu.Unlock()
	conn, ok := p.conns[to]
	return ok && conn.GetState() == connectivity.Ready
}

func (p *connPool) options(expected certified) []grpc.DialOption {
	outgoing := func(ctx context.Context) context.Context {
		return metadata.AppendToOutgoingContext(ctx, clusterHeader, p.clusterID())
	}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(p.tls.client(protocolGRPC, expected))),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return p.dial(ctx, "tcp", address) }),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(maxMessageBytes),
		),
		grpc.WithInitialWindowSize(streamWindowBytes), grpc.WithInitialConnWindowSize(connWindowBytes),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnectBackoff, MinConnectTimeout: 2 * time.Second}),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, request, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(outgoing(ctx), method, request, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return stream(outgoing(ctx), desc, cc, method, opts...)
		}),
	}
}

// reconnectBackoff keeps a node that came back from waiting long for its peers:
// a heartbeat a second is the most that is lost by trying.
var reconnectBackoff = backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}

// Close ends all connections.
func (p *connPool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var errs []error
	for _, conn := range p.conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}
