package metadata

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"

	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/proto"
)

// putManifest stores a manifest, or stores it again, and points tags at it.
func (c *change) putManifest(command *proto.PutManifest) error {
	repository, manifest := command.GetRepository(), command.GetManifest()
	if err := checkManifest(command); err != nil {
		return err
	}
	if err := c.checkPut(command); err != nil {
		return err
	}
	if err := c.checkMoves(repository, command.GetTags(), manifest.GetDigest()); err != nil {
		return err
	}
	if err := c.checkReferences(command); err != nil {
		return err
	}
	var old proto.Manifest
	known, err := c.record(bucketManifests, keyOf(repository, manifest.GetDigest()), &old)
	if err != nil {
		return err
	}
	if known && old.GetMediaType() != manifest.GetMediaType() {
		// Bytes without a type of their own may be pushed as another one.
		if err := c.checkStays(repository, manifest.GetDigest()); err != nil {
			return err
		}
	}
	if err := c.ensureRepository(repository); err != nil {
		return err
	}
	header := pb.Clone(manifest).(*proto.Manifest)
	header.Content = nil
	header.CreatedUnixMs = c.now
	if known {
		// The same digest is the same bytes: where they are does not change. What
		// was parsed from them may be read better by a newer gateway.
		header.StoredAsBlob, header.CreatedUnixMs = old.GetStoredAsBlob(), old.GetCreatedUnixMs()
	}
	if err := c.storeManifest(command, header.GetStoredAsBlob(), known); err != nil {
		return err
	}
	if err := c.put(bucketManifests, keyOf(repository, header.GetDigest()), header); err != nil {
		return err
	}
	if known && !sameReferences(&old, header) {
		if err := c.unrefer(repository, &old); err != nil {
			return err
		}
	}
	if !known {
		if err := c.setUntagged(repository, header.GetDigest(), 0); err != nil {
			return err
		}
	}
	if !known || !sameReferences(&old, header) {
		if err := c.refer(repository, header); err != nil {
			return err
		}
	}
	for _, tag := range command.GetTags() {
		if err := c.putTag(repository, tag, header.GetDigest()); err != nil {
			return err
		}
	}
	if err := c.judgeManifest(repository, header.GetDigest()); err != nil {
		return err
	}
	return c.touchManifest(repository, header.GetDigest())
}

// checkPut refuses a manifest whose precondition does not hold.
func (c *change) checkPut(command *proto.PutManifest) error {
	if len(command.GetTags()) == 0 {
		return c.checkManifestItself(command.GetPrecondition(), command.GetRepository(), command.GetManifest().GetDigest())
	}
	return c.checkTags(command.GetPrecondition(), command.GetRepository(), command.GetTags())
}

// renewManifest is renewBlob for a manifest.
func (c *change) renewManifest(command *proto.RenewManifest) error {
	_, found, err := c.untaggedSince(command.GetRepository(), command.GetDigest())
	if err != nil {
		return err
	}
	if !found {
		return refuse(proto.Refusal_REFUSAL_MANIFEST_UNKNOWN, "%s in repository %q", command.GetDigest(), command.GetRepository())
	}
	return c.touchManifest(command.GetRepository(), command.GetDigest())
}

// checkManifest refuses what no gateway may send.
func checkManifest(command *proto.PutManifest) error {
	manifest := command.GetManifest()
	switch {
	case !isName(command.GetRepository()) || !isName(manifest.GetDigest()):
		return invalid("repository %q, digest %q", command.GetRepository(), manifest.GetDigest())
	case manifest.GetMediaType() == "":
		return invalid("manifest %s has no media type", manifest.GetDigest())
	case manifest.GetSubject() != "" && !isName(manifest.GetSubject()):
		return invalid("subject %q", manifest.GetSubject())
	case slices.ContainsFunc(command.GetTags(), func(tag string) bool { return !isName(tag) }):
		return invalid("tags %q", command.GetTags())
	}
	for _, list := range [][]*proto.Descriptor{manifest.GetBlobs(), manifest.GetOptionalBlobs(), manifest.GetManifests()} {
		for _, descriptor := range list {
			if !isName(descriptor.GetDigest()) {
				return invalid("manifest %s refers to %q", manifest.GetDigest(), descriptor.GetDigest())
			}
		}
	}
	if manifest.GetStoredAsBlob() {
		size, ok := sizeOf(0, command.GetExtents())
		if len(manifest.GetContent()) > 0 || !ok || size != manifest.GetSize() {
			return invalid("manifest %s of %d bytes has extents for %d", manifest.GetDigest(), manifest.GetSize(), size)
		}
		if slices.ContainsFunc(command.GetExtents(), isInline) {
			return invalid("manifest %s is stored as a blob, and inline", manifest.GetDigest())
		}
		return nil
	}
	if len(command.GetExtents()) > 0 || uint64(len(manifest.GetContent())) != manifest.GetSize() {
		return invalid("manifest %s of %d bytes has %d bytes of content", manifest.GetDigest(), manifest.GetSize(), len(manifest.GetContent()))
	}
	if !matchesDigest(manifest.GetContent(), manifest.GetDigest()) {
		return invalid("content is not that of %s", manifest.GetDigest())
	}
	return nil
}

// matchesDigest reports whether content has the digest. Of the algorithms that
// the image spec registers, these two are in use.
func matchesDigest(content []byte, digest string) bool {
	algorithm, sum, _ := strings.Cut(digest, ":")
	switch algorithm {
	case "sha256":
		actual := sha256.Sum256(content)
		return sum == hex.EncodeToString(actual[:])
	case "sha512":
		actual := sha512.Sum512(content)
		return sum == hex.EncodeToString(actual[:])
	default:
		return false
	}
}

// checkReferences refuses a manifest whose config or layers are not linked in
// the repository. Manifests that an image index lists may be missing unless the
// command says otherwise, and the subject may be missing (distribution spec,
// "Pushing Manifests").
func (c *change) checkReferences(command *proto.PutManifest) error {
	repository := command.GetRepository()
	missing, err := c.missingOf(bucketLinks, repository, command.GetManifest().GetBlobs())
	if err != nil {
		return err
	}
	if command.GetRequireManifests() {
		manifests, err := c.missingOf(bucketManifestAges, repository, command.GetManifest().GetManifests())
		if err != nil {
			return err
		}
		missing = append(missing, manifests...)
	}
	if len(missing) == 0 {
		return nil
	}
	return &refusal{&proto.Result{
		Refusal: proto.Refusal_REFUSAL_REFERENCE_UNKNOWN,
		Detail:  fmt.Sprintf("%d blobs or manifests are not in repository %q", len(missing), repository),
		Digests: missing,
	}}
}

// missingOf returns the digests that a bucket of the repository does not have.
func (c *change) missingOf(b bucket, repository string, descriptors []*proto.Descriptor) (missing []string, err error) {
	for _, d := range descriptors {
		found, err := c.has(b, keyOf(repository, d.GetDigest()))
		if err != nil {
			return nil, err
		}
		if !found && !slices.Contains(missing, d.GetDigest()) {
			missing = append(missing, d.GetDigest())
		}
	}
	return missing, nil
}

// storeManifest stores the manifest's bytes, in their record or in a blob. The
// blob of a known manifest is looked at again: it may need the new shards.
func (c *change) storeManifest(command *proto.PutManifest, asBlob, known bool) error {
	manifest := command.GetManifest()
	switch {
	case !asBlob && known, asBlob && !manifest.GetStoredAsBlob():
		return nil // the bytes are there
	case !asBlob:
		return c.putValue(bucketManifestContents, keyOf(command.GetRepository(), manifest.GetDigest()), manifest.GetContent())
	}
	content := blobContent{digest: manifest.GetDigest(), size: manifest.GetSize(), fresh: command.GetExtents()}
	if err := c.storeBlob(content); err != nil || known {
		return err
	}
	return c.addReference(manifest.GetDigest())
}

func (c *change) deleteManifest(command *proto.DeleteManifest) error {
	repository, digest := command.GetRepository(), command.GetDigest()
	if err := c.needRepository(repository); err != nil {
		return err
	}
	if err := c.checkManifestItself(command.GetPrecondition(), repository, digest); err != nil {
		return err
	}
	var manifest proto.Manifest
	found, err := c.record(bucketManifests, keyOf(repository, digest), &manifest)
	if err != nil {
		return err
	}
	if !found {
		return refuse(proto.Refusal_REFUSAL_MANIFEST_UNKNOWN, "%s in repository %q", digest, repository)
	}
	if err := c.checkStays(repository, digest); err != nil {
		return err
	}
	return c.dropManifest(repository, &manifest)
}

// dropManifest removes a manifest with its tags. What only it referred to begins
// its grace.
func (c *change) dropManifest(repository string, manifest *proto.Manifest) error {
	digest := manifest.GetDigest()
	if err := c.forgetUntagged(repository, digest); err != nil {
		return err
	}
	if err := c.remove(bucketManifestAges, keyOf(repository, digest)); err != nil {
		return err
	}
	if err := c.remove(bucketManifests, keyOf(repository, digest)); err != nil {
		return err
	}
	if _, err := c.deleteTagsOf(repository, digest, math.MaxInt); err != nil {
		return err
	}
	if err := c.unrefer(repository, manifest); err != nil {
		return err
	}
	if manifest.GetStoredAsBlob() {
		return c.dropReference(digest, c.now)
	}
	return c.remove(bucketManifestContents, keyOf(repository, digest))
}

// manifest returns a manifest with its bytes, unless they are in a blob, or
// ErrManifestUnknown.
func (v view) manifest(repository, digest string) (*proto.Manifest, error) {
	manifest := &proto.Manifest{}
	key := keyOf(repository, digest)
	found, err := v.record(bucketManifests, key, manifest)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, v.missing(repository, ErrManifestUnknown)
	}
	if manifest.GetStoredAsBlob() {
		return manifest, nil
	}
	content, found, err := v.value(bucketManifestContents, key)
	if err == nil && !found {
		err = fmt.Errorf("%w: manifest %s in repository %q has no content", ErrCorrupt, digest, repository)
	}
	manifest.Content = bytes.Clone(content)
	return manifest, err
}

// Manifest returns a manifest by its digest. Without a quorum it may return one
// whose deletion this node has not seen. Errors: ErrManifestUnknown,
// ErrRepositoryUnknown, ErrUnavailable.
func (s *Store) Manifest(ctx context.Context, repository, digest string) (manifest *proto.Manifest, err error) {
	err = s.readContent(ctx, func(v view) error {
		manifest, err = v.manifest(repository, digest)
		return err
	})
	return manifest, err
}

// Manifests returns at most limit digests of the repository's manifests, behind the
// given one, in the order of their bytes, and whether there are more. Error:
// ErrUnavailable.
func (s *Store) Manifests(ctx context.Context, repository, after string, limit int) (digests []string, more bool, err error) {
	limit = pageLimit(limit)
	err = s.read(ctx, func(v view) error {
		digests, more, err = v.rests(bucketManifests, span{prefix: keyOf(repository, ""), after: []byte(after)}, limit)
		return err
	})
	return digests, more, err
}

// ManifestByTag returns the manifest that a tag points at. Errors:
// ErrManifestUnknown, ErrRepositoryUnknown, ErrUnavailable.
func (s *Store) ManifestByTag(ctx context.Context, repository, tag string) (manifest *proto.Manifest, err error) {
	err = s.readNamed(ctx, func(v view) error {
		var target proto.Tag
		found, err := v.record(bucketTags, keyOf(repository, tag), &target)
		if err != nil {
			return err
		}
		if !found {
			return v.missing(repository, ErrManifestUnknown)
		}
		manifest, err = v.manifest(repository, target.GetDigest())
		return err
	})
	return manifest, err
}

// ManifestBlob returns the blob that a manifest's bytes are stored in. Errors:
// ErrManifestUnknown, also for one that is not stored as a blob,
// ErrRepositoryUnknown, ErrUnavailable.
func (s *Store) ManifestBlob(ctx context.Context, repository, digest string) (blob *proto.Blob, err error) {
	err = s.readContent(ctx, func(v view) error {
		manifest, err := v.manifest(repository, digest)
		if err != nil {
			return err
		}
		if !manifest.GetStoredAsBlob() {
			return fmt.Errorf("%w: %s is not stored as a blob", ErrManifestUnknown, digest)
		}
		blob, err = v.blob(digest)
		return err
	})
	return blob, err
}

// RetainManifest is Manifest for a caller who will rely on the manifest being
// there: if untagged manifests are collected, it keeps this one for at least half
// of StoreConfig.UntaggedAge. Errors: those of Manifest, and ErrOutcomeUnknown.
func (s *Store) RetainManifest(ctx context.Context, repository, digest string) (*proto.Manifest, error) {
	var manifest *proto.Manifest
	var since int64
	err := s.readContent(ctx, func(v view) (err error) {
		if manifest, err = v.manifest(repository, digest); err != nil {
			return err
		}
		since, _, err = v.untaggedSince(repository, digest)
		return err
	})
	if err != nil {
		return nil, err
	}
	if s.cfg.UntaggedAge == 0 {
		return manifest, nil
	}
	over, err := s.isHalfOver(since, s.cfg.UntaggedAge)
	if err != nil {
		return nil, err
	}
	if !over {
		return manifest, nil
	}
	_, err = s.propose(ctx, &proto.Command{Body: &proto.Command_RenewManifest{RenewManifest: &proto.RenewManifest{
		Repository: repository, Digest: digest,
	}}})
	if err != nil {
		return nil, err
	}
	return manifest, nil
}

// Referrers returns at most limit manifests of the repository whose subject is
// the given digest and that come after another, without their content, in the
// order of their digests, and whether there are more. A repository that does not
// exist has none. Error: ErrUnavailable.
func (s *Store) Referrers(ctx context.Context, repository, subject, after string, limit int) (referrers []*proto.Manifest, more bool, err error) {
	limit = pageLimit(limit)
	err = s.readNamed(ctx, func(v view) error {
		var digests []string
		digests, more, err = v.rests(bucketReferrers, span{prefix: keyOf(repository, subject, ""), after: []byte(after)}, limit)
		if err != nil {
			return err
		}
		for _, digest := range digests {
			manifest := &proto.Manifest{}
			if err := v.mustRecord(bucketManifests, keyOf(repository, digest), manifest); err != nil {
				return err
			}
			referrers = append(referrers, manifest)
		}
		return nil
	})
	return referrers, more, err
}

// PutManifest stores a manifest and points tags at it. Its config and layers
// must be linked in the repository, and the manifests that it lists must be there
// if put wants that. Errors: ErrPrecondition, ErrTagImmutable, ErrReferenceUnknown,
// ErrHolderUnknown, ErrInvalid, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) PutManifest(ctx context.Context, put *proto.PutManifest) error {
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_PutManifest{PutManifest: put}})
	return err
}

// DeleteManifest deletes a manifest with all tags that point at it, if the
// precondition holds of the manifest; nil for none. One with very many tags loses
// them some at a time, before it goes itself; one with a tag that the policy keeps stays
// with all of them. Errors: ErrPrecondition, ErrTagImmutable, ErrRepositoryUnknown,
// ErrManifestUnknown, ErrUnavailable, ErrOutcomeUnknown.
func (s *Store) DeleteManifest(ctx context.Context, repository, digest string, wanted *proto.Precondition) error {
	for {
		many := false
		err := s.machine.view(func(v view) error {
			_, more, err := v.rests(bucketTagsByManifest, span{prefix: keyOf(repository, digest, "")}, tagsAtOnce)
			many = more
			return err
		})
		if err != nil {
			return fmt.Errorf("delete manifest %s: %w", digest, err)
		}
		if !many {
			break
		}
		result, err := s.propose(ctx, &proto.Command{Body: &proto.Command_DeleteTagsOf{DeleteTagsOf: &proto.DeleteTagsOf{
			Repository: repository, Digest: digest, Limit: tagsAtOnce, Precondition: wanted,
		}}})
		if err != nil {
			return err
		}
		if result.GetExpired() < tagsAtOnce {
			break // this node has not applied yet what another one deleted
		}
	}
	_, err := s.propose(ctx, &proto.Command{Body: &proto.Command_DeleteManifest{DeleteManifest: &proto.DeleteManifest{
		Repository: repository, Digest: digest, Precondition: wanted,
	}}})
	return err
}
