package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	containerd "github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/transfer"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// libraryImage is an image in memory, for clients that are libraries.
type libraryImage struct {
	config   []byte
	layers   [][]byte
	manifest []byte
}

func newLibraryImage(t *testing.T) libraryImage {
	t.Helper()
	image := libraryImage{config: scriptConfig}
	manifest := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: describe(ocispec.MediaTypeImageConfig, image.config)}
	manifest.SchemaVersion = 2
	for _, size := range clientLayers() {
		layer := randomBytes(size)
		image.layers = append(image.layers, layer)
		manifest.Layers = append(manifest.Layers, describe(ocispec.MediaTypeImageLayer, layer))
	}
	var err error
	if image.manifest, err = json.Marshal(manifest); err != nil {
		t.Fatal(err)
	}
	return image
}

// descriptor describes the manifest.
func (i libraryImage) descriptor() ocispec.Descriptor {
	return describe(ocispec.MediaTypeImageManifest, i.manifest)
}

// blobs are the layers and the configuration with their descriptors.
func (i libraryImage) blobs() map[*[]byte]ocispec.Descriptor {
	blobs := map[*[]byte]ocispec.Descriptor{&i.config: describe(ocispec.MediaTypeImageConfig, i.config)}
	for n := range i.layers {
		blobs[&i.layers[n]] = describe(ocispec.MediaTypeImageLayer, i.layers[n])
	}
	return blobs
}

// verify reads the image with plain HTTP.
func (i libraryImage) verify(t *testing.T, host, repository, tag string) {
	t.Helper()
	path := "http://" + host + "/v2/" + repository
	if response, got := request(t, http.MethodGet, path+"/manifests/"+tag, nil); !bytes.Equal(got, i.manifest) {
		t.Errorf("manifest %s:%s: %s with %q", repository, tag, response.Status, got)
	}
	for blob, desc := range i.blobs() {
		if response, got := request(t, http.MethodGet, path+"/blobs/"+desc.Digest.String(), nil); !bytes.Equal(got, *blob) {
			t.Errorf("blob %s of %s: %s with %d bytes, want %d", desc.Digest, repository, response.Status, len(got), len(*blob))
		}
	}
}

func describe(mediaType string, content []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
}

// signature is a manifest whose subject is the image, with its one layer.
func (i libraryImage) signature(t *testing.T) (manifest, layer []byte) {
	t.Helper()
	subject := i.descriptor()
	layer = []byte("signature of " + subject.Digest)
	signature := ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: signatureType, Subject: &subject,
		Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{describe("text/plain", layer)},
	}
	signature.SchemaVersion = 2
	manifest, err := json.Marshal(signature)
	if err != nil {
		t.Fatal(err)
	}
	return manifest, layer
}

const signatureType = "application/vnd.example.signature"

// containerd, and with it nerdctl, kubelet and buildkit.
func clientContainerd(t *testing.T, host string) {
	ctx := t.Context()
	image := newLibraryImage(t)
	ref := host + "/clients/containerd:one"
	resolver := containerdResolver()
	source := containerdStore(t)
	for blob, desc := range image.blobs() {
		ingest(t, source, desc, *blob)
	}
	ingest(t, source, image.descriptor(), image.manifest)
	pusher, err := resolver.Pusher(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remotes.PushContent(ctx, pusher, image.descriptor(), source, nil, platforms.All, nil); err != nil {
		t.Fatalf("push: %v", err)
	}
	name, found, err := resolver.Resolve(ctx, ref)
	if err != nil || found.Digest != image.descriptor().Digest || found.Size != image.descriptor().Size || found.MediaType != image.descriptor().MediaType {
		t.Fatalf("resolve %s: %+v, %v", ref, found, err)
	}
	containerdPull(t, resolver, name, image)
	// As with concurrent_layer_fetch_buffer: ranges without an end, which are hung up on.
	resolver.(remotes.ResolverWithOptions).SetOptions(transfer.WithMaxConcurrentDownloads(4), transfer.WithConcurrentLayerFetchBuffer(3<<20))
	containerdPull(t, resolver, name, image)
	containerdRange(t, resolver, name, image.layers[1])
	containerdMount(t, host, image)
	containerdReferrers(t, name, image)
}

// containerdResolver is a new one, as for each command: it remembers what it has
// pushed, to whichever repository.
func containerdResolver() remotes.Resolver {
	return containerd.NewResolver(containerd.ResolverOptions{
		Hosts: containerd.ConfigureDefaultRegistries(containerd.WithPlainHTTP(containerd.MatchAllHosts)),
	})
}

// containerdStore is a content store as containerd has one.
func containerdStore(t *testing.T) content.Store {
	t.Helper()
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func ingest(t *testing.T, store content.Ingester, desc ocispec.Descriptor, blob []byte) {
	t.Helper()
	if err := content.WriteBlob(t.Context(), store, desc.Digest.String(), bytes.NewReader(blob), desc); err != nil {
		t.Fatal(err)
	}
}

// containerdPull pulls into an empty store, which checks the digests.
func containerdPull(t *testing.T, resolver remotes.Resolver, name string, image libraryImage) {
	t.Helper()
	fetcher, err := resolver.Fetcher(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	store := containerdStore(t)
	handler := images.Handlers(remotes.FetchHandler(store, fetcher), images.ChildrenHandler(store))
	if err := images.Dispatch(t.Context(), handler, oneAtATime(), image.descriptor()); err != nil {
		t.Fatalf("pull: %v", err)
	}
	for blob, desc := range image.blobs() {
		got, err := content.ReadBlob(t.Context(), store, desc)
		if err != nil || !bytes.Equal(got, *blob) {
			t.Errorf("pull of %s: %d bytes, want %d: %v", desc.Digest, len(got), len(*blob), err)
		}
	}
}

// oneAtATime has containerd do one request after the other. Its authorizer writes down
// when a token expires without the lock under which other requests read that
// (core/remotes/docker/authorizer.go, doBearerAuth), which the race detector notices.
func oneAtATime() *semaphore.Weighted { return semaphore.NewWeighted(1) }

// containerdRange reads a layer from its middle on, as after a broken connection.
func containerdRange(t *testing.T, resolver remotes.Resolver, name string, layer []byte) {
	t.Helper()
	fetcher, err := resolver.Fetcher(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	body, err := fetcher.Fetch(t.Context(), describe(ocispec.MediaTypeImageLayer, layer))
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	const from = 13<<20 + 7
	if _, err := body.(io.Seeker).Seek(from, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, layer[from:]) {
		t.Errorf("fetch from byte %d on: %d bytes, want %d: %v", from, len(got), len(layer)-from, err)
	}
	byDigest, _, err := fetcher.(remotes.FetcherByDigest).FetchByDigest(t.Context(), digest.FromBytes(layer))
	if err != nil {
		t.Fatal(err)
	}
	defer byDigest.Close()
	if got, err := io.ReadAll(byDigest); err != nil || !bytes.Equal(got, layer) {
		t.Errorf("fetch by digest: %d bytes, want %d: %v", len(got), len(layer), err)
	}
}

// containerdMount copies the image into another repository. A layer that is
// mounted is said to be there already.
func containerdMount(t *testing.T, host string, image libraryImage) {
	t.Helper()
	pusher, err := containerdResolver().Pusher(t.Context(), host+"/clients/containerd-copy:two")
	if err != nil {
		t.Fatal(err)
	}
	for _, desc := range image.blobs() {
		hostname, _, _ := strings.Cut(host, ":")
		desc.Annotations = map[string]string{"containerd.io/distribution.source." + hostname: "clients/containerd"}
		if _, err := pusher.Push(t.Context(), desc); !errdefs.IsAlreadyExists(err) {
			t.Errorf("mount of %s: %v", desc.Digest, err)
		}
	}
	ingest(t, pushIngester{pusher}, image.descriptor(), image.manifest)
	image.verify(t, host, "clients/containerd-copy", "two")
}

// containerdReferrers pushes a signature of the image and finds it.
func containerdReferrers(t *testing.T, name string, image libraryImage) {
	t.Helper()
	resolver := containerdResolver()
	signature, layer := image.signature(t)
	pusher, err := resolver.Pusher(t.Context(), strings.Replace(name, ":one", "", 1)+"@"+digest.FromBytes(signature).String())
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []struct {
		desc    ocispec.Descriptor
		content []byte
	}{
		{ocispec.DescriptorEmptyJSON, ocispec.DescriptorEmptyJSON.Data}, {describe("text/plain", layer), layer},
		{describe(ocispec.MediaTypeImageManifest, signature), signature},
	} {
		ingest(t, pushIngester{pusher}, part.desc, part.content)
	}
	fetcher, err := resolver.Fetcher(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	found, err := fetcher.(remotes.ReferrersFetcher).FetchReferrers(t.Context(), image.descriptor().Digest, remotes.WithReferrerArtifactTypes(signatureType))
	if err != nil || len(found) != 1 || found[0].Digest != digest.FromBytes(signature) {
		t.Errorf("referrers are %+v, %v", found, err)
	}
}

// pushIngester makes of a pusher what content.WriteBlob writes to.
type pushIngester struct{ remotes.Pusher }

func (p pushIngester) Writer(ctx context.Context, options ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, option := range options {
		if err := option(&o); err != nil {
			return nil, err
		}
	}
	return p.Push(ctx, o.Desc)
}
