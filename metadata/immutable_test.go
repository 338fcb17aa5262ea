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
