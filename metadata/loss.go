package metadata

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/atollregistry/atoll/proto"
)

const (
	// lostListed is how many blobs Losses names.
	lostListed = 20
	// lostRepositories is how many repositories it names of each.
	lostRepositories = 10
)

// Losses is what could not be read any more without a node.
type Losses struct {
	// Blobs and Uploads are how many blobs and uploads in progress that concerns.
	Blobs, Uploads uint64
	// First are the first blobs in the order of the node's extents.
	First []LostBlob
}

// LostBlob is a blob that can't be read without a node.
type LostBlob struct {
	Digest string
	// Size in bytes.
	Size uint64
	// Repositories that link the blob, the first ten.
	Repositories []string
}

// Losses tells what this node's state says would be lost with a node, given the
// others that are gone as well. It looks at every extent that has a shard there.
// Errors: ErrCorrupt, ErrClosed.
func (s *Store) Losses(ctx context.Context, nodeID string, gone func(nodeID string) bool) (*Losses, error) {
	count := &lossCount{node: nodeID, census: census{bad: map[string]bool{"": true, nodeID: true}}, losses: &Losses{}}
	for _, node := range s.LocalNodes() {
		if node.GetState() == proto.NodeState_NODE_STATE_REMOVED || gone(node.GetId()) {
			count.census.bad[node.GetId()] = true
		}
	}
	keys := span{prefix: keyOf(nodeID, "")}
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("look for what would be lost: %w", err)
		}
		if err := s.machine.view(func(v view) (err error) {
			keys.after, more, err = count.page(v, keys)
			return err
		}); err != nil {
			return nil, fmt.Errorf("look for what would be lost: %w", err)
		}
	}
	return count.losses, nil
}

type lossCount struct {
	node   string
	census census
	losses *Losses
}

// page looks at one page of the node's extents.
func (n *lossCount) page(v view, s span) (last []byte, more bool, err error) {
	ids, more, err := v.rests(bucketShardsByNode, s, censusPage)
	if err != nil {
		return nil, false, err
	}
	for _, id := range ids {
		last = []byte(id)
		if err := n.extent(v, last); err != nil {
			return nil, false, err
		}
	}
	return last, more, nil
}

// extent counts the owner of an extent that would be lost, at the first of those
// of its extents that the node holds and that would be.
func (n *lossCount) extent(v view, id []byte) error {
	var record proto.ExtentRecord
	if err := v.mustRecord(bucketExtents, id, &record); err != nil || !n.isLost(record.GetExtent()) {
		return err
	}
	var blob proto.BlobRecord
	var upload proto.UploadRecord
	var extents [][]byte
	var err error
	if record.GetBlobDigest() != "" {
		err = v.mustRecord(bucketBlobs, keyOf(record.GetBlobDigest()), &blob)
		extents = blob.GetExtentIds()
	} else {
		err = v.mustRecord(bucketUploads, keyOf(record.GetUploadId()), &upload)
		extents = upload.GetExtentIds()
	}
	if err != nil {
		return err
	}
	for _, other := range extents {
		if bytes.Equal(other, id) {
			break
		}
		var before proto.ExtentRecord
		if err := v.mustRecord(bucketExtents, other, &before); err != nil {
			return err
		}
		if n.isLost(before.GetExtent()) {
			return nil // counted there
		}
	}
	if record.GetBlobDigest() == "" {
		n.losses.Uploads++
		return nil
	}
	return n.blob(v, record.GetBlobDigest(), blob.GetSize())
}

// isLost says whether the node has a shard that the extent can't do without.
func (n *lossCount) isLost(extent *proto.Extent) bool {
	return slices.Contains(extent.GetHolders(), n.node) && n.census.missing(extent) > int(extent.GetLayout().GetParityShards())
}

// blob counts a blob.
func (n *lossCount) blob(v view, digest string, size uint64) error {
	n.losses.Blobs++
	if len(n.losses.First) == lostListed {
		return nil
	}
	repositories, _, err := v.rests(bucketRepositoriesByBlob, span{prefix: keyOf(digest, "")}, lostRepositories)
	n.losses.First = append(n.losses.First, LostBlob{Digest: digest, Size: size, Repositories: repositories})
	return err
}
