package metadata

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/atollregistry/atoll/proto"
)

// What a manifest refers to is kept from collection while the manifest is there:
// blobs by bucketBlobReferences, manifests that an image index lists by
// bucketManifestParents. Both have an entry whether or not what is referred to is
// there, so that the order of pushes and deletions makes no difference.

// refer records what a manifest refers to.
func (c *change) refer(repository string, manifest *proto.Manifest) error {
	digest := manifest.GetDigest()
	for _, blob := range blobsOf(manifest) {
		if err := c.putValue(bucketBlobReferences, keyOf(repository, blob, digest), nil); err != nil {
			return err
		}
		if err := c.judgeLink(repository, blob); err != nil {
			return err
		}
	}
	for _, child := range manifest.GetManifests() {
		if err := c.putValue(bucketManifestParents, keyOf(repository, child.GetDigest(), digest), nil); err != nil {
			return err
		}
		if err := c.judgeManifest(repository, child.GetDigest()); err != nil {
			return err
		}
	}
	if manifest.GetSubject() == "" {
		return nil
	}
	return c.putValue(bucketReferrers, keyOf(repository, manifest.GetSubject(), digest), nil)
}

// unrefer undoes refer.
func (c *change) unrefer(repository string, manifest *proto.Manifest) error {
	digest := manifest.GetDigest()
	for _, blob := range blobsOf(manifest) {
		if err := c.remove(bucketBlobReferences, keyOf(repository, blob, digest)); err != nil {
			return err
		}
		if err := c.judgeLink(repository, blob); err != nil {
			return err
		}
	}
	for _, child := range manifest.GetManifests() {
		if err := c.remove(bucketManifestParents, keyOf(repository, child.GetDigest(), digest)); err != nil {
			return err
		}
		if err := c.judgeManifest(repository, child.GetDigest()); err != nil {
			return err
		}
	}
	if manifest.GetSubject() == "" {
		return nil
	}
	return c.remove(bucketReferrers, keyOf(repository, manifest.GetSubject(), digest))
}

// blobsOf returns the digests of the blobs that a manifest keeps.
func blobsOf(manifest *proto.Manifest) []string {
	digests := make([]string, 0, len(manifest.GetBlobs())+len(manifest.GetOptionalBlobs()))
	for _, blob := range manifest.GetBlobs() {
		digests = append(digests, blob.GetDigest())
	}
	for _, blob := range manifest.GetOptionalBlobs() {
		digests = append(digests, blob.GetDigest())
	}
	return digests
}

// sameReferences reports whether two readings of one manifest refer to the same.
func sameReferences(a, b *proto.Manifest) bool {
	same := func(x, y *proto.Descriptor) bool { return x.GetDigest() == y.GetDigest() }
	return slices.Equal(blobsOf(a), blobsOf(b)) && a.GetSubject() == b.GetSubject() &&
		slices.EqualFunc(a.GetManifests(), b.GetManifests(), same)
}

// A manifest's age is a record of its own: it changes with the tags and image
// indexes that point at the manifest, while the manifest's record can be large.
// There is one for each manifest.

// untaggedSince returns since when no tag points at a manifest and no image index
// lists it; 0 while one does.
func (v view) untaggedSince(repository, digest string) (since int64, found bool, err error) {
	value, found, err := v.value(bucketManifestAges, keyOf(repository, digest))
	if err != nil || !found {
		return 0, false, err
	}
	if len(value) != 8 {
		return 0, false, fmt.Errorf("%w: age of manifest %s in repository %q has %d bytes", ErrCorrupt, digest, repository, len(value))
	}
	return int64(binary.BigEndian.Uint64(value)), true, nil
}

// setUntagged sets since when a manifest is untagged; 0 if it is not.
func (c *change) setUntagged(repository, digest string, since int64) error {
	if err := c.forgetUntagged(repository, digest); err != nil {
		return err
	}
	if since != 0 {
		if err := c.putValue(bucketUntagged, manifestTimeKey(since, repository, digest), nil); err != nil {
			return err
		}
	}
	return c.putValue(bucketManifestAges, keyOf(repository, digest), binary.BigEndian.AppendUint64(nil, uint64(since)))
}

// forgetUntagged takes a manifest out of the untagged ones.
func (c *change) forgetUntagged(repository, digest string) error {
	since, _, err := c.untaggedSince(repository, digest)
	if err != nil || since == 0 {
		return err
	}
	return c.remove(bucketUntagged, manifestTimeKey(since, repository, digest))
}

// judgeManifest notes whether a manifest is untagged: no tag points at it and no
// image index of the repository lists it. Without the manifest it does nothing.
func (c *change) judgeManifest(repository, digest string) error {
	since, found, err := c.untaggedSince(repository, digest)
	if err != nil || !found {
		return err
	}
	kept, err := c.any(bucketTagsByManifest, keyOf(repository, digest, ""))
	if err == nil && !kept {
		kept, err = c.any(bucketManifestParents, keyOf(repository, digest, ""))
	}
	switch {
	case err != nil || kept == (since == 0):
		return err
	case kept:
		return c.setUntagged(repository, digest, 0)
	default:
		return c.setUntagged(repository, digest, c.stamp())
	}
}

// touchManifest begins the age of an untagged manifest anew: whoever pushes it, or
// asks whether it is there, means to refer to it soon.
func (c *change) touchManifest(repository, digest string) error {
	since, _, err := c.untaggedSince(repository, digest)
	if err != nil || since == 0 || since >= c.stamp() {
		return err
	}
	return c.setUntagged(repository, digest, c.stamp())
}

func manifestTimeKey(since int64, repository, digest string) []byte {
	return timeKey(since, string(keyOf(repository, digest)))
}
