package nodetest

import (
	"bytes"
	"crypto/sha512"
	"fmt"
	"net/http"
	"testing"

	"github.com/atollregistry/atoll/blobstore"
)

// A blob of a few KiB is in the state of all nodes and on no disk as a shard: any of them serves it alone, also one
// whose own disk was lost, and the blob is still there when the cluster starts again with other bounds.
func TestTinyBlobsAreInTheState(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	n1, n2, n3 := c.Members[0], c.Members[1], c.Members[2]
	content := Bytes(1, 10<<10)
	digest, err := c.PushBlob("app", content, c.Members...)
	if err != nil {
		t.Fatal(err)
	}
	path := "/v2/app/blobs/" + digest
	read := func(from ...*Member) {
		t.Helper()
		for _, m := range from {
			if got := m.answers(t, http.StatusOK, "GET", path, nil); !bytes.Equal(got, content) {
				t.Errorf("%s serves %d bytes of %d, or others", m.Config.Name, len(got), len(content))
			}
			_, part, err := m.Do("GET", path, nil, http.Header{"Range": {"bytes=5000-5009"}})
			if err != nil || !bytes.Equal(part, content[5000:5010]) {
				t.Errorf("%s serves %x for a range: %v", m.Config.Name, part, err)
			}
		}
	}
	read(c.Members...)
	for _, m := range c.Members {
		if files := m.ShardFiles(); len(files) > 0 {
			t.Errorf("%s has shards: %v", m.Config.Name, files)
		}
	}
	// Known content is linked again, from any node.
	n2.answers(t, http.StatusCreated, "POST", "/v2/base/blobs/uploads/?digest="+digest, content)

	// What goes on behind the first bytes is in shards.
	response, _, err := n1.expect(http.StatusAccepted, "POST", "/v2/app/blobs/uploads/", nil)
	if err != nil {
		t.Fatal(err)
	}
	mixed := Bytes(2, 300<<10)
	for i, part := range [][]byte{mixed[:7000], mixed[7000:9000], mixed[9000:]} {
		response, _, err = c.Members[i].expect(http.StatusAccepted, "PATCH", response.Header.Get("Location"), bytes.NewReader(part))
		if err != nil {
			t.Fatal(err)
		}
	}
	n2.answers(t, http.StatusCreated, "PUT", withDigest(t, response.Header.Get("Location"), Digest(mixed)), nil)
	c.remember(Acked{Repository: "app", Digest: Digest(mixed), Size: len(mixed)})
	for _, m := range c.Members {
		if got := m.answers(t, http.StatusOK, "GET", "/v2/app/blobs/"+Digest(mixed), nil); !bytes.Equal(got, mixed) {
			t.Errorf("%s serves %d bytes of %d, or others", m.Config.Name, len(got), len(mixed))
		}
	}
	extents := n1.extentsOf(t, Digest(mixed))
	if len(extents) < 3 || extents[0].GetLayout() != nil || extents[1].GetLayout() != nil || extents[2].GetLayout() == nil {
		t.Errorf("extents are %v", extents)
	}

	// What nobody hashed by SHA-512 is read again in the end.
	response, _, err = n1.expect(http.StatusAccepted, "POST", "/v2/app/blobs/uploads/", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, _, err = n2.expect(http.StatusAccepted, "PATCH", response.Header.Get("Location"), bytes.NewReader(content[:4000]))
	if err != nil {
		t.Fatal(err)
	}
	long := fmt.Sprintf("sha512:%x", sha512.Sum512(content))
	n3.answers(t, http.StatusCreated, "PUT", withDigest(t, response.Header.Get("Location"), long), content[4000:])
	if got := n1.answers(t, http.StatusOK, "GET", "/v2/app/blobs/"+long, nil); !bytes.Equal(got, content) {
		t.Errorf("by SHA-512 %d bytes are served of %d, or others", len(got), len(content))
	}

	n3.Crash()
	read(n1, n2)
	n3.Wipe()
	n3.Start()
	n3.WaitReady()
	read(n3)
	for _, m := range c.Members {
		m.Tune = func(cfg *blobstore.Config) { cfg.InlineBlobBytes = 0 }
	}
	c.Check() // starts them again
	read(c.Members...)
}
