package metadata

import (
	"github.com/atollregistry/atoll/proto"
)

// Tags that the policy declares immutable are decided on where tags change: only there
// nobody can come between the look at the policy, the look at the tag and the change.

// checkMoves refuses to point tags at a manifest that stay where they are. To put a tag
// where it is already moves nothing.
func (c *change) checkMoves(repository string, tags []string, digest string) error {
	for _, tag := range tags {
		if !c.policy.Immutable(repository, tag) {
			continue
		}
		var current proto.Tag
		found, err := c.record(bucketTags, keyOf(repository, tag), &current)
		if err != nil {
			return err
		}
		if found && current.GetDigest() != digest {
			return refuseImmutable(repository, tag)
		}
	}
	return nil
}

// checkTagsStay refuses to delete a manifest, or its tags one after the other, if one
// of them stays. It looks at all of them, however many the command deletes: of a
// deletion in several commands, none may be carried out that a later one would regret.
func (c *change) checkTagsStay(repository, digest string) error {
	if !c.policy.AnyImmutable(repository) {
		return nil
	}
	return c.scan(bucketTagsByManifest, span{prefix: keyOf(repository, digest, "")}, func(tag, _ []byte) error {
		if c.policy.Immutable(repository, string(tag)) {
			return refuseImmutable(repository, string(tag))
		}
		return nil
	})
}

func refuseImmutable(repository, tag string) error {
	return refuse(proto.Refusal_REFUSAL_TAG_IMMUTABLE, "tag %q in repository %q", tag, repository)
}
