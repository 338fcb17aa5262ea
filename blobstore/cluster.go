package blobstore

import (
	"context"
	"net"

	"google.golang.org/grpc"

	"github.com/atollregistry/atoll/proto"
)

// NodeInfo is what the store knows about a node that may hold shards.
type NodeInfo struct {
	// ID is the node's UUID.
	ID string
	// Zone is the failure zone; nodes of one zone may fail together.
	Zone string
	// Healthy is false while the node does not answer or is suspected.
	Healthy bool
	// Down nodes have not answered for so long that their shards are rebuilt.
	Down bool
	// Draining nodes serve their shards but take no new ones.
	Draining bool
	// FreeBytes is the room for new shards, the node's reserve already taken off.
	FreeBytes uint64
	// CapacityBytes is the node's weight in placement. 0 counts as 1.
	CapacityBytes uint64
}

// Cluster is how the store sees and reaches the nodes. All methods may be called
// concurrently, and all but Dial return at once.
type Cluster interface {
	// Self returns the id of this node.
	Self() string
	// Nodes returns all nodes that are not removed, this one included, in any
	// order. The caller may change the slice.
	Nodes() []NodeInfo
	// Conn returns a connection to a node. It fails when the node is not a member
	// or has no address; that the node is down shows in the calls made on it.
	Conn(nodeID string) (grpc.ClientConnInterface, error)
	// Dial opens a connection to a node on which its LinkServer answers, as soon as it is there or ctx ends.
	Dial(ctx context.Context, nodeID string) (net.Conn, error)
	// ClusterID is what this node says, on such connections, of the cluster that it belongs to.
	ClusterID() string
	// Suspect reports that a node failed or stalled in the middle of work, so that
	// new work avoids it until it has proved to be well.
	Suspect(nodeID string, err error)
}

// Catalog is the cluster's records of extents, blobs being none of this package's
// business. What it lists is the state of this node, which may be a little old;
// every change is checked against the newest state when it is made.
type Catalog interface {
	// LiveShards tells for each shard whether the records say that it is on the node
	// that the reference names, and in which era they say so. The answer is
	// linearizable: whatever was recorded before the call is seen. An error says
	// nothing about any of them.
	LiveShards(ctx context.Context, shards []*proto.ShardRef) (live []bool, era uint64, err error)
	// Era returns the era as this node knows it. An extent of an era is not recorded
	// any more when two others have begun.
	Era() uint64

	// CatchUp returns once the lists below have everything that was recorded before.
	CatchUp(ctx context.Context) error

	// ReportShards marks shards as damaged, if they are where the references say.
	ReportShards(ctx context.Context, shards []*proto.ShardRef) error
	// MoveShards records where shards are now, and tells how many of the moves were
	// still good.
	MoveShards(ctx context.Context, moves []*proto.ShardMove) (moved int, err error)
	// ReplaceExtent records extents in the place of one with the same bytes.
	ReplaceExtent(ctx context.Context, id []byte, extents []*proto.Extent) error

	// Extents lists extents in the order of their ids, those behind after. Fewer than
	// limit are the last. Inline ones come without their bytes, and in no other list.
	Extents(after []byte, limit int) ([]*proto.Extent, error)
	// DegradedExtents lists those with a shard that no node has, or that is damaged.
	DegradedExtents(after []byte, limit int) ([]*proto.Extent, error)
	// ExtentsOn lists those with a shard on a node.
	ExtentsOn(nodeID string, after []byte, limit int) ([]*proto.Extent, error)
	// ShardUsage returns what each node holds, by node id.
	ShardUsage() (map[string]*proto.ShardUsage, error)

	// LocalSettings are the cluster's settings. They must not be changed.
	LocalSettings() *proto.Settings
	// ChangeSettings has edit change the settings, unless somebody else does.
	ChangeSettings(ctx context.Context, edit func(*proto.Settings)) error
}
