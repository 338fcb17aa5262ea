package gateway

import (
	"context"
	"slices"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/proto"
)

func (m *memoryMetadata) manifest(repository, digest string) (*proto.Manifest, error) {
	r, err := m.repository(repository)
	if err != nil {
		return nil, err
	}
	if manifest := r.manifests[digest]; manifest != nil {
		return manifest, nil
	}
	return nil, metadata.ErrManifestUnknown
}

func (m *memoryMetadata) Manifest(ctx context.Context, repository, digest string) (*proto.Manifest, error) {
	unlock, err := m.enterContent(ctx, "Manifest")
	if err != nil {
		return nil, err
	}
	defer unlock()
	return m.manifest(repository, digest)
}

func (m *memoryMetadata) ManifestByTag(ctx context.Context, repository, tag string) (*proto.Manifest, error) {
	unlock, err := m.enterContent(ctx, "ManifestByTag")
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, err := m.repository(repository)
	if err != nil {
		return nil, err
	}
	if r.tags[tag] == "" {
		return nil, metadata.ErrTagUnknown
	}
	return m.manifest(repository, r.tags[tag])
}

func (m *memoryMetadata) ManifestBlob(ctx context.Context, repository, digest string) (*proto.Blob, error) {
	unlock, err := m.enterContent(ctx, "ManifestBlob")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := m.manifest(repository, digest); err != nil {
		return nil, err
	}
	return m.repositories[repository].stored[digest], nil
}

func (m *memoryMetadata) PutManifest(_ context.Context, put *proto.PutManifest) error {
	unlock, err := m.enter("PutManifest")
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.check(put.Precondition, put.Repository, put.Manifest.Digest, put.Tags...); err != nil {
		return err
	}
	var missing []string
	for _, d := range put.Manifest.Blobs {
		if _, err := m.linked(put.Repository, d.Digest); err != nil {
			missing = append(missing, d.Digest)
		}
	}
	for _, d := range put.Manifest.Manifests {
		if _, err := m.manifest(put.Repository, d.Digest); err != nil && put.RequireManifests {
			missing = append(missing, d.Digest)
		}
	}
	if missing != nil {
		return &metadata.ReferenceUnknownError{Digests: missing}
	}
	if put.Manifest.StoredAsBlob == (len(put.Manifest.Content) > 0) {
		return metadata.ErrInvalid
	}
	r := m.make(put.Repository)
	r.manifests[put.Manifest.Digest] = put.Manifest
	if put.Manifest.StoredAsBlob {
		r.stored[put.Manifest.Digest] = &proto.Blob{Digest: put.Manifest.Digest, Size: put.Manifest.Size, Extents: put.Extents}
	}
	for _, tag := range put.Tags {
		r.tags[tag] = put.Manifest.Digest
	}
	return nil
}

func (m *memoryMetadata) DeleteManifest(_ context.Context, repository, digest string, wanted *proto.Precondition) error {
	unlock, err := m.enter("DeleteManifest")
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := m.repository(repository); err != nil {
		return err
	}
	if err := m.check(wanted, repository, digest); err != nil {
		return err
	}
	if _, err := m.manifest(repository, digest); err != nil {
		return err
	}
	r := m.repositories[repository]
	delete(r.manifests, digest)
	for tag, target := range r.tags {
		if target == digest {
			delete(r.tags, tag)
		}
	}
	return nil
}

func (m *memoryMetadata) DeleteTag(_ context.Context, repository, tag string, wanted *proto.Precondition) error {
	unlock, err := m.enter("DeleteTag")
	if err != nil {
		return err
	}
	defer unlock()
	r, err := m.repository(repository)
	if err != nil {
		return err
	}
	if err := m.check(wanted, repository, "", tag); err != nil {
		return err
	}
	if r.tags[tag] == "" {
		return metadata.ErrTagUnknown
	}
	delete(r.tags, tag)
	return nil
}

func (m *memoryMetadata) RetainManifest(ctx context.Context, repository, digest string) (*proto.Manifest, error) {
	unlock, err := m.enterContent(ctx, "RetainManifest")
	if err != nil {
		return nil, err
	}
	defer unlock()
	return m.manifest(repository, digest)
}

// check fails unless a precondition holds of each tag, or of the manifest if
// there are none.
func (m *memoryMetadata) check(wanted *proto.Precondition, repository, manifest string, tags ...string) error {
	current := func(tag string) string {
		r := m.repositories[repository]
		switch {
		case r == nil:
			return ""
		case tag != "":
			return r.tags[tag]
		case r.manifests[manifest] != nil:
			return manifest
		}
		return ""
	}
	if len(tags) == 0 {
		tags = []string{""}
	}
	for _, tag := range tags {
		digest := current(tag)
		if wanted.GetExists() && digest == "" || wanted.GetMissing() && digest != "" ||
			len(wanted.GetDigests()) > 0 && !slices.Contains(wanted.GetDigests(), digest) || slices.Contains(wanted.GetNotDigests(), digest) {
			return &metadata.PreconditionError{Tag: tag, Digest: digest}
		}
	}
	return nil
}
