package metadata

import (
	"fmt"
	"math"
	"strings"

	"github.com/atollregistry/atoll/proto"
)

// Collection drops what nothing refers to: untagged manifests if that is wanted,
// then links that no manifest refers to, then blobs without links. References are
// exact, since they are part of the state: nothing is scanned, nothing is locked,
// and a push at the same time is before or behind it in the log.

// manifestsBefore is the command's time for manifests; before all times if they
// are to be kept.
func manifestsBefore(command *proto.Expire) int64 {
	if command.GetManifestsBeforeUnixMs() == 0 {
		return math.MinInt64
	}
	return command.GetManifestsBeforeUnixMs()
}

// splitRepositoryKey takes a "repository 0 digest" key apart.
func splitRepositoryKey(key string) (repository, digest string) {
	repository, digest, _ = strings.Cut(key, string(rune(separator)))
	return repository, digest
}

// expireManifests drops manifests that have been untagged for too long. Referrers
// of a manifest that is there stay, and are looked at again after another age:
// so putting or deleting a subject costs nothing for its referrers.
func (c *change) expireManifests(before int64, limit int) (dropped int, err error) {
	if before == 0 {
		return 0, nil
	}
	keys, err := c.over(bucketUntagged, "", before, limit)
	if err != nil {
		return 0, err
	}
	for i, key := range keys {
		if c.isEnough(i) {
			break
		}
		repository, digest := splitRepositoryKey(key)
		var manifest proto.Manifest
		if err := c.mustRecord(bucketManifests, keyOf(repository, digest), &manifest); err != nil {
			return 0, err
		}
		kept, err := c.hasSubject(repository, &manifest)
		if err != nil {
			return 0, err
		}
		if kept {
			c.result.Renewed++
			err = c.setUntagged(repository, digest, c.stamp())
		} else {
			dropped++
			err = c.dropManifest(repository, &manifest)
		}
		if err != nil {
			return 0, err
		}
	}
	return dropped, nil
}

// hasSubject reports whether the manifest refers to a subject that is there.
func (v view) hasSubject(repository string, manifest *proto.Manifest) (bool, error) {
	if manifest.GetSubject() == "" {
		return false, nil
	}
	return v.has(bucketManifests, keyOf(repository, manifest.GetSubject()))
}

// expireLinks drops links that no manifest has referred to for too long. Their
// blobs have had their grace with that.
func (c *change) expireLinks(before int64, limit int) (dropped int, err error) {
	keys, err := c.over(bucketUnreferencedLinks, "", before, limit)
	if err != nil {
		return 0, err
	}
	for _, key := range keys {
		if c.isEnough(dropped) {
			break
		}
		repository, digest := splitRepositoryKey(key)
		var link proto.Link
		if err := c.mustRecord(bucketLinks, keyOf(repository, digest), &link); err != nil {
			return 0, err
		}
		referenced, err := c.any(bucketBlobReferences, keyOf(repository, digest, ""))
		if err != nil {
			return 0, err
		}
		if referenced {
			// Nothing may be deleted on the word of a record that is wrong.
			return 0, fmt.Errorf("%w: blob %s in repository %q is in use and listed as unreferenced", ErrCorrupt, digest, repository)
		}
		if err := c.unlink(repository, digest, &link, link.GetUnreferencedUnixMs()); err != nil {
			return 0, err
		}
		dropped++
	}
	return dropped, nil
}

// expireBlobs drops blobs that have been without references for too long.
func (c *change) expireBlobs(before int64, limit int) (dropped int, err error) {
	digests, err := c.over(bucketUnreferenced, "", before, limit)
	if err != nil {
		return 0, err
	}
	for _, digest := range digests {
		if c.isEnough(dropped) {
			break
		}
		var record proto.BlobRecord
		if err := c.mustRecord(bucketBlobs, keyOf(digest), &record); err != nil {
			return 0, err
		}
		if record.GetReferences() != 0 {
			return 0, corruptReferences(digest)
		}
		if err := c.dropExtents(record.GetExtentIds()); err != nil {
			return 0, err
		}
		if err := c.remove(bucketUnreferenced, timeKey(record.GetUnreferencedUnixMs(), digest)); err != nil {
			return 0, err
		}
		if err := c.remove(bucketBlobs, keyOf(digest)); err != nil {
			return 0, err
		}
		if err := c.count(bucketCluster, keyBlobCount, -1); err != nil {
			return 0, err
		}
		dropped++
	}
	return dropped, nil
}

// corruptReferences is the error of a blob whose count of references is not what
// the records that refer to it say. Nothing may be deleted on its word.
func corruptReferences(digest string) error {
	return fmt.Errorf("%w: blob %s has a wrong count of references", ErrCorrupt, digest)
}
