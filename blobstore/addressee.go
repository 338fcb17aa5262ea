package blobstore

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// addresseeHeader carries, in every call of the Shards service, the id of the node
// that is meant. An address says less: a node that lost its data comes back there
// under a new id, and what it stored in the old one's name it would sweep.
const addresseeHeader = "atoll-node"

// connTo returns a connection to a node for calls of the Shards service. Whoever
// else answers at the node's address refuses them.
func (s *Store) connTo(node string) (grpc.ClientConnInterface, error) {
	conn, err := s.cluster.Conn(node)
	if err != nil {
		return nil, err
	}
	return &addressedConn{conn: conn, node: node}, nil
}

// addressedConn names the node that is meant in every call.
type addressedConn struct {
	conn grpc.ClientConnInterface
	node string
}

// Invoke is grpc.ClientConnInterface's.
func (a *addressedConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return a.conn.Invoke(withAddressee(ctx, a.node), method, args, reply, opts...)
}

// NewStream is grpc.ClientConnInterface's.
func (a *addressedConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return a.conn.NewStream(withAddressee(ctx, a.node), desc, method, opts...)
}

func withAddressee(ctx context.Context, node string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, addresseeHeader, node)
}

// checkAddressee refuses a call that is not meant for this node. To the caller that
// is the same as no answer: the node that it means is gone from there.
func checkAddressee(ctx context.Context, self string) error {
	return checkNode(strings.Join(metadata.ValueFromIncomingContext(ctx, addresseeHeader), " "), self)
}

// checkNode refuses a call that is meant for another node.
func checkNode(meant, self string) error {
	if meant != self {
		return status.Errorf(codes.Unavailable, "the call is meant for node %q, this is %s: the other was replaced or lost its data", meant, self)
	}
	return nil
}
