package blobstore

import "github.com/atollregistry/atoll/proto"

// PlanExtent returns the layout of a new extent, and the ids of the nodes for its shards by their numbers, as
// a store of this configuration would choose them now. Extents of one key prefer the same nodes; small ones are
// mirrored. It is a pure function, and fails with ErrInsufficientNodes, or ErrNoSpace if room is all that is missing.
func PlanExtent(cfg Config, nodes []NodeInfo, key string, small bool) (*proto.Layout, []string, error) {
	l, err := chooseLayout(nodes, small, 0, cfg)
	if err != nil {
		return nil, nil, err
	}
	ids, err := place(nodes, key, int(l.GetDataShards()+l.GetParityShards()))
	return l, ids, err
}

// PlanRepair returns a function that tells what the leader would have done first for an extent, with these nodes: by
// which node, how many bytes that is of its pace, and whether the whole extent is stored anew rather than a shard
// rebuilt. The node is empty if the extent needs nothing; an error says why nothing can be done.
func PlanRepair(cfg Config, nodes []NodeInfo) func(*proto.Extent) (node string, bytes int64, anew bool, err error) {
	v := newSurvey(cfg, nodes)
	return func(extent *proto.Extent) (string, int64, bool, error) {
		_, todo, err := v.plan(extent, failure{})
		if err != nil || todo == nil {
			return "", 0, false, err
		}
		return todo.node, todo.bytes, todo.task.GetReencode(), nil
	}
}
