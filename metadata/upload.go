package metadata

import (
	"context"
	"fmt"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// uploadIn returns the record of an upload to the repository, or a refusal. One that has none yet gets a new
// one, which is not stored, if begin allows it.
func (c *change) uploadIn(repository, id string, begin *proto.UploadBegin) (record *proto.UploadRecord, stored bool, err error) {
	record = &proto.UploadRecord{}
	stored, err = c.record(bucketUploads, keyOf(id), record)
	switch {
	case err != nil:
		return nil, false, err
	case !stored && begin != nil && mayBegin(id, repository, begin.GetOwner(), c.now, begin.GetAgeLimitMs()):
		record, err = c.beginUpload(repository, id, begin)
		return record, false, err
	case !stored || record.GetRepository() != repository || record.GetCancelled():
		err = refuse(proto.Refusal_REFUSAL_UPLOAD_UNKNOWN, "upload %q in repository %q", id, repository)
	}
	return record, stored, err
}

// beginUpload counts an upload that gets a record, and returns it.
func (c *change) beginUpload(repository, id string, begin *proto.UploadBegin) (*proto.UploadRecord, error) {
	if !isName(repository) {
		return nil, invalid("upload %q in repository %q", id, repository)
	}
	if err := c.addUploadOf(begin.GetOwner(), begin.GetOwnerLimit()); err != nil {
		return nil, err
	}
	return &proto.UploadRecord{Repository: repository, CreatedUnixMs: c.now, Owner: begin.GetOwner()}, nil
}

// openUploadIn is uploadIn for uploads that are not finished.
func (c *change) openUploadIn(repository, id string, begin *proto.UploadBegin) (record *proto.UploadRecord, stored bool, err error) {
	record, stored, err = c.uploadIn(repository, id, begin)
	if err == nil && record.GetFinishedDigest() != "" {
		err = refuse(proto.Refusal_REFUSAL_UPLOAD_FINISHED, "upload %s became %s", id, record.GetFinishedDigest())
	}
	return record, stored, err
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
	record, stored, err := c.openUploadIn(command.GetRepository(), command.GetId(), command.GetBegin())
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
	return c.putUpload(command.GetId(), ifStored(record, stored), &proto.UploadRecord{
		Repository:    record.GetRepository(),
		Size:          size,
		HashStates:    command.GetHashStates(),
		ExtentIds:     append(record.GetExtentIds(), idsOf(command.GetExtents())...),
		CreatedUnixMs: record.GetCreatedUnixMs(),
		Owner:         record.GetOwner(),
	})
}

// ifStored returns nil for a record that is not stored, as putUpload wants it.
func ifStored(record *proto.UploadRecord, stored bool) *proto.UploadRecord {
	if !stored {
		return nil
	}
	return record
}

// finishUpload leaves a marker in the upload's place, so that a commit repeated
// after a lost answer gets the same answer.
func (c *change) finishUpload(id string, record *proto.UploadRecord, stored bool, digest string) error {
	if err := c.takeUploadOf(record.GetOwner()); err != nil {
		return err
	}
	return c.putUpload(id, ifStored(record, stored), &proto.UploadRecord{
		Repository:     record.GetRepository(),
		Size:           record.GetSize(),
		CreatedUnixMs:  record.GetCreatedUnixMs(),
		FinishedDigest: digest,
		Owner:          record.GetOwner(),
	})
}

// cancelUpload forgets an upload, but not that there was one as long as its id could begin it again.
func (c *change) cancelUpload(command *proto.CancelUpload) error {
	id, repository := command.GetId(), command.GetRepository()
	begun := mayBegin(id, repository, command.GetOwner(), c.now, command.GetAgeLimitMs())
	recorded, err := c.has(bucketUploads, keyOf(id))
	if err != nil {
		return err
	}
	if recorded || !begun {
		record, _, err := c.openUploadIn(repository, id, nil)
		if err == nil {
			err = c.dropUpload(id, record)
		}
		if err != nil {
			return err
		}
	}
	if !begun {
		return nil
	}
	return c.putUpload(id, nil, &proto.UploadRecord{Repository: repository, CreatedUnixMs: c.now, Cancelled: true})
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
	if !isOver(record) {
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

// isOver reports whether an upload is finished or cancelled.
func isOver(record *proto.UploadRecord) bool {
	return record.GetFinishedDigest() != "" || record.GetCancelled()
}

// Uploads in progress and finished ones expire at different ages, so each have
// their part of the bucket.
const (
	uploadOpen     = "o"
	uploadFinished = "f"
)

func uploadTimeKey(id string, record *proto.UploadRecord) []byte {
	part := uploadOpen
	if isOver(record) {
		part = uploadFinished
	}
	return append([]byte(part), timeKey(record.GetUpdatedUnixMs(), id)...)
}

// NewUpload begins an upload to the repository, which need not exist, and returns its id. It has a record from
// its first bytes on, if they come within StoreConfig.FinishedTTL. The owner is who begins it, "user:NAME" for
// example, and empty where nobody logs in; one who has ownerLimit uploads with a record gets no more, 0 for no
// limit. Errors: ErrTooManyUploads, ErrUnavailable.
func (s *Store) NewUpload(ctx context.Context, repository, owner string, ownerLimit int) (id string, err error) {
	now := s.cfg.Now()
	err = s.read(ctx, func(v view) error {
		clock, err := v.clock()
		if err != nil {
			return err
		}
		now = latest(now, time.UnixMilli(clock)) // by which its age is told: see setClock
		return v.checkUploadsOf(owner, ownerLimit)
	})
	if err != nil {
		return "", err
	}
	return newUploadID(repository, owner, now), nil
}

// CheckUploads tells, by what this node knows, whether the owner may have another upload with a record, before its
// bytes come. Error: ErrTooManyUploads.
func (s *Store) CheckUploads(owner string, ownerLimit int) error {
	return s.machine.view(func(v view) error { return v.checkUploadsOf(owner, ownerLimit) })
}

func (v view) checkUploadsOf(owner string, limit int) error {
	if owner == "" || limit == 0 {
		return nil
	}
	count, err := v.uploadsOf(owner)
	if err == nil && count >= uint64(limit) {
		err = fmt.Errorf("%w: %s has %d in progress", ErrTooManyUploads, owner, count)
	}
	return err
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// limitAge gives a begin the age that an upload without a record may have.
func (s *Store) limitAge(begin *proto.UploadBegin) {
	if begin != nil {
		begin.AgeLimitMs = s.ageLimit()
	}
}

// ageLimit is how long an id can begin an upload: no longer than it is remembered that it is over.
func (s *Store) ageLimit() uint64 { return uint64(s.cfg.FinishedTTL.Milliseconds()) }

// Upload returns an upload to the repository. A finished one has its digest, and
// neither extents nor hash states. One that has no record is there for the owner who began it. Errors: ErrUploadUnknown, ErrUnavailable.
func (s *Store) Upload(ctx context.Context, repository, id, owner string) (upload *proto.Upload, err error) {
	err = s.read(ctx, func(v view) error {
		var record proto.UploadRecord
		found, err := v.record(bucketUploads, keyOf(id), &record)
		if err != nil {
			return err
		}
		if !found {
			upload, err = s.unrecorded(v, repository, id, owner)
			return err
		}
		if record.GetRepository() != repository || record.GetCancelled() {
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

// unrecorded returns an upload that has no record, if it may still get one by the state's clock, or ErrUploadUnknown.
func (s *Store) unrecorded(v view, repository, id, owner string) (*proto.Upload, error) {
	clock, err := v.clock()
	if err != nil {
		return nil, err
	}
	if !mayBegin(id, repository, owner, clock, s.ageLimit()) {
		return nil, ErrUploadUnknown
	}
	begun, _ := uploadBegun(id, repository, owner)
	return &proto.Upload{Id: id, Repository: repository, Owner: owner, CreatedUnixMs: begun, UpdatedUnixMs: begun}, nil
}

// ExtendUpload appends durable extents to an upload whose size is still the
// expected one. With Begin it may have no record yet. Errors: ErrUploadUnknown, ErrUploadFinished,
// ErrUploadSize, ErrTooManyUploads, ErrHolderUnknown, ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) ExtendUpload(ctx context.Context, extend *proto.ExtendUpload) error {
	s.limitAge(extend.GetBegin())
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_ExtendUpload{ExtendUpload: extend}})
	return err
}

// CancelUpload forgets an upload in progress that the owner began. Errors: ErrUploadUnknown,
// ErrUploadFinished, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) CancelUpload(ctx context.Context, repository, id, owner string) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_CancelUpload{CancelUpload: &proto.CancelUpload{
		Id: id, Repository: repository, Owner: owner, AgeLimitMs: s.ageLimit(),
	}}})
	return err
}
