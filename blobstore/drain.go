package blobstore

import (
	"context"
	"fmt"
	"slices"

	"github.com/atollregistry/atoll/proto"
)

// CheckDrain tells whether the other nodes could take what a node holds, and new
// blobs after that, by planning the move of each of its shards with the room that
// the nodes have now. It fails with ErrInsufficientNodes or ErrNoSpace if they
// could not, and with the errors of the catalog.
func (s *Store) CheckDrain(ctx context.Context, nodeID string) error {
	v := newSurvey(s.cfg, s.cluster.Nodes())
	if node := v.byID[nodeID]; node != nil {
		node.Draining = true
	}
	// Pushes need as many nodes as the smallest layout has shards, even if there is
	// nothing to move.
	if _, err := v.layoutNow(layout{size: 1}); err != nil {
		return err
	}
	var after []byte
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("plan the drain of node %s: %w", nodeID, err)
		}
		extents, err := s.catalog.ExtentsOn(nodeID, after, scanPage)
		if err != nil {
			return fmt.Errorf("list extents: %w", err)
		}
		for _, extent := range extents {
			if err := v.book(extent); err != nil {
				return err
			}
			after = extent.GetId()
		}
		if len(extents) < scanPage {
			return nil
		}
	}
}

// book plans what an extent needs and takes the room for it off the nodes. What is
// stored anew frees what it takes the place of, if only after the sweep.
func (v *survey) book(extent *proto.Extent) error {
	what, todo, why := v.plan(extent, failure{})
	switch what {
	case needNode:
		return why
	case needShard:
		v.take(todo.node, todo.bytes)
	case needLayout:
		l, err := extentLayout(extent)
		if err != nil {
			return err
		}
		fresh, err := v.layoutNow(l)
		if err != nil {
			return err
		}
		for _, node := range v.nodes {
			if node.Down || !takesShards(node) {
				continue
			}
			grows := int64(l.size / uint64(fresh.GetDataShards()))
			if slices.Contains(extent.GetHolders(), node.ID) {
				grows -= l.shardBytes()
			}
			v.take(node.ID, grows)
		}
	}
	return nil
}

// take takes room off a node, or gives it back.
func (v *survey) take(nodeID string, bytes int64) {
	node := v.byID[nodeID]
	if bytes > int64(node.FreeBytes) {
		node.FreeBytes = 0
		return
	}
	node.FreeBytes = uint64(int64(node.FreeBytes) - bytes)
}
