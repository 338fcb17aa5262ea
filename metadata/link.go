package metadata

import (
	"context"
	"fmt"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// link makes a blob readable in a repository. One that is linked already, and
// that no manifest refers to, begins its grace anew: whoever links it again means
// to refer to it soon.
func (c *change) link(repository, digest string) error {
	if err := c.ensureRepository(repository); err != nil {
		return err
	}
	key := keyOf(repository, digest)
	linked, err := c.has(bucketLinks, key)
	if err != nil {
		return err
	}
	if linked {
		return c.renewLink(repository, digest)
	}
	if err := c.put(bucketLinks, key, &proto.Link{CreatedUnixMs: c.now}); err != nil {
		return err
	}
	if err := c.putValue(bucketRepositoriesByBlob, keyOf(digest, repository), nil); err != nil {
		return err
	}
	if err := c.addReference(digest); err != nil {
		return err
	}
	return c.judgeLink(repository, digest)
}

// unlink undoes link. The blob counts as unreferenced since the given time if
// this was its last reference.
func (c *change) unlink(repository, digest string, link *proto.Link, since int64) error {
	if link.GetUnreferencedUnixMs() != 0 {
		if err := c.remove(bucketUnreferencedLinks, linkTimeKey(link, repository, digest)); err != nil {
			return err
		}
	}
	if err := c.remove(bucketLinks, keyOf(repository, digest)); err != nil {
		return err
	}
	if err := c.remove(bucketRepositoriesByBlob, keyOf(digest, repository)); err != nil {
		return err
	}
	return c.dropReference(digest, since)
}

// judgeLink notes whether a manifest of the repository refers to a linked blob.
// Without a link it does nothing.
func (c *change) judgeLink(repository, digest string) error {
	referenced, err := c.any(bucketBlobReferences, keyOf(repository, digest, ""))
	if err != nil {
		return err
	}
	var link proto.Link
	linked, err := c.record(bucketLinks, keyOf(repository, digest), &link)
	if err != nil || !linked || referenced == (link.GetUnreferencedUnixMs() == 0) {
		return err
	}
	since := c.stamp()
	if referenced {
		since = 0
	}
	return c.moveLink(repository, digest, &link, since)
}

// renewLink begins the grace of a linked blob anew if no manifest refers to it.
func (c *change) renewLink(repository, digest string) error {
	var link proto.Link
	if err := c.mustRecord(bucketLinks, keyOf(repository, digest), &link); err != nil {
		return err
	}
	if since := link.GetUnreferencedUnixMs(); since == 0 || since >= c.stamp() {
		return nil
	}
	return c.moveLink(repository, digest, &link, c.stamp())
}

// moveLink sets since when a link is unreferenced; 0 if it is not.
func (c *change) moveLink(repository, digest string, link *proto.Link, since int64) error {
	if link.GetUnreferencedUnixMs() != 0 {
		if err := c.remove(bucketUnreferencedLinks, linkTimeKey(link, repository, digest)); err != nil {
			return err
		}
	}
	link.UnreferencedUnixMs = since
	if since != 0 {
		if err := c.putValue(bucketUnreferencedLinks, linkTimeKey(link, repository, digest), nil); err != nil {
			return err
		}
	}
	return c.put(bucketLinks, keyOf(repository, digest), link)
}

func linkTimeKey(link *proto.Link, repository, digest string) []byte {
	return timeKey(link.GetUnreferencedUnixMs(), string(keyOf(repository, digest)))
}

// addReference counts one more link of a blob, or manifest stored in it.
func (c *change) addReference(digest string) error {
	var record proto.BlobRecord
	if err := c.mustRecord(bucketBlobs, keyOf(digest), &record); err != nil {
		return err
	}
	if record.GetReferences() == 0 {
		if err := c.remove(bucketUnreferenced, timeKey(record.GetUnreferencedUnixMs(), digest)); err != nil {
			return err
		}
		record.UnreferencedUnixMs = 0
	}
	record.References++
	return c.put(bucketBlobs, keyOf(digest), &record)
}

// dropReference counts one less. A blob without any is unreferenced since the
// given time.
func (c *change) dropReference(digest string, since int64) error {
	var record proto.BlobRecord
	if err := c.mustRecord(bucketBlobs, keyOf(digest), &record); err != nil {
		return err
	}
	if record.GetReferences() == 0 {
		return corruptReferences(digest)
	}
	record.References--
	if record.GetReferences() == 0 {
		record.UnreferencedUnixMs = since
		if err := c.putValue(bucketUnreferenced, timeKey(since, digest), nil); err != nil {
			return err
		}
	}
	return c.put(bucketBlobs, keyOf(digest), &record)
}

func (c *change) mountBlob(command *proto.MountBlob) error {
	if !isName(command.GetRepository()) || !isName(command.GetDigest()) {
		return invalid("repository %q, digest %q", command.GetRepository(), command.GetDigest())
	}
	if err := c.needLink(command.GetFrom(), command.GetDigest(), &proto.Link{}); err != nil {
		return err
	}
	var record proto.BlobRecord
	if err := c.mustRecord(bucketBlobs, keyOf(command.GetDigest()), &record); err != nil {
		return err
	}
	lost, err := c.areLost(record.GetExtentIds())
	if err != nil {
		return err
	}
	if lost {
		return refuse(proto.Refusal_REFUSAL_BLOB_UNKNOWN, "%s in repository %q is lost", command.GetDigest(), command.GetFrom())
	}
	return c.link(command.GetRepository(), command.GetDigest())
}

func (c *change) unlinkBlob(command *proto.UnlinkBlob) error {
	if err := c.needRepository(command.GetRepository()); err != nil {
		return err
	}
	var link proto.Link
	if err := c.needLink(command.GetRepository(), command.GetDigest(), &link); err != nil {
		return err
	}
	if err := c.checkBlobStays(command.GetRepository(), command.GetDigest()); err != nil {
		return err
	}
	return c.unlink(command.GetRepository(), command.GetDigest(), &link, c.now)
}

// renewBlob keeps a blob from collection for another grace. If it is gone
// already, the caller is told so.
func (c *change) renewBlob(command *proto.RenewBlob) error {
	var link proto.Link
	if err := c.needLink(command.GetRepository(), command.GetDigest(), &link); err != nil {
		return err
	}
	return c.renewLink(command.GetRepository(), command.GetDigest())
}

// needLink refuses a command on a blob that is not linked in the repository.
func (c *change) needLink(repository, digest string, link *proto.Link) error {
	linked, err := c.record(bucketLinks, keyOf(repository, digest), link)
	if err == nil && !linked {
		err = refuse(proto.Refusal_REFUSAL_BLOB_UNKNOWN, "%s in repository %q", digest, repository)
	}
	return err
}

// Blob returns a blob that is linked in the repository. Without a quorum it may
// return one whose deletion this node has not seen. Errors: ErrBlobUnknown,
// ErrRepositoryUnknown, ErrUnavailable.
func (s *Store) Blob(ctx context.Context, repository, digest string) (*proto.Blob, error) {
	blob, _, err := s.linkedBlob(ctx, repository, digest, false)
	return blob, err
}

// RetainBlob is Blob for a caller who will rely on the blob being there and refer
// to it by a manifest later: it keeps the blob from collection for at least half
// of StoreConfig.BlobGrace. A blob that is lost by the records is unknown, so that
// it is pushed again. Errors: those of Blob, and ErrOutcomeUnknown.
func (s *Store) RetainBlob(ctx context.Context, repository, digest string) (*proto.Blob, error) {
	blob, link, err := s.linkedBlob(ctx, repository, digest, true)
	if err != nil {
		return nil, err
	}
	over, err := s.isHalfOver(link.GetUnreferencedUnixMs(), s.cfg.BlobGrace)
	if err != nil {
		return nil, err
	}
	if !over {
		return blob, nil
	}
	_, err = s.propose(ctx, &proto.Command{Body: &proto.Command_RenewBlob{RenewBlob: &proto.RenewBlob{
		Repository: repository, Digest: digest,
	}}})
	if err != nil {
		return nil, err
	}
	return blob, nil
}

// isHalfOver reports whether more than half of a grace that began at a time is
// over, by this node's clock or by the state's if that is later; never if the time
// is 0.
func (s *Store) isHalfOver(since int64, grace time.Duration) (over bool, err error) {
	if since == 0 {
		return false, nil
	}
	err = s.machine.view(func(v view) error {
		clock, err := v.clock()
		over = max(s.cfg.Now().UnixMilli(), clock)-since > grace.Milliseconds()/2
		return err
	})
	return over, err
}

// linkedBlob returns a blob and its link; one that is lost only if that will do.
func (s *Store) linkedBlob(ctx context.Context, repository, digest string, sound bool) (blob *proto.Blob, link *proto.Link, err error) {
	err = s.readContent(ctx, func(v view) error {
		link = &proto.Link{}
		linked, err := v.record(bucketLinks, keyOf(repository, digest), link)
		if err != nil {
			return err
		}
		if !linked {
			return v.missing(repository, ErrBlobUnknown)
		}
		if blob, err = v.blob(digest); err != nil || !sound {
			return err
		}
		lost, err := v.isLost(blob.GetExtents())
		if err == nil && lost {
			err = fmt.Errorf("%w: %s is lost", ErrBlobUnknown, digest)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return blob, link, nil
}

// MountBlob links a blob of the repository from in another. Errors:
// ErrBlobUnknown, also for one that is lost by the records, ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) MountBlob(ctx context.Context, repository, from, digest string) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_MountBlob{MountBlob: &proto.MountBlob{
		Repository: repository, Digest: digest, From: from,
	}}})
	return err
}

// DeleteBlob unlinks a blob from the repository, also if a manifest there refers
// to it, unless that is part of an image whose tag stays. Errors: ErrRepositoryUnknown,
// ErrBlobUnknown, ErrTagImmutable, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) DeleteBlob(ctx context.Context, repository, digest string) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_UnlinkBlob{UnlinkBlob: &proto.UnlinkBlob{
		Repository: repository, Digest: digest,
	}}})
	return err
}

// BlobRepositories returns at most limit repositories that have the blob and come
// after the given one, in the order of their bytes, and whether there are more.
// Error: ErrUnavailable.
func (s *Store) BlobRepositories(ctx context.Context, digest, after string, limit int) (repositories []string, more bool, err error) {
	if !isName(digest) {
		return nil, false, nil
	}
	limit = pageLimit(limit)
	err = s.read(ctx, func(v view) error {
		repositories, more, err = v.rests(bucketRepositoriesByBlob, span{prefix: keyOf(digest, ""), after: []byte(after)}, limit)
		return err
	})
	return repositories, more, err
}

// Links returns at most limit digests of blobs that the repository has, behind the
// given one, in the order of their bytes, and whether there are more. Error:
// ErrUnavailable.
func (s *Store) Links(ctx context.Context, repository, after string, limit int) (digests []string, more bool, err error) {
	limit = pageLimit(limit)
	err = s.read(ctx, func(v view) error {
		digests, more, err = v.rests(bucketLinks, span{prefix: keyOf(repository, ""), after: []byte(after)}, limit)
		return err
	})
	return digests, more, err
}

// any reports whether a bucket has a key with this prefix.
func (v view) any(b bucket, prefix []byte) (found bool, err error) {
	err = v.scan(b, span{prefix: prefix}, func(_, _ []byte) error {
		found = true
		return errStop
	})
	return found, err
}

// stamp is the time of the command for records in which 0 stands for never.
func (c *change) stamp() int64 {
	if c.now == 0 {
		return 1
	}
	return c.now
}
