package metadata

import (
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

// judgeManifest notes whether a manifest is untagged: no tag points at it and no
// image index of the repository lists it. Without the manifest it does nothing.
func (c *change) judgeManifest(repository, digest string) error {
	kept, err := c.any(bucketTagsByManifest, keyOf(repository, digest, ""))
	if err == nil && !kept {
		kept, err = c.any(bucketManifestParents, keyOf(repository, digest, ""))
	}
	if err != nil {
		return err
	}
	var manifest proto.Manifest
	found, err := c.record(bucketManifests, keyOf(repository, digest), &manifest)
	if err != nil || !found || kept == (manifest.GetUntaggedUnixMs() == 0) {
		return err
	}
	since := c.stamp()
	if kept {
		since = 0
	}
	return c.moveManifest(repository, &manifest, since)
}

// moveManifest sets since when a manifest is untagged; 0 if it is not.
func (c *change) moveManifest(repository string, manifest *proto.Manifest, since int64) error {
	if manifest.GetUntaggedUnixMs() != 0 {
		if err := c.remove(bucketUntagged, manifestTimeKey(repository, manifest)); err != nil {
			return err
		}
	}
	manifest.UntaggedUnixMs = since
	if since != 0 {
		if err := c.putValue(bucketUntagged, manifestTimeKey(repository, manifest), nil); err != nil {
			return err
		}
	}
	return c.put(bucketManifests, keyOf(repository, manifest.GetDigest()), manifest)
}

func manifestTimeKey(repository string, manifest *proto.Manifest) []byte {
	return timeKey(manifest.GetUntaggedUnixMs(), string(keyOf(repository, manifest.GetDigest())))
}
