package metadata

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/atollregistry/atoll/proto"
)

// maxRecoveries is how many of its recoveries a cluster remembers. A node that
// missed more of them is told that it is of another cluster, and no more than that.
const maxRecoveries = 64

// recoverCluster gives the cluster another id. The id is all that keeps nodes apart
// that still have the old one: every connection between nodes carries it.
func (c *change) recoverCluster(command *proto.RecoverCluster) error {
	former := command.GetRecovery().GetFormerClusterId()
	if !isName(command.GetClusterId()) || !isName(former) || former == command.GetClusterId() {
		return invalid("cluster id %q after %q", command.GetClusterId(), former)
	}
	id, err := c.clusterID()
	if err != nil {
		return err
	}
	switch id {
	case command.GetClusterId():
		return nil // a recovery that was cut off, and was begun anew
	case former:
	default:
		return refuse(proto.Refusal_REFUSAL_CLUSTER_ID, "it is %s, not %s", id, former)
	}
	all, err := c.recoveries()
	if err != nil {
		return err
	}
	all = append(all, command.GetRecovery())
	all = all[max(0, len(all)-maxRecoveries):]
	c.republish = true
	if err := c.put(bucketCluster, []byte(keyRecoveries), &proto.Recoveries{Recoveries: all}); err != nil {
		return err
	}
	return c.putValue(bucketCluster, []byte(keyClusterID), []byte(command.GetClusterId()))
}

// recoveries returns the cluster's recoveries, the oldest first.
func (v view) recoveries() ([]*proto.Recovery, error) {
	var all proto.Recoveries
	_, err := v.record(bucketCluster, []byte(keyRecoveries), &all)
	return all.GetRecoveries(), err
}

// RecoverCommand returns the entry for the log by which a state becomes that of the
// cluster with the given id, at the time given. Error: ErrInvalid.
func RecoverCommand(clusterID string, recovery *proto.Recovery, now time.Time) ([]byte, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make request id: %w", err)
	}
	return encodeCommand(&proto.Command{
		RequestId: id[:], TimeUnixMs: now.UnixMilli(),
		Body: &proto.Command_RecoverCluster{RecoverCluster: &proto.RecoverCluster{ClusterId: clusterID, Recovery: recovery}},
	})
}

// Nodes returns all nodes in the state, removed ones included, in the order of their
// ids. The messages and the slice are shared: they must not be changed.
func (m *Machine) Nodes() []*proto.Node { return *m.nodes.Load() }

// ClusterID returns the id of the cluster that the state is of; empty if it has none.
func (m *Machine) ClusterID() string { return *m.clusterID.Load() }

// Recoveries returns the cluster's recoveries, the oldest first. The messages and the
// slice are shared: they must not be changed.
func (m *Machine) Recoveries() []*proto.Recovery { return *m.recoveries.Load() }

// Recoveries returns the cluster's recoveries as this node knows them, the oldest
// first, without waiting for anybody. They must not be changed.
func (s *Store) Recoveries() []*proto.Recovery { return s.machine.Recoveries() }
