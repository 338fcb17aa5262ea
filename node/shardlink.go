package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/atollregistry/atoll/blobstore"
)

const (
	// shardLinks stands for links where methods of gRPC are allowed or refused.
	shardLinks = "/atoll.v1.Shards/links"
	// shardDialTimeout bounds the opening of a link, handshake included.
	shardDialTimeout = 2 * time.Second
)

// linkKeepAlive finds a peer whose kernel vanished without a word, in some 8 s. One whose process was stopped, blobstore finds.
var linkKeepAlive = net.KeepAliveConfig{Enable: true, Idle: keepaliveTime, Interval: time.Second, Count: 3}

// dialShards opens a link to the node at an address.
func (p *connPool) dialShards(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, shardDialTimeout)
	defer cancel()
	conn, err := p.dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	keepAlive(conn)
	secured := tls.Client(blobstore.NewCorkedConn(conn), p.tls.client(protocolShards, p.nodeAt(address)))
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("secure connection to %s: %w", address, err), conn.Close())
	}
	return secured, nil
}

// keepAlive has the kernel find out when nobody is there any more at the other end of a connection, whether something is on its
// way there or not.
func keepAlive(conn net.Conn) {
	if corked, ok := conn.(*blobstore.CorkedConn); ok {
		conn = corked.Conn
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(linkKeepAlive) // without it, a vanished peer is found later
		_ = boundUnanswered(tcp, keepaliveTime+keepaliveTimeout)
	}
}

// admitLink says whether who has opened a link may use it.
func (p *parts) admitLink(conn net.Conn, clusterID string) error {
	admitted, ok := conn.(*nodeConn)
	if !ok {
		return errors.New("connection did not come by the cluster port")
	}
	if err := p.gate.mayCall(admitted.node, shardLinks); err != nil {
		return err
	}
	return sameCluster(clusterID, p.clusterID())
}
