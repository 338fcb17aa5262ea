package nodetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atollregistry/atoll/metadata"
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
	t.Parallel()
	c, to := Start(t, 3), filepath.Join(t.TempDir(), "backup")
	pushAllKinds(t, c, 1)
	// Tags that must not move are no obstacle to bringing them back.
	keep := node.NewPolicy{Text: "rules: []\nimmutable: [{repositories: ['**'], tags: ['*']}]"}
	if _, err := node.SetPolicy(t.Context(), c.Members[0].Config.Home(), keep); err != nil {
		t.Fatal(err)
	}
	robot, err := node.CreateAccount(t.Context(), c.Members[1].Config.Home(), node.NewAccount{Name: "ci", Kind: node.KindRobot})
	if err != nil {
		t.Fatal(err)
	}
	first, err := node.Backup(t.Context(), c.Members[1].Config.Home(), to, true, false)
	if err != nil || first.FaultCount+first.Deleted > 0 || first.Copied == 0 {
		t.Fatalf("backup: %+v %v", first, err)
	}
	pushAllKinds(t, c, 2)
	second, err := node.Backup(t.Context(), c.Members[2].Config.Home(), to, true, true)
	if err != nil || second.FaultCount+second.Deleted > 0 || second.Copied == 0 || second.Blobs-second.Copied != first.Blobs {
		t.Fatalf("backup again: %+v, the first was %+v (%v)", second, first, err)
	}
	if _, err := node.Restore(t.Context(), c.Members[0].Config.Home(), to, false); !errors.Is(err, node.ErrNotEmpty) {
		t.Errorf("restore over what is there: %v", err)
	}
	for _, nodes := range []int{1, 4} {
		restored := Start(t, nodes)
		summary, err := node.Restore(t.Context(), restored.Members[0].Config.Home(), to, false)
		if err != nil || summary.FaultCount > 0 || summary.Blobs == 0 || summary.Accounts != 1 || !summary.Policy {
			t.Fatalf("restore: %+v %v", summary, err)
		}
		account, err := restored.Members[0].running().Metadata().Account(t.Context(), "ci")
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := metadata.CheckLogin(account, string(robot.Secret), time.Now()); !ok {
			t.Error("the robot's secret is not the one that it was")
		}
		for _, acked := range c.Acked() {
			restored.remember(acked)
		}
		again, err := node.Restore(t.Context(), restored.Members[0].Config.Home(), to, true)
		if err != nil || again.FaultCount > 0 || again.Blobs > 0 || again.Accounts > 0 {
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
	t.Parallel()
	c, to := Start(t, 1), t.TempDir()
	push(t, c, "a", "v1", 1, c.Members...)
	push(t, c, "b", "v1", 2, c.Members...)
	if _, err := node.Backup(t.Context(), c.Members[0].Config.Home(), to, true, false); err != nil {
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
	summary, err := node.Restore(t.Context(), restored.Members[0].Config.Home(), to, false)
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
	if summary, err := node.Backup(t.Context(), c.Members[0].Config.Home(), to, true, true); err != nil || summary.Copied != 1 {
		t.Errorf("backup again: %+v %v", summary, err)
	}
	if summary, err := node.Restore(t.Context(), restored.Members[0].Config.Home(), to, true); err != nil || summary.FaultCount > 0 {
		t.Errorf("restore again: %+v %v", summary, err)
	}
}

// A backup that was cut off is not taken for one.
func TestBackupThatWasCutOff(t *testing.T) {
	t.Parallel()
	c, to := Start(t, 1), t.TempDir()
	push(t, c, "a", "v1", 1, c.Members...)
	file := filepath.Join(to, "metadata.atoll")
	if _, err := node.BackupMetadata(t.Context(), c.Members[0].Config.Home(), file); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Restore(t.Context(), c.Members[0].Config.Home(), to, true); err == nil || !strings.Contains(err.Error(), "no backup was completed") {
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
		if _, err := node.Restore(t.Context(), c.Members[0].Config.Home(), file, true); err == nil {
			t.Errorf("restore of metadata that is %s: no error", name)
		}
	}
	if left, err := os.ReadDir(to); err != nil || len(left) != 1 {
		t.Errorf("left in the folder: %v %v", left, err)
	}
}

// operator speaks to a node's socket.
func (m *Member) operator() *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(m.Config.Home(), node.AdminSocket))
	}}
}

// interposed returns a folder with a socket like a node's, which calls before ahead
// of every request that it passes on.
func interposed(t *testing.T, m *Member, before func(path string)) (folder string) {
	t.Helper()
	folder = t.TempDir()
	transport := m.operator()
	t.Cleanup(transport.CloseIdleConnections)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "admin"})
	proxy.Transport = transport
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		before(r.URL.Path)
		proxy.ServeHTTP(w, r)
	}))
	listener, err := net.Listen("unix", filepath.Join(folder, node.AdminSocket))
	if err != nil {
		t.Fatal(err)
	}
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return folder
}

// A blob, or a large manifest, that one of its repositories drops between the
// metadata and its turn is in the backup: another repository has it still.
func TestBackupWhileARepositoryDropsABlob(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	m, shared := c.Members[0], Bytes(1, 50_000)
	image, err := c.PushImage("a/tmp", "v1", [][]byte{shared}, c.Members...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.PushImage("z/prod", "v1", [][]byte{shared}, c.Members...); err != nil {
		t.Fatal(err)
	}
	large := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"annotations":{"a":%q}}`, strings.Repeat("x", 200<<10))
	for _, repository := range []string{"a/tmp", "z/prod"} {
		c.putManifest(t, repository, "large", "application/vnd.oci.image.index.v1+json", large)
	}
	drop := sync.OnceFunc(func() {
		for _, path := range []string{"manifests/" + image, "manifests/" + Digest([]byte(large)), "blobs/" + Digest(shared)} {
			if _, _, err := m.expect(http.StatusAccepted, "DELETE", "/v2/a/tmp/"+path, nil); err != nil {
				t.Error(err)
			}
		}
	})
	folder := interposed(t, m, func(path string) {
		if path != "/backup" { // The metadata is there by now.
			drop()
		}
	})
	to := filepath.Join(t.TempDir(), "backup")
	summary, err := node.Backup(t.Context(), folder, to, true, false)
	if err != nil || summary.FaultCount+summary.Deleted > 0 {
		t.Errorf("backup: %+v %v", summary, err)
	}
	for _, content := range [][]byte{shared, []byte(large)} {
		hex := strings.TrimPrefix(Digest(content), "sha256:")
		if copied, err := os.ReadFile(filepath.Join(to, "blobs", "sha256", hex[:2], hex)); err != nil || !bytes.Equal(copied, content) {
			t.Errorf("blob %s in the backup: %d bytes, %v", hex, len(copied), err)
		}
	}
}

// A node says of a blob that it is gone only if no repository has it.
func TestOperatorReadsBlobs(t *testing.T) {
	t.Parallel()
	c := Start(t, 1)
	m, content := c.Members[0], Bytes(1, 50_000)
	if _, err := c.PushBlob("a", content, m); err != nil {
		t.Fatal(err)
	}
	transport := m.operator()
	defer transport.CloseIdleConnections()
	for digest, status := range map[string]int{Digest(content): http.StatusOK, Digest([]byte("another")): http.StatusNotFound, "nonsense": http.StatusNotFound} {
		response, err := (&http.Client{Transport: transport}).Get("http://admin/blobs/" + digest)
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != status {
			t.Errorf("%s: %s", digest, response.Status)
		}
		response.Body.Close()
	}
}

// A backup leaves alone what is beside it, and leaves nothing else there.
func TestBackupLeavesItsNeighboursAlone(t *testing.T) {
	t.Parallel()
	c, to := Start(t, 1), t.TempDir()
	neighbour := filepath.Join(to, ".work", "thesis.tex")
	if err := os.Mkdir(filepath.Dir(neighbour), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(neighbour, []byte("years"), 0o600); err != nil {
		t.Fatal(err)
	}
	home := c.Members[0].Config.Home()
	if _, err := node.BackupMetadata(t.Context(), home, filepath.Join(to, "state.atoll")); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Backup(t.Context(), home, to, true, false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(neighbour); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(to); err != nil || len(left) != 4 { // .work, state.atoll, metadata and backup.json
		t.Errorf("in the folder: %v %v", left, err)
	}
}

// verify returns what verify finds.
func (c *Cluster) verify(t *testing.T) (bad []string) {
	t.Helper()
	var last node.Verified
	err := node.Verify(t.Context(), c.Members[0].Config.Home(), 0, func(one node.Verified) error {
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
	t.Parallel()
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
