package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/google/uuid"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/proto"
)

// getManifest answers GET and HEAD of a manifest: the bytes as they were pushed,
// under the type as it was pushed, whatever the client says it accepts. Clients
// that meet a type they can't read say so better than a 404 or 406 would.
func (g *gateway) getManifest(ctx context.Context, x *exchange) error {
	watched, stale := metadata.WatchStale(ctx)
	manifest, err := g.lookUpManifest(watched, x)
	if err != nil {
		return fmt.Errorf("look up manifest %s: %w", x.reference, err)
	}
	digest := manifest.GetDigest()
	etag := `"` + digest + `"`
	header := x.w.Header()
	header.Set("Etag", etag)
	header.Set("Docker-Content-Digest", digest)
	header.Set("Cache-Control", "no-cache, no-transform")
	if x.byDigest() {
		header.Set("Cache-Control", "max-age=31536000, no-transform")
	}
	if stale.Happened() {
		x.warnStale()
	}
	if match := x.r.Header.Get("If-None-Match"); match != "" && matchesETag(match, etag) {
		return x.reply(http.StatusNotModified)
	}
	header.Set("Content-Type", manifest.GetMediaType())
	header.Set("Content-Length", strconv.FormatUint(manifest.GetSize(), 10))
	if x.r.Method == http.MethodHead {
		x.w.WriteHeader(http.StatusOK)
		return nil
	}
	if manifest.GetStoredAsBlob() {
		blob, err := g.metadata.ManifestBlob(ctx, x.repository, digest)
		if err != nil {
			return fmt.Errorf("look up content of manifest %s: %w", digest, err)
		}
		whole := span{length: blob.GetSize()}
		return g.sendExtents(ctx, x, sending{extents: blob.GetExtents(), spans: []span{whole}, status: http.StatusOK})
	}
	x.w.WriteHeader(http.StatusOK)
	_, _ = x.w.Write(manifest.GetContent()) // A client that is gone is seen in x.w.err.
	return nil
}

func (g *gateway) lookUpManifest(ctx context.Context, x *exchange) (*proto.Manifest, error) {
	switch {
	case x.byDigest() && x.r.Method == http.MethodHead:
		// Who asks whether it is there, without wanting it, means to refer to it.
		return g.metadata.RetainManifest(ctx, x.repository, x.reference)
	case x.byDigest():
		return g.metadata.Manifest(ctx, x.repository, x.reference)
	}
	return g.metadata.ManifestByTag(ctx, x.repository, x.reference)
}

// putManifest answers PUT of a manifest, by tag or by digest. By digest, tag
// parameters name tags to move in the same step.
func (g *gateway) putManifest(ctx context.Context, x *exchange) error {
	tags, err := x.tagsToMove()
	if err != nil {
		return err
	}
	wanted, err := precondition(x.r.Header)
	if err != nil {
		return err
	}
	content, release, err := g.readManifest(ctx, x)
	if err != nil {
		return err
	}
	defer release()
	contentType, ok := one(x.r.Header.Values("Content-Type"))
	if !ok {
		return invalidManifest("there are several Content-Types")
	}
	manifest, err := parseManifest(content, contentType)
	if err != nil {
		return err
	}
	algorithm := sha256Algorithm
	if x.byDigest() {
		algorithm, _, _ = splitDigest(x.reference)
	}
	manifest.Digest = digestOf(algorithm, content)
	if x.byDigest() && manifest.Digest != x.reference {
		return refuse(errDigestInvalid, "the manifest has another digest", map[string]string{"digest": x.reference, "computed": manifest.Digest})
	}
	put := &proto.PutManifest{Repository: x.repository, Manifest: manifest, Tags: tags, Precondition: wanted, RequireManifests: g.cfg.RequireIndexChildren}
	if err := g.storeManifest(ctx, put, content); err != nil {
		return fmt.Errorf("store manifest %s: %w", manifest.Digest, err)
	}
	if err := g.metadata.PutManifest(ctx, put); err != nil {
		return fmt.Errorf("put manifest %s: %w", manifest.Digest, err)
	}
	if manifest.Subject != "" {
		x.w.Header().Set("OCI-Subject", manifest.Subject)
	}
	if x.byDigest() {
		for _, tag := range tags {
			x.w.Header().Add("OCI-Tag", tag)
		}
	}
	return x.created(manifestPath(x.repository, manifest.Digest), manifest.Digest)
}

// maxTagsAtOnce is how many tags one PUT may move. The OCI specification asks for
// at least 10.
const maxTagsAtOnce = 64

// tagsToMove returns the tags that a PUT points at the manifest.
func (x *exchange) tagsToMove() ([]string, error) {
	if !x.byDigest() {
		return []string{x.reference}, nil
	}
	tags := x.query["tag"]
	if len(tags) > maxTagsAtOnce {
		return nil, refuse(errTooManyTags, fmt.Sprintf("more than %d tags at once", maxTagsAtOnce), nil)
	}
	for _, tag := range tags {
		if !tagGrammar.MatchString(tag) {
			return nil, refuse(errTagInvalid, "this is not a tag", map[string]string{"tag": tag})
		}
	}
	return tags, nil
}

// readManifest reads the request's body into memory. The caller must call release
// when it needs the bytes no more.
func (g *gateway) readManifest(ctx context.Context, x *exchange) (content []byte, release func(), err error) {
	tooLarge := refuse(errManifestSize, fmt.Sprintf("a manifest may have %d bytes", MaxManifestBytes), nil)
	announced := x.r.ContentLength
	if announced > MaxManifestBytes {
		return nil, nil, tooLarge
	}
	if announced < 0 {
		announced = MaxManifestBytes
	}
	release, err = g.manifests.acquire(ctx, announced)
	if err != nil {
		return nil, nil, err
	}
	x.body.deadline = g.now().Add(g.cfg.ManifestTimeout)
	content, err = io.ReadAll(io.LimitReader(x.body, MaxManifestBytes+1))
	if err == nil && len(content) > MaxManifestBytes {
		err = tooLarge
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	return content, release, nil
}

// storeManifest puts the content where it belongs: into the record, or, if it
// would weigh on the log, into a blob of its own.
func (g *gateway) storeManifest(ctx context.Context, put *proto.PutManifest, content []byte) error {
	if len(content) <= metadata.MaxInlineManifest {
		put.Manifest.Content = content
		return nil
	}
	put.Manifest.StoredAsBlob = true
	// They would weigh as much as the content; listReferrers reads them there.
	put.Manifest.Annotations = nil
	from := blobstore.Progress{UploadID: uuid.NewString()}
	_, extents, _, err := g.blobs.Append(ctx, from, bytes.NewReader(content), nil)
	if err != nil {
		return err
	}
	put.Extents = extents
	return nil
}

// deleteManifest answers DELETE: of a digest with every tag that points to it, or
// of a tag alone.
func (g *gateway) deleteManifest(ctx context.Context, x *exchange) error {
	wanted, err := precondition(x.r.Header)
	if err != nil {
		return err
	}
	remove := g.metadata.DeleteTag
	if x.byDigest() {
		remove = g.metadata.DeleteManifest
	}
	if err := remove(ctx, x.repository, x.reference, wanted); err != nil {
		return fmt.Errorf("delete manifest %s: %w", x.reference, err)
	}
	return x.reply(http.StatusAccepted)
}
