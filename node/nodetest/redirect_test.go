package nodetest

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/atollregistry/atoll/node"
)

// pull gets a blob as a client that follows redirects does. It returns which
// member served it, by its address.
func (m *Member) pull(repository, digest string) (content []byte, served string, err error) {
	response, err := http.Get(m.URL() + "/v2/" + repository + "/blobs/" + digest)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	content, err = io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status + ": " + string(content))
	}
	return content, response.Request.URL.Host, err
}

// home pulls a blob from every member and returns the address of the one that
// served them all.
func (c *Cluster) home(digest string, content []byte) (served string, err error) {
	for _, m := range c.Members {
		got, by, err := m.pull("app", digest)
		switch {
		case err != nil:
			return "", err
		case !bytes.Equal(got, content):
			c.t.Fatalf("pull of %s from %s: wrong bytes", digest, m.Config.Name)
		case served != "" && by != served:
			return "", errors.New("served by " + served + " and by " + by)
		}
		served = by
	}
	return served, nil
}

// A large blob is served by one node, its home, whichever node was asked; if that
// is not well, by another.
func TestPullsAreRedirectedToTheHome(t *testing.T) {
	c := Start(t, 3, func(cfg *node.Config) { cfg.Registry.URL = "http://" + cfg.Registry.Listen })
	homes := map[string]bool{}
	var digest, home string
	content := Bytes(0, 2<<20)
	for seed := uint64(1); len(homes) < 2; seed++ {
		if seed > 30 {
			t.Fatal("one node is the home of all blobs")
		}
		content = Bytes(seed, 2<<20)
		var err error
		if digest, err = c.PushBlob("app", content, c.Members...); err != nil {
			t.Fatal(err)
		}
		// A node may not have heard yet that another is well.
		c.Eventually(15*time.Second, "all nodes send a pull to the same home", func() error {
			home, err = c.home(digest, content)
			return err
		})
		homes[home] = true
	}
	var crashed *Member
	for _, m := range c.Members {
		if m.Config.Registry.Listen == home {
			crashed = m
		}
	}
	crashed.Crash()
	c.Eventually(15*time.Second, "pulls go elsewhere", func() error {
		for _, m := range c.Members {
			if m == crashed {
				continue
			}
			got, _, err := m.pull("app", digest)
			if err != nil {
				return err // a redirect to the dead home, until that is noticed
			}
			if !bytes.Equal(got, content) {
				t.Fatalf("pull of %s from %s: wrong bytes", digest, m.Config.Name)
			}
		}
		return nil
	})
	crashed.Start()
	crashed.WaitReady()
	c.Check()
}
