package metadata

import (
	"context"
	"slices"

	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/proto"
)

// This file is about which nodes may hold shards. Which of them vote is kept by
// consensus.

func (c *change) initCluster(command *proto.InitCluster) error {
	if !isName(command.GetClusterId()) {
		return invalid("cluster id %q", command.GetClusterId())
	}
	id, err := c.clusterID()
	if err != nil {
		return err
	}
	if id != "" && id != command.GetClusterId() {
		return refuse(proto.Refusal_REFUSAL_CLUSTER_ID, "it is %s, not %s", id, command.GetClusterId())
	}
	c.republish = true
	return c.putValue(bucketCluster, []byte(keyClusterID), []byte(command.GetClusterId()))
}

// putNode adds a node, or updates what its operator configured. When and in
// which state it joined stays.
func (c *change) putNode(command *proto.PutNode) error {
	if !isName(command.GetNode().GetId()) || !isName(command.GetNode().GetName()) {
		return invalid("node %q with the name %q", command.GetNode().GetId(), command.GetNode().GetName())
	}
	if command.GetReplacesId() == command.GetNode().GetId() {
		return invalid("node %s replaces itself", command.GetReplacesId())
	}
	node := pb.Clone(command.GetNode()).(*proto.Node)
	node.State, node.JoinedUnixMs = proto.NodeState_NODE_STATE_ACTIVE, c.now
	node.Liveness, node.LivenessUnixMs = proto.Liveness_LIVENESS_UNSPECIFIED, 0
	var old proto.Node
	known, err := c.record(bucketNodes, keyOf(node.GetId()), &old)
	if err != nil {
		return err
	}
	if known {
		if old.GetState() == proto.NodeState_NODE_STATE_REMOVED {
			return refuse(proto.Refusal_REFUSAL_NODE_REMOVED, "node %s", node.GetId())
		}
		node.State, node.JoinedUnixMs = old.GetState(), old.GetJoinedUnixMs()
		node.Liveness, node.LivenessUnixMs = old.GetLiveness(), old.GetLivenessUnixMs()
	}
	if command.GetReplacesId() != "" {
		if err := c.removeNode(command.GetReplacesId()); err != nil {
			return err
		}
	}
	if err := c.checkNodeName(node); err != nil {
		return err
	}
	c.republish = true
	return c.put(bucketNodes, keyOf(node.GetId()), node)
}

// checkNodeName refuses a name that another node has. Removed nodes have none.
func (c *change) checkNodeName(node *proto.Node) error {
	nodes, err := c.nodes()
	if err != nil {
		return err
	}
	for _, other := range nodes {
		if other.GetName() == node.GetName() && other.GetId() != node.GetId() &&
			other.GetState() != proto.NodeState_NODE_STATE_REMOVED {
			return refuse(proto.Refusal_REFUSAL_NODE_NAME_TAKEN, "node %s has the name %q", other.GetId(), other.GetName())
		}
	}
	return nil
}

// removeNode sets a node to removed, if it is not already. Its shards are taken
// off the records by Expire, some at a time: they may be millions.
func (c *change) removeNode(id string) error {
	var node proto.Node
	found, err := c.record(bucketNodes, keyOf(id), &node)
	if err != nil {
		return err
	}
	if !found {
		return refuse(proto.Refusal_REFUSAL_NODE_UNKNOWN, "node %q", id)
	}
	node.State = proto.NodeState_NODE_STATE_REMOVED
	c.republish = true
	return c.put(bucketNodes, keyOf(id), &node)
}

func (c *change) setNodeState(command *proto.SetNodeState) error {
	var node proto.Node
	found, err := c.record(bucketNodes, keyOf(command.GetId()), &node)
	switch {
	case err != nil:
		return err
	case !found:
		return refuse(proto.Refusal_REFUSAL_NODE_UNKNOWN, "node %q", command.GetId())
	case node.GetState() == command.GetState():
		return nil
	case node.GetState() == proto.NodeState_NODE_STATE_REMOVED:
		return refuse(proto.Refusal_REFUSAL_NODE_REMOVED, "node %s", command.GetId())
	}
	if command.GetMustBeEmpty() {
		if err := c.checkEmpty(command.GetId()); err != nil {
			return err
		}
	}
	if len(command.GetActive()) > 0 {
		if err := c.checkActive(command.GetActive()); err != nil {
			return err
		}
	}
	switch command.GetState() {
	case proto.NodeState_NODE_STATE_REMOVED:
		return c.removeNode(command.GetId())
	case proto.NodeState_NODE_STATE_ACTIVE, proto.NodeState_NODE_STATE_DRAINING:
		node.State = command.GetState()
		c.republish = true
		return c.put(bucketNodes, keyOf(command.GetId()), &node)
	default:
		return invalid("node state %v", command.GetState())
	}
}

// checkActive refuses unless the active nodes are those that the caller has counted
// on.
func (c *change) checkActive(expected []string) error {
	nodes, err := c.nodes()
	if err != nil {
		return err
	}
	if active := activeIDs(nodes); !slices.Equal(active, expected) {
		return refuse(proto.Refusal_REFUSAL_PRECONDITION, "the active nodes are %v, not %v", active, expected)
	}
	return nil
}

func activeIDs(nodes []*proto.Node) (ids []string) {
	for _, node := range nodes {
		if node.GetState() == proto.NodeState_NODE_STATE_ACTIVE {
			ids = append(ids, node.GetId())
		}
	}
	return ids
}

// checkEmpty refuses a node that holds shards.
func (c *change) checkEmpty(id string) error {
	var usage proto.ShardUsage
	if _, err := c.record(bucketShardUsage, keyOf(id), &usage); err != nil {
		return err
	}
	if usage.GetShards() > 0 {
		return refuse(proto.Refusal_REFUSAL_NODE_NOT_EMPTY, "node %s holds %d", id, usage.GetShards())
	}
	return nil
}

// setLiveness takes down what the leader has seen of a node. One that led before, and
// was paused since, may have seen what is long over: so nothing may have been recorded
// since it looked.
func (c *change) setLiveness(command *proto.SetLiveness) error {
	var node proto.Node
	found, err := c.record(bucketNodes, keyOf(command.GetId()), &node)
	switch {
	case err != nil:
		return err
	case !found:
		return refuse(proto.Refusal_REFUSAL_NODE_UNKNOWN, "node %q", command.GetId())
	case node.GetState() == proto.NodeState_NODE_STATE_REMOVED:
		return refuse(proto.Refusal_REFUSAL_NODE_REMOVED, "node %s", command.GetId())
	case command.SeenUnixMs != nil && command.GetSeenUnixMs() != node.GetLivenessUnixMs():
		return refuse(proto.Refusal_REFUSAL_PRECONDITION, "somebody else has recorded whether node %s is there", command.GetId())
	case node.GetLiveness() == command.GetLiveness():
		return nil
	case command.GetLiveness() < 0 || command.GetLiveness() > proto.Liveness_LIVENESS_DOWN:
		return invalid("liveness %v", command.GetLiveness())
	}
	node.Liveness, node.LivenessUnixMs = command.GetLiveness(), c.now
	c.republish = true
	return c.put(bucketNodes, keyOf(command.GetId()), &node)
}

// isThere reports whether the node's shards count: it was not removed and is not
// down.
func (v view) isThere(id string) (bool, error) {
	var node proto.Node
	found, err := v.record(bucketNodes, keyOf(id), &node)
	return found && node.GetState() != proto.NodeState_NODE_STATE_REMOVED && node.GetLiveness() != proto.Liveness_LIVENESS_DOWN, err
}

// nodes returns all nodes, removed ones included, in the order of their ids.
func (v view) nodes() (nodes []*proto.Node, err error) {
	err = v.scan(bucketNodes, span{}, func(key, value []byte) error {
		node := &proto.Node{}
		nodes = append(nodes, node)
		return decode(bucketNodes, key, value, node)
	})
	return nodes, err
}

// clusterID returns the cluster's id; empty if it has none yet.
func (v view) clusterID() (string, error) {
	value, _, err := v.value(bucketCluster, []byte(keyClusterID))
	return string(value), err
}

// Nodes returns all nodes, removed ones included, in the order of their ids.
// Error: ErrUnavailable.
func (s *Store) Nodes(ctx context.Context) (nodes []*proto.Node, err error) {
	err = s.read(ctx, func(v view) error {
		nodes, err = v.nodes()
		return err
	})
	return nodes, err
}

// LocalNodes returns all nodes that this node knows of, removed ones included,
// in the order of their ids, without waiting for anybody. The messages and the
// slice are shared: they must not be changed.
func (s *Store) LocalNodes() []*proto.Node { return s.machine.Nodes() }

// ClusterID returns the cluster's id as this node knows it; empty if none.
func (s *Store) ClusterID() string { return s.machine.ClusterID() }

// InitCluster gives the cluster its id, once. Errors: ErrClusterID, ErrInvalid,
// ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) InitCluster(ctx context.Context, clusterID string) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_InitCluster{InitCluster: &proto.InitCluster{
		ClusterId: clusterID,
	}}})
	return err
}

// PutNode adds a node, or updates its name, addresses, zone and capacity.
// replacesID is the id of the node whose name it takes over, which is removed in
// the same step; empty for none. Errors: ErrNodeNameTaken, ErrNodeRemoved,
// ErrNodeUnknown for replacesID, ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) PutNode(ctx context.Context, node *proto.Node, replacesID string) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_PutNode{PutNode: &proto.PutNode{
		Node: node, ReplacesId: replacesID,
	}}})
	return err
}

// SetNodeState makes a node active or draining, or removes it for good. Errors:
// ErrNodeUnknown, ErrNodeRemoved, ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) SetNodeState(ctx context.Context, id string, state proto.NodeState) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_SetNodeState{SetNodeState: &proto.SetNodeState{
		Id: id, State: state,
	}}})
	return err
}

// DrainNode makes a node draining once check has found that the other nodes can take
// its place. Two nodes may pass that at the same moment, each counting on the other:
// so it fails with ErrPrecondition if any node was drained, removed or added since
// check began, and the caller may try again. Other errors: those of check and of
// SetNodeState.
func (s *Store) DrainNode(ctx context.Context, id string, check func() error) error {
	active := activeIDs(s.LocalNodes())
	if err := check(); err != nil {
		return err
	}
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_SetNodeState{SetNodeState: &proto.SetNodeState{
		Id: id, State: proto.NodeState_NODE_STATE_DRAINING, Active: active,
	}}})
	return err
}

// RemoveEmptyNode removes a node for good, unless it holds shards. Errors:
// ErrNodeNotEmpty, and those of SetNodeState.
func (s *Store) RemoveEmptyNode(ctx context.Context, id string) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_SetNodeState{SetNodeState: &proto.SetNodeState{
		Id: id, State: proto.NodeState_NODE_STATE_REMOVED, MustBeEmpty: true,
	}}})
	return err
}

// SetLiveness takes down what the leader has seen of a node's heartbeats, unless
// somebody else has recorded something since; seen is the node's record as the leader
// knew it when it looked. Errors: ErrPrecondition, ErrNodeUnknown, ErrNodeRemoved,
// ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) SetLiveness(ctx context.Context, seen *proto.Node, liveness proto.Liveness) error {
	at := seen.GetLivenessUnixMs()
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_SetLiveness{SetLiveness: &proto.SetLiveness{
		Id: seen.GetId(), Liveness: liveness, SeenUnixMs: &at,
	}}})
	return err
}
