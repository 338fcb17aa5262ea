package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

// replaceAfter is how long a node must have been silent before a new node may
// take over its name from another address.
const replaceAfter = 30 * time.Second

// joinTimeout bounds a join on the leader: two commands and two changes of the
// Raft configuration, and, where another node is replaced, a look at everything that
// one held, some microseconds for each shard.
const joinTimeout = time.Minute

// membership answers the nodes' questions about each other and admits new ones.
type membership struct {
	atoll.UnimplementedMembershipServer

	self    *atoll.Node
	store   *metadata.Store
	replica *consensus.Replica
	peers   *peers
	pool    *connPool
	log     zerolog.Logger
	// clusterID is parts.clusterID.
	clusterID func() string
	gate      *gate
	// lifetime is that of certificates that this node signs.
	lifetime time.Duration

	joining sync.Mutex // one join at a time on the leader
}

// Identify says who this node is.
func (m *membership) Identify(context.Context, *atoll.IdentifyRequest) (*atoll.IdentifyResponse, error) {
	return &atoll.IdentifyResponse{NodeId: m.self.Id, Name: m.self.Name, ClusterId: m.clusterID(), Recoveries: m.store.Recoveries()}, nil
}

// Heartbeat says how this node is.
func (m *membership) Heartbeat(ctx context.Context, request *atoll.HeartbeatRequest) (*atoll.HeartbeatResponse, error) {
	caller, err := callerOf(ctx)
	if err == nil {
		err = m.gate.holds(caller, request.NodeId)
	}
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	m.peers.note(request.NodeId)
	stats := m.peers.stats()
	stats.Removed = wasRemoved(m.store.LocalNodes(), request.NodeId)
	return stats, nil
}

// Join makes the caller a member, or updates what is known of it. On a follower
// the request goes to the leader.
func (m *membership) Join(ctx context.Context, request *atoll.JoinRequest) (*atoll.JoinResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	own := m.clusterID()
	if own == "" {
		return nil, status.Error(codes.FailedPrecondition, "this node belongs to no cluster yet")
	}
	if err := m.checkJoining(ctx, request); err != nil {
		return nil, err
	}
	if request.ClusterId != "" && request.ClusterId != own {
		advice := ""
		if (lineage{own, m.store.Recoveries()}).parting(request.ClusterId) != nil {
			advice = ", which was recovered from that one: run 'atoll recover --rejoin' with the joining node's configuration"
		}
		return nil, status.Errorf(codes.PermissionDenied, "the joining node's data belongs to cluster %s, this is cluster %s%s", request.ClusterId, own, advice)
	}
	if !m.replica.IsLeader() {
		return m.forward(ctx, request)
	}
	if err := m.admit(ctx, request.Node); err != nil {
		return nil, joinStatus(err)
	}
	return &atoll.JoinResponse{ClusterId: own}, nil
}

// checkJoining sees to it that a node asks for itself: by its own certificate, or by way
// of a member that has seen that.
func (m *membership) checkJoining(ctx context.Context, request *atoll.JoinRequest) error {
	caller, err := callerOf(ctx)
	if err != nil {
		return err
	}
	if request.GetNode().GetId() == "" || request.GetNode().GetName() == "" {
		return status.Error(codes.InvalidArgument, "the request to join names no node")
	}
	if !request.Forwarded {
		if err := caller.fault(certified{id: request.Node.GetId(), name: request.Node.GetName()}); err != nil {
			return status.Error(codes.PermissionDenied, err.Error())
		}
		return nil
	}
	for _, member := range m.store.LocalNodes() {
		known := member.State != atoll.NodeState_NODE_STATE_REMOVED && member.Name == caller.name
		if known && (caller.id == "" || caller.id == member.Id) {
			return nil
		}
	}
	// To the joining node, that passes: it may ask another one.
	return status.Errorf(codes.Unavailable, "node %s is not a member of the cluster, and can't ask for others", caller)
}

func (m *membership) forward(ctx context.Context, request *atoll.JoinRequest) (*atoll.JoinResponse, error) {
	id, address := m.replica.Leader()
	if id == "" || id == m.self.Id {
		return nil, status.Error(codes.Unavailable, "the cluster has no leader now")
	}
	conn, err := m.pool.conn(target{address, certified{id: id, name: nodeAt(m.store.LocalNodes(), address).name}})
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	forwarded := pb.Clone(request).(*atoll.JoinRequest)
	forwarded.Forwarded = true
	return atoll.NewMembershipClient(conn).Join(ctx, forwarded)
}

// admit records the node, then lets it into the Raft group. Both steps may be
// repeated, so a join that was cut in between is simply asked for again.
func (m *membership) admit(ctx context.Context, joining *atoll.Node) error {
	m.joining.Lock()
	defer m.joining.Unlock()
	nodes, err := m.store.Nodes(ctx)
	if err != nil {
		return fmt.Errorf("admit node %s: %w", joining.Name, err)
	}
	if wasRemoved(nodes, joining.Id) { // before its name counts, which may be another's by now
		return fmt.Errorf("admit node %s: %w", joining.Name, metadata.ErrNodeRemoved)
	}
	replaces, err := m.replaced(ctx, nodes, joining)
	if err != nil {
		return err
	}
	if err := addressTaken(nodes, joining); err != nil {
		return err
	}
	if replaces != "" {
		if err := m.checkReplaceable(ctx, joining.Name, replaces); err != nil {
			return err
		}
	}
	if err := m.store.PutNode(ctx, joining, replaces); err != nil {
		return fmt.Errorf("admit node %s: %w", joining.Name, err)
	}
	if replaces != "" {
		m.log.Warn().Str("name", joining.Name).Str("old", replaces).Str("new", joining.Id).Msg("node replaced: it came back with an empty data folder")
		if err := m.replica.RemoveNode(ctx, replaces); err != nil {
			return fmt.Errorf("replace node %s: %w", joining.Name, err)
		}
	}
	if err := m.replica.AddNode(ctx, joining.Id, joining.ClusterAddress); err != nil {
		return fmt.Errorf("admit node %s: %w", joining.Name, err)
	}
	m.log.Info().Str("name", joining.Name).Str("id", joining.Id).Str("address", joining.ClusterAddress).Msg("node admitted")
	return nil
}

// checkReplaceable refuses to replace a node that has what no other has now. Most
// likely its disk is only not mounted: to replace it would be to refuse its data when
// it is. Nodes that don't answer count as gone, and so do those that were replaced
// before and whose shards are not rebuilt yet.
func (m *membership) checkReplaceable(ctx context.Context, name, id string) error {
	losses, err := m.store.Losses(ctx, id, func(other string) bool { return !m.peers.reachable(other) })
	if err != nil {
		return fmt.Errorf("admit node %s: %w", name, err)
	}
	if losses.Blobs > 0 {
		return fmt.Errorf("admit node %s: the node of that name holds what no other node that answers can do without, and %d blobs would be lost with it: "+
			"start it with its data, and see that its disk is mounted; or wait until the other nodes are back and 'atoll status' shows no degraded blobs; "+
			"or give that up with 'atoll remove %s --force'", name, losses.Blobs, name)
	}
	return nil
}

// replaced finds the node whose name the joining one takes over. It must be gone
// for certain: the joining one answers at its address, or it has been silent for long.
func (m *membership) replaced(ctx context.Context, nodes []*atoll.Node, joining *atoll.Node) (string, error) {
	for _, node := range nodes {
		if node.Name != joining.Name || node.Id == joining.Id || node.State == atoll.NodeState_NODE_STATE_REMOVED {
			continue
		}
		silence, atItsAddress := m.peers.silence(node.Id), node.ClusterAddress == joining.ClusterAddress
		switch {
		case atItsAddress && m.isThere(ctx, joining), node.Id != m.self.Id && silence > replaceAfter:
			return node.Id, nil
		case m.peers.reachable(node.Id) && (!atItsAddress || m.isThere(ctx, node)):
			return "", fmt.Errorf("admit node %s: %w: the node of that name at %s is alive", joining.Name, metadata.ErrNodeNameTaken, node.ClusterAddress)
		default: // the joining node asks again
			return "", fmt.Errorf("admit node %s: the node of that name at %s has been silent for %s only; its place is free after %s",
				joining.Name, node.ClusterAddress, silence.Round(time.Second), replaceAfter)
		}
	}
	return "", nil
}

// isThere asks a node itself whether it is where it says. That a node does not answer says
// little of one that may be being started again.
func (m *membership) isThere(ctx context.Context, node *atoll.Node) bool {
	answer, err := m.pool.identifyAs(ctx, target{node.ClusterAddress, certified{id: node.Id, name: node.Name}})
	return err == nil && answer.NodeId == node.Id
}

// addressTaken refuses a node at the address of another one of another name: the
// Raft group could not have both.
func addressTaken(nodes []*atoll.Node, joining *atoll.Node) error {
	for _, node := range nodes {
		if node.ClusterAddress == joining.ClusterAddress && node.Name != joining.Name && node.State != atoll.NodeState_NODE_STATE_REMOVED {
			return fmt.Errorf("admit node %s: %w: node %s has the address %s: give this one another address, or the name %s to take over its place",
				joining.Name, metadata.ErrNodeNameTaken, node.Name, node.ClusterAddress, node.Name)
		}
	}
	return nil
}

// codeRemoved says that the joining node was removed: nobody has its id any more.
const codeRemoved = codes.NotFound

// joinStatus tells a refusal that stays from a state that passes.
func joinStatus(err error) error {
	switch {
	case errors.Is(err, metadata.ErrNodeNameTaken):
		return status.Error(codes.AlreadyExists, err.Error())
	case errors.Is(err, metadata.ErrNodeRemoved):
		return status.Error(codeRemoved, err.Error())
	case errors.Is(err, metadata.ErrInvalid):
		return status.Error(codes.InvalidArgument, err.Error())
	default:
		return status.Error(codes.Unavailable, err.Error())
	}
}

// isFinal tells whether asking to join again is pointless.
func isFinal(err error) bool {
	switch status.Code(err) {
	case codes.AlreadyExists, codes.PermissionDenied, codes.InvalidArgument, codeRemoved:
		return true
	default:
		return false
	}
}
