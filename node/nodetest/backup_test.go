package nodetest

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/atollregistry/atoll/node"
)

// pushAllKinds pushes what a backup must bring back: images that share layers, over
// two repositories, an index, a referrer, and a manifest too large for a record.
func pushAllKinds(t *testing.T, c *Cluster, seed uint64) {
	t.Helper()
	image := push(t, c, "a/image", fmt.Sprint("v", seed), seed, c.Members...)
	push(t, c, "b", fmt.Sprint("v", seed), seed, c.Members...)
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":%q,"digest":%q,"size":7}]}`, manifestType, image)
	c.putManifest(t, "a/image", fmt.Sprint("index", seed), "application/vnd.oci.image.index.v1+json", index)
	referrer := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"artifactType":"x/sbom","subject":{"mediaType":%q,"digest":%q,"size":7}}`, manifestType, image)
	c.putManifest(t, "a/image", Digest([]byte(referrer)), "application/vnd.oci.image.index.v1+json", referrer)
	large := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"annotations":{"seed":"%d","a":%q}}`, seed, strings.Repeat("x", 200<<10))
	c.putManifest(t, "large", fmt.Sprint("v", seed), "application/vnd.oci.image.index.v1+json", large)
}

func (c *Cluster) putManifest(t *testing.T, repository, reference, mediaType, content string) {
	t.Helper()
	response, answer, err := c.Members[0].Do("PUT", "/v2/"+repository+"/manifests/"+reference, strings.NewReader(content), http.Header{"Content-Type": {mediaType}})
	if err != nil || response.StatusCode != http.StatusCreated {
		t.Fatalf("put manifest %s of %s: %v %v %s", reference, repository, err, response, answer)
	}
	acked := Acked{Repository: repository, Digest: Digest([]byte(content)), Manifest: true, Size: len(content)}
	if !strings.HasPrefix(reference, "sha256:") {
		acked.Tag = reference
	}
	c.remember(acked)
}

// A backup is made while clients push, made again for what is new, and restored into
// clusters of other sizes.
func TestBackupAndRestore(t *testing.T) {
	c, to := Start(t, 3), filepath.Join(t.TempDir(), "backup")
	pushAllKinds(t, c, 1)
	first, err := node.Backup(t.Context(), c.Members[1].Config.Data, to, true, false)
	if err != nil || first.FaultCount+first.Deleted > 0 || first.Copied == 0 {
		t.Fatalf("backup: %+v %v", first, err)
	}
	pushAllKinds(t, c, 2)
	second, err := node.Backup(t.Context(), c.Members[2].Config.Data, to, true, true)
	if err != nil || second.FaultCount+second.Deleted > 0 || second.Copied == 0 || second.Blobs-second.Copied != first.Blobs {
		t.Fatalf("backup again: %+v, the first was %+v (%v)", second, first, err)
	}
	if _, err := node.Restore(t.Context(), c.Members[0].Config.Data, to, false); !errors.Is(err, node.ErrNotEmpty) {
		t.Errorf("restore over what is there: %v", err)
	}
	for _, nodes := range []int{1, 4} {
		restored := Start(t, nodes)
		summary, err := node.Restore(t.Context(), restored.Members[0].Config.Data, to, false)
		if err != nil || summary.FaultCount > 0 || summary.Blobs == 0 {
			t.Fatalf("restore: %+v %v", summary, err)
		}
		for _, acked := range c.Acked() {
			restored.remember(acked)
		}
		again, err := node.Restore(t.Context(), restored.Members[0].Config.Data, to, true)
		if err != nil || again.FaultCount > 0 || again.Blobs > 0 {
			t.Errorf("restore again: %+v %v", again, err)
		}
		_, referrers, err := restored.Members[0].expect(http.StatusOK, "GET", "/v2/a/image/referrers/"+c.Acked()[len(sizes)+1].Digest, nil)
		if err != nil || !bytes.Contains(referrers, []byte("x/sbom")) {
			t.Errorf("referrers: %s %v", referrers, err)
		}
		if bad := restored.verify(t); len(bad) > 0 {
			t.Errorf("verify found %v", bad)
		}
		restored.Check()
	}
}

// What has rotted in a backup is named, and all else restored.
func TestRestoreOfARottenBackup(t *testing.T) {
	c, to := Start(t, 1), t.TempDir()
	push(t, c, "a", "v1", 1, c.Members...)
	push(t, c, "b", "v1", 2, c.Members...)
	if _, err := node.Backup(t.Context(), c.Members[0].Config.Data, to, true, false); err != nil {
		t.Fatal(err)
	}
	content := Bytes(1*100+3, sizes[3]) // a layer of a
	digest := strings.TrimPrefix(Digest(content), "sha256:")
	rotten := filepath.Join(to, "blobs", "sha256", digest[:2], digest)
	content[5] ^= 1
	if err := os.WriteFile(rotten, content, 0o600); err != nil {
		t.Fatal(err)
	}
	restored := Start(t, 1)
	summary, err := node.Restore(t.Context(), restored.Members[0].Config.Data, to, false)
	// The layer, the manifest that names it, and its tag.
	if err != nil || summary.FaultCount != 3 || !strings.Contains(summary.Faults[0], digest) || summary.Tags != 1 {
		t.Errorf("restore: %+v %v", summary, err)
	}
	for _, acked := range c.Acked() {
		if err := restored.Members[0].Read(acked); (err == nil) != (acked.Repository == "b" || acked.Digest != "sha256:"+digest && !acked.Manifest) {
			t.Errorf("%+v: %v", acked, err)
		}
	}
	// Made again with a look at what is there, the backup is right.
	if summary, err := node.Backup(t.Context(), c.Members[0].Config.Data, to, true, true); err != nil || summary.Copied != 1 {
		t.Errorf("backup again: %+v %v", summary, err)
	}
	if summary, err := node.Restore(t.Context(), restored.Members[0].Config.Data, to, true); err != nil || summary.FaultCount > 0 {
		t.Errorf("restore again: %+v %v", summary, err)
	}
}

// A backup that was cut off is not taken for one.
func TestBackupThatWasCutOff(t *testing.T) {
	c, to := Start(t, 1), t.TempDir()
	push(t, c, "a", "v1", 1, c.Members...)
	file := filepath.Join(to, "metadata.atoll")
	if _, err := node.BackupMetadata(t.Context(), c.Members[0].Config.Data, file); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Restore(t.Context(), c.Members[0].Config.Data, to, true); err == nil || !strings.Contains(err.Error(), "no backup was completed") {
		t.Errorf("restore without a complete backup: %v", err)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, harmed := range map[string][]byte{"cut off": content[:len(content)-100], "rotten": append(slices.Clone(content[:len(content)-1]), content[len(content)-1]^1)} {
		if err := os.WriteFile(file, harmed, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := node.Restore(t.Context(), c.Members[0].Config.Data, file, true); err == nil {
			t.Errorf("restore of metadata that is %s: no error", name)
		}
	}
	if left, err := os.ReadDir(to); err != nil || len(left) != 1 {
		t.Errorf("left in the folder: %v %v", left, err)
	}
}

// verify returns what verify finds.
func (c *Cluster) verify(t *testing.T) (bad []string) {
	t.Helper()
	var last node.Verified
	err := node.Verify(t.Context(), c.Members[0].Config.Data, 0, func(one node.Verified) error {
		if last = one; one.Found != nil {
			bad = append(bad, one.Found.Digest)
		}
		return nil
	})
	if err != nil || last.Blobs == 0 || last.Manifests == 0 || last.Bad != uint64(len(bad)) {
		t.Errorf("verify: %+v %v", last, err)
	}
	return bad
}

// Verify finds the one blob of which too many shards are gone, and says where it is.
func TestVerify(t *testing.T) {
	c := Start(t, 3)
	push(t, c, "a", "v1", 1, c.Members...)
	if bad := c.verify(t); len(bad) > 0 {
		t.Fatalf("verify found %v", bad)
	}
	lost := Bytes(77, 700<<10)
	digest, err := c.PushBlob("a", lost, c.Members...)
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := c.Members[0].running().Metadata().Blobs("", 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, blob := range blobs {
		for _, e := range blob.GetExtents() {
			for _, m := range c.Members[:2] {
				number := slices.Index(e.GetHolders(), m.running().ID())
				if blob.GetDigest() == digest && number >= 0 {
					if err := os.Remove(m.shardFile(e, number)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	if bad := c.verify(t); !slices.Equal(bad, []string{digest}) {
		t.Errorf("verify found %v, not %s", bad, digest)
	}
}
