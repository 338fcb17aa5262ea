package metadata

import (
	"context"

	"github.com/atollregistry/atoll/proto"
)

// putTag points a tag at a manifest of the repository.
func (c *change) putTag(repository, tag, digest string) error {
	var old proto.Tag
	found, err := c.record(bucketTags, keyOf(repository, tag), &old)
	if err != nil {
		return err
	}
	if found && old.GetDigest() != digest {
		if err := c.remove(bucketTagsByManifest, keyOf(repository, old.GetDigest(), tag)); err != nil {
			return err
		}
		if err := c.judgeManifest(repository, old.GetDigest()); err != nil {
			return err
		}
	}
	if err := c.putValue(bucketTagsByManifest, keyOf(repository, digest, tag), nil); err != nil {
		return err
	}
	return c.put(bucketTags, keyOf(repository, tag), &proto.Tag{Digest: digest, UpdatedUnixMs: c.now})
}

func (c *change) deleteTag(command *proto.DeleteTag) error {
	if err := c.needRepository(command.GetRepository()); err != nil {
		return err
	}
	if err := c.checkTags(command.GetPrecondition(), command.GetRepository(), []string{command.GetTag()}); err != nil {
		return err
	}
	key := keyOf(command.GetRepository(), command.GetTag())
	var tag proto.Tag
	found, err := c.record(bucketTags, key, &tag)
	if err != nil {
		return err
	}
	if !found {
		return refuse(proto.Refusal_REFUSAL_TAG_UNKNOWN, "tag %q in repository %q", command.GetTag(), command.GetRepository())
	}
	if c.policy.Immutable(command.GetRepository(), command.GetTag()) {
		return refuseImmutable(command.GetRepository(), command.GetTag())
	}
	if err := c.remove(bucketTagsByManifest, keyOf(command.GetRepository(), tag.GetDigest(), command.GetTag())); err != nil {
		return err
	}
	if err := c.remove(bucketTags, key); err != nil {
		return err
	}
	return c.judgeManifest(command.GetRepository(), tag.GetDigest())
}

// tagsAtOnce bounds the tags that one command deletes with their manifest.
const tagsAtOnce = 1000

// deleteManyTags deletes some tags of a manifest that is to be deleted.
func (c *change) deleteManyTags(command *proto.DeleteTagsOf) error {
	repository, digest := command.GetRepository(), command.GetDigest()
	if err := c.needRepository(repository); err != nil {
		return err
	}
	if err := c.checkManifestItself(command.GetPrecondition(), repository, digest); err != nil {
		return err
	}
	if err := c.checkStays(repository, digest); err != nil {
		return err
	}
	deleted, err := c.deleteTagsOf(repository, digest, int(command.GetLimit()))
	if err != nil {
		return err
	}
	c.result.Expired = uint32(deleted)
	return c.judgeManifest(repository, digest)
}

// deleteTagsOf deletes at most limit tags of a manifest that is going. A client that
// deletes a manifest expects its tags to be gone with it.
func (c *change) deleteTagsOf(repository, digest string, limit int) (deleted int, err error) {
	tags, _, err := c.rests(bucketTagsByManifest, span{prefix: keyOf(repository, digest, "")}, limit)
	if err != nil {
		return 0, err
	}
	for _, tag := range tags {
		if err := c.remove(bucketTagsByManifest, keyOf(repository, digest, tag)); err != nil {
			return 0, err
		}
		if err := c.remove(bucketTags, keyOf(repository, tag)); err != nil {
			return 0, err
		}
	}
	return len(tags), nil
}

// Tags returns at most limit tags of the repository that come after the given
// one, in the order of their bytes, and whether there are more. Errors:
// ErrRepositoryUnknown, ErrUnavailable.
func (s *Store) Tags(ctx context.Context, repository, after string, limit int) (tags []string, more bool, err error) {
	limit = pageLimit(limit)
	err = s.readNamed(ctx, func(v view) error {
		tags, more, err = v.rests(bucketTags, span{prefix: keyOf(repository, ""), after: []byte(after)}, limit)
		if err == nil && len(tags) == 0 {
			err = v.missing(repository, nil)
		}
		return err
	})
	return tags, more, err
}

// DeleteTag deletes a tag and leaves its manifest, if the precondition holds of
// the tag; nil for none. Errors: ErrPrecondition, ErrTagImmutable,
// ErrRepositoryUnknown, ErrTagUnknown, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) DeleteTag(ctx context.Context, repository, tag string, wanted *proto.Precondition) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_DeleteTag{DeleteTag: &proto.DeleteTag{
		Repository: repository, Tag: tag, Precondition: wanted,
	}}})
	return err
}
