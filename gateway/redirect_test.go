package gateway

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/atollregistry/atoll/proto"
)

// oneHome is the home of every blob.
type oneHome Home

func (h oneHome) Home(string, []*proto.Extent) Home { return Home(h) }

func testKey(id uint32) *proto.SigningKey {
	return &proto.SigningKey{Id: id, Secret: bytes.Repeat([]byte{byte(id)}, 32)}
}

// redirecting is a gateway with one large and one small blob in "app".
type redirecting struct {
	metadata *memoryMetadata
	blobs    *memoryBlobs
	large    string
	small    string
}

var largeContent = bytes.Repeat([]byte("large"), 1<<20/4)

func newRedirecting(t *testing.T) *redirecting {
	t.Helper()
	r := &redirecting{metadata: newMemoryMetadata(), blobs: newMemoryBlobs()}
	r.metadata.keys = []*proto.SigningKey{testKey(2), testKey(1)}
	handler := New(Config{}, r.metadata, r.blobs)
	push := func(content []byte) string {
		digest := digestOf(sha256Algorithm, content)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v2/app/blobs/uploads/?digest="+digest, bytes.NewReader(content)))
		if w.Code != http.StatusCreated {
			t.Fatalf("push: %d %s", w.Code, w.Body)
		}
		return digest
	}
	r.large, r.small = push(largeContent), push([]byte("small"))
	return r
}

func (r *redirecting) get(cfg Config, method, target string, header http.Header) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	request := httptest.NewRequest(method, target, nil)
	if header != nil {
		request.Header = header
	}
	New(cfg, r.metadata, r.blobs).ServeHTTP(w, request)
	return w
}

func TestRedirectDecisions(t *testing.T) {
	r := newRedirecting(t)
	const at = "http://registry.test:5000"
	proxied := Config{
		Homes:          oneHome{URL: "https://n1.registry.test"},
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}, // where httptest's requests come from
	}
	onAddress := func(cfg Config) Config { cfg.Homes = oneHome{URL: "https://192.0.2.9:5001"}; return cfg }
	here, there := oneHome{Self: true, URL: "http://registry.test:5001"}, oneHome{URL: "http://registry.test:5001"}
	for _, c := range []struct {
		name   string
		cfg    Config
		method string // GET if empty
		base   string // at if empty
		path   string // the large blob if empty
		header http.Header
		why    decision // empty for a request that is not decided on
	}{
		{name: "same host, other port", cfg: Config{Homes: there}, why: decidedRedirect},
		{name: "other name", cfg: Config{Homes: oneHome{URL: "http://n1.registry.test"}}, why: decidedRedirect},
		{name: "same address", cfg: Config{Homes: oneHome{URL: "http://192.0.2.1:5001/"}}, base: "http://192.0.2.1:5000", why: decidedRedirect},
		{name: "same IPv6 address", cfg: Config{Homes: oneHome{URL: "http://[::1]:5001"}}, base: "http://[::1]:5000", why: decidedRedirect},
		{name: "other case and a final dot", cfg: Config{Homes: oneHome{URL: "http://localhost:5001"}}, base: "http://LOCALHOST.:5000", why: decidedRedirect},
		{name: "a proxy says how the client came", cfg: proxied, header: http.Header{"X-Forwarded-For": {"1.1.1.1"}, "X-Forwarded-Proto": {"https"}}, why: decidedRedirect},
		{
			name: "a proxy says by which address", cfg: onAddress(proxied), why: decidedRedirect,
			header: http.Header{"Forwarded": {"for=1.1.1.1;proto=https;host=192.0.2.9"}},
		},
		{name: "always, small", cfg: Config{Homes: there, Redirect: RedirectAlways}, path: "small", why: decidedRedirect},
		{name: "always, at hand", cfg: Config{Homes: oneHome{URL: there.URL, AtHand: true}, Redirect: RedirectAlways}, why: decidedRedirect},
		{name: "off", cfg: Config{Homes: there, Redirect: RedirectOff}, why: decidedOff},
		{name: "nobody knows homes", why: decidedOff},
		{name: "HEAD", cfg: Config{Homes: there}, method: http.MethodHead},
		{name: "part", cfg: Config{Homes: there}, header: http.Header{"Range": {"bytes=0-"}}, why: decidedRange},
		{name: "declined by header", cfg: Config{Homes: there}, header: http.Header{declineHeader: {"1"}}, why: decidedDeclined},
		{name: "declined by parameter", cfg: Config{Homes: there}, path: "large?redirect=0", why: decidedDeclined},
		{name: "Jib", cfg: Config{Homes: there}, header: http.Header{"User-Agent": {"jib 3.4 jib-maven-plugin"}}, why: decidedAgent},
		{name: "small", cfg: Config{Homes: there}, path: "small", why: decidedSmall},
		{name: "at hand", cfg: Config{Homes: oneHome{URL: there.URL, AtHand: true}}, why: decidedAtHand},
		{name: "this is the home", cfg: Config{Homes: here, Redirect: RedirectAlways}, why: decidedSelf},
		{name: "no other is well", cfg: Config{Homes: oneHome{}, Redirect: RedirectAlways}, why: decidedNoHome},
		{name: "https to http", cfg: Config{Homes: there, Redirect: RedirectAlways}, base: "https://registry.test", why: decidedScheme},
		{name: "http to https", cfg: Config{Homes: oneHome{URL: "https://registry.test"}, Redirect: RedirectAlways}, why: decidedScheme},
		{name: "name to address", cfg: Config{Homes: oneHome{URL: "http://10.0.0.1:5000"}, Redirect: RedirectAlways}, why: decidedHost},
		{name: "address to address", cfg: Config{Homes: oneHome{URL: "http://127.0.0.2:5000"}, Redirect: RedirectAlways}, base: "http://127.0.0.1", why: decidedHost},
		{name: "name to what some read as an address", cfg: Config{Homes: oneHome{URL: "http://127.1:5000"}, Redirect: RedirectAlways}, why: decidedHost},
		{name: "name to a number", cfg: Config{Homes: oneHome{URL: "http://0x7f000001:5000"}, Redirect: RedirectAlways}, why: decidedHost},
		{name: "name to below localhost", cfg: Config{Homes: oneHome{URL: "http://n1.localhost:5001"}, Redirect: RedirectAlways}, why: decidedHost},
		{
			name: "an unknown proxy may have taken TLS off", cfg: Config{Homes: there, Redirect: RedirectAlways}, why: decidedProxy,
			header: http.Header{"X-Forwarded-Proto": {"https"}},
		},
		{name: "a proxy does not say how the client came", cfg: proxied, header: http.Header{"X-Forwarded-For": {"1.1.1.1"}}, why: decidedProxy},
		{
			name: "a proxy does not say by which address", cfg: onAddress(proxied), base: "http://192.0.2.9:5000", why: decidedHost,
			header: http.Header{"X-Forwarded-For": {"1.1.1.1"}, "X-Forwarded-Proto": {"https"}},
		},
		{name: "name to localhost", cfg: Config{Homes: oneHome{URL: "http://localhost:5001"}, Redirect: RedirectAlways}, why: decidedHost},
		{name: "unknown blob", cfg: Config{Homes: there}, path: digestOf(sha256Algorithm, []byte("x"))},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.method == "" {
				c.method = http.MethodGet
			}
			if c.base == "" {
				c.base = at
			}
			path := strings.NewReplacer("large", r.large, "small", r.small).Replace(c.path)
			if path == "" {
				path = r.large
			}
			registry := prometheus.NewRegistry()
			c.cfg.Metrics = registry
			w := r.get(c.cfg, c.method, c.base+"/v2/app/blobs/"+path, c.header)
			if (w.Code == http.StatusTemporaryRedirect) != (c.why == decidedRedirect) {
				t.Errorf("status %d", w.Code)
			}
			expected := ""
			if c.why != "" {
				expected = fmt.Sprintf(`# HELP atoll_gateway_redirect_decisions_total GETs of blobs, by why they were redirected to another node or not.
# TYPE atoll_gateway_redirect_decisions_total counter
atoll_gateway_redirect_decisions_total{decision=%q} 1
`, c.why)
			}
			if err := testutil.GatherAndCompare(registry, strings.NewReader(expected), "atoll_gateway_redirect_decisions_total"); err != nil {
				t.Error(err)
			}
		})
	}
}

// What a redirect leads to is served there, to whoever has the URL, and once only
// one hop.
func TestRedirectIsFollowed(t *testing.T) {
	r := newRedirecting(t)
	w := r.get(Config{Homes: oneHome{URL: "http://n1.test"}}, http.MethodGet, "http://registry.test/v2/app/blobs/"+r.large, nil)
	location := w.Header().Get("Location")
	for name, want := range map[string]string{
		"Docker-Content-Digest": r.large, "Cache-Control": "no-store", "Content-Length": "0", "Etag": "", "Content-Type": "",
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
	target := Config{Homes: oneHome{URL: "http://n2.test"}, Redirect: RedirectAlways}
	junk := http.Header{"Authorization": {"Bearer rubbish"}}
	if w := r.get(target, http.MethodGet, location, junk); w.Code != http.StatusOK || !bytes.Equal(w.Body.Bytes(), largeContent) {
		t.Errorf("GET: %d, %d bytes", w.Code, w.Body.Len())
	}
	if w := r.get(target, http.MethodHead, location, junk); w.Code != http.StatusOK || w.Header().Get("Docker-Content-Digest") != r.large {
		t.Errorf("HEAD: %d %v", w.Code, w.Header())
	}
	if w := r.get(target, http.MethodGet, location, http.Header{"Range": {"bytes=5-9"}}); w.Code != http.StatusPartialContent || w.Body.String() != "large" {
		t.Errorf("range: %d %q", w.Code, w.Body)
	}
}

func TestSignatures(t *testing.T) {
	r := newRedirecting(t)
	start := time.Unix(1_700_000_000, 0)
	r.metadata.newKeys = []*proto.SigningKey{testKey(3)}
	valid := func() url.Values {
		query, err := url.ParseQuery(signBlob(testKey(1), "app", r.large, start.Add(time.Minute)))
		if err != nil {
			t.Fatal(err)
		}
		return query
	}
	for _, c := range []struct {
		name   string
		query  url.Values
		change func(url.Values)
		path   string // of the large blob in "app" if empty
		after  time.Duration
		status int // 403 if 0
	}{
		{name: "valid", status: http.StatusOK},
		{name: "valid with what balancers add", change: func(q url.Values) { q.Set("ns", "docker.io") }, status: http.StatusOK},
		{name: "clocks apart", after: 2 * time.Minute, status: http.StatusOK},
		{name: "expired", after: 2*time.Minute + time.Second},
		{name: "signed with a key that this node has not seen yet", query: mustParse(t, signBlob(testKey(3), "app", r.large, start)), status: http.StatusOK},
		{name: "signed with a key that nobody has", query: mustParse(t, signBlob(testKey(9), "app", r.large, start))},
		{name: "other blob", path: "/v2/app/blobs/" + r.small},
		{name: "other repository", path: "/v2/copy/blobs/" + r.large},
		{name: "other expiry", change: func(q url.Values) { q.Set(paramExpires, fmt.Sprint(start.Add(time.Hour).Unix())) }},
		{name: "other key", change: func(q url.Values) { q.Set(paramKey, "2") }},
		{name: "no key", change: func(q url.Values) { q.Del(paramKey) }},
		{name: "no expiry", change: func(q url.Values) { q.Del(paramExpires) }},
		{name: "empty", change: func(q url.Values) { q.Set(paramSignature, "") }},
		{name: "cut short", change: func(q url.Values) { q.Set(paramSignature, q.Get(paramSignature)[:32]) }},
		{name: "not hexadecimal", change: func(q url.Values) { q.Set(paramSignature, "xyz") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			query := c.query
			if query == nil {
				query = valid()
			}
			if c.change != nil {
				c.change(query)
			}
			if c.path == "" {
				c.path = "/v2/app/blobs/" + r.large
			}
			if c.status == 0 {
				c.status = http.StatusForbidden
			}
			handler := New(Config{}, r.metadata, r.blobs)
			handler.(*gateway).now = func() time.Time { return start.Add(c.after) }
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, c.path+"?"+query.Encode(), nil))
			if w.Code != c.status {
				t.Errorf("status %d, not %d: %.200s", w.Code, c.status, w.Body)
			}
			if c.status == http.StatusForbidden && !strings.Contains(w.Body.String(), codeDenied) {
				t.Errorf("body is %s", w.Body)
			}
		})
	}
}

// Every bit of what a signed URL says counts.
func TestSignatureBits(t *testing.T) {
	r := newRedirecting(t)
	handler := New(Config{}, r.metadata, r.blobs)
	query := signBlob(testKey(1), "app", r.large, time.Now().Add(time.Hour))
	status := func(query string) int {
		request := httptest.NewRequest(http.MethodHead, "/", nil)
		request.URL = &url.URL{Path: "/v2/app/blobs/" + r.large, RawQuery: query}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, request)
		return w.Code
	}
	if got := status(query); got != http.StatusOK {
		t.Fatalf("signed: %d", got)
	}
	for name, values := range mustParse(t, query) {
		for i := range values[0] {
			for bit := range 8 {
				changed, value := mustParse(t, query), []byte(values[0])
				value[i] ^= 1 << bit
				if changed.Set(name, string(value)); strings.EqualFold(string(value), values[0]) {
					continue // hexadecimal digits have two cases
				}
				if got := status(changed.Encode()); got != http.StatusForbidden {
					t.Errorf("%s=%q instead of %q: %d", name, value, values[0], got)
				}
			}
		}
	}
}

func mustParse(t *testing.T, query string) url.Values {
	t.Helper()
	values, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	return values
}

// FuzzSignature: no query allows what was not signed.
func FuzzSignature(f *testing.F) {
	metadata := newMemoryMetadata()
	metadata.keys = []*proto.SigningKey{testKey(1)}
	handler := New(Config{}, metadata, newMemoryBlobs())
	digest := digestOf(sha256Algorithm, largeContent)
	expires := time.Now().Add(24 * time.Hour)
	f.Add(signBlob(testKey(1), "app", digest, expires))
	f.Add(signBlob(testKey(2), "app", digest, expires))
	f.Add(paramSignature + "=&" + paramKey + "=1&" + paramExpires + "=-9223372036854775808")
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL = &url.URL{Path: "/v2/other/blobs/" + digest, RawQuery: query}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if values, _ := url.ParseQuery(query); isSigned(values) && w.Code != http.StatusForbidden {
			t.Errorf("status %d", w.Code)
		}
	})
}
