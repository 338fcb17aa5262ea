package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

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
	wanted := x.query.Get("artifactType")
	if wanted != "" {
		x.w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	ctx, stale := metadata.WatchStale(ctx)
	list := referrersPage{artifactType: wanted, last: x.query.Get("last"), entries: []json.RawMessage{}}
	for more := true; more && !list.full; {
		if list.looked >= maxReferrersLooked {
			list.full = true
			break
		}
		var referrers []*proto.Manifest
		var err error
		referrers, more, err = g.metadata.Referrers(ctx, x.repository, x.reference, list.last, referrersAtOnce)
		if err != nil && !errors.Is(err, metadata.ErrRepositoryUnknown) {
			return fmt.Errorf("list referrers of %s: %w", x.reference, err)
		}
		if err := g.addReferrers(ctx, x, &list, referrers); err != nil {
			return err
		}
	}
	if stale.Happened() {
		x.warnStale()
	}
	if list.full {
		next := url.Values{"last": {list.last}}
		if wanted != "" {
			next.Set("artifactType", wanted)
		}
		x.linkNext("/v2/"+x.repository+"/referrers/"+x.reference, next)
	}
	return x.replyJSON(http.StatusOK, ociIndexType, referrersIndex{SchemaVersion: 2, MediaType: ociIndexType, Manifests: list.entries})
}

const (
	// referrersAtOnce is how many referrers are asked for at a time. Most subjects have
	// fewer; more would be held in memory with all their annotations, which may have
	// 128 KiB each.
	referrersAtOnce = 64
	// maxReferrersLooked is how many are looked at for one reply, wanted or not. Some
	// clients read no second page, so that it is many.
	maxReferrersLooked = 10_000
	// maxReferrersRead is how many bytes of manifests that are stored as blobs are read
	// for one reply. Few are that large; many would have one request read gigabytes.
	maxReferrersRead = 64 << 20
)

// referrersPage is the reply that is being put together.
type referrersPage struct {
	// artifactType of those that are wanted; empty for all.
	artifactType string
	// last is the digest of the last referrer that was looked at.
	last    string
	entries []json.RawMessage
	bytes   int
	looked  int
	// read are the bytes of manifests stored as blobs.
	read uint64
	// full says that there are more than one reply may have.
	full bool
}

func (g *gateway) addReferrers(ctx context.Context, x *exchange, list *referrersPage, referrers []*proto.Manifest) error {
	list.looked += len(referrers)
	for _, manifest := range referrers {
		if list.artifactType != "" && manifest.GetArtifactType() != list.artifactType {
			list.last = manifest.GetDigest()
			continue
		}
		if manifest.GetStoredAsBlob() {
			if list.read += manifest.GetSize(); list.read > maxReferrersRead {
				list.full = true
				return nil
			}
		}
		entry, err := g.describeReferrer(ctx, x, manifest)
		if errors.Is(err, metadata.ErrManifestUnknown) {
			list.last = manifest.GetDigest()
			continue // Deleted since it was listed.
		}
		if err != nil {
			return err
		}
		if list.bytes += len(entry) + len(","); list.bytes > maxReferrersBytes && len(list.entries) > 0 {
			list.full = true
			return nil
		}
		list.entries, list.last = append(list.entries, entry), manifest.GetDigest()
	}
	return nil
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
