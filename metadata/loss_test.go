package metadata

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

func TestLosses(t *testing.T) {
	s, _ := openStore(t, StoreConfig{})
	joinNodes(t, s, "n1", "n2", "n3")
	pushBlob(t, s, "app", "on two", "n1", "n2")
	only := pushBlob(t, s, "app", "on one", "n1")
	if err := s.MountBlob(t.Context(), "base", "app", only); err != nil {
		t.Fatal(err)
	}
	// Two of its three extents would go: it counts once.
	twice := digestOf("twice")
	if err := s.CommitBlob(t.Context(), &proto.CommitBlob{
		Repository: "app", Digest: twice, Size: 21,
		Extents: []*proto.Extent{extentOf("t1", 7, "n2"), extentOf("t2", 7, "n1"), extentOf("t3", 7, "n1")},
	}); err != nil {
		t.Fatal(err)
	}
	upload, err := createUpload(t.Context(), s, "app", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.ExtendUpload(t.Context(), &proto.ExtendUpload{Id: upload.Id, Repository: "app", Extents: []*proto.Extent{extentOf("u1", 7, "n1")}}); err != nil {
		t.Fatal(err)
	}
	damaged := pushBlob(t, s, "app", "damaged", "n1", "n2")
	if err := s.ReportShards(t.Context(), []*proto.ShardRef{{ExtentId: extentOf("damaged", 7).Id, ShardNumber: 1, NodeId: "n2"}}); err != nil {
		t.Fatal(err)
	}

	want := func(node string, gone []string, blobs []string, uploads uint64) {
		t.Helper()
		losses, err := s.Losses(t.Context(), node, func(id string) bool { return slices.Contains(gone, id) })
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, blob := range losses.First {
			got = append(got, blob.Digest)
			if blob.Digest == only && !slices.Equal(blob.Repositories, []string{"app", "base"}) {
				t.Errorf("%s is in %q", only, blob.Repositories)
			}
		}
		slices.Sort(got)
		slices.Sort(blobs)
		if losses.Blobs != uint64(len(blobs)) || losses.Uploads != uploads || !slices.Equal(got, blobs) {
			t.Errorf("with %s, while %v are gone, %d blobs %v and %d uploads are lost; want %v and %d", node, gone, losses.Blobs, got, losses.Uploads, blobs, uploads)
		}
	}
	want("n1", nil, []string{only, twice, damaged}, 1)
	want("n2", nil, []string{twice}, 0)
	want("n3", nil, nil, 0)
	want("n1", []string{"n2"}, []string{only, twice, damaged, digestOf("on two")}, 1)
	// What is lost for another reason is not lost with the node.
	want("n3", []string{"n1", "n2"}, nil, 0)
}

// Of many losses the first are named, and all are counted.
func TestLossesOfManyPages(t *testing.T) {
	s, _ := openStore(t, StoreConfig{})
	joinNodes(t, s, "n1")
	const blobs = censusPage + 50
	for i := range blobs {
		pushBlob(t, s, "app", fmt.Sprint("blob", i), "n1")
	}
	losses, err := s.Losses(t.Context(), "n1", func(string) bool { return false })
	if err != nil || losses.Blobs != blobs || len(losses.First) != lostListed {
		t.Errorf("losses are %d, %d of them named, %v", losses.Blobs, len(losses.First), err)
	}
}

// A blob that is lost by the records is there for who wants to read it, but not for
// who asks whether it has to be pushed.
func TestLostBlobIsUnknownToWhoMeansToReferToIt(t *testing.T) {
	s, _ := openStore(t, StoreConfig{})
	joinNodes(t, s, "n1", "n2")
	layer := pushBlob(t, s, "app", "layer", "n1", "n2")
	if err := s.ReportShards(t.Context(), []*proto.ShardRef{{ExtentId: extentOf("layer", 7).Id, NodeId: "n1"}}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		liveness proto.Liveness
		lost     bool
	}{
		{proto.Liveness_LIVENESS_UNSPECIFIED, false},
		{proto.Liveness_LIVENESS_UNREACHABLE, false},
		{proto.Liveness_LIVENESS_DOWN, true},
		{proto.Liveness_LIVENESS_UNSPECIFIED, false},
	} {
		if err := s.SetLiveness(t.Context(), s.LocalNodes()[1], step.liveness); err != nil {
			t.Fatal(err)
		}
		if _, err := s.RetainBlob(t.Context(), "app", layer); errors.Is(err, ErrBlobUnknown) != step.lost {
			t.Errorf("with the last sound shard on a node that is %v: %v", step.liveness, err)
		}
		if _, err := s.Blob(t.Context(), "app", layer); err != nil {
			t.Errorf("to a reader it is %v", err)
		}
	}
}
