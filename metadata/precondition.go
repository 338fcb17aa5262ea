package metadata

import (
	"fmt"
	"slices"

	"github.com/atollregistry/atoll/proto"
)

// PreconditionError is an ErrPrecondition that tells what was found.
type PreconditionError struct {
	// Tag that the precondition does not hold of; empty if it is about a manifest.
	Tag string
	// Digest that the tag, or the manifest, has; empty if there is none.
	Digest string
}

func (e *PreconditionError) Error() string {
	switch {
	case e.Tag == "" && e.Digest == "":
		return fmt.Sprintf("%v: there is no such manifest", ErrPrecondition)
	case e.Tag == "":
		return fmt.Sprintf("%v: the manifest %s is there", ErrPrecondition, e.Digest)
	case e.Digest == "":
		return fmt.Sprintf("%v: there is no tag %q", ErrPrecondition, e.Tag)
	default:
		return fmt.Sprintf("%v: tag %q points at %s", ErrPrecondition, e.Tag, e.Digest)
	}
}

// Is makes the error match ErrPrecondition.
func (e *PreconditionError) Is(target error) bool { return target == ErrPrecondition }

// checkTags refuses the command unless the precondition holds of each tag. It
// is strict: a caller whose first try was carried out, and who tries again as
// somebody new, is refused. Only so at most one of those who ask for "missing"
// is told that it was the one.
func (c *change) checkTags(wanted *proto.Precondition, repository string, tags []string) error {
	if wanted == nil {
		return nil
	}
	for _, tag := range tags {
		var current proto.Tag
		if _, err := c.record(bucketTags, keyOf(repository, tag), &current); err != nil {
			return err
		}
		if !holds(wanted, current.GetDigest()) {
			return refusePrecondition(tag, current.GetDigest())
		}
	}
	return nil
}

// checkManifestItself is checkTags for a command on a manifest.
func (c *change) checkManifestItself(wanted *proto.Precondition, repository, digest string) error {
	if wanted == nil {
		return nil
	}
	found, err := c.has(bucketManifests, keyOf(repository, digest))
	if err != nil {
		return err
	}
	current := ""
	if found {
		current = digest
	}
	if !holds(wanted, current) {
		return refusePrecondition("", current)
	}
	return nil
}

// holds reports whether a precondition holds of something that has this digest;
// empty if it does not exist.
func holds(wanted *proto.Precondition, digest string) bool {
	exists := digest != ""
	switch {
	case wanted.GetExists() && !exists, wanted.GetMissing() && exists:
		return false
	case len(wanted.GetDigests()) > 0 && !slices.Contains(wanted.GetDigests(), digest):
		return false
	}
	return !slices.Contains(wanted.GetNotDigests(), digest)
}

func refusePrecondition(tag, digest string) error {
	return &refusal{&proto.Result{Refusal: proto.Refusal_REFUSAL_PRECONDITION, Tag: tag, Digest: digest}}
}
