package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/proto"
)

func TestUploadLimit(t *testing.T) {
	registerer := prometheus.NewRegistry()
	r := newRegistry(t, Config{MaxConcurrentUploads: 1, LimitWait: 50 * time.Millisecond, Metrics: registerer})
	r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil)
	r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil)
	body := newGate("hello")
	done := make(chan int, 1)
	go func() {
		response, err := r.try(http.MethodPatch, "/v2/a/blobs/uploads/upload-1", body)
		if err != nil {
			t.Error(err)
			done <- 0
			return
		}
		_ = response.Body.Close()
		done <- response.StatusCode
	}()
	eventually(t, patience, func() bool { return metricValue(t, registerer, "atoll_gateway_limit_in_use", "uploads") == 1 })
	refused := r.want(http.StatusServiceUnavailable, http.MethodPatch, "/v2/a/blobs/uploads/upload-2", strings.NewReader("hello"))
	if refused.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if content, _ := io.ReadAll(refused.Body); !strings.Contains(string(content), codeUnavailable) {
		t.Errorf("got %s", content)
	}
	// What needs no turn goes on.
	r.want(http.StatusNoContent, http.MethodGet, "/v2/a/blobs/uploads/upload-2", nil)
	close(body.open)
	if status := <-done; status != http.StatusAccepted {
		t.Errorf("got %d", status)
	}
	r.want(http.StatusAccepted, http.MethodPatch, "/v2/a/blobs/uploads/upload-2", strings.NewReader("hello"))
	if got := metricValue(t, registerer, "atoll_gateway_limit_refused_total", "uploads"); got != 1 {
		t.Errorf("%v refusals counted", got)
	}
	eventually(t, patience, func() bool { return metricValue(t, registerer, "atoll_gateway_requests_total", "503") == 1 })
}

func TestPullLimit(t *testing.T) {
	r := newRegistry(t, Config{MaxConcurrentPulls: 1, LimitWait: 50 * time.Millisecond})
	digest := r.push("a", "hello")
	release, err := r.gateway.pulls.acquire(context.Background(), 1)
	if err != nil {
		t.Fatal(err)
	}
	refused := r.want(http.StatusTooManyRequests, http.MethodGet, "/v2/a/blobs/"+digest, nil)
	if refused.Header.Get("Retry-After") == "" || refused.Header.Get("Docker-Content-Digest") != "" {
		t.Errorf("headers %v", refused.Header)
	}
	r.want(http.StatusOK, http.MethodHead, "/v2/a/blobs/"+digest, nil)
	release()
	r.want(http.StatusOK, http.MethodGet, "/v2/a/blobs/"+digest, nil)
}

// metricValue adds up a metric's values that have the label value.
func metricValue(t *testing.T, gatherer prometheus.Gatherer, name, label string) (sum float64) {
	t.Helper()
	families, err := gatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, metric := range family.GetMetric() {
			for _, pair := range metric.GetLabel() {
				if pair.GetValue() == label {
					sum += metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

func TestLimiterQueue(t *testing.T) {
	ctx := context.Background()
	m := newMetrics(nil, zerolog.Nop()).limit("test")
	l := newLimiter(1, time.Hour, errUploadsBusy, m)
	release, err := l.acquire(ctx, 5) // More than there is counts as all.
	if err != nil {
		t.Fatal(err)
	}
	waiting, cancel := context.WithCancel(ctx)
	results := make(chan error)
	for range waitingPerSlot {
		go func() { _, err := l.acquire(waiting, 1); results <- err }()
	}
	eventually(t, patience, func() bool { return l.waiting.Load() == waitingPerSlot })
	if _, err := l.acquire(ctx, 1); !errors.Is(err, errUploadsBusy) {
		t.Errorf("with a full queue: %v", err)
	}
	cancel()
	for range waitingPerSlot {
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
	release()
	release, err = l.acquire(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	release()
}

// panicking is Metadata that panics.
type panicking struct{ *memoryMetadata }

func (panicking) Repositories(context.Context, string, int) ([]string, bool, error) {
	panic("something impossible")
}

func TestPanicIsContained(t *testing.T) {
	var log safeBuffer
	handler := New(Config{Logger: zerolog.New(&log)}, panicking{newMemoryMetadata()}, newMemoryBlobs())
	r := &registry{t: t, gateway: handler.(*gateway), server: startServer(t, handler)}
	response := r.want(http.StatusInternalServerError, http.MethodGet, "/v2/_catalog", nil)
	content, _ := io.ReadAll(response.Body)
	if strings.Contains(string(content), "impossible") || !strings.Contains(string(content), response.Header.Get("X-Request-Id")) {
		t.Errorf("got %s", content)
	}
	if !strings.Contains(log.String(), "something impossible") || !strings.Contains(log.String(), `"level":"error"`) {
		t.Errorf("log: %s", log.String())
	}
	r.want(http.StatusOK, http.MethodGet, "/v2/", nil)
}

func TestAccessLog(t *testing.T) {
	var log safeBuffer
	r := newRegistry(t, Config{Logger: zerolog.New(&log)})
	r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil, "X-Request-Id", "from-the-balancer.1", "User-Agent", "test/1")
	r.want(http.StatusAccepted, http.MethodPatch, "/v2/a/blobs/uploads/upload-1", strings.NewReader("hello"), "X-Request-Id", "evil\tid")
	r.want(http.StatusNotFound, http.MethodGet, "/v2/a/manifests/latest", nil)
	eventually(t, patience, func() bool { return strings.Count(log.String(), "\n") == 3 })
	type line struct {
		Level, Message, Method, Path, Operation, Repository, Reference, Upload, Agent, Error string

		RequestID string `json:"request_id"`
		Status    int
		Received  int
	}
	var lines []line
	for text := range strings.Lines(log.String()) {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		lines = append(lines, l)
	}
	if l := lines[0]; l.RequestID != "from-the-balancer.1" || l.Status != 202 || l.Method != "POST" || l.Upload != "upload-1" || l.Agent != "test/1" || l.Level != "info" {
		t.Errorf("first line: %+v", l)
	}
	if l := lines[1]; len(l.RequestID) < 20 || l.Received != 5 || l.Operation != "upload" || l.Repository != "a" || l.Reference != "upload-1" {
		t.Errorf("second line: %+v", l)
	}
	if l := lines[2]; l.Status != 404 || !strings.Contains(l.Error, "repository unknown") {
		t.Errorf("third line: %+v", l)
	}
}

// TestPages: a list is complete, whatever the size of its pages.
func TestPages(t *testing.T) {
	r := newRegistry(t, Config{})
	const index = `{"schemaVersion":2,"manifests":[]}`
	want := map[string]bool{}
	for _, tag := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		want[tag] = true
		r.want(http.StatusCreated, http.MethodPut, "/v2/a/manifests/"+tag, strings.NewReader(index), "Content-Type", ociIndexType)
	}
	for _, n := range []string{"1", "2", "3", "7", "8"} {
		got := map[string]bool{}
		for next := "/v2/a/tags/list?n=" + n; next != ""; {
			response := r.want(http.StatusOK, http.MethodGet, next, nil)
			var page struct{ Tags []string }
			if err := json.NewDecoder(response.Body).Decode(&page); err != nil {
				t.Fatal(err)
			}
			for _, tag := range page.Tags {
				if got[tag] {
					t.Errorf("n=%s: %s twice", n, tag)
				}
				got[tag] = true
			}
			next = ""
			if link := response.Header.Get("Link"); link != "" {
				target, rel, _ := strings.Cut(strings.TrimPrefix(link, "<"), ">; ")
				if !strings.HasPrefix(target, "/v2/") || rel != `rel="next"` {
					t.Fatalf("Link: %s", link)
				}
				next = target
			}
		}
		if len(got) != len(want) {
			t.Errorf("n=%s: got %v", n, got)
		}
	}
}

// manyReferrers is Metadata with a subject that many manifests refer to.
type manyReferrers struct {
	*memoryMetadata
	count, calls int
}

func manyDigest(i int) string { return fmt.Sprintf("sha256:%064x", i) }

func (m *manyReferrers) Referrers(_ context.Context, _, _, after string, limit int) (referrers []*proto.Manifest, more bool, err error) {
	m.calls++
	first := 0
	if after != "" {
		_, _ = fmt.Sscanf(after, "sha256:%x", &first)
		first++
	}
	for i := first; i < min(first+limit, m.count); i++ {
		kind := "a/common"
		if i == m.count-1 {
			kind = "a/rare"
		}
		referrers = append(referrers, &proto.Manifest{Digest: manyDigest(i), MediaType: ociIndexType, ArtifactType: kind})
	}
	return referrers, first+limit < m.count, nil
}

// TestManyReferrers: one reply does not look at all of very many, found or not, and
// no referrer is lost between two pages.
func TestManyReferrers(t *testing.T) {
	for _, filter := range []string{"", "a/rare", "a/none"} {
		many := &manyReferrers{memoryMetadata: newMemoryMetadata(), count: maxReferrersLooked + 3000}
		r := &registry{t: t, server: startServer(t, New(Config{}, many, newMemoryBlobs()))}
		var got []string
		pages := 0
		for next := "/v2/a/referrers/" + someDigest + "?artifactType=" + url.QueryEscape(filter); next != ""; pages++ {
			many.calls = 0
			response := r.want(http.StatusOK, http.MethodGet, next, nil)
			var page struct{ Manifests []struct{ Digest string } }
			if err := json.NewDecoder(response.Body).Decode(&page); err != nil {
				t.Fatal(err)
			}
			for _, d := range page.Manifests {
				got = append(got, d.Digest)
			}
			if many.calls > maxReferrersLooked/referrersAtOnce+1 {
				t.Errorf("%q: %d calls for one reply", filter, many.calls)
			}
			next, _, _ = strings.Cut(strings.TrimPrefix(response.Header.Get("Link"), "<"), ">")
		}
		want := map[string]int{"": many.count, "a/rare": 1}[filter]
		if len(got) != want || pages != 2 || !slices.IsSorted(got) || len(slices.Compact(got)) != want {
			t.Errorf("%q: %d referrers on %d pages, want %d on 2", filter, len(got), pages, want)
		}
	}
}

// largeReferrers is metadata in which everything has many referrers that are stored as
// blobs, each with the same content.
type largeReferrers struct {
	manyReferrers
	content *proto.Blob
	reads   int
}

func (m *largeReferrers) Referrers(ctx context.Context, repository, subject, after string, limit int) ([]*proto.Manifest, bool, error) {
	referrers, more, err := m.manyReferrers.Referrers(ctx, repository, subject, after, limit)
	for _, manifest := range referrers {
		manifest.StoredAsBlob, manifest.Size = true, MaxManifestBytes
	}
	return referrers, more, err
}

func (m *largeReferrers) ManifestBlob(context.Context, string, string) (*proto.Blob, error) {
	m.reads++
	return m.content, nil
}

// TestLargeReferrers: one reply does not read all of very many large manifests.
func TestLargeReferrers(t *testing.T) {
	blobs := newMemoryBlobs()
	content := indexJSON(`,"artifactType":"a/b"`)
	_, extents, _, err := blobs.Append(t.Context(), blobstore.Progress{UploadID: "x"}, strings.NewReader(content), nil)
	if err != nil {
		t.Fatal(err)
	}
	large := &largeReferrers{
		manyReferrers: manyReferrers{memoryMetadata: newMemoryMetadata(), count: 50},
		content:       &proto.Blob{Size: uint64(len(content)), Extents: extents},
	}
	r := &registry{t: t, server: startServer(t, New(Config{}, large, blobs))}
	got := 0
	for next := "/v2/a/referrers/" + someDigest; next != ""; {
		large.reads = 0
		response := r.want(http.StatusOK, http.MethodGet, next, nil)
		var page struct{ Manifests []struct{ Digest string } }
		if err := json.NewDecoder(response.Body).Decode(&page); err != nil {
			t.Fatal(err)
		}
		got += len(page.Manifests)
		if large.reads > maxReferrersRead/MaxManifestBytes {
			t.Fatalf("%d manifests of %d bytes were read for one reply", large.reads, MaxManifestBytes)
		}
		next, _, _ = strings.Cut(strings.TrimPrefix(response.Header.Get("Link"), "<"), ">")
	}
	if got != large.count {
		t.Errorf("%d referrers, want %d", got, large.count)
	}
}

// TestReferrersPages: a list of referrers beyond what clients read in one piece
// comes in several.
func TestReferrersPages(t *testing.T) {
	r := newRegistry(t, Config{})
	filler := strings.Repeat("x", 100<<10)
	const count = 50
	for i := range count {
		content := indexJSON(`,"artifactType":"a/b","subject":` + descriptorJSON("x", digestA) + `,"annotations":{"filler":"` + filler + strings.Repeat("y", i) + `"}`)
		r.want(http.StatusCreated, http.MethodPut, "/v2/a/manifests/"+digestOf(sha256Algorithm, []byte(content)), strings.NewReader(content), "Content-Type", ociIndexType)
	}
	got, pages := map[string]bool{}, 0
	for next := "/v2/a/referrers/" + digestA + "?artifactType=a%2Fb"; next != ""; pages++ {
		response := r.want(http.StatusOK, http.MethodGet, next, nil)
		content, err := io.ReadAll(response.Body)
		if err != nil || len(content) > MaxManifestBytes {
			t.Fatalf("%d bytes, %v", len(content), err)
		}
		var page struct{ Manifests []struct{ Digest string } }
		if err := json.Unmarshal(content, &page); err != nil {
			t.Fatal(err)
		}
		for _, d := range page.Manifests {
			got[d.Digest] = true
		}
		next, _, _ = strings.Cut(strings.TrimPrefix(response.Header.Get("Link"), "<"), ">")
	}
	if len(got) != count || pages < 2 {
		t.Errorf("%d referrers on %d pages", len(got), pages)
	}
}
