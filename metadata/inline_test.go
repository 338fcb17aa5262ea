package metadata

import (
	"errors"
	"slices"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	pb "google.golang.org/protobuf/proto"

	"github.com/atollregistry/atoll/proto"
)

// pushInline makes a blob of two inline extents and an ordinary one, through an upload.
func pushInline(t *testing.T, s *Store, digest string) (extents []*proto.Extent) {
	t.Helper()
	upload, err := createUpload(t.Context(), s, "app", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	extents = []*proto.Extent{inlineOf("i1", "first"), inlineOf("i2", "second"), extentOf("behind", 7, "n1", "n2")}
	if err := s.ExtendUpload(t.Context(), &proto.ExtendUpload{Id: upload.GetId(), Repository: "app", Extents: extents[:1]}); err != nil {
		t.Fatal(err)
	}
	// Whoever goes on with the upload has its bytes.
	upload, err = s.Upload(t.Context(), "app", upload.GetId(), "")
	if err != nil || len(upload.GetExtents()) != 1 || !pb.Equal(upload.GetExtents()[0], extents[0]) {
		t.Fatalf("upload %v: %v", upload, err)
	}
	if err := s.CommitBlob(t.Context(), &proto.CommitBlob{
		Repository: "app", Digest: digest, Size: 18, UploadId: upload.GetId(), ExpectedSize: 5, Extents: extents[1:],
	}); err != nil {
		t.Fatal(err)
	}
	return extents
}

// TestInlineExtentsAreRead: who reads a blob has the bytes, who lists extents has not.
func TestInlineExtentsAreRead(t *testing.T) {
	s, log := openStore(t, StoreConfig{})
	joinNodes(t, s, "n1", "n2")
	digest := digestOf("blob")
	extents := pushInline(t, s, digest)
	blobs, err := s.Blobs("", 10)
	if err != nil || len(blobs) != 1 {
		t.Fatalf("blobs %v: %v", blobs, err)
	}
	for name, read := range map[string]func() (*proto.Blob, error){
		"Blob":       func() (*proto.Blob, error) { return s.Blob(t.Context(), "app", digest) },
		"RetainBlob": func() (*proto.Blob, error) { return s.RetainBlob(t.Context(), "app", digest) },
		"StoredBlob": func() (*proto.Blob, error) { return s.StoredBlob(t.Context(), digest) },
		"Blobs":      func() (*proto.Blob, error) { return blobs[0], nil },
	} {
		blob, err := read()
		equal := func(a, b *proto.Extent) bool { return pb.Equal(a, b) }
		if err != nil || !slices.EqualFunc(blob.GetExtents(), extents, equal) {
			t.Errorf("%s: %v, %v", name, blob, err)
		}
	}
	listed, err := s.Extents(nil, 10)
	if err != nil || len(listed) != 3 || slices.ContainsFunc(listed, func(e *proto.Extent) bool { return len(e.GetContent()) > 0 }) {
		t.Errorf("extents %v: %v", listed, err)
	}
	on, err := s.ExtentsOn("n1", nil, 10)
	if err != nil || len(on) != 1 || !pb.Equal(on[0], extents[2]) {
		t.Errorf("extents with shards on a node %v: %v", on, err)
	}
	checkInvariants(t, log.machine)
}

// TestInlineExtentsAreNeverLost: no node's loss takes them.
func TestInlineExtentsAreNeverLost(t *testing.T) {
	s, log := openStore(t, StoreConfig{})
	joinNodes(t, s, "n1", "n2", "n3")
	if err := s.CommitBlob(t.Context(), &proto.CommitBlob{
		Repository: "app", Digest: digestOf("config"), Size: 6, Extents: []*proto.Extent{inlineOf("config", "config")},
	}); err != nil {
		t.Fatal(err)
	}
	mixed := digestOf("mixed")
	pushInline(t, s, mixed)
	census := func(unhealthy ...string) (whole, degraded, lost uint64) {
		t.Helper()
		whole, degraded, lost, err := s.Census(t.Context(), func(id string) bool { return slices.Contains(unhealthy, id) })
		if err != nil {
			t.Fatal(err)
		}
		return whole, degraded, lost
	}
	for _, test := range []struct {
		unhealthy []string
		want      [3]uint64
	}{
		{nil, [3]uint64{2, 0, 0}},
		{[]string{"n1"}, [3]uint64{1, 1, 0}},
		{[]string{"n1", "n2", "n3"}, [3]uint64{1, 0, 1}},
	} {
		if whole, degraded, lost := census(test.unhealthy...); [3]uint64{whole, degraded, lost} != test.want {
			t.Errorf("without %v: %d whole, %d degraded, %d lost; want %v", test.unhealthy, whole, degraded, lost, test.want)
		}
	}
	losses, err := s.Losses(t.Context(), "n1", func(id string) bool { return id == "n2" })
	if err != nil || losses.Blobs != 1 || len(losses.First) != 1 || losses.First[0].Digest != mixed {
		t.Errorf("losses with two nodes: %v, %v", losses, err)
	}
	for _, node := range s.LocalNodes()[:2] {
		if err := s.SetLiveness(t.Context(), node, proto.Liveness_LIVENESS_DOWN); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.RetainBlob(t.Context(), "app", mixed); !errors.Is(err, ErrBlobUnknown) {
		t.Errorf("blob with lost shards behind the inline extents: %v", err)
	}
	if _, err := s.RetainBlob(t.Context(), "app", digestOf("config")); err != nil {
		t.Errorf("inline blob: %v", err)
	}
	checkInvariants(t, log.machine)
}

// TestInlineExtentOfTheLargestSize and no more.
func TestInlineExtentOfTheLargestSize(t *testing.T) {
	s, log := openStore(t, StoreConfig{})
	commit := func(size int) error {
		content := strings.Repeat("x", size)
		return s.CommitBlob(t.Context(), &proto.CommitBlob{
			Repository: "app", Digest: digestOf(content), Size: uint64(size), Extents: []*proto.Extent{inlineOf("e", content)},
		})
	}
	if err := commit(MaxInlineExtentEnd + 1); !errors.Is(err, ErrInvalid) {
		t.Errorf("one byte too much: %v", err)
	}
	if err := commit(MaxInlineExtentEnd); err != nil {
		t.Error(err)
	}
	checkInvariants(t, log.machine)
}

// TestInlineExtentWithoutItsContent is damage, and no short blob.
func TestInlineExtentWithoutItsContent(t *testing.T) {
	for name, harm := range map[string]func(b *bolt.Bucket, key []byte) error{
		"missing": func(b *bolt.Bucket, key []byte) error { return b.Delete(key) },
		"short": func(b *bolt.Bucket, key []byte) error {
			return b.Put(key, seal(bucketExtentContents, key, []byte("firs")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, log := openStore(t, StoreConfig{})
			joinNodes(t, s, "n1", "n2")
			extents := pushInline(t, s, digestOf("blob"))
			dir := copyState(t, log.machine, nil)
			db, err := openDatabase(dir + "/" + stateFile)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if err := db.Update(func(tx *bolt.Tx) error {
				return harm(tx.Bucket([]byte(bucketExtentContents)), contentKey(extents[0].GetId(), 0))
			}); err != nil {
				t.Fatal(err)
			}
			err = viewDatabase(db, func(v view) error {
				_, err := v.blob(digestOf("blob"))
				return err
			})
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("error is %v, not %v", err, ErrCorrupt)
			}
		})
	}
}
