package nodetest

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/atollregistry/atoll/node"
)

func withCache(cfg *node.Config) { cfg.CacheBytes = 1 << 30 }

// mustPull pulls a blob whole, and a part of it.
func (m *Member) mustPull(digest string, content []byte) {
	m.cluster.t.Helper()
	response, got, err := m.Do(http.MethodGet, "/v2/app/blobs/"+digest, nil, nil)
	if err != nil || response.StatusCode != http.StatusOK || !bytes.Equal(got, content) {
		m.cluster.t.Errorf("pull from %s: %v, %d bytes (%v)", m.Config.Name, response, len(got), err)
	}
	from := len(content) / 2
	response, got, err = m.Do(http.MethodGet, "/v2/app/blobs/"+digest, nil, http.Header{"Range": {fmt.Sprintf("bytes=%d-", from)}})
	if err != nil || response.StatusCode != http.StatusPartialContent || !bytes.Equal(got, content[from:]) {
		m.cluster.t.Errorf("pull of a part from %s: %v, %d bytes (%v)", m.Config.Name, response, len(got), err)
	}
}

// kept waits until a blob is in a member's cache, and returns the name of its file.
func (m *Member) kept(digest string) (path string) {
	m.cluster.t.Helper()
	m.cluster.Eventually(10*time.Second, "the blob is in the cache of "+m.Config.Name, func() error {
		files, err := filepath.Glob(filepath.Join(m.Config.Home(), "cache", "sha256-"+digest[len("sha256:"):]+".*"))
		if err == nil && len(files) != 1 {
			err = fmt.Errorf("files %v", files)
		}
		if err == nil {
			path = files[0]
		}
		return err
	})
	return path
}

// Many clients that pull one blob at once cost a node no more than one read of its shards; after that none,
// without any other node, and after a restart as well. A rotten copy harms nobody.
func TestHerd(t *testing.T) {
	t.Parallel()
	c := Start(t, 3, withCache)
	content := Bytes(1, 12<<20)
	digest, err := c.PushBlob("app", content, c.Members...)
	if err != nil {
		t.Fatal(err)
	}
	m := c.Members[0]
	before := c.links.received.Load()
	var clients sync.WaitGroup
	for range 12 {
		clients.Go(func() { m.mustPull(digest, content) })
	}
	clients.Wait()
	m.mustPull(digest, content) // If all the others came one after the other, it has to be asked for twice.
	m.kept(digest)
	// Half of the bytes are on another node, whoever it is, and parts may have been read before the blob was here.
	received := c.links.received.Load() - before
	t.Logf("%d KiB came from other nodes for a blob of %d KiB", received>>10, len(content)>>10)

	others := c.Members[1:]
	for _, other := range others {
		c.Cut(m, other)
	}
	m.mustPull(digest, content)
	for _, other := range others {
		c.Heal(m, other)
	}
	m.Stop()
	m.Start()
	m.WaitReady()
	m.mustPull(digest, content)

	m.Stop()
	path := m.kept(digest)
	rotten, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rotten[len(rotten)/3] ^= 1
	if err := os.WriteFile(path, rotten, 0o600); err != nil {
		t.Fatal(err)
	}
	m.Start()
	m.WaitReady()
	m.mustPull(digest, content)
	c.Eventually(10*time.Second, "the rotten copy is gone", func() error {
		again, err := os.ReadFile(path)
		if err == nil && bytes.Equal(again, rotten) {
			return errors.New("it is there")
		}
		return nil
	})
	m.mustPull(digest, content)
	c.Check()
}
