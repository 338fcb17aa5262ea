package gateway

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

func TestOrigin(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, c := range []struct {
		name   string
		remote string
		tls    bool
		header http.Header
		want   string // client scheme host; a question mark after what is not known
	}{
		{name: "direct", remote: "192.0.2.1:5", want: "192.0.2.1 http registry.test:5000"},
		{name: "direct by TLS", remote: "192.0.2.1:5", tls: true, want: "192.0.2.1 https registry.test:5000"},
		{name: "IPv4 in IPv6", remote: "[::ffff:192.0.2.1]:5", want: "192.0.2.1 http registry.test:5000"},
		{name: "no address", remote: "@", want: "invalid IP http registry.test:5000"},
		{
			name: "a client's own headers", remote: "192.0.2.1:5",
			header: http.Header{"X-Forwarded-For": {"1.1.1.1"}, "X-Forwarded-Proto": {"https"}, "Forwarded": {"for=1.1.1.1;proto=https;host=evil"}},
			want:   "192.0.2.1 http? registry.test:5000?",
		},
		{
			name: "one proxy", remote: "10.0.0.1:5",
			header: http.Header{"X-Forwarded-For": {"192.0.2.1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"registry.example"}},
			want:   "192.0.2.1 https registry.example",
		},
		{
			name: "what the client put before", remote: "10.0.0.1:5",
			header: http.Header{"X-Forwarded-For": {"1.1.1.1, 192.0.2.1"}, "X-Forwarded-Proto": {"https, http"}, "X-Forwarded-Host": {"evil, registry.example"}},
			want:   "192.0.2.1 http registry.example",
		},
		{
			name: "proxies behind one another", remote: "10.0.0.1:5",
			header: http.Header{"X-Forwarded-For": {"1.1.1.1, 192.0.2.1", "10.0.0.2"}, "X-Forwarded-Proto": {"gopher, https, http"}},
			want:   "192.0.2.1 https registry.test:5000?",
		},
		{
			name: "all of them trusted", remote: "10.0.0.1:5", header: http.Header{"X-Forwarded-For": {"10.0.0.3, 10.0.0.2"}},
			want: "10.0.0.3 http? registry.test:5000?",
		},
		{
			name: "Forwarded beside X-Forwarded-For does not count", remote: "10.0.0.1:5",
			header: http.Header{"X-Forwarded-For": {"192.0.2.1"}, "Forwarded": {"for=1.1.1.1;proto=https;host=evil"}},
			want:   "192.0.2.1 http? registry.test:5000?",
		},
		{
			name: "Forwarded", remote: "[fd00::1]:5",
			header: http.Header{"Forwarded": {`for=1.1.1.1;host=evil, For="[2001:db8::1]:4711";Proto=HTTPS;host="registry.example:443"`, "for=10.0.0.2"}},
			want:   "2001:db8::1 https registry.example:443",
		},
		{
			name: "obfuscated", remote: "10.0.0.1:5", header: http.Header{"Forwarded": {"for=1.1.1.1, for=_hidden;proto=https, for=unknown"}},
			want: "10.0.0.1 http? registry.test:5000?",
		},
		{
			name: "quotes hide separators", remote: "10.0.0.1:5", header: http.Header{"Forwarded": {`for=192.0.2.1;secret="a\",;for=1.1.1.1";proto=https`}},
			want: "192.0.2.1 https registry.test:5000?",
		},
		{
			name: "a host that is none", remote: "10.0.0.1:5", header: http.Header{"X-Forwarded-For": {"192.0.2.1"}, "X-Forwarded-Host": {"a/b?c@d"}},
			want: "192.0.2.1 http? registry.test:5000?",
		},
		{
			name: "a proxy that keeps the client's address to itself", remote: "10.0.0.1:5",
			header: http.Header{"X-Forwarded-Proto": {"http", "HTTPS"}, "X-Forwarded-Host": {"registry.example"}, "Forwarded": {"for=1.1.1.1;proto=http"}},
			want:   "10.0.0.1 https registry.example",
		},
		{
			name: "the outer proxy does not say what the inner one does", remote: "10.0.0.1:5",
			header: http.Header{"Forwarded": {"for=192.0.2.1, for=10.0.0.2;proto=https;host=registry.example"}},
			want:   "192.0.2.1 https? registry.example?",
		},
		{
			name: "neither one scheme for all nor one for each", remote: "10.0.0.1:5",
			header: http.Header{"X-Forwarded-For": {"192.0.2.1, 10.0.0.3, 10.0.0.2"}, "X-Forwarded-Proto": {"https, http"}},
			want:   "192.0.2.1 http? registry.test:5000?",
		},
		{
			name: "a trusted proxy that leaves no trace", remote: "10.0.0.1:5",
			want: "10.0.0.1 http registry.test:5000",
		},
		{
			name: "more proxies than anybody has", remote: "10.0.0.1:5", header: http.Header{"X-Forwarded-For": {strings.Repeat("10.0.0.9,", 100)}},
			want: "10.0.0.9 http? registry.test:5000?",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "http://registry.test:5000/v2/", nil)
			r.RemoteAddr = c.remote
			if c.header != nil {
				r.Header = c.header
			}
			if c.tls {
				r.TLS = &tls.ConnectionState{}
			}
			o := originOf(r, trusted)
			got := o.client.String() + " " + o.scheme
			if !o.schemeKnown {
				got += "?"
			}
			if got += " " + o.host; !o.hostKnown {
				got += "?"
			}
			if got != c.want {
				t.Errorf("origin is %s, not %s", got, c.want)
			}
		})
	}
}

// FuzzOrigin: whatever headers come, there is an origin that fits into a URL and a
// log, and it is the connection's unless a proxy is trusted.
func FuzzOrigin(f *testing.F) {
	f.Add(`for="[2001:db8::1]:4711";proto=https;host="a,b"`, "", "", "")
	f.Add("", "1.1.1.1, 10.0.0.1", "https, http", "registry.example")
	f.Add(`for="`, `"\`, `"`, "[::1")
	everybody := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	f.Fuzz(func(t *testing.T, forwarded, clients, schemes, hosts string) {
		r := httptest.NewRequest(http.MethodGet, "http://registry.test:5000/v2/", nil)
		r.Header = http.Header{
			"Forwarded": {forwarded}, "X-Forwarded-For": {clients}, "X-Forwarded-Proto": {schemes}, "X-Forwarded-Host": {hosts},
		}
		o := originOf(r, everybody)
		if (o.scheme != "http" && o.scheme != "https") || !validHost(o.host) || !o.client.IsValid() {
			t.Errorf("origin is %+v", o)
		}
		if o := originOf(r, nil); o.scheme != "http" || o.host != "registry.test:5000" || o.client != netip.MustParseAddr("192.0.2.1") {
			t.Errorf("without trust the origin is %+v", o)
		}
	})
}
