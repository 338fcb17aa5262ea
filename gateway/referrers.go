package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/proto"
)

// referrersIndex is the reply to a request for referrers, an OCI image index.
type referrersIndex struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Manifests     []json.RawMessage `json:"manifests"`
}

type referrerDescriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         uint64            `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// maxReferrersBytes bounds a page of referrers: clients read an index of at most
// 4 MiB. What surrounds the descriptors fits into the difference.
const maxReferrersBytes = MaxManifestBytes - 4096

// listReferrers answers GET of the manifests whose subject is a digest. There is
// an answer for every digest, known or not: clients take anything else for a
// registry without referrers, and start to keep lists of their own.
func (g *gateway) listReferrers(ctx context.Context, x *exchange) error {
	referrers, err := g.metadata.Referrers(ctx, x.repository, x.reference)
	if err != nil && !errors.Is(err, metadata.ErrRepositoryUnknown) {
		return fmt.Errorf("list referrers of %s: %w", x.reference, err)
	}
	slices.SortFunc(referrers, func(a, b *proto.Manifest) int { return cmp.Compare(a.GetDigest(), b.GetDigest()) })
	wanted, after := x.query.Get("artifactType"), x.query.Get("last")
	if wanted != "" {
		x.w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	index := referrersIndex{SchemaVersion: 2, MediaType: ociIndexType, Manifests: []json.RawMessage{}}
	bytes, last := 0, ""
	for _, manifest := range referrers {
		if manifest.GetDigest() <= after || (wanted != "" && manifest.GetArtifactType() != wanted) {
			continue
		}
		entry, err := g.describeReferrer(ctx, x, manifest)
		if errors.Is(err, metadata.ErrManifestUnknown) {
			continue // Deleted since it was listed.
		}
		if err != nil {
			return err
		}
		if bytes += len(entry) + len(","); bytes > maxReferrersBytes && len(index.Manifests) > 0 {
			next := url.Values{"last": {last}}
			if wanted != "" {
				next.Set("artifactType", wanted)
			}
			x.linkNext("/v2/"+x.repository+"/referrers/"+x.reference, next)
			break
		}
		index.Manifests, last = append(index.Manifests, entry), manifest.GetDigest()
	}
	return x.replyJSON(http.StatusOK, ociIndexType, index)
}

// describeReferrer returns a descriptor as JSON.
func (g *gateway) describeReferrer(ctx context.Context, x *exchange, manifest *proto.Manifest) (json.RawMessage, error) {
	annotations := manifest.GetAnnotations()
	if manifest.GetStoredAsBlob() {
		var err error
		if annotations, err = g.storedAnnotations(ctx, x.repository, manifest.GetDigest()); err != nil {
			return nil, fmt.Errorf("read annotations of %s: %w", manifest.GetDigest(), err)
		}
	}
	return json.Marshal(referrerDescriptor{
		MediaType: manifest.GetMediaType(), Digest: manifest.GetDigest(), Size: manifest.GetSize(),
		ArtifactType: manifest.GetArtifactType(), Annotations: annotations,
	})
}

// storedAnnotations reads the annotations of a manifest that is stored as a blob:
// they are not in its record.
func (g *gateway) storedAnnotations(ctx context.Context, repository, digest string) (map[string]string, error) {
	blob, err := g.metadata.ManifestBlob(ctx, repository, digest)
	if err != nil {
		return nil, err
	}
	reader, err := g.blobs.Read(ctx, blob.GetExtents(), 0, blob.GetSize())
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(reader, MaxManifestBytes))
	_ = reader.Close() // Nothing to say about what was read.
	if err != nil {
		return nil, err
	}
	parsed, err := decodeManifest(content)
	if err != nil {
		return nil, err
	}
	return parsed.annotations, nil
}
