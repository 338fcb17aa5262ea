package metadata

import (
	"context"

	"github.com/atollregistry/atoll/proto"
)

// commitBlob makes a blob of an upload, or of extents brought along, or of both,
// and links it. It may be repeated.
func (c *change) commitBlob(command *proto.CommitBlob) error {
	if !isName(command.GetRepository()) || !isName(command.GetDigest()) {
		return invalid("repository %q, digest %q", command.GetRepository(), command.GetDigest())
	}
	upload, stored, err := c.committed(command)
	if err != nil {
		return err
	}
	switch upload.GetFinishedDigest() {
	case "":
	case command.GetDigest():
		return c.commitAgain(command)
	default:
		return refuse(proto.Refusal_REFUSAL_UPLOAD_FINISHED, "upload %s became %s", command.GetUploadId(), upload.GetFinishedDigest())
	}
	if upload.GetSize() != command.GetExpectedSize() {
		return refuseSize(command.GetUploadId(), upload.GetSize(), command.GetExpectedSize())
	}
	if size, ok := sizeOf(command.GetExpectedSize(), command.GetExtents()); !ok || size != command.GetSize() {
		return invalid("blob %s of %d bytes has extents for %d", command.GetDigest(), command.GetSize(), size)
	}
	content := blobContent{
		digest: command.GetDigest(), size: command.GetSize(), uploadID: command.GetUploadId(),
		recorded: upload.GetExtentIds(), fresh: command.GetExtents(),
	}
	if err := c.storeBlob(content); err != nil {
		return err
	}
	if err := c.link(command.GetRepository(), command.GetDigest()); err != nil {
		return err
	}
	if command.GetUploadId() == "" {
		return nil
	}
	return c.finishUpload(command.GetUploadId(), upload, stored, command.GetDigest())
}

// committed returns the upload that a blob is made of, one without anything if there is none.
func (c *change) committed(command *proto.CommitBlob) (upload *proto.UploadRecord, stored bool, err error) {
	if command.GetUploadId() == "" {
		return &proto.UploadRecord{Repository: command.GetRepository()}, false, nil
	}
	return c.uploadIn(command.GetRepository(), command.GetUploadId(), command.GetBegin())
}

// commitAgain answers a commit whose upload has become this blob before. The
// client whose first answer was lost gets it again; if the blob was unlinked
// since, it is linked again, and if it is gone or lost, so is the upload.
func (c *change) commitAgain(command *proto.CommitBlob) error {
	var record proto.BlobRecord
	exists, err := c.record(bucketBlobs, keyOf(command.GetDigest()), &record)
	if err != nil {
		return err
	}
	if !exists {
		return refuse(proto.Refusal_REFUSAL_UPLOAD_UNKNOWN, "upload %s became a blob that was deleted", command.GetUploadId())
	}
	lost, err := c.areLost(record.GetExtentIds())
	if err != nil {
		return err
	}
	if lost {
		return refuse(proto.Refusal_REFUSAL_UPLOAD_UNKNOWN, "upload %s became a blob that was lost", command.GetUploadId())
	}
	return c.link(command.GetRepository(), command.GetDigest())
}

// blobContent is what a blob is to be stored from.
type blobContent struct {
	digest string
	size   uint64
	// uploadID is empty for content without an upload.
	uploadID string
	// recorded are the ids of the upload's extents, fresh the extents behind them.
	recorded [][]byte
	fresh    []*proto.Extent
}

// storeBlob makes the blob's record, without a reference; the caller adds one in
// the same command. Known content stays where it is, and what was brought along
// becomes garbage, unless the known content is lost: then a new push heals the
// blob.
func (c *change) storeBlob(content blobContent) error {
	var record proto.BlobRecord
	known, err := c.record(bucketBlobs, keyOf(content.digest), &record)
	if err != nil {
		return err
	}
	if known {
		if record.GetSize() != content.size {
			return invalid("blob %s has %d bytes, not %d", content.digest, record.GetSize(), content.size)
		}
		lost, err := c.areLost(record.GetExtentIds())
		if err != nil {
			return err
		}
		if !lost {
			return c.dropExtents(content.recorded)
		}
		if err := c.dropExtents(record.GetExtentIds()); err != nil {
			return err
		}
	} else {
		record = proto.BlobRecord{Size: content.size, CreatedUnixMs: c.now}
		if err := c.count(bucketCluster, keyBlobCount, 1); err != nil {
			return err
		}
	}
	if err := c.checkContent(content); err != nil {
		return err
	}
	record.ExtentIds = append(content.recorded[:len(content.recorded):len(content.recorded)], idsOf(content.fresh)...)
	if len(record.ExtentIds) > maxExtents {
		return invalid("blob %s has %d extents, more than %d", content.digest, len(record.ExtentIds), maxExtents)
	}
	owner := &proto.ExtentRecord_BlobDigest{BlobDigest: content.digest}
	if err := c.recordExtents(content.fresh, &proto.ExtentRecord{Owner: owner}); err != nil {
		return err
	}
	if err := c.ownExtents(content.recorded, content.digest); err != nil {
		return err
	}
	return c.put(bucketBlobs, keyOf(content.digest), &record)
}

// checkContent refuses what a blob can't be read from.
func (c *change) checkContent(content blobContent) error {
	lost, err := c.areLost(content.recorded)
	if err != nil {
		return err
	}
	if lost {
		return refuse(proto.Refusal_REFUSAL_UPLOAD_LOST, "upload %s has fewer shards left than it can be read from", content.uploadID)
	}
	fresh, _ := sizeOf(0, content.fresh) // No more than content.size: the caller has compared.
	return c.checkExtents(content.fresh, content.size-fresh)
}

// blob returns a blob with its extents.
func (v view) blob(digest string) (*proto.Blob, error) {
	var record proto.BlobRecord
	if err := v.mustRecord(bucketBlobs, keyOf(digest), &record); err != nil {
		return nil, err
	}
	extents, err := v.extents(record.GetExtentIds())
	if err != nil {
		return nil, err
	}
	return &proto.Blob{Digest: digest, Size: record.GetSize(), Extents: extents}, nil
}

// Blobs returns up to limit blobs of this node's state in the order of their
// digests, those behind after, which is empty for the first ones. Fewer than limit
// are the last. Errors: ErrCorrupt, ErrClosed.
func (s *Store) Blobs(after string, limit int) (blobs []*proto.Blob, err error) {
	err = s.machine.view(func(v view) error {
		digests, _, err := v.rests(bucketBlobs, span{after: []byte(after)}, limit)
		if err != nil {
			return err
		}
		blobs = make([]*proto.Blob, len(digests))
		for i, digest := range digests {
			if blobs[i], err = v.blob(digest); err != nil {
				return err
			}
		}
		return nil
	})
	return blobs, err
}

// StoredBlob returns a blob that the cluster stores, whatever repository has it, if
// any does. Errors: ErrBlobUnknown, ErrUnavailable.
func (s *Store) StoredBlob(ctx context.Context, digest string) (blob *proto.Blob, err error) {
	if !isName(digest) {
		return nil, ErrBlobUnknown
	}
	err = s.readContent(ctx, func(v view) error {
		known, err := v.record(bucketBlobs, keyOf(digest), &proto.BlobRecord{})
		if err == nil && !known {
			return ErrBlobUnknown
		}
		if err == nil {
			blob, err = v.blob(digest)
		}
		return err
	})
	return blob, err
}

// CommitBlob turns an upload, with the extents that are not recorded yet, into a
// blob that is linked in the repository. Content that the cluster knows is only
// linked. Repeating it is harmless. With Begin the upload may have no record yet. Errors: ErrUploadUnknown, ErrUploadFinished,
// ErrUploadSize, ErrUploadLost, ErrTooManyUploads, ErrHolderUnknown, ErrInvalid, ErrUnavailable,
// ErrOutcomeUnknown.
func (s *Store) CommitBlob(ctx context.Context, commit *proto.CommitBlob) error {
	s.limitAge(commit.GetBegin())
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_CommitBlob{CommitBlob: commit}})
	return err
}
