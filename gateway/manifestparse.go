package gateway

import (
	"fmt"
	"mime"
	"strings"

	"github.com/atollregistry/atoll/proto"
)

// Types of manifests that the registry takes.
const (
	ociManifestType    = "application/vnd.oci.image.manifest.v1+json"
	ociIndexType       = "application/vnd.oci.image.index.v1+json"
	dockerManifestType = "application/vnd.docker.distribution.manifest.v2+json"
	dockerListType     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// Bounds of what one manifest may bring into the log and its index of links.
const (
	// maxReferences is how many descriptors a manifest may have.
	maxReferences = 4096
	// maxMediaTypeBytes is how long a media type may be (RFC 6838 section 4.2).
	maxMediaTypeBytes = 255
)

// isIndexType says whether manifests of the type list other manifests.
func isIndexType(mediaType string) bool {
	return mediaType == ociIndexType || mediaType == dockerListType
}

// isManifestType says whether a descriptor of this type, in an image index, is
// that of a manifest. That includes types that the registry does not take, but
// which old indexes list.
func isManifestType(mediaType string) bool {
	switch mediaType {
	case ociManifestType, ociIndexType, dockerManifestType, dockerListType,
		"application/vnd.oci.artifact.manifest.v1+json",
		"application/vnd.docker.distribution.manifest.v1+json",
		"application/vnd.docker.distribution.manifest.v1+prettyjws":
		return true
	default:
		return false
	}
}

// isNonDistributable says whether a layer need not be in the registry.
func isNonDistributable(mediaType string) bool {
	return strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.nondistributable.v1.") ||
		mediaType == "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" ||
		mediaType == "application/vnd.docker.image.rootfs.foreign.diff.tar"
}

// parsedManifest is what the registry needs to know of a manifest's JSON.
type parsedManifest struct {
	schemaVersion int64
	mediaType     string
	artifactType  string
	config        *parsedDescriptor
	layers        []parsedDescriptor
	manifests     []parsedDescriptor
	subject       *parsedDescriptor
	annotations   map[string]string
	// fields are the names at the top level.
	fields map[string]struct{}
}

func (m *parsedManifest) has(field string) bool { _, found := m.fields[field]; return found }

// parsedDescriptor is a descriptor; external says that it has URLs.
type parsedDescriptor struct {
	mediaType string
	digest    string
	size      int64
	external  bool
}

func (d *parsedDescriptor) record() *proto.Descriptor {
	return &proto.Descriptor{MediaType: d.mediaType, Digest: d.digest, Size: uint64(d.size)}
}

// parseManifest reads a manifest that is pushed under a Content-Type. It fails
// with errManifestInvalid, saying why, unless every client that reads the bytes
// must understand the same by them. Digest and content are left to the caller.
func parseManifest(content []byte, contentType string) (*proto.Manifest, error) {
	parsed, err := decodeManifest(content)
	if err != nil {
		return nil, invalidManifest(err.Error())
	}
	mediaType, problem := parsed.resolveType(contentType)
	if problem == "" {
		problem = parsed.checkShape(mediaType)
	}
	if problem != "" {
		return nil, invalidManifest(problem)
	}
	manifest := &proto.Manifest{
		MediaType: mediaType, Size: uint64(len(content)), ArtifactType: parsed.artifactType, Annotations: parsed.annotations,
	}
	if parsed.subject != nil {
		manifest.Subject = parsed.subject.digest
	}
	if isIndexType(mediaType) {
		parsed.linkIndex(manifest)
	} else {
		parsed.linkImage(manifest)
	}
	if manifest.Subject == "" {
		// Only the referrers list asks for these, so keep them out of the log.
		manifest.Annotations = nil
	}
	return manifest, nil
}

func invalidManifest(problem string) error { return refuse(errManifestInvalid, problem, nil) }

// resolveType finds the manifest's type: what the request says and what the
// manifest says must agree, so that nobody reads it as something else.
func (m *parsedManifest) resolveType(contentType string) (mediaType, problem string) {
	mediaType = m.mediaType
	if contentType != "" {
		sent, _, err := mime.ParseMediaType(contentType)
		if err != nil {
			return "", fmt.Sprintf("Content-Type %q is not a media type", contentType)
		}
		if m.mediaType != "" && m.mediaType != sent {
			return "", fmt.Sprintf("mediaType is %q but Content-Type is %q", m.mediaType, sent)
		}
		mediaType = sent
	}
	switch mediaType {
	case ociManifestType, ociIndexType, dockerManifestType, dockerListType:
		return mediaType, ""
	case "":
		return "", "neither Content-Type nor mediaType says what this is"
	default:
		return "", fmt.Sprintf("manifests of type %q are not supported", mediaType)
	}
}

// checkShape refuses a manifest that is not what its type says, and one that is
// two things at once (CVE-2021-41190).
func (m *parsedManifest) checkShape(mediaType string) (problem string) {
	foreign := []string{"manifests", "fsLayers"}
	required := "config"
	if isIndexType(mediaType) {
		foreign = []string{"config", "layers", "fsLayers"}
		required = "manifests"
	}
	for _, field := range foreign {
		if m.has(field) {
			return fmt.Sprintf("a manifest of type %q has no %q", mediaType, field)
		}
	}
	switch {
	case m.schemaVersion != 2:
		return "schemaVersion is not 2"
	case !m.has(required) || (required == "config" && m.config == nil):
		return fmt.Sprintf("%q is missing", required)
	case len(m.layers)+len(m.manifests) > maxReferences:
		return fmt.Sprintf("more than %d descriptors", maxReferences)
	}
	return ""
}

// linkImage records what an image manifest refers to: its config and layers.
func (m *parsedManifest) linkImage(manifest *proto.Manifest) {
	seen := make(map[string]struct{}, len(m.layers)+1)
	for _, d := range append([]parsedDescriptor{*m.config}, m.layers...) {
		if _, twice := seen[d.digest]; twice {
			continue
		}
		seen[d.digest] = struct{}{}
		d.link(manifest)
	}
	if manifest.ArtifactType == "" {
		// "Listing Referrers" of the OCI distribution specification.
		manifest.ArtifactType = m.config.mediaType
	}
}

// linkIndex records what an image index lists: manifests, which may be missing
// (sparse indexes are allowed), and blobs, which must be there, as in an index
// that BuildKit exports as a cache.
func (m *parsedManifest) linkIndex(manifest *proto.Manifest) {
	seen := make(map[string]struct{}, len(m.manifests))
	for _, d := range m.manifests {
		if _, twice := seen[d.digest]; twice {
			continue
		}
		seen[d.digest] = struct{}{}
		if isManifestType(d.mediaType) {
			manifest.Manifests = append(manifest.Manifests, d.record())
		} else {
			d.link(manifest)
		}
	}
}

// link records a blob that a manifest refers to: one that must be there, or one
// that may be elsewhere.
func (d *parsedDescriptor) link(manifest *proto.Manifest) {
	if d.external || isNonDistributable(d.mediaType) {
		manifest.OptionalBlobs = append(manifest.OptionalBlobs, d.record())
	} else {
		manifest.Blobs = append(manifest.Blobs, d.record())
	}
}
