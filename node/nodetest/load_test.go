package nodetest

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atollregistry/atoll/node"
)

// atOnce runs n pieces of work at the same time and returns their errors.
func atOnce(n int, work func(i int) error) []error {
	errs := make([]error, n)
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() { errs[i] = work(i) })
	}
	running.Wait()
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

// Many clients at once share the memory that a node has for stripes. Some push the
// same blob on several nodes, into one repository or several.
func TestManyClientsAtOnce(t *testing.T) {
	const uploads, pulls, size = 48, 150, 300 << 10
	// Less memory than all of them want, and no more of them than two cores can serve under the race detector before nodes seem to be stuck.
	c := Start(t, 3, func(cfg *node.Config) { cfg.Limits.BufferBytes = 16 << 20 })
	for _, err := range atOnce(uploads, func(i int) error {
		_, err := c.PushBlob(fmt.Sprintf("r%d", i%7), Bytes(uint64(i/8), size), c.Members[i%3], c.Members[(i+1)%3])
		return err
	}) {
		t.Error(err)
	}
	acked := c.Acked()
	if len(acked) != uploads {
		t.Fatalf("%d of %d uploads were acknowledged", len(acked), uploads)
	}
	for _, err := range atOnce(pulls, func(i int) error { return c.Members[i%3].Read(acked[i%len(acked)]) }) {
		t.Error(err)
	}
	c.Check()
}

// Past the limits a node says when to come back, and serves those it has.
func TestPastTheLimits(t *testing.T) {
	c := Start(t, 1, func(cfg *node.Config) { cfg.Limits.Uploads, cfg.Limits.Pulls = 1, 1 })
	m := c.Members[0]
	content := Bytes(1, 32<<20) // more than socket buffers hold, so that a pull stays open
	digest, err := c.PushBlob("a", content, m)
	if err != nil {
		t.Fatal(err)
	}

	pull, err := http.Get(m.URL() + "/v2/a/blobs/" + digest)
	if err != nil {
		t.Fatal(err)
	}
	defer pull.Body.Close()
	response, body, err := m.Do("GET", "/v2/a/blobs/"+digest, nil, nil)
	wantComeBack(t, response, body, err, http.StatusTooManyRequests, "TOOMANYREQUESTS")

	blocked, feed := io.Pipe()
	pushed := make(chan error, 1)
	go func() { // the receive below waits for it
		_, _, err := m.expect(http.StatusCreated, "POST", "/v2/a/blobs/uploads/?digest="+Digest(content), blocked)
		pushed <- err
	}()
	if _, err := feed.Write(content[:1<<20]); err != nil {
		t.Fatal(err)
	}
	// What was written may still be on its way: the place is taken once the node says so.
	c.Eventually(10*time.Second, "the upload to have its place", func() error {
		return m.wantMetric(`atoll_gateway_limit_in_use{limit="uploads"} 1`)
	})
	response, body, err = m.Do("POST", "/v2/a/blobs/uploads/?digest="+Digest([]byte("x")), strings.NewReader("x"), nil)
	wantComeBack(t, response, body, err, http.StatusServiceUnavailable, "UNAVAILABLE")

	if _, err := feed.Write(content[1<<20:]); err != nil {
		t.Fatal(err)
	}
	feed.Close()
	if err := <-pushed; err != nil {
		t.Errorf("the upload that had its place: %v", err)
	}
	if got, err := io.ReadAll(pull.Body); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the pull that had its place: %d bytes, %v", len(got), err)
	}
	c.Check()
}

// wantMetric says whether the node's metrics have this line.
func (m *Member) wantMetric(line string) error {
	response, err := http.Get("http://" + m.Config.Operations.Listen + "/metrics")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	metrics, err := io.ReadAll(response.Body)
	if err == nil && !slices.Contains(strings.Split(string(metrics), "\n"), line) {
		err = fmt.Errorf("metric %s is not there", line)
	}
	return err
}

func wantComeBack(t *testing.T, response *http.Response, body []byte, err error, status int, code string) {
	t.Helper()
	switch {
	case err != nil:
		t.Error(err)
	case response.StatusCode != status || response.Header.Get("Retry-After") == "" || !strings.Contains(string(body), code):
		t.Errorf("past the limit: %s, Retry-After %q, %s; want %d %s", response.Status, response.Header.Get("Retry-After"), body, status, code)
	}
}
