package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

func newTestRate(perSecond, burst int) *requestRate {
	return newRequestRate(perSecond, burst, newMetrics(nil, zerolog.Nop()).limit("requests"))
}

func TestRequestRate(t *testing.T) {
	q := newTestRate(2, 3)
	start := time.Unix(1000, 0)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	take := func(client netip.Addr, after time.Duration, want int) {
		t.Helper()
		err := q.take(client, start.Add(after))
		var told *refusal
		switch {
		case want == 0 && err != nil:
			t.Errorf("%s after %s: %v", client, after, err)
		case want > 0 && (!errors.Is(err, errTooFast) || !errors.As(err, &told) || told.retryAfter != want):
			t.Errorf("%s after %s: %v, want a refusal for %d s", client, after, err, want)
		}
	}
	for range 3 {
		take(a, 0, 0)
	}
	take(a, 0, 1)
	take(a, 499*time.Millisecond, 1) // A refusal costs no token...
	take(a, 500*time.Millisecond, 0) // ...so that the next one comes in time.
	take(a, 501*time.Millisecond, 1)
	take(b, 501*time.Millisecond, 0) // Others have their own.
	take(a, time.Hour, 0)

	slow := newTestRate(1, 1)
	slow.limit = 0.1
	q = slow
	take(a, 0, 0)
	take(a, time.Second, 9)
}

// TestRatedClients: what counts as one client.
func TestRatedClients(t *testing.T) {
	q := newTestRate(1, 1)
	for _, test := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.1", "::ffff:192.0.2.1", true},
		{"2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"fe80::1%eth0", "fe80::1%eth1", true},
	} {
		if same := q.bucket(netip.MustParseAddr(test.a)) == q.bucket(netip.MustParseAddr(test.b)); same != test.same {
			t.Errorf("%s and %s: same is %v", test.a, test.b, same)
		}
	}
	if q.bucket(netip.Addr{}) == nil {
		t.Error("a client without an address has no bucket")
	}
	for i := range 2 * maxRatedClients {
		q.bucket(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	if n := q.clients.Len(); n != maxRatedClients {
		t.Errorf("%d clients are remembered", n)
	}
	if newTestRate(0, 5) != nil {
		t.Error("no rate is a bound")
	}
	if burst := newTestRate(7, 0).burst; burst != 70 {
		t.Errorf("burst %d", burst)
	}
}

// TestRateIsExact: many requests at once do not get more than there is.
func TestRateIsExact(t *testing.T) {
	q := newTestRate(1, 100)
	now := time.Unix(1000, 0)
	var group sync.WaitGroup
	granted := make(chan bool, 1000)
	for range 10 {
		group.Go(func() {
			for range 100 {
				granted <- q.take(netip.MustParseAddr("192.0.2.1"), now) == nil
			}
		})
	}
	group.Wait()
	close(granted)
	count := 0
	for ok := range granted {
		if ok {
			count++
		}
	}
	if count != 100 {
		t.Errorf("%d of 100 tokens were given out", count)
	}
}

// TestUploadsAreNotRated: with an empty bucket nothing goes but what would lose a
// client's bytes, and what asks for the registry.
func TestUploadsAreNotRated(t *testing.T) {
	registerer := prometheus.NewRegistry()
	r := newRegistry(t, Config{RequestsPerSecond: 1, RequestBurst: 2, Metrics: registerer})
	stopped := time.Now() // Nobody gets a new token.
	r.gateway.now = func() time.Time { return stopped }
	digest := r.push("a", "hello")
	r.want(http.StatusAccepted, http.MethodPost, "/v2/a/blobs/uploads/", nil)
	r.want(http.StatusOK, http.MethodHead, "/v2/a/blobs/"+digest, nil)
	for _, line := range []string{
		"GET /v2/a/blobs/" + digest, "HEAD /v2/a/blobs/" + digest, "DELETE /v2/a/blobs/" + digest, "GET /v2/a/tags/list",
		"GET /v2/_catalog", "GET /v2/a/manifests/latest", "POST /v2/a/blobs/uploads/",
		"POST /v2/b/blobs/uploads/?from=a&mount=" + digest, "GET /v2/a/referrers/" + digest, "DELETE /v2/a/manifests/latest",
	} {
		method, path, _ := strings.Cut(line, " ")
		refused := r.want(http.StatusTooManyRequests, method, path, nil)
		if got := refused.Header.Get("Retry-After"); got != "1" {
			t.Errorf("%s: Retry-After %q", line, got)
		}
		if content, _ := io.ReadAll(refused.Body); method != http.MethodHead && !strings.Contains(string(content), `"TOOMANYREQUESTS"`) {
			t.Errorf("%s: got %s", line, content)
		}
	}
	for range 10 {
		r.want(http.StatusOK, http.MethodGet, "/v2/", nil)
		r.want(http.StatusNoContent, http.MethodGet, "/v2/a/blobs/uploads/upload-1", nil)
	}
	content := "hello world"
	r.want(http.StatusAccepted, http.MethodPatch, "/v2/a/blobs/uploads/upload-1", strings.NewReader(content))
	r.want(http.StatusCreated, http.MethodPut, "/v2/a/blobs/uploads/upload-1?digest="+digestOf(sha256Algorithm, []byte(content)), nil)
	const index = `{"schemaVersion":2,"manifests":[]}`
	for i := range 10 {
		r.want(http.StatusCreated, http.MethodPut, fmt.Sprintf("/v2/a/manifests/tag-%d", i), strings.NewReader(index), "Content-Type", ociIndexType)
		r.push("a", fmt.Sprint(i))
	}
	if got := metricValue(t, registerer, "atoll_gateway_limit_refused_total", "requests"); got != 10 {
		t.Errorf("%v refusals counted", got)
	}
}
