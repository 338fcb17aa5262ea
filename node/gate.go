package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	atoll "github.com/atollregistry/atoll/proto"
)

const (
	// gatePoll is how often connections are held against the records when nothing has
	// changed there: a removed node may have left the Raft group meanwhile.
	gatePoll = 500 * time.Millisecond
	// formerGrace is how long calls may go on by a certificate whose authority is not
	// trusted any more, on connections that stood before. All nodes have new
	// certificates by then, and connectionAge has the calls to come on new connections.
	formerGrace = connectionAge + 5*time.Minute
)

// standing is what a certificate counts for here.
type standing int

const (
	// standingMember is also for nodes that are about to join.
	standingMember standing = iota + 1
	// standingLeaving is for a removed node that is still in the Raft group, for as long
	// as it takes to get out of it: a leader has to hand over. It may do no more.
	standingLeaving
	// standingRemoved is for a node that may only be told that it was removed.
	standingRemoved
)

// gate decides what other nodes may do here, by their certificates and by the records,
// and breaks connections that they may not have any more.
type gate struct {
	// nodes are all of the records, removed ones included.
	nodes func() []*atoll.Node
	// inGroup says whether a node is in the Raft group.
	inGroup func(id string) bool
	cluster *clusterListener
	// keys are nil with certificates from files. authority is that of the state.
	keys      *keyring
	authority func() *atoll.ClusterAuthority
	// changed has a token when the records may have changed.
	changed chan struct{}
	log     zerolog.Logger

	nextLog time.Time // of a fault in writing down whom this node trusts; used by Run alone

	mu sync.Mutex // guards both
	// removed is since when this process knows that a node was removed.
	removed map[string]time.Time
	// former is since when this process knows that an authority is not trusted any more.
	former map[authorityHash]time.Time
}

func newGate(nodes func() []*atoll.Node, changed chan struct{}, log zerolog.Logger) *gate {
	g := &gate{
		nodes: nodes, changed: changed, log: log,
		removed: make(map[string]time.Time), former: make(map[authorityHash]time.Time),
	}
	for _, node := range nodes() {
		if node.State == atoll.NodeState_NODE_STATE_REMOVED {
			g.removed[node.Id] = time.Time{} // whenever that was
		}
	}
	return g
}

// Run follows the records until ctx ends.
func (g *gate) Run(ctx context.Context) error {
	ticker := time.NewTicker(gatePoll)
	defer ticker.Stop()
	for {
		g.look()
		select {
		case <-ctx.Done():
			return nil
		case <-g.changed:
		case <-ticker.C:
		}
	}
}

// look does what the records ask for.
func (g *gate) look() {
	if g.keys != nil {
		if err := g.keys.adopt(g.authority()); err != nil && time.Now().After(g.nextLog) {
			g.nextLog = time.Now().Add(waitingLogInterval)
			g.log.Error().Err(err).Msg("could not write down whom this node trusts, trying again")
		}
	}
	for _, node := range g.nodes() {
		if node.State == atoll.NodeState_NODE_STATE_REMOVED {
			g.removedSince(node.Id)
		}
	}
	broken := g.cluster.cut(func(conn *nodeConn) bool {
		return !conn.told && g.standing(conn.node) == standingRemoved || g.isFormer(conn)
	})
	if broken > 0 {
		g.log.Info().Int("connections", broken).Msg("connections broken of nodes that were removed, or whose certificates are not good any more")
	}
}

func (g *gate) removedSince(id string) time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	since, known := g.removed[id]
	if !known {
		since = time.Now()
		g.removed[id] = since
	}
	return since
}

// isFormer says whether a connection stands by a certificate that would not be taken
// now. Raft's are opened anew at once and for nothing; calls are given time.
func (g *gate) isFormer(conn *nodeConn) bool {
	if g.keys == nil || g.keys.tls.trust.Load().has(conn.issuer) {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	since, known := g.former[conn.issuer]
	if !known {
		since = time.Now()
		g.former[conn.issuer] = since
	}
	return conn.protocol == protocolRaft || time.Since(since) > formerGrace
}

// standing is what a node's certificate counts for. Those from files don't name the
// node's id, and the name may be another node's by now: for those, what the node says of
// itself has to do.
func (g *gate) standing(node certified) standing {
	if node.id == "" || !wasRemoved(g.nodes(), node.id) {
		return standingMember
	}
	if time.Since(g.removedSince(node.id)) < leaveTimeout && g.inGroup(node.id) {
		return standingLeaving
	}
	return standingRemoved
}

// mayCall says whether a node may call a method. Nodes that were removed are told so, in
// answer to those calls that they make to learn how they are with the cluster.
func (g *gate) mayCall(caller certified, method string) error {
	switch method {
	case atoll.Membership_Identify_FullMethodName, atoll.Membership_Join_FullMethodName, atoll.Membership_Heartbeat_FullMethodName:
		return nil
	}
	switch g.standing(caller) {
	case standingRemoved:
	case standingLeaving:
		if strings.HasPrefix(method, "/"+atoll.Consensus_ServiceDesc.ServiceName+"/") {
			return nil
		}
	default:
		if method == atoll.Consensus_Propose_FullMethodName && !g.hasJoined(caller) {
			// To the caller: nothing was appended, ask again.
			return status.Errorf(codes.FailedPrecondition, "node %s is not a member of the cluster by the records of this one", caller)
		}
		return nil
	}
	return status.Errorf(codes.PermissionDenied, "node %s was removed from the cluster", caller)
}

// hasJoined says whether a node is in the records. A certificate alone lets nobody change
// the state: who has one by a stolen join token and never joins is in no list, and could
// have made that last. Those from files name no id that could be looked up.
func (g *gate) hasJoined(node certified) bool {
	return node.id == "" || slices.ContainsFunc(g.nodes(), func(n *atoll.Node) bool { return n.Id == node.id })
}

// holds returns an error unless a certificate is that of the node with an id.
func (g *gate) holds(node certified, id string) error {
	expected := certified{id: id}
	if node.id == "" { // from a file: the name has to do
		nodes := g.nodes()
		if at := slices.IndexFunc(nodes, func(n *atoll.Node) bool { return n.Id == id }); at >= 0 {
			expected.name = nodes[at].Name
		}
	}
	return node.fault(expected)
}

// holdsConn is holds for the other end of a connection of Raft's.
func (g *gate) holdsConn(conn net.Conn, id string) error {
	switch conn := conn.(type) {
	case *nodeConn:
		return g.holds(conn.node, id)
	case *tls.Conn:
		node, err := certifiedNode(conn.ConnectionState().PeerCertificates[0]) // verified in the handshake
		if err != nil {
			return err
		}
		return g.holds(node, id)
	}
	return fmt.Errorf("connection of type %T has no certificate", conn)
}

// nodeAt is the node that the records have at an address; nothing if there is none.
func nodeAt(nodes []*atoll.Node, address string) certified {
	for _, node := range nodes {
		if node.ClusterAddress == address && node.State != atoll.NodeState_NODE_STATE_REMOVED {
			return certified{id: node.Id, name: node.Name}
		}
	}
	return certified{}
}
