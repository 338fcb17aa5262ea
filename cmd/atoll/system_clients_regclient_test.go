package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/regclient/regclient"
	"github.com/regclient/regclient/config"
	"github.com/regclient/regclient/scheme"
	"github.com/regclient/regclient/scheme/reg"
	"github.com/regclient/regclient/types/descriptor"
	"github.com/regclient/regclient/types/manifest"
	"github.com/regclient/regclient/types/ref"
)

// regclientTest is what regctl is made of, with one image.
type regclientTest struct {
	t      *testing.T
	rc     *regclient.RegClient
	counts *requestCounter
	host   string
	image  libraryImage
}

// requestCounter counts what a client has succeeded with.
type requestCounter struct {
	// next does the requests; nil for http.DefaultTransport.
	next http.RoundTripper
	// chunks are PATCHes with a Content-Range, mounts POSTs that needed no upload.
	chunks, mounts atomic.Int64
}

func (c *requestCounter) RoundTrip(r *http.Request) (*http.Response, error) {
	next := c.next
	if next == nil {
		next = http.DefaultTransport
	}
	response, err := next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	switch {
	case r.Method == http.MethodPatch && r.Header.Get("Content-Range") != "" && response.StatusCode == http.StatusAccepted:
		c.chunks.Add(1)
	case r.Method == http.MethodPost && r.URL.Query().Has("mount") && response.StatusCode == http.StatusCreated:
		c.mounts.Add(1)
	}
	return response, nil
}

// regctl, which pushes in chunks.
func clientRegclient(t *testing.T, host string) {
	settings := *config.HostNewName(host)
	settings.TLS = config.TLSDisabled
	settings.BlobChunk, settings.BlobMax = 3<<20, 4<<20
	counts := &requestCounter{}
	rc := regclient.New(regclient.WithConfigHost(settings), regclient.WithRegOpts(reg.WithHTTPClient(&http.Client{Transport: counts})))
	r := regclientTest{t: t, rc: rc, counts: counts, host: host, image: newLibraryImage(t)}
	one := r.ref("clients/regclient:one")
	for blob, desc := range r.image.blobs() {
		r.put(one, string(desc.MediaType), *blob)
	}
	if got, want := counts.chunks.Load(), int64(clientLayers()[1]/(3<<20)+1); got != want {
		t.Errorf("the large layer was pushed in %d chunks, want %d", got, want)
	}
	r.putManifest(one, r.image.manifest)
	r.pull(one)
	r.referrers(one)
	r.copy(one)
	r.lists(one)
	r.deletes(one)
}

func (r regclientTest) ref(name string) ref.Ref {
	r.t.Helper()
	if !strings.HasPrefix(name, "ocidir://") {
		name = r.host + "/" + name
	}
	parsed, err := ref.New(name)
	if err != nil {
		r.t.Fatal(err)
	}
	return parsed
}

// put pushes a blob, in chunks if it is large.
func (r regclientTest) put(to ref.Ref, mediaType string, blob []byte) {
	r.t.Helper()
	desc := descriptor.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	got, err := r.rc.BlobPut(r.t.Context(), to, desc, bytes.NewReader(blob))
	if err != nil || got.Digest != desc.Digest || got.Size != desc.Size {
		r.t.Fatalf("push of a blob: %+v, %v", got, err)
	}
}

func (r regclientTest) putManifest(to ref.Ref, content []byte) {
	r.t.Helper()
	m, err := manifest.New(manifest.WithRaw(content))
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.rc.ManifestPut(r.t.Context(), to, m); err != nil {
		r.t.Fatalf("push of a manifest: %v", err)
	}
}

func (r regclientTest) pull(from ref.Ref) {
	r.t.Helper()
	found, err := r.rc.ManifestHead(r.t.Context(), from, regclient.WithManifestRequireDigest())
	if err != nil || found.GetDescriptor().Digest != r.image.descriptor().Digest {
		r.t.Fatalf("HEAD of the manifest: %v, %v", found, err)
	}
	target := r.ref("ocidir://" + r.t.TempDir() + ":one")
	if err := r.rc.ImageCopy(r.t.Context(), from, target); err != nil {
		r.t.Fatalf("pull: %v", err)
	}
	for blob, desc := range r.image.blobs() {
		reader, err := r.rc.BlobGet(r.t.Context(), target, descriptor.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size})
		if err != nil {
			r.t.Fatal(err)
		}
		got, err := io.ReadAll(reader)
		reader.Close()
		if err != nil || !bytes.Equal(got, *blob) {
			r.t.Errorf("pull of %s: %d bytes, want %d: %v", desc.Digest, len(got), len(*blob), err)
		}
	}
}

func (r regclientTest) referrers(subject ref.Ref) {
	r.t.Helper()
	signature, layer := r.image.signature(r.t)
	r.put(subject, "application/vnd.oci.empty.v1+json", []byte("{}"))
	r.put(subject, "text/plain", layer)
	r.putManifest(subject.SetDigest(digest.FromBytes(signature).String()), signature)
	for artifactType, want := range map[string]int{signatureType: 1, "application/vnd.example.other": 0} {
		found, err := r.rc.ReferrerList(r.t.Context(), subject, scheme.WithReferrerMatchOpt(descriptor.MatchOpt{ArtifactType: artifactType}))
		if err != nil || len(found.Descriptors) != want || len(found.Tags) != 0 {
			r.t.Errorf("referrers of type %s: %+v, %v, want %d", artifactType, found.Descriptors, err, want)
		}
	}
}

func (r regclientTest) copy(from ref.Ref) {
	r.t.Helper()
	to := r.ref("clients/regclient-copy:two")
	if err := r.rc.ImageCopy(r.t.Context(), from, to, regclient.ImageWithReferrers()); err != nil {
		r.t.Fatalf("copy: %v", err)
	}
	r.image.verify(r.t, r.host, "clients/regclient-copy", "two")
	if found, err := r.rc.ReferrerList(r.t.Context(), to); err != nil || len(found.Descriptors) != 1 {
		r.t.Errorf("referrers of the copy: %+v, %v", found.Descriptors, err)
	}
	// Without a source: the client asks whether the registry has it anywhere.
	anywhere, before := r.ref("clients/regclient-mount:three"), r.counts.mounts.Load()
	for blob := range r.image.blobs() {
		r.put(anywhere, "application/octet-stream", *blob)
	}
	if got, want := r.counts.mounts.Load()-before, int64(len(r.image.blobs())); got != want {
		r.t.Errorf("%d blobs were mounted from anywhere, want %d", got, want)
	}
}

func (r regclientTest) lists(one ref.Ref) {
	r.t.Helper()
	r.putManifest(one.SetTag("other"), r.image.manifest)
	tags, err := r.rc.TagList(r.t.Context(), one)
	if err != nil || !slices.Equal(tags.Tags, []string{"one", "other"}) {
		r.t.Errorf("tags are %v, %v", tags, err)
	}
	repositories, err := r.rc.RepoList(r.t.Context(), r.host)
	if err != nil || !slices.Contains(repositories.Repositories, "clients/regclient-copy") {
		r.t.Errorf("repositories are %v, %v", repositories, err)
	}
}

// deletes removes a tag and checks that its manifest is still there: a client that
// is told that tags can't be deleted overwrites the tag, and deletes that manifest.
func (r regclientTest) deletes(one ref.Ref) {
	r.t.Helper()
	if err := r.rc.TagDelete(r.t.Context(), one.SetTag("other")); err != nil {
		r.t.Errorf("delete a tag: %v", err)
	}
	gone(r.t, r.host, "clients/regclient:other")
	r.image.verify(r.t, r.host, "clients/regclient", "one")
	if err := r.rc.ManifestDelete(r.t.Context(), one.SetDigest(r.image.descriptor().Digest.String())); err != nil {
		r.t.Errorf("delete a manifest: %v", err)
	}
	gone(r.t, r.host, "clients/regclient:one")
	r.image.verify(r.t, r.host, "clients/regclient-copy", "two")
	if err := r.rc.Close(context.WithoutCancel(r.t.Context()), one); err != nil {
		r.t.Errorf("close: %v", err)
	}
}
