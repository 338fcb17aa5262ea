package metadata

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// A blob that is part of many images, each of which is part of many others, is looked up
// in each of them once: all other commands wait meanwhile.
func TestDeletionOfAMuchUsedBlob(t *testing.T) {
	t.Parallel()
	s, log := openStore(t, StoreConfig{})
	joinNodes(t, s, "a", "b")
	blob := pushBlob(t, s, "app", "shared", "a", "b")
	if err := s.PutPolicy(t.Context(), 0, immutablePolicy("v*")); err != nil {
		t.Fatal(err)
	}
	const indexes = 1000
	var below []*proto.Descriptor
	for i := range indexes {
		put := putOf("app", fmt.Sprintf("index %05d", i))
		put.Manifest.Blobs = []*proto.Descriptor{{Digest: blob}}
		put.Manifest.Manifests = below
		if err := s.PutManifest(t.Context(), put); err != nil {
			t.Fatal(err)
		}
		below = []*proto.Descriptor{{Digest: put.Manifest.GetDigest()}}
	}
	start := time.Now()
	if err := s.DeleteBlob(t.Context(), "app", blob); err != nil {
		t.Fatal(err)
	}
	// Some 10 ms; to begin anew with each of them takes 10 s.
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the deletion took %v", took)
	}
	// What stays is found behind all those that do not.
	pushBlob(t, s, "app", "shared", "a", "b")
	last := putOf("app", "the last one", "v1")
	last.Manifest.Manifests = below
	if err := s.PutManifest(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteBlob(t.Context(), "app", blob); !errors.Is(err, ErrTagImmutable) {
		t.Errorf("a blob of an image that stays: %v", err)
	}
	checkInvariants(t, log.machine)
}

// What is served under an immutable tag keeps its type, also as part of an image index:
// clients read the same bytes differently under another.
func TestImmutableManifestKeepsItsType(t *testing.T) {
	t.Parallel()
	s, log := openStore(t, StoreConfig{})
	if err := s.PutPolicy(t.Context(), 0, immutablePolicy("v*")); err != nil {
		t.Fatal(err)
	}
	index := putOf("app", "index", "v2")
	index.Manifest.Manifests = []*proto.Descriptor{{Digest: digestOf("child")}}
	for _, put := range []*proto.PutManifest{putOf("app", "whole", "v1"), putOf("app", "child"), index, putOf("app", "other", "latest")} {
		if err := s.PutManifest(t.Context(), put); err != nil {
			t.Fatal(err)
		}
	}
	for content, want := range map[string]error{"whole": ErrTagImmutable, "child": ErrTagImmutable, "index": ErrTagImmutable, "other": nil} {
		before, err := s.Manifest(t.Context(), "app", digestOf(content))
		if err != nil {
			t.Fatal(err)
		}
		put := putOf("app", content)
		put.Manifest.Manifests = before.GetManifests()
		if err := s.PutManifest(t.Context(), put); err != nil {
			t.Errorf("%s again: %v", content, err)
		}
		put.Manifest.MediaType = "application/vnd.docker.distribution.manifest.v2+json"
		if err := s.PutManifest(t.Context(), put); !errors.Is(err, want) {
			t.Errorf("%s under another type: %v, want %v", content, err, want)
		}
		after, err := s.Manifest(t.Context(), "app", digestOf(content))
		if err != nil || (after.GetMediaType() == before.GetMediaType()) != (want != nil) {
			t.Errorf("%s is %s (%v)", content, after.GetMediaType(), err)
		}
	}
	checkInvariants(t, log.machine)
}
