package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"
)

const artifactType = "application/vnd.example.thing"

func orasRepository(t *testing.T, name string) *remote.Repository {
	t.Helper()
	repository, err := remote.NewRepository(name)
	if err != nil {
		t.Fatal(err)
	}
	repository.PlainHTTP = true
	return repository
}

// oras, and with it helm, notation and flux.
func clientORAS(t *testing.T, host string) {
	ctx := t.Context()
	source := memory.New()
	var layers []ocispec.Descriptor
	for _, size := range clientLayers() {
		layer, err := oras.PushBytes(ctx, source, "application/octet-stream", randomBytes(size))
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, layer)
	}
	artifact, err := oras.PackManifest(ctx, source, oras.PackManifestVersion1_1, artifactType, oras.PackManifestOptions{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	if err := source.Tag(ctx, artifact, "one"); err != nil {
		t.Fatal(err)
	}
	repository := orasRepository(t, host+"/clients/oras")
	if _, err := oras.Copy(ctx, source, "one", repository, "one", oras.DefaultCopyOptions); err != nil {
		t.Fatalf("push: %v", err)
	}
	signature, err := oras.PackManifest(ctx, repository, oras.PackManifestVersion1_1, signatureType, oras.PackManifestOptions{Subject: &artifact})
	if err != nil {
		t.Fatalf("push of a signature: %v", err)
	}
	orasReferrers(t, repository, artifact, signatureType, signature)
	orasReferrers(t, repository, artifact, "application/vnd.example.other")
	orasPull(t, source, repository, artifact, layers)
	orasCopy(t, repository, host, artifact, signature)
	orasLists(t, repository, host)

	if err := repository.Delete(ctx, signature); err != nil {
		t.Errorf("delete the signature: %v", err)
	}
	orasReferrers(t, repository, artifact, "")
	if err := repository.Delete(ctx, artifact); err != nil {
		t.Errorf("delete the artifact: %v", err)
	}
	if _, err := repository.Resolve(ctx, "one"); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("resolve of what was deleted: %v", err)
	}
}

// orasReferrers checks what refers to a subject. The client must not have fallen
// back to tags.
func orasReferrers(t *testing.T, repository *remote.Repository, subject ocispec.Descriptor, artifactType string, want ...ocispec.Descriptor) {
	t.Helper()
	var got []string
	err := repository.Referrers(t.Context(), subject, artifactType, func(found []ocispec.Descriptor) error {
		for _, referrer := range found {
			got = append(got, referrer.Digest.String()+" "+referrer.ArtifactType)
		}
		return nil
	})
	var wanted []string
	for _, referrer := range want {
		wanted = append(wanted, referrer.Digest.String()+" "+artifactType)
	}
	if err != nil || !slices.Equal(got, wanted) {
		t.Errorf("referrers of type %q are %q, %v, want %q", artifactType, got, err, wanted)
	}
}

// orasPull pulls everything, and a layer from its middle on.
func orasPull(t *testing.T, source *memory.Store, repository *remote.Repository, artifact ocispec.Descriptor, layers []ocispec.Descriptor) {
	t.Helper()
	ctx := t.Context()
	target := memory.New()
	if got, err := oras.Copy(ctx, repository, "one", target, "one", oras.DefaultCopyOptions); err != nil || got.Digest != artifact.Digest {
		t.Fatalf("pull: %s, %v", got.Digest, err)
	}
	for _, desc := range append(layers, artifact) {
		if there, err := target.Exists(ctx, desc); err != nil || !there { // a store that checks digests
			t.Errorf("the pull has not brought %s: %v", desc.Digest, err)
		}
	}
	whole, err := content.FetchAll(ctx, source, layers[1])
	if err != nil {
		t.Fatal(err)
	}
	body, err := repository.Fetch(ctx, layers[1])
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	const from = 11<<20 + 3
	seeker, ok := body.(io.ReadSeeker)
	if !ok {
		t.Fatal("the client takes a layer for one that it can't seek in")
	}
	if _, err := seeker.Seek(from, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(seeker); err != nil || !bytes.Equal(got, whole[from:]) {
		t.Errorf("read from byte %d on: %d bytes, want %d: %v", from, len(got), len(whole)-from, err)
	}
}

// orasCopy copies the artifact and what refers to it into another repository, by
// mounts.
func orasCopy(t *testing.T, repository *remote.Repository, host string, artifact, signature ocispec.Descriptor) {
	t.Helper()
	target := orasRepository(t, host+"/clients/oras-copy")
	var mounted atomic.Int64
	options := oras.DefaultExtendedCopyOptions
	options.MountFrom = func(context.Context, ocispec.Descriptor) ([]string, error) { return []string{"clients/oras"}, nil }
	options.OnMounted = func(context.Context, ocispec.Descriptor) error { mounted.Add(1); return nil }
	if _, err := oras.ExtendedCopy(t.Context(), repository, "one", target, "two", options); err != nil {
		t.Fatalf("copy: %v", err)
	}
	if want := int64(len(clientLayers()) + 1); mounted.Load() != want { // the empty configuration too, once
		t.Errorf("%d blobs were mounted, want %d", mounted.Load(), want)
	}
	orasReferrers(t, target, artifact, signatureType, signature)
	if got, err := target.Resolve(t.Context(), "two"); err != nil || got.Digest != artifact.Digest {
		t.Errorf("the copy is %s, %v", got.Digest, err)
	}
}

func orasLists(t *testing.T, repository *remote.Repository, host string) {
	t.Helper()
	for _, tag := range []string{"a", "b", "c"} {
		if _, err := oras.Tag(t.Context(), repository, "one", tag); err != nil {
			t.Fatal(err)
		}
	}
	repository.TagListPageSize = 2
	var pages []string
	if err := repository.Tags(t.Context(), "", func(tags []string) error { pages = append(pages, strings.Join(tags, " ")); return nil }); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a b", "c one"}; !slices.Equal(pages, want) {
		t.Errorf("tags are %q, want %q", pages, want)
	}
	registry, err := remote.NewRegistry(host)
	if err != nil {
		t.Fatal(err)
	}
	registry.PlainHTTP = true
	registry.RepositoryListPageSize = 2
	var repositories []string
	if err := registry.Repositories(t.Context(), "", func(page []string) error { repositories = append(repositories, page...); return nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(repositories, "clients/oras") || !slices.Contains(repositories, "clients/oras-copy") {
		t.Errorf("repositories are %q", repositories)
	}
}
