package metadata

import (
	"encoding/binary"
	"fmt"

	"github.com/atollregistry/atoll/proto"
)

// Of each owner there is a counter of uploads in progress, so that one program gone
// wild does not fill the cluster with uploads that never end. Uploads without an owner
// are not counted.

// addUploadOf counts an upload that the owner begins, unless there are too many.
func (c *change) addUploadOf(owner string, limit uint32) error {
	if owner == "" {
		return nil
	}
	if !isName(owner) {
		return invalid("upload's owner %q", owner)
	}
	count, err := c.uploadsOf(owner)
	if err != nil {
		return err
	}
	if limit > 0 && count >= uint64(limit) {
		return refuse(proto.Refusal_REFUSAL_TOO_MANY_UPLOADS, "%s has %d uploads in progress, at most %d are allowed", owner, count, limit)
	}
	return c.putUploadsOf(owner, count+1)
}

// takeUploadOf counts an upload that is finished, cancelled or expired.
func (c *change) takeUploadOf(owner string) error {
	if owner == "" {
		return nil
	}
	count, err := c.uploadsOf(owner)
	if err != nil {
		return err
	}
	if count == 0 {
		return fmt.Errorf("%w: %s has an upload and counts none", ErrCorrupt, owner)
	}
	return c.putUploadsOf(owner, count-1)
}

// putUploadsOf stores a count; owners without uploads have no record.
func (c *change) putUploadsOf(owner string, count uint64) error {
	if count == 0 {
		return c.remove(bucketUploadsByOwner, keyOf(owner))
	}
	return c.putValue(bucketUploadsByOwner, keyOf(owner), binary.BigEndian.AppendUint64(nil, count))
}

func (v view) uploadsOf(owner string) (uint64, error) { return v.number(bucketUploadsByOwner, owner) }
