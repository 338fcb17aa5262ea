package metadata

import (
	"fmt"

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

// checkStays refuses to delete a manifest, or its tags one after the other, if a tag that
// stays points at it, or at an image index that lists it: of an image that stays, all of
// it does. It looks at all tags, however many the command deletes: of a deletion in
// several commands, none may be carried out that a later one would regret.
func (c *change) checkStays(repository, digest string) error {
	if !c.policy.AnyImmutable(repository) {
		return nil
	}
	return c.checkStaysBut(repository, digest, map[string]bool{})
}

// checkStaysBut is checkStays without the manifests that were seen before, of which, and
// of what lists them, none stays. It adds those that it has seen.
func (c *change) checkStaysBut(repository, digest string, seen map[string]bool) error {
	if seen[digest] {
		return nil
	}
	seen[digest] = true
	for queue := []string{digest}; len(queue) > 0; queue = queue[1:] {
		err := c.scan(bucketTagsByManifest, span{prefix: keyOf(repository, queue[0], "")}, func(tag, _ []byte) error {
			if c.policy.Immutable(repository, string(tag)) {
				return refuseImmutable(repository, string(tag))
			}
			return nil
		})
		if err != nil {
			return err
		}
		err = c.scan(bucketManifestParents, span{prefix: keyOf(repository, queue[0], "")}, func(parent, _ []byte) error {
			if !seen[string(parent)] {
				seen[string(parent)] = true
				queue = append(queue, string(parent))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// checkBlobStays refuses to take a blob out of a repository that is part of an image
// which stays there. It looks at each manifest once, however many ways lead there: all
// other commands wait meanwhile.
func (c *change) checkBlobStays(repository, digest string) error {
	if !c.policy.AnyImmutable(repository) {
		return nil
	}
	seen := map[string]bool{}
	return c.scan(bucketBlobReferences, span{prefix: keyOf(repository, digest, "")}, func(manifest, _ []byte) error {
		return c.checkStaysBut(repository, string(manifest), seen)
	})
}

func refuseImmutable(repository, tag string) error {
	return &refusal{&proto.Result{
		Refusal: proto.Refusal_REFUSAL_TAG_IMMUTABLE,
		Detail:  fmt.Sprintf("tag %q in repository %q", tag, repository),
		Tag:     tag,
	}}
}

// TagImmutableError is an ErrTagImmutable that tells which tag: of several that were to
// move, or of those that point at what was to be deleted.
type TagImmutableError struct {
	// Tag stays where it is.
	Tag string
}

func (e *TagImmutableError) Error() string { return fmt.Sprintf("%v: %q", ErrTagImmutable, e.Tag) }

// Is makes the error match ErrTagImmutable.
func (e *TagImmutableError) Is(target error) bool { return target == ErrTagImmutable }
