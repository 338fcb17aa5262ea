package nodetest

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/atollregistry/atoll/node"
)

// What nothing refers to goes from all disks, at an operator's word through any
// node or by itself, while what is referred to stays and pushes go on.
func TestCollection(t *testing.T) {
	t.Parallel()
	const grace = 5 * time.Second // time enough to push an image here
	c := Start(t, 3, func(cfg *node.Config) { cfg.Collect = node.CollectConfig{Grace: grace, Interval: time.Hour} })
	n1, n2, n3 := c.Members[0], c.Members[1], c.Members[2]
	kept, shared := Bytes(1, 300<<10), Bytes(2, 300<<10)
	if _, err := c.PushImage("app", "v1", [][]byte{kept, shared}, n1, n2, n3); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PushImage("app", "v2", [][]byte{shared, Bytes(3, 300<<10)}, n2, n3, n1); err != nil {
		t.Fatal(err)
	}
	stray, err := c.PushBlob("app", Bytes(4, 300<<10), n3, n1, n2)
	if err != nil {
		t.Fatal(err)
	}
	for _, acked := range c.Acked() {
		if acked.Tag == "v2" {
			if _, _, err := n2.expect(http.StatusAccepted, "DELETE", "/v2/app/manifests/"+acked.Digest, nil); err != nil {
				t.Fatal(err)
			}
			c.Forget(acked.Digest)
		}
	}
	c.Eventually(grace+10*time.Second, "the blobs that only v2 had, and the stray one, to be due", func() error {
		collection, err := node.Collect(t.Context(), n2.Config.Home(), true)
		if err != nil {
			return err
		}
		if blobs := collection.Garbage[1]; blobs.Due != 3 || blobs.DueBytes < 600<<10 || collection.Dropped != 0 {
			return fmt.Errorf("garbage is %+v, and %d records were dropped", collection.Garbage, collection.Dropped)
		}
		return nil
	})
	collection, err := node.Collect(t.Context(), n2.Config.Home(), false)
	if err != nil || collection.Dropped != 6 {
		t.Fatalf("collection is %+v, not 3 links and 3 blobs (%v)", collection, err)
	}
	for _, digest := range []string{stray, Digest(Bytes(3, 300<<10)), Digest([]byte(`{"architecture":"amd64","os":"linux","config":{"Labels":{"tag":"v2"}}}`))} {
		if _, _, err := n3.expect(http.StatusNotFound, "HEAD", "/v2/app/blobs/"+digest, nil); err != nil {
			t.Error(err)
		}
		c.Forget(digest)
	}
	c.Check()
}
