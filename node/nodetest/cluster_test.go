package nodetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/node"
)

// sizes has one blob for each way that bytes are stored: none, tiny, mirrored,
// just more than mirrored, a stripe and a bit, many stripes.
var sizes = []int{0, 1, 1000, 128 << 10, 128<<10 + 1, 512<<10 + 7, 3<<20 + 12345}

func push(t *testing.T, c *Cluster, repository, tag string, seed uint64, on ...*Member) string {
	t.Helper()
	var layers [][]byte
	for i, size := range sizes {
		layers = append(layers, Bytes(seed*100+uint64(i), size))
	}
	digest, err := c.PushImage(repository, tag, layers, on...)
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func TestEveryStepOnAnotherNode(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	push(t, c, "a/image", "v1", 1, c.Members[0], c.Members[1], c.Members[2])
	push(t, c, "a/image", "v2", 2, c.Members[2], c.Members[0], c.Members[1])
	push(t, c, "b", "v1", 1, c.Members[1], c.Members[2], c.Members[0])
	c.Check()
}

// One node, whose clients come by TLS.
func TestOneNode(t *testing.T) {
	t.Parallel()
	c := Start(t, 1, func(cfg *node.Config) {
		cfg.Registry.PlainHTTP = false
		cfg.Registry.TLS = node.RegistryTLSConfig{Cert: cfg.Cluster.Cert, Key: cfg.Cluster.Key}
	})
	m := c.Members[0]
	push(t, c, "a", "v1", 1, m)
	response, body, err := m.Do("GET", "http://"+m.Config.Registry.Listen+"/v2/", nil, nil)
	if err != nil || response.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), "HTTPS") {
		t.Errorf("plain HTTP: %v %v %s", response, err, body)
	}
	c.Check()
}

// A node that took the PATCH is gone before the PUT.
func TestPutAfterThePatchNodeDied(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	content := Bytes(1, 9<<20)
	response, _, err := c.Members[0].expect(http.StatusAccepted, "POST", "/v2/a/blobs/uploads/", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, _, err = c.Members[1].expect(http.StatusAccepted, "PATCH", response.Header.Get("Location"), bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	c.Members[1].Crash()
	location := withDigest(t, response.Header.Get("Location"), Digest(content))
	for range 2 { // the second as if the first answer had been lost
		if _, _, err := c.Members[2].expect(http.StatusCreated, "PUT", location, nil); err != nil {
			t.Fatal(err)
		}
	}
	c.remember(Acked{Repository: "a", Digest: Digest(content), Size: len(content)})
	c.Members[1].Start()
	c.Members[1].WaitReady()
	c.Check()
}

func withDigest(t *testing.T, location, digest string) string {
	t.Helper()
	parsed, err := url.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	query := parsed.Query()
	query.Set("digest", digest)
	parsed.RawQuery = query.Encode()
	return parsed.String()
}

// gate hands out its content and calls at once half of it has been read.
type gate struct {
	content io.Reader
	left    int
	at      func()
}

func newGate(content []byte, at func()) *gate {
	return &gate{content: bytes.NewReader(content), left: len(content) / 2, at: at}
}

func (g *gate) Read(p []byte) (int, error) {
	n, err := g.content.Read(p)
	if g.left -= n; g.left < 0 && g.at != nil {
		g.at()
		g.at = nil
	}
	return n, err
}

// Any node but the one that the client talks to dies in the middle of a push:
// the client notices nothing, in that request nor in the next ones.
func TestHolderDiesDuringPush(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{3, 5} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			c := Start(t, nodes)
			for i := range 3 {
				victim, via := c.Members[i], c.Members[(i+1)%nodes]
				content := Bytes(uint64(i), 8<<20)
				pushThrough(t, c, via, content, victim.Crash)
				for _, m := range c.Members {
					if m == victim {
						continue
					}
					if err := m.Read(c.Acked()[len(c.Acked())-1]); err != nil {
						t.Error(err)
					}
				}
				victim.Start()
				victim.WaitReady()
			}
			c.Check()
		})
	}
}

// pushThrough pushes a blob in one PATCH through one node and calls at in the
// middle of it.
func pushThrough(t *testing.T, c *Cluster, via *Member, content []byte, at func()) {
	t.Helper()
	response, _, err := via.expect(http.StatusAccepted, "POST", "/v2/a/blobs/uploads/", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, _, err = via.expect(http.StatusAccepted, "PATCH", response.Header.Get("Location"), newGate(content, at))
	if err != nil {
		t.Fatal(err)
	}
	location := withDigest(t, response.Header.Get("Location"), Digest(content))
	if _, _, err := via.expect(http.StatusCreated, "PUT", location, nil); err != nil {
		t.Fatal(err)
	}
	c.remember(Acked{Repository: "a", Digest: Digest(content), Size: len(content)})
}

// A node dies in the middle of a pull through another one.
func TestHolderDiesDuringPull(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	content := Bytes(1, 24<<20)
	digest, err := c.PushBlob("a", content, c.Members...)
	if err != nil {
		t.Fatal(err)
	}
	for i := range c.Members {
		victim, via := c.Members[i], c.Members[(i+1)%3]
		response, err := http.Get(via.URL() + "/v2/a/blobs/" + digest)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if _, err := io.CopyN(&got, response.Body, 8<<20); err != nil {
			t.Fatal(err)
		}
		victim.Crash()
		_, err = io.Copy(&got, response.Body)
		response.Body.Close()
		if err != nil || Digest(got.Bytes()) != digest {
			t.Errorf("pull through %s while %s died: %d of %d bytes, %v", via.Config.Name, victim.Config.Name, got.Len(), len(content), err)
		}
		victim.Start()
		victim.WaitReady()
	}
	c.Check()
}

// With two parity shards any two nodes may go.
func TestTwoOfFiveNodesDie(t *testing.T) {
	t.Parallel()
	c := Start(t, 5)
	push(t, c, "a", "v1", 1, c.Members...)
	c.Members[0].Crash()
	c.Members[3].Crash()
	alive := []*Member{c.Members[1], c.Members[2], c.Members[4]}
	for _, m := range alive {
		for _, acked := range c.Acked() {
			if err := m.Read(acked); err != nil {
				t.Error(err)
			}
		}
	}
	push(t, c, "a", "v2", 2, alive...)
	c.Members[0].Start()
	c.Members[3].Start()
	c.Check()
}

// A leader that is cut off must not serve what the others have replaced, and a
// write on its side must not be acknowledged.
func TestCutOffLeaderServesNothingStale(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	old := push(t, c, "a", "latest", 1, c.Members...)
	leader := c.Leader()
	var others []*Member
	for _, m := range c.Members {
		if m != leader {
			others = append(others, m)
		}
	}
	c.Isolate(leader)
	next := push(t, c, "a", "other", 2, others...)
	content := manifestOf(t, others[0], "a", next)
	response, body, err := others[0].Do("PUT", "/v2/a/manifests/latest", bytes.NewReader(content), http.Header{"Content-Type": {manifestType}})
	if err != nil || response.StatusCode != http.StatusCreated {
		t.Fatalf("move tag: %v %v %s", response, err, body)
	}
	response, _, err = leader.Do("HEAD", "/v2/a/manifests/latest", nil, nil)
	switch {
	case err != nil:
		t.Errorf("read tag on the leader that is cut off: %v", err)
	case response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") == "":
		t.Errorf("the leader that is cut off answered %s (old manifest %s), digest %s, Retry-After %q; want 503 with Retry-After",
			response.Status, old, response.Header.Get("Docker-Content-Digest"), response.Header.Get("Retry-After"))
	}
	// By digest it may go on.
	if response, _, err = leader.Do("GET", "/v2/a/manifests/"+old, nil, nil); err != nil || response.StatusCode != http.StatusOK || response.Header.Get("Warning") == "" {
		t.Errorf("read by digest without quorum: %v %v", response, err)
	}
	response, body, err = leader.Do("PUT", "/v2/a/manifests/latest", bytes.NewReader(content), http.Header{"Content-Type": {manifestType}})
	if err == nil && response.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("write on the leader that is cut off: %s %s", response.Status, body)
	}
	c.Rejoin(leader)
	c.Forget(old)
	c.Check()
}

// An operator who prefers an old answer to none gets tags and lists from a node
// without a quorum, with a warning, and no writes.
func TestAvailableReads(t *testing.T) {
	t.Parallel()
	c := Start(t, 3, func(cfg *node.Config) { cfg.Reads = node.ReadsAvailable })
	digest := push(t, c, "a", "v1", 1, c.Members...)
	alone := c.Members[2]
	if _, _, err := alone.expect(http.StatusOK, "HEAD", "/v2/a/manifests/v1", nil); err != nil { // It knows all by now.
		t.Fatal(err)
	}
	c.Isolate(alone)
	for _, path := range []string{"/v2/a/manifests/v1", "/v2/a/tags/list", "/v2/_catalog", "/v2/a/referrers/" + digest} {
		response, body, err := alone.Do("GET", path, nil, nil)
		if err != nil || response.StatusCode != http.StatusOK || response.Header.Get("Warning") == "" {
			t.Errorf("GET %s without quorum: %v %v %s", path, err, response, body)
		}
	}
	response, body, err := alone.Do("POST", "/v2/a/blobs/uploads/", nil, nil)
	if err != nil || response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") == "" {
		t.Errorf("push without quorum: %v %v %s", err, response, body)
	}
	c.Rejoin(alone)
	c.Check()
}

func manifestOf(t *testing.T, m *Member, repository, digest string) []byte {
	t.Helper()
	_, content, err := m.expect(http.StatusOK, "GET", "/v2/"+repository+"/manifests/"+digest, nil)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// Rot on one disk is worked around wherever it is.
func TestFlippedBitsAreNeverServed(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	push(t, c, "a", "v1", 1, c.Members...)
	files := c.Members[1].ShardFiles()
	if len(files) == 0 {
		t.Fatal("the node has no shards to damage")
	}
	for _, file := range files {
		FlipBit(t, file)
	}
	c.checkContent()
}

// A node whose disk was lost comes back with the same command line on an empty
// folder: a new id takes over the name.
func TestWipedNodeComesBack(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	push(t, c, "a", "v1", 1, c.Members...)
	before := uuidOf(t, c, "n1")
	c.Members[0].Crash()
	c.Members[0].Wipe()
	c.Members[0].Start()
	c.Members[0].WaitReady()
	if after := uuidOf(t, c, "n1"); after == before {
		t.Errorf("n1 has its old id %s on an empty folder", after)
	}
	push(t, c, "a", "v2", 2, c.Members...)
	c.Check()
}

func uuidOf(t *testing.T, c *Cluster, name string) string {
	t.Helper()
	status, err := c.Members[1].Status()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range status.Nodes {
		if n.ID == name {
			return n.UUID
		}
	}
	t.Fatalf("status has no node %s", name)
	return ""
}

// A node without room takes no new shards; a cluster without room refuses
// pushes, says so, and goes on serving.
func TestFullDisks(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	push(t, c, "a", "v1", 1, c.Members...)
	const everything = 1 << 60
	fill := func(m *Member) {
		m.Stop()
		m.Config.ReserveBytes = everything
		m.Start()
		m.WaitReady()
	}
	fill(c.Members[0])
	push(t, c, "a", "v2", 2, c.Members...)
	c.Eventually(FormTimeout, "the other nodes know that n1 is full", func() error {
		status, err := c.Members[1].Status()
		if err != nil {
			return err
		}
		if len(status.Problems) != 1 || !strings.Contains(status.Problems[0], "n1 takes no new shards") {
			return fmt.Errorf("problems are %q", status.Problems)
		}
		return c.Members[2].wantMetric(`atoll_node_full{name="n1"} 1`)
	})
	fill(c.Members[1])
	fill(c.Members[2])
	response, body, err := c.Members[0].Do("POST", "/v2/a/blobs/uploads/?digest="+Digest(Bytes(9, 1<<20)), bytes.NewReader(Bytes(9, 1<<20)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode < 500 || !strings.Contains(string(body), `"errors"`) {
		t.Errorf("push to a full cluster: %s %s", response.Status, body)
	}
	c.checkContent()
	for _, m := range c.Members {
		m.Stop()
		m.Config.ReserveBytes = 0
		m.Start()
	}
	for _, m := range c.Members {
		m.WaitReady()
	}
	push(t, c, "a", "v3", 3, c.Members...)
	c.Check()
}

func TestRefusalsAtStart(t *testing.T) {
	t.Parallel()
	c := Start(t, 1)
	push(t, c, "a", "v1", 1, c.Members[0])
	other := Start(t, 1)

	second := &Member{cluster: c, Config: c.Members[0].Config}
	second.Start()
	wantEnd(t, second, "in use by another atoll process")

	second.Config.Data = []string{t.TempDir()}
	second.Start()
	wantEnd(t, second, "registry.listen", "address already in use")

	// The folder of one cluster, told to join the other.
	c.Members[0].Stop()
	stranger := &Member{cluster: c, Config: c.Members[0].Config}
	stranger.Config.Cluster = other.Members[0].Config.Cluster
	stranger.Config.Cluster.Listen = "127.0.0.1:0"
	stranger.Config.Join = other.Members[0].Config.Join
	stranger.Start()
	wantEnd(t, stranger, "belongs to cluster", "to be joined is in cluster")

	c.Members[0].Config.Name = "n2"
	if n, err := node.New(c.Members[0].Config, c.Members[0].logger()); err != nil || n == nil {
		t.Fatal(err)
	}
	c.Members[0].Start()
	wantEnd(t, c.Members[0], `belongs to node "n1", not to "n2"`)
	c.Members[0].Config.Name = "n1"
	c.Members[0].Start()
	c.Members[0].WaitReady()
	c.Check()
}

func wantEnd(t *testing.T, m *Member, words ...string) {
	t.Helper()
	err := m.WaitEnd()
	if err == nil {
		t.Errorf("the node ended without an error, want %q", words)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the node ended with %q, which does not say %q", err, word)
		}
	}
}

// Without a quorum requests wait for one, and then go on as if nothing had been.
func TestRequestsWaitForAnElection(t *testing.T) {
	c := Start(t, 3)
	push(t, c, "a", "v1", 1, c.Members...)
	for range 3 {
		leader := c.Leader()
		var via *Member
		for _, m := range c.Members {
			if m != leader {
				via = m
			}
		}
		leader.Crash()
		start := time.Now()
		response, body, err := via.Do("GET", "/v2/a/tags/list", nil, nil)
		if err != nil || response.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(`"v1"`)) {
			t.Errorf("list tags during the election: %v %v %s", response, err, body)
		}
		t.Logf("the request waited %s", time.Since(start).Round(time.Millisecond))
		leader.Start()
		leader.WaitReady()
	}
	c.Check()
}

// The client hangs up in the middle: nothing of it remains after a sweep, and
// the upload goes on from what was acknowledged.
func TestClientHangsUp(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	response, _, err := c.Members[0].expect(http.StatusAccepted, "POST", "/v2/a/blobs/uploads/", nil)
	if err != nil {
		t.Fatal(err)
	}
	location := response.Header.Get("Location")
	broken := io.MultiReader(bytes.NewReader(Bytes(1, 3<<20)), brokenReader{})
	if _, _, err := c.Members[0].Do("PATCH", location, broken, nil); err == nil {
		t.Fatal("the broken request succeeded")
	}
	content := Bytes(2, 2<<20)
	var patched *http.Response
	c.Eventually(settleTimeout, "the upload goes on", func() error {
		response, _, err := c.Members[1].expect(http.StatusNoContent, "GET", location, nil)
		if err != nil {
			return err
		}
		if got := response.Header.Get("Range"); got != "0-0" {
			return errors.New("the upload has bytes " + got)
		}
		patched, _, err = c.Members[1].expect(http.StatusAccepted, "PATCH", response.Header.Get("Location"), bytes.NewReader(content))
		return err
	})
	put := withDigest(t, patched.Header.Get("Location"), Digest(content))
	if _, _, err := c.Members[2].expect(http.StatusCreated, "PUT", put, nil); err != nil {
		t.Fatal(err)
	}
	c.remember(Acked{Repository: "a", Digest: Digest(content), Size: len(content)})
	c.Check()
}

// A client that hangs up in the middle of a range without an end, as containerd
// does, stops the transfer between the nodes: no more is read than what is on its
// way to the client and the reader's read-ahead.
func TestPullIsLazy(t *testing.T) {
	const (
		size, wanted = 24 << 20, 1 << 20
		// ahead is what the sockets hold (4 MiB at most to send by default on Linux,
		// and what is set below to receive), two groups of 2 MiB, and what the nodes
		// tell each other meanwhile. A whole pull is at least size/2: the other data
		// shard.
		ahead = 9 << 20
	)
	c := Start(t, 3)
	m := c.Members[0]
	content := Bytes(1, size)
	digest := Digest(content)
	if _, _, err := m.expect(http.StatusCreated, "POST", "/v2/a/blobs/uploads/?digest="+digest, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	c.remember(Acked{Repository: "a", Digest: digest, Size: size})
	before := c.links.received.Load()
	conn, err := net.DialTimeout("tcp", m.Config.Registry.Listen, requestTimeout)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /v2/a/blobs/%s HTTP/1.1\r\nHost: a\r\nRange: bytes=1-\r\n\r\n", digest)
	if _, err := io.CopyN(io.Discard, conn, wanted); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	c.Eventually(settleTimeout, "the pull ends", func() error {
		return m.wantMetric(`atoll_gateway_limit_in_use{limit="pulls"} 0`)
	})
	if received := c.links.received.Load() - before; received < wanted/4 || received > wanted+ahead {
		t.Errorf("%d bytes came from other nodes for a client that took %d", received, wanted)
	} else {
		t.Logf("%d KiB came from other nodes for a client that took %d KiB", received>>10, wanted>>10)
	}
	c.Check()
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("client gave up") }
