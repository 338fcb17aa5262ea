package metadata

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/atollregistry/atoll/proto"
)

// censusPage is how many shards one transaction of a census looks at: reads must
// be short, for open ones keep the database from reusing pages.
const censusPage = 1000

// Census counts the blobs of this node's state: whole with all their shards on
// healthy nodes, degraded with fewer, lost with too few to be read now. Removed
// nodes are never healthy. It looks only at extents that have a shard missing or
// on an unhealthy node, so it is quick while all is well. Other changes may go
// on meanwhile: the numbers are for people.
func (s *Store) Census(ctx context.Context, unhealthy func(nodeID string) bool) (whole, degraded, lost uint64, err error) {
	census := &census{bad: map[string]bool{"": true}}
	sources := []censusSource{{bucket: bucketDegraded}}
	for _, node := range s.LocalNodes() {
		if node.GetState() == proto.NodeState_NODE_STATE_REMOVED || unhealthy(node.GetId()) {
			census.bad[node.GetId()] = true
			sources = append(sources, censusSource{bucketShardsByNode, keyOf(node.GetId(), ""), node.GetId()})
		}
	}
	for _, source := range sources {
		keys := span{prefix: source.prefix}
		for more := true; more; {
			if err := ctx.Err(); err != nil {
				return 0, 0, 0, err
			}
			err := s.machine.view(func(v view) error {
				keys.after, more, err = census.page(v, source, keys)
				return err
			})
			if err != nil {
				return 0, 0, 0, fmt.Errorf("count blobs: %w", err)
			}
		}
	}
	var total uint64
	if err := s.machine.view(func(v view) error {
		total, err = v.number(bucketCluster, keyBlobCount)
		return err
	}); err != nil {
		return 0, 0, 0, fmt.Errorf("count blobs: %w", err)
	}
	if damaged := census.degraded + census.lost; total > damaged {
		whole = total - damaged
	}
	return whole, census.degraded, census.lost, nil
}

// censusSource lists extents that miss a shard for one reason.
type censusSource struct {
	bucket bucket
	prefix []byte
	// holder is the unhealthy node whose shards are listed; empty for the list of
	// shards that no node has.
	holder string
}

type census struct {
	// bad are the holders that don't count, the empty one included.
	bad            map[string]bool
	degraded, lost uint64
}

// page counts the blobs of one page of a source's extents.
func (n *census) page(v view, source censusSource, s span) (last []byte, more bool, err error) {
	ids, more, err := v.rests(source.bucket, s, censusPage)
	if err != nil {
		return nil, false, err
	}
	for _, id := range ids {
		if err := n.extent(v, source, []byte(id)); err != nil {
			return nil, false, err
		}
	}
	if len(ids) > 0 {
		last = []byte(ids[len(ids)-1])
	}
	return last, more, nil
}

// extent counts the blob that an extent belongs to, unless it was or will be
// counted at another place: a blob is counted at the first of its extents that
// misses a shard, for the first reason that this extent has. So nothing has to
// be remembered about millions of blobs.
func (n *census) extent(v view, source censusSource, id []byte) error {
	var record proto.ExtentRecord
	if err := v.mustRecord(bucketExtents, id, &record); err != nil {
		return err
	}
	digest := record.GetBlobDigest()
	if digest == "" || n.reason(record.GetExtent()) != source.holder {
		return nil
	}
	var blob proto.BlobRecord
	if err := v.mustRecord(bucketBlobs, keyOf(digest), &blob); err != nil {
		return err
	}
	first, lost := true, false
	for _, other := range blob.GetExtentIds() {
		if err := v.mustRecord(bucketExtents, other, &record); err != nil {
			return err
		}
		missing := n.missing(record.GetExtent())
		if missing > 0 && first && !bytes.Equal(other, id) {
			return nil
		}
		first = first && missing == 0
		lost = lost || missing > int(record.GetExtent().GetLayout().GetParityShards())
	}
	if lost {
		n.lost++
	} else {
		n.degraded++
	}
	return nil
}

// reason is the holder under which an extent that misses shards is counted: the
// empty one if a shard is on no node or damaged, else the first that does not
// count.
func (n *census) reason(extent *proto.Extent) string {
	if slices.Contains(extent.GetHolders(), "") || len(extent.GetDamagedShards()) > 0 {
		return ""
	}
	i := slices.IndexFunc(extent.GetHolders(), func(holder string) bool { return n.bad[holder] })
	if i < 0 {
		return ""
	}
	return extent.GetHolders()[i]
}

func (n *census) missing(extent *proto.Extent) (missing int) {
	for number, holder := range extent.GetHolders() {
		if n.bad[holder] || isDamaged(extent, number) {
			missing++
		}
	}
	return missing
}
