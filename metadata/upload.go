package metadata

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/atollregistry/atoll/proto"
)

func (c *change) createUpload(command *proto.CreateUpload) error {
	if !isName(command.GetId()) || !isName(command.GetRepository()) {
		return invalid("upload %q in repository %q", command.GetId(), command.GetRepository())
	}
	exists, err := c.has(bucketUploads, keyOf(command.GetId()))
	if err != nil {
		return err
	}
	if exists {
		return invalid("upload %s exists", command.GetId())
	}
	if err := c.addUploadOf(command.GetOwner(), command.GetOwnerLimit()); err != nil {
		return err
	}
	record := &proto.UploadRecord{Repository: command.GetRepository(), CreatedUnixMs: c.now, Owner: command.GetOwner()}
	return c.putUpload(command.GetId(), nil, record)
}

// uploadIn returns the record of an upload to the repository, or a refusal.
func (c *change) uploadIn(repository, id string) (*proto.UploadRecord, error) {
	record := &proto.UploadRecord{}
	found, err := c.record(bucketUploads, keyOf(id), record)
	if err == nil && (!found || record.GetRepository() != repository) {
		err = refuse(proto.Refusal_REFUSAL_UPLOAD_UNKNOWN, "upload %q in repository %q", id, repository)
	}
	return record, err
}

// openUploadIn is uploadIn for uploads that are not finished.
func (c *change) openUploadIn(repository, id string) (*proto.UploadRecord, error) {
	record, err := c.uploadIn(repository, id)
	if err == nil && record.GetFinishedDigest() != "" {
		err = refuse(proto.Refusal_REFUSAL_UPLOAD_FINISHED, "upload %s became %s", id, record.GetFinishedDigest())
	}
	return record, err
}

// refuseSize tells the caller how large the upload is, so that it can go on from
// there.
func refuseSize(id string, size, expected uint64) error {
	return &refusal{&proto.Result{
		Refusal:    proto.Refusal_REFUSAL_UPLOAD_SIZE,
		Detail:     fmt.Sprintf("upload %q has %d bytes, not %d", id, size, expected),
		UploadSize: size,
	}}
}

func (c *change) extendUpload(command *proto.ExtendUpload) error {
	record, err := c.openUploadIn(command.GetRepository(), command.GetId())
	if err != nil {
		return err
	}
	if record.GetSize() != command.GetExpectedSize() {
		return refuseSize(command.GetId(), record.GetSize(), command.GetExpectedSize())
	}
	size, ok := sizeOf(record.GetSize(), command.GetExtents())
	if !ok || len(record.GetExtentIds())+len(command.GetExtents()) > maxExtents {
		return invalid("upload %s gets too large", command.GetId())
	}
	if err := c.checkExtents(command.GetExtents(), record.GetSize()); err != nil {
		return err
	}
	owner := &proto.ExtentRecord_UploadId{UploadId: command.GetId()}
	if err := c.recordExtents(command.GetExtents(), &proto.ExtentRecord{Owner: owner}); err != nil {
		return err
	}
	return c.putUpload(command.GetId(), record, &proto.UploadRecord{
		Repository:    record.GetRepository(),
		Size:          size,
		HashStates:    command.GetHashStates(),
		ExtentIds:     append(record.GetExtentIds(), idsOf(command.GetExtents())...),
		CreatedUnixMs: record.GetCreatedUnixMs(),
		Owner:         record.GetOwner(),
	})
}

// finishUpload leaves a marker in the upload's place, so that a commit repeated
// after a lost answer gets the same answer.
func (c *change) finishUpload(id string, record *proto.UploadRecord, digest string) error {
	if err := c.takeUploadOf(record.GetOwner()); err != nil {
		return err
	}
	return c.putUpload(id, record, &proto.UploadRecord{
		Repository:     record.GetRepository(),
		Size:           record.GetSize(),
		CreatedUnixMs:  record.GetCreatedUnixMs(),
		FinishedDigest: digest,
		Owner:          record.GetOwner(),
	})
}

func (c *change) cancelUpload(command *proto.CancelUpload) error {
	record, err := c.openUploadIn(command.GetRepository(), command.GetId())
	if err != nil {
		return err
	}
	return c.dropUpload(command.GetId(), record)
}

// putUpload stores an upload as changed now, in the place of old, which is nil
// for a new one.
func (c *change) putUpload(id string, old, record *proto.UploadRecord) error {
	record.UpdatedUnixMs = c.now
	if old != nil {
		// A proposer whose clock is behind must not make an upload look older.
		record.UpdatedUnixMs = max(c.now, old.GetUpdatedUnixMs())
		if err := c.remove(bucketUploadsByTime, uploadTimeKey(id, old)); err != nil {
			return err
		}
	}
	if err := c.putValue(bucketUploadsByTime, uploadTimeKey(id, record), nil); err != nil {
		return err
	}
	return c.put(bucketUploads, keyOf(id), record)
}

// dropUpload forgets an upload and the extents that are still its own.
func (c *change) dropUpload(id string, record *proto.UploadRecord) error {
	if record.GetFinishedDigest() == "" {
		if err := c.takeUploadOf(record.GetOwner()); err != nil {
			return err
		}
	}
	if err := c.dropExtents(record.GetExtentIds()); err != nil {
		return err
	}
	if err := c.remove(bucketUploadsByTime, uploadTimeKey(id, record)); err != nil {
		return err
	}
	return c.remove(bucketUploads, keyOf(id))
}

// Uploads in progress and finished ones expire at different ages, so each have
// their part of the bucket.
const (
	uploadOpen     = "o"
	uploadFinished = "f"
)

func uploadTimeKey(id string, record *proto.UploadRecord) []byte {
	part := uploadOpen
	if record.GetFinishedDigest() != "" {
		part = uploadFinished
	}
	return append([]byte(part), timeKey(record.GetUpdatedUnixMs(), id)...)
}

// CreateUpload begins an upload to the repository, which need not exist. The owner is
// who begins it, "user:NAME" for example, and empty where nobody logs in; one who has
// ownerLimit uploads in progress gets no more, 0 for no limit. Errors:
// ErrTooManyUploads, ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) CreateUpload(ctx context.Context, repository, owner string, ownerLimit int) (*proto.Upload, error) {
	id, err := uuid.NewRandom()
	if err != nil {
		return nil, fmt.Errorf("create upload: %w", err)
	}
	command := &proto.Command{Body: &proto.Command_CreateUpload{CreateUpload: &proto.CreateUpload{
		Id: id.String(), Repository: repository, Owner: owner, OwnerLimit: uint32(ownerLimit),
	}}}
	if _, err := s.propose(ctx, command); err != nil {
		return nil, err
	}
	return &proto.Upload{
		Id:            id.String(),
		Repository:    repository,
		CreatedUnixMs: command.GetTimeUnixMs(),
		UpdatedUnixMs: command.GetTimeUnixMs(),
		Owner:         owner,
	}, nil
}

// Upload returns an upload to the repository. A finished one has its digest, and
// neither extents nor hash states. Errors: ErrUploadUnknown, ErrUnavailable.
func (s *Store) Upload(ctx context.Context, repository, id string) (upload *proto.Upload, err error) {
	err = s.read(ctx, func(v view) error {
		var record proto.UploadRecord
		found, err := v.record(bucketUploads, keyOf(id), &record)
		if err != nil {
			return err
		}
		if !found || record.GetRepository() != repository {
			return ErrUploadUnknown
		}
		extents, err := v.extents(record.GetExtentIds())
		if err != nil {
			return err
		}
		upload = &proto.Upload{
			Id:             id,
			Repository:     record.GetRepository(),
			Size:           record.GetSize(),
			HashStates:     record.GetHashStates(),
			Extents:        extents,
			CreatedUnixMs:  record.GetCreatedUnixMs(),
			UpdatedUnixMs:  record.GetUpdatedUnixMs(),
			FinishedDigest: record.GetFinishedDigest(),
			Owner:          record.GetOwner(),
		}
		return nil
	})
	return upload, err
}

// ExtendUpload appends durable extents to an upload whose size is still the
// expected one. Errors: ErrUploadUnknown, ErrUploadFinished, ErrUploadSize,
// ErrHolderUnknown, ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) ExtendUpload(ctx context.Context, extend *proto.ExtendUpload) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_ExtendUpload{ExtendUpload: extend}})
	return err
}

// CancelUpload forgets an upload in progress. Errors: ErrUploadUnknown,
// ErrUploadFinished, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) CancelUpload(ctx context.Context, repository, id string) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_CancelUpload{CancelUpload: &proto.CancelUpload{
		Id: id, Repository: repository,
	}}})
	return err
}
