package nodetest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
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

// at returns the member with a registry address.
func (c *Cluster) at(address string) *Member {
	c.t.Helper()
	i := slices.IndexFunc(c.Members, func(m *Member) bool { return m.Config.Registry.Listen == address })
	if i < 0 {
		c.t.Fatalf("nobody listens on %s", address)
	}
	return c.Members[i]
}

// checkSignedURL checks that what a redirect leads to needs nothing but its
// signature, at any member, and that it can't be changed.
func (c *Cluster) checkSignedURL(digest string, content []byte, home string) {
	c.t.Helper()
	i := slices.IndexFunc(c.Members, func(m *Member) bool { return m.Config.Registry.Listen != home })
	request, err := http.NewRequest(http.MethodGet, c.Members[i].URL()+"/v2/app/blobs/"+digest, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		c.t.Fatal(err)
	}
	response.Body.Close()
	location := response.Header.Get("Location")
	signed, err := url.Parse(location)
	if response.StatusCode != http.StatusTemporaryRedirect || err != nil || signed.Host != home || response.ContentLength != 0 ||
		response.Header.Get("Docker-Content-Digest") != digest || response.Header.Get("Cache-Control") != "no-store" {
		c.t.Fatalf("answer %s %v, length %d", response.Status, response.Header, response.ContentLength)
	}
	junk := http.Header{"Authorization": {"Basic anVuazpqdW5r"}}
	for _, m := range c.Members {
		answer, got, err := m.Do(http.MethodGet, signed.RequestURI(), nil, junk)
		if err != nil || answer.StatusCode != http.StatusOK || !bytes.Equal(got, content) {
			c.t.Errorf("signed GET from %s: %v, %d bytes (%v)", m.Config.Name, answer, len(got), err)
		}
		ranged := http.Header{"Range": {"bytes=-7"}, "Authorization": junk["Authorization"]}
		answer, got, err = m.Do(http.MethodGet, signed.RequestURI(), nil, ranged)
		if err != nil || answer.StatusCode != http.StatusPartialContent || !bytes.Equal(got, content[len(content)-7:]) {
			c.t.Errorf("signed range from %s: %v, %d bytes (%v)", m.Config.Name, answer, len(got), err)
		}
		for name := range signed.Query() {
			query := signed.Query()
			query.Set(name, query.Get(name)+"0")
			answer, got, err = m.Do(http.MethodGet, signed.Path+"?"+query.Encode(), nil, junk)
			if err != nil || answer.StatusCode != http.StatusForbidden || !bytes.Contains(got, []byte("DENIED")) {
				c.t.Errorf("GET with another %s from %s: %v %.100s (%v)", name, m.Config.Name, answer, got, err)
			}
		}
	}
}

// stopUnnoticed stops a member, as an operator would, while clients pull a blob
// through the others: none of them may fail. A transfer that it has to finish keeps
// it alive for a while after it has closed its port. Then it starts it again.
func (c *Cluster) stopUnnoticed(m *Member, digest string, content []byte) {
	c.t.Helper()
	large, err := c.PushBlob("app", Bytes(99, 24<<20), c.Members...) // more than sockets hold
	if err != nil {
		c.t.Fatal(err)
	}
	held, err := http.Get(m.URL() + "/v2/app/blobs/" + large + "?redirect=0")
	if err != nil {
		c.t.Fatal(err)
	}
	defer held.Body.Close()
	closed, stopped := make(chan struct{}), make(chan struct{})
	var clients sync.WaitGroup
	for _, other := range c.Members {
		if other == m {
			continue
		}
		clients.Go(func() {
			const after = 10 // pulls once the port is closed
			for left := after; left > 0; {
				select {
				case <-closed:
					left--
				default:
				}
				if got, by, err := other.pull("app", digest); err != nil || !bytes.Equal(got, content) {
					c.t.Errorf("pull through %s while %s stops: %d bytes from %s: %v", other.Config.Name, m.Config.Name, len(got), by, err)
					return
				}
			}
		})
	}
	go func() { // ends when the transfer does
		m.Stop()
		close(stopped)
	}()
	c.Eventually(15*time.Second, "the port is closed", func() error {
		conn, err := net.Dial("tcp", m.Config.Registry.Listen)
		if err != nil {
			return nil
		}
		conn.Close()
		return errors.New("it takes connections")
	})
	close(closed)
	clients.Wait()
	held.Body.Close()
	<-stopped
	m.Start()
	m.WaitReady()
}

// A large blob is served by one node, its home, whichever node was asked; if that
// is not well, by another. No client of another node notices that it stops.
func TestPullsAreRedirectedToTheHome(t *testing.T) {
	t.Parallel()
	c := Start(t, 3, func(cfg *node.Config) { cfg.Registry.URL = "http://" + cfg.Registry.Listen })
	homes := map[string]bool{}
	var digest, home string
	content := Bytes(0, 2<<20)
	// A leader that stops hands over first, and is missed later.
	leader := c.Leader().Config.Registry.Listen
	for seed := uint64(1); len(homes) < 2 || home == leader; seed++ {
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
	c.checkSignedURL(digest, content, home)
	// With nobody who notices, it goes and comes back in order.
	c.stopUnnoticed(c.at(home), digest, content)
	crashed := c.at(home)
	c.Eventually(15*time.Second, "the home is found again", func() error {
		by, err := c.home(digest, content)
		if err == nil && by != home {
			err = errors.New("served by " + by)
		}
		return err
	})
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
