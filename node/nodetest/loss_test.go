package nodetest

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"testing"

	atoll "github.com/atollregistry/atoll/proto"
)

// loseShards removes the files of an extent's shards on some members.
func loseShards(t *testing.T, extents []*atoll.Extent, members ...*Member) {
	t.Helper()
	for _, e := range extents {
		for _, m := range members {
			number := slices.Index(e.GetHolders(), m.running().ID())
			if number < 0 {
				continue
			}
			if err := os.Remove(m.shardFile(e, number)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// extentsOf returns the extents of a blob.
func (m *Member) extentsOf(t *testing.T, digest string) []*atoll.Extent {
	t.Helper()
	store := m.running().Metadata()
	if err := store.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	blobs, err := store.Blobs("", 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, blob := range blobs {
		if blob.GetDigest() == digest {
			return blob.GetExtents()
		}
	}
	t.Fatalf("there is no blob %s", digest)
	return nil
}

// answers checks the status of a reply.
func (m *Member) answers(t *testing.T, status int, method, path string, body []byte) []byte {
	t.Helper()
	_, got, err := m.expect(status, method, path, bytes.NewReader(body))
	if err != nil {
		t.Error(err)
	}
	return got
}

// A blob that the records say is lost is not there for a client that asks, or mounts
// it, before it pushes; and when it pushes, the blob is well again.
func TestLostBlobIsPushedAgain(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	m, content := c.Members[2], Bytes(77, 700<<10)
	digest, err := c.PushBlob("a", content, c.Members...)
	if err != nil {
		t.Fatal(err)
	}
	path, whole := "/v2/a/blobs/"+digest, "/v2/a/blobs/uploads/?digest="+digest
	m.answers(t, http.StatusCreated, "POST", "/v2/first/blobs/uploads/?mount="+digest+"&from=a", nil)
	loseShards(t, m.extentsOf(t, digest), c.Members[:2]...)
	m.answers(t, http.StatusServiceUnavailable, "GET", path, nil)
	c.Eventually(settleTimeout, "the loss is on record", func() error {
		status, err := m.Status()
		if err == nil && status.Blobs.Lost == 0 {
			err = fmt.Errorf("blobs are %+v", status.Blobs)
		}
		return err
	})
	m.answers(t, http.StatusNotFound, "HEAD", path, nil)
	m.answers(t, http.StatusAccepted, "POST", "/v2/b/blobs/uploads/?mount="+digest+"&from=a", nil)
	m.answers(t, http.StatusAccepted, "POST", "/v2/c/blobs/uploads/?mount="+digest, nil)
	m.answers(t, http.StatusServiceUnavailable, "GET", path, nil)

	m.answers(t, http.StatusCreated, "POST", whole, content)
	for _, m := range c.Members {
		m.answers(t, http.StatusOK, "HEAD", path, nil)
		for _, repository := range []string{"a", "first"} {
			if got := m.answers(t, http.StatusOK, "GET", "/v2/"+repository+"/blobs/"+digest, nil); !bytes.Equal(got, content) {
				t.Errorf("%s serves %d bytes of %d, or others", m.Config.Name, len(got), len(content))
			}
		}
	}
	m.answers(t, http.StatusCreated, "POST", "/v2/b/blobs/uploads/?mount="+digest+"&from=a", nil)
	c.Check()
}

// An upload that the records say is lost becomes no blob; the client begins again.
func TestLostUploadIsNotCommitted(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	m, content := c.Members[2], Bytes(78, 700<<10)
	response, _, err := m.expect(http.StatusAccepted, "POST", "/v2/a/blobs/uploads/", nil)
	if err != nil {
		t.Fatal(err)
	}
	location := response.Header.Get("Location")
	m.answers(t, http.StatusAccepted, "PATCH", location, content)
	extents := func() []*atoll.Extent {
		extents, err := m.running().Metadata().Extents(nil, 100)
		if err != nil {
			t.Fatal(err)
		}
		return extents
	}
	c.Eventually(settleTimeout, "the extent is on record here", func() error {
		if len(extents()) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	loseShards(t, extents(), c.Members[:2]...)
	c.scrubAll()
	c.Eventually(settleTimeout, "the loss is on record", func() error {
		if damaged := extents()[0].GetDamagedShards(); len(damaged) < 2 {
			return fmt.Errorf("damaged are %v", damaged)
		}
		return nil
	})
	m.answers(t, http.StatusServiceUnavailable, "PUT", location+"?digest="+Digest(content), nil)
	m.answers(t, http.StatusNotFound, "GET", location, nil)
	m.answers(t, http.StatusNotFound, "PUT", location+"?digest="+Digest(content), nil)
	if _, err := c.PushBlob("a", content, m); err != nil {
		t.Error(err)
	}
	c.Check()
}

// A gateway that is cut off from half of the nodes is no reason to give up what the
// others have: known content stays where it is.
func TestCutOffGatewayReplacesNothing(t *testing.T) {
	t.Parallel()
	c := Start(t, 4)
	leader := c.Leader()
	via := c.Members[slices.IndexFunc(c.Members, func(m *Member) bool { return m != leader })]
	content := Bytes(5, 2<<20)
	digest, err := c.PushBlob("a", content, leader)
	if err != nil {
		t.Fatal(err)
	}
	before := leader.extentsOf(t, digest)
	cut := map[string]bool{}
	for _, m := range c.Members {
		if m != leader && m != via {
			c.Cut(via, m)
			cut[m.running().ID()] = true
		}
	}
	c.Eventually(settleTimeout, "the gateway notices", func() error {
		status, err := via.Status()
		if err != nil {
			return err
		}
		for _, n := range status.Nodes {
			if cut[n.UUID] && n.State != "unreachable" {
				return fmt.Errorf("node %s is %s", n.ID, n.State)
			}
		}
		return nil
	})
	via.answers(t, http.StatusCreated, "POST", "/v2/b/blobs/uploads/?digest="+digest, content)
	if after := leader.extentsOf(t, digest); !bytes.Equal(before[0].GetId(), after[0].GetId()) {
		t.Errorf("the blob was whole, in layout %v; now it is in layout %v on %v", before[0].GetLayout(), after[0].GetLayout(), after[0].GetHolders())
	}
	for _, m := range c.Members {
		c.Heal(via, m)
	}
	c.Check()
}
