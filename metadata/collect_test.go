package metadata

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/proto"
)

// imageOf is a manifest that refers to blobs.
func imageOf(content string, blobs ...string) *proto.Manifest {
	manifest := manifestOf(content)
	for _, blob := range blobs {
		manifest.Blobs = append(manifest.Blobs, &proto.Descriptor{Digest: blob})
	}
	return manifest
}

// A client that was told "it is there" uploads nothing, and refers to it much
// later. Whatever its age was, the blob must be there then.
func TestRetainedBlobIsThereForTheManifest(t *testing.T) {
	t.Parallel()
	const grace = 2 * time.Hour
	for _, age := range []time.Duration{0, time.Hour, time.Hour + time.Millisecond, grace - time.Millisecond, grace, grace + time.Millisecond} {
		t.Run(age.String(), func(t *testing.T) {
			now := time.UnixMilli(1_000_000_000)
			s, log := openStore(t, StoreConfig{Now: func() time.Time { return now }, BlobGrace: grace})
			joinNodes(t, s, "n1")
			layer := pushBlob(t, s, "app", "layer", "n1")
			now = now.Add(age)
			if _, err := s.RetainBlob(t.Context(), "app", layer); err != nil {
				t.Fatal(err)
			}
			// Another node's leader, whose clock is ahead, collects meanwhile.
			now = now.Add(grace / 2)
			if _, err := s.Expire(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := s.PutManifest(t.Context(), &proto.PutManifest{Repository: "app", Manifest: imageOf("image", layer)}); err != nil {
				t.Errorf("the blob was collected: %v", err)
			}
			now = now.Add(100 * grace)
			if _, err := s.Expire(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Blob(t.Context(), "app", layer); err != nil {
				t.Errorf("the blob of a manifest was collected: %v", err)
			}
			checkInvariants(t, log.machine)
		})
	}
}

// A question that came too late is answered with the truth.
func TestRetainedBlobThatWasCollected(t *testing.T) {
	now := time.UnixMilli(1_000_000_000)
	s, _ := openStore(t, StoreConfig{Now: func() time.Time { return now }, BlobGrace: time.Hour})
	joinNodes(t, s, "n1")
	layer := pushBlob(t, s, "app", "layer", "n1")
	now = now.Add(2 * time.Hour)
	if dropped, err := s.Expire(t.Context()); err != nil || dropped != 2 {
		t.Fatalf("dropped %d records, not the link and the blob (%v)", dropped, err)
	}
	if _, err := s.RetainBlob(t.Context(), "app", layer); !errors.Is(err, ErrBlobUnknown) {
		t.Errorf("error is %v", err)
	}
}

// Without a quorum nothing can be renewed. What has time enough is there all the
// same; of what is due soon nobody may say so.
func TestRetainWithoutQuorum(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_000_000_000)
	cfg := StoreConfig{Now: func() time.Time { return now }, BlobGrace: 2 * time.Hour, UntaggedAge: 2 * time.Hour}
	s, log := openStore(t, cfg)
	joinNodes(t, s, "n1")
	stray, used := pushBlob(t, s, "app", "stray", "n1"), pushBlob(t, s, "app", "used", "n1")
	untagged := imageOf("untagged", used)
	if err := s.PutManifest(t.Context(), &proto.PutManifest{Repository: "app", Manifest: untagged}); err != nil {
		t.Fatal(err)
	}
	alone := NewStore(log.machine, &troubledLog{
		propose: func(context.Context, int, func() ([]byte, error)) ([]byte, error) {
			return nil, consensus.ErrNoLeader
		},
		readIndex: func(context.Context, int) error { return consensus.ErrNoQuorum },
	}, cfg)
	check := func(what string, err, expected error) {
		t.Helper()
		if !errors.Is(err, expected) {
			t.Errorf("%s: error is %v, not %v", what, err, expected)
		}
	}
	for _, step := range []struct {
		after    time.Duration
		expected error
	}{{time.Hour, nil}, {time.Millisecond, ErrUnavailable}} {
		now = now.Add(step.after)
		_, err := alone.RetainBlob(t.Context(), "app", stray)
		check("a blob that nothing refers to", err, step.expected)
		_, err = alone.RetainManifest(t.Context(), "app", untagged.GetDigest())
		check("an untagged manifest", err, step.expected)
		_, err = alone.RetainBlob(t.Context(), "app", used)
		check("a blob that a manifest refers to", err, nil)
	}
}

func TestRetainedManifest(t *testing.T) {
	now := time.UnixMilli(1_000_000_000)
	s, log := openStore(t, StoreConfig{Now: func() time.Time { return now }, UntaggedAge: 2 * time.Hour})
	child := manifestOf("child")
	if err := s.PutManifest(t.Context(), &proto.PutManifest{Repository: "app", Manifest: child}); err != nil {
		t.Fatal(err)
	}
	last := log.last
	now = now.Add(time.Hour)
	if _, err := s.RetainManifest(t.Context(), "app", child.GetDigest()); err != nil || log.last != last {
		t.Errorf("half of its age is left, and it was renewed (%v)", err)
	}
	now = now.Add(time.Hour - time.Millisecond)
	if _, err := s.RetainManifest(t.Context(), "app", child.GetDigest()); err != nil || log.last != last+1 {
		t.Errorf("it was not renewed (%v)", err)
	}
	for _, step := range []struct {
		after    time.Duration
		expected int
	}{{2 * time.Hour, 0}, {time.Millisecond, 1}} {
		now = now.Add(step.after)
		if dropped, err := s.Expire(t.Context()); err != nil || dropped != step.expected {
			t.Errorf("dropped %d, not %d (%v)", dropped, step.expected, err)
		}
	}
	checkInvariants(t, log.machine)
}

func TestGarbage(t *testing.T) {
	now := time.UnixMilli(1_000_000_000)
	s, log := openStore(t, StoreConfig{
		Now: func() time.Time { return now }, BlobGrace: time.Hour, UntaggedAge: 2 * time.Hour, UploadTTL: time.Hour,
	})
	joinNodes(t, s, "n1")
	shared := pushBlob(t, s, "app", "shared", "n1")
	if err := s.MountBlob(t.Context(), "copy", "app", shared); err != nil {
		t.Fatal(err)
	}
	alone := pushBlob(t, s, "app", "alone", "n1")
	used := pushBlob(t, s, "app", "used", "n1")
	deleted := pushBlob(t, s, "app", "deleted", "n1")
	if err := s.DeleteBlob(t.Context(), "app", deleted); err != nil {
		t.Fatal(err)
	}
	image, signature := imageOf("image", used), manifestOf("signature")
	signature.Subject = image.GetDigest()
	for _, manifest := range []*proto.Manifest{image, signature} {
		if err := s.PutManifest(t.Context(), &proto.PutManifest{Repository: "app", Manifest: manifest}); err != nil {
			t.Fatal(err)
		}
	}
	upload, err := createUpload(t.Context(), s, "app", "", 0)
	if err != nil {
		t.Fatal(err)
	}

	report := func() *Garbage {
		t.Helper()
		garbage, err := s.Garbage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return garbage
	}
	now = now.Add(time.Hour)
	expected := map[GarbageKind]GarbageCount{
		GarbageUpload: {Later: 1}, GarbageManifest: {Later: 1, LaterBytes: 5},
		GarbageLink: {Later: 3, LaterBytes: 7}, GarbageBlob: {Later: 1, LaterBytes: 7},
	}
	if actual := report(); !equalCounts(actual.Kinds, expected) || len(actual.Names) > 0 {
		t.Errorf("at the end of the grace: %+v", actual)
	}
	now = now.Add(time.Millisecond)
	expected = map[GarbageKind]GarbageCount{
		GarbageUpload: {Due: 1}, GarbageManifest: {Later: 1, LaterBytes: 5},
		GarbageLink: {Due: 3, DueBytes: 7}, GarbageBlob: {Due: 1, DueBytes: 7},
	}
	actual := report()
	names := []string{"app@" + shared, "app@" + alone, "copy@" + shared}
	slices.Sort(names)
	slices.Sort(actual.Names[GarbageLink])
	if !equalCounts(actual.Kinds, expected) || !slices.Equal(actual.Names[GarbageLink], names) ||
		!slices.Equal(actual.Names[GarbageUpload], []string{"app@" + upload.GetId()}) || !slices.Equal(actual.Names[GarbageBlob], []string{deleted}) {
		t.Errorf("after the grace: %+v", actual)
	}
	if dropped, err := s.Expire(t.Context()); err != nil || dropped != 1+3+3 {
		t.Errorf("dropped %d records, not the upload, 3 links and 3 blobs (%v)", dropped, err)
	}
	expected = map[GarbageKind]GarbageCount{GarbageUpload: {}, GarbageManifest: {Later: 1, LaterBytes: 5}, GarbageLink: {}, GarbageBlob: {}}
	if actual := report(); !equalCounts(actual.Kinds, expected) {
		t.Errorf("after collection: %+v", actual)
	}
	checkInvariants(t, log.machine)
}

func equalCounts(a, b map[GarbageKind]GarbageCount) bool {
	if len(a) != len(b) {
		return false
	}
	for kind, count := range a {
		if b[kind] != count {
			return false
		}
	}
	return true
}

func TestBlobRepositories(t *testing.T) {
	s, _ := openStore(t, StoreConfig{})
	joinNodes(t, s, "n1")
	layer := pushBlob(t, s, "b", "layer", "n1")
	for _, repository := range []string{"c", "a"} {
		if err := s.MountBlob(t.Context(), repository, "b", layer); err != nil {
			t.Fatal(err)
		}
	}
	first, more, err := s.BlobRepositories(t.Context(), layer, "", 2)
	if err != nil || !more || !slices.Equal(first, []string{"a", "b"}) {
		t.Errorf("%q, more %v (%v)", first, more, err)
	}
	if err := s.DeleteBlob(t.Context(), "c", layer); err != nil {
		t.Fatal(err)
	}
	rest, more, err := s.BlobRepositories(t.Context(), layer, "b", 2)
	if err != nil || more || len(rest) > 0 {
		t.Errorf("after the last: %q, more %v (%v)", rest, more, err)
	}
}

// Keys follow one another, on whatever node the leader is.
func TestSigningKeysAreRenewed(t *testing.T) {
	now := time.UnixMilli(1_000_000_000)
	s, _ := openStore(t, StoreConfig{Now: func() time.Time { return now }})
	for i := range 5 {
		for range 2 {
			if err := s.renewSigningKey(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		keys, err := s.SigningKeys()
		if err != nil || len(keys) != min(i+1, signingKeysKept) || keys[0].GetId() != uint32(i+1) || len(keys[0].GetSecret()) != signingKeyBytes {
			t.Fatalf("round %d: %d keys (%v)", i, len(keys), err)
		}
		now = now.Add(signingKeyAge)
	}
}

// However many tags a manifest has, no command deletes more than a bounded number.
func TestDeleteManifestOfManyTags(t *testing.T) {
	s, log := openStore(t, StoreConfig{})
	image := manifestOf("image")
	const rounds = 3
	for i := range rounds * tagsAtOnce / 100 {
		put := &proto.PutManifest{Repository: "app", Manifest: image}
		for j := range 100 {
			put.Tags = append(put.Tags, fmt.Sprintf("tag-%d-%d", i, j))
		}
		if err := s.PutManifest(t.Context(), put); err != nil {
			t.Fatal(err)
		}
	}
	last := log.last
	if err := s.DeleteManifest(t.Context(), "app", image.GetDigest(), &proto.Precondition{Missing: true}); !errors.Is(err, ErrPrecondition) {
		t.Errorf("error is %v", err)
	}
	if err := s.DeleteManifest(t.Context(), "app", image.GetDigest(), nil); err != nil || log.last != last+1+rounds {
		t.Errorf("%d commands (%v)", log.last-last, err)
	}
	if tags, _, err := s.Tags(t.Context(), "app", "", 10); err != nil || len(tags) > 0 {
		t.Errorf("tags %q are left (%v)", tags, err)
	}
	checkInvariants(t, log.machine)
}
