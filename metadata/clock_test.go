package metadata

import (
	"testing"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// Through a node whose clock is behind by more than the grace, what was pushed a moment
// ago is not collected, and what is asked for is kept.
func TestClockThatIsBehindCollectsNothing(t *testing.T) {
	now := time.UnixMilli(10_000_000_000)
	leader, log := openStore(t, StoreConfig{Now: func() time.Time { return now }})
	joinNodes(t, leader, "n1")
	behind := NewStore(log.machine, log, StoreConfig{Now: func() time.Time { return now.Add(-25 * time.Hour) }})
	layer := pushBlob(t, behind, "app", "layer", "n1")
	upload, err := createUpload(t.Context(), behind, "app", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if dropped, err := leader.Expire(t.Context()); err != nil || dropped > 0 {
		t.Errorf("%d records were dropped (%v)", dropped, err)
	}
	if _, err := behind.Upload(t.Context(), "app", upload.GetId(), ""); err != nil {
		t.Errorf("an upload that has just begun: %v", err)
	}
	// Another node shows that most of the time is over.
	now = now.Add(23 * time.Hour)
	joinNodes(t, leader, "n2")
	if _, err := behind.RetainBlob(t.Context(), "app", layer); err != nil {
		t.Fatal(err)
	}
	now = now.Add(11 * time.Hour)
	if _, err := leader.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := behind.PutManifest(t.Context(), &proto.PutManifest{Repository: "app", Manifest: imageOf("image", layer)}); err != nil {
		t.Errorf("a blob that was said to be there: %v", err)
	}
	checkInvariants(t, log.machine)
}
