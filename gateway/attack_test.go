package gateway

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/proto"
)

// attacked is a registry with something to steal: what is in b/app.
type attacked struct {
	*authServer
	digest, index, upload string
}

func startAttacked(t *testing.T) *attacked {
	t.Helper()
	a := &attacked{authServer: startAuth(t), index: digestOf(sha256Algorithm, []byte(emptyIndex))}
	a.metadata.keys = []*proto.SigningKey{{Id: 1, Secret: []byte("a signing key")}}
	a.digest = a.push(user("bob"), "b/app", "the treasure")
	if reply := a.putManifest(user("bob"), "b/app", "v1"); reply.StatusCode != http.StatusCreated {
		t.Fatal(reply.body)
	}
	a.upload = a.want(http.StatusAccepted, http.MethodPost, "/v2/b/app/blobs/uploads/", "", user("bob")).Header.Get("Docker-Upload-UUID")
	return a
}

// attackRoute is a request that changes or shows something of b/app.
type attackRoute struct{ method, path string }

func (a *attacked) routes() []attackRoute {
	paths := map[string][]string{
		"/v2/": {"GET", "HEAD"}, "/v2": {"GET"}, "/v2/_catalog": {"GET", "HEAD"},
		"/v2/b/app/tags/list": {"GET", "HEAD"}, "/v2/b/app/referrers/" + a.index: {"GET", "HEAD"},
		"/v2/b/app/blobs/" + a.digest: {"GET", "HEAD", "DELETE"}, "/v2/b/app/blobs/uploads/": {"POST"}, "/v2/b/app/blobs/uploads": {"POST"},
		"/v2/b/app/blobs/uploads/?digest=" + a.digest: {"POST"}, "/v2/b/app/blobs/uploads/?mount=" + a.digest: {"POST"},
		"/v2/b/app/blobs/uploads/?from=public%2Fapp&mount=" + a.digest: {"POST"},
		"/v2/b/app/blobs/uploads/" + a.upload:                          {"GET", "HEAD", "PATCH", "DELETE"},
		"/v2/b/app/blobs/uploads/" + a.upload + "?digest=" + a.digest:  {"PUT"},
		"/v2/b/app/manifests/v1":                                       {"GET", "HEAD", "PUT", "DELETE"},
		"/v2/b/app/manifests/" + a.index:                               {"GET", "HEAD", "PUT", "DELETE"},
	}
	var routes []attackRoute
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		for _, method := range paths[path] {
			routes = append(routes, attackRoute{method, path})
		}
	}
	return routes
}

// calls is how often the state was asked or changed.
func (a *attacked) calls() int {
	a.metadata.mu.Lock()
	defer a.metadata.mu.Unlock()
	n := 0
	for _, count := range a.metadata.calls {
		n += count
	}
	return n
}

// TestNobodyGetsIn sends every request with every credential that does not count.
// None of them gets further than a refusal that tells nothing.
func TestNobodyGetsIn(t *testing.T) {
	a := startAttacked(t)
	access := []tokenAccess{{Type: scopeRepository, Name: "b/app", Actions: []string{actionAll}}, {Type: scopeRegistry, Name: scopeCatalog, Actions: []string{actionAll}}}
	key := a.accounts.keys[0]
	credentials := map[string]as{
		"none": anonymously, "empty": basic("", ""), "rubbish": withHeader("Authorization", "Basic rubbish"), "other scheme": withHeader("Authorization", "AWS4-HMAC-SHA256 x"),
		"no scheme": withHeader("Authorization", "x"), "refresh token": bearer(a.tokens(user("bob"), map[string][]string{"offline_token": {"true"}}).RefreshToken),
		"proxy's header": withHeader("Proxy-Authorization", "Basic Ym9iOnBhc3N3b3JkIG9mIGJvYg=="),
		"forwarded user": func(r *http.Request) { r.Header.Set("X-Forwarded-User", "bob"); r.Header.Set("X-Remote-User", "bob") },
		"signature":      func(r *http.Request) { r.URL.RawQuery += "&atoll-signature=00&atoll-key=1&atoll-expires=99999999999" },
	}
	for _, f := range forgeries(t, key, "user:bob", 1, access, time.Now())[1:] {
		credentials["forged: "+f.name] = bearer(f.token)
	}
	before := a.calls()
	for _, route := range a.routes() {
		for name, credential := range credentials {
			reply := a.do(route.method, route.path, "", credential)
			challenges := reply.Header.Values("WWW-Authenticate")
			want := http.StatusUnauthorized
			if name == "signature" && strings.HasPrefix(route.path, "/v2/b/app/blobs/sha256:") && isReading(route.method) {
				if reply.StatusCode != http.StatusForbidden {
					t.Errorf("%s %s with a wrong signature: %d", route.method, route.path, reply.StatusCode)
				}
				continue
			}
			if reply.StatusCode != want || len(challenges) != 1 || !strings.HasPrefix(challenges[0], "Bearer realm=") {
				t.Errorf("%s %s with %s: %d, challenges %q", route.method, route.path, name, reply.StatusCode, challenges)
			}
			if strings.Contains(reply.body, "bob") || route.method != http.MethodHead && reply.code() != codeUnauthorized {
				t.Errorf("%s %s with %s: %s", route.method, route.path, name, reply.body)
			}
		}
	}
	if n := a.calls() - before; n > 0 {
		t.Errorf("the state was asked %d times", n)
	}
	// Wrong passwords have to wait after a while.
	unknown, _ := metadata.NewRobotSecret(time.Now(), 0)
	for _, route := range a.routes()[:failuresPerMinute] {
		a.want(http.StatusUnauthorized, route.method, route.path, "", basic("bob", "wrong"))
		a.want(http.StatusUnauthorized, route.method, route.path, "", basic("ci", unknown))
	}
	// And with the right one all of it is there.
	a.want(http.StatusOK, http.MethodGet, "/v2/b/app/manifests/v1", "", user("bob"))
	good := forgeries(t, key, "user:bob", a.accounts.accounts["bob"].GetGeneration(), access, time.Now())[0]
	a.want(http.StatusOK, http.MethodGet, "/v2/b/app/manifests/v1", "", bearer(good.token))
}

// TestOthersGetNothing sends every request as somebody with rights elsewhere.
func TestOthersGetNothing(t *testing.T) {
	a := startAttacked(t)
	a.push(user("alice"), "a/app", "own")
	access := func(kind, name string) as {
		claims := []tokenAccess{{Type: kind, Name: name, Actions: []string{actionAll, actionPull, actionPush, actionDelete}}}
		return bearer(forgeries(t, a.accounts.keys[0], "user:bob", 1, claims, time.Now())[0].token)
	}
	alice := map[string]as{
		"password": user("alice"), "robot": basic("ci", a.robot), "nobody": user("nobody"),
		"token": bearer(a.token(user("alice"), "repository:b/app:pull,push,delete", "repository:a/app:pull,push")),
	}
	bob := map[string]as{ // He may, but his token is for something else.
		"other repository": bearer(a.token(user("bob"), "repository:b/other:pull,push")), "nothing": bearer(a.token(user("bob"))),
		"all": access(scopeRepository, "*"), "pattern": access(scopeRepository, "b/*"), "patterns": access(scopeRepository, "**"), "prefix": access(scopeRepository, "b"),
		"slash": access(scopeRepository, "b/app/"), "case": access(scopeRepository, "B/APP"), "registry": access(scopeRegistry, "b/app"), "no type": access("", "b/app"),
		"catalog": access(scopeRegistry, scopeCatalog), "line break": access(scopeRepository, "b/app\n"),
	}
	for _, route := range a.routes() {
		if !strings.HasPrefix(route.path, "/v2/b/") {
			continue
		}
		for name, credential := range alice {
			reply := a.do(route.method, route.path, "", credential)
			if reply.StatusCode != http.StatusForbidden || len(reply.Header.Values("WWW-Authenticate")) != 0 || route.method != http.MethodHead && reply.code() != codeDenied {
				t.Errorf("%s %s by %s: %d %s", route.method, route.path, name, reply.StatusCode, reply.body)
			}
		}
		for name, credential := range bob {
			reply := a.do(route.method, route.path, "", credential)
			denied := route.method == http.MethodDelete && !strings.Contains(route.path, "uploads") // He may not even with a better one.
			if want := map[bool]int{false: http.StatusUnauthorized, true: http.StatusForbidden}[denied]; reply.StatusCode != want {
				t.Errorf("%s %s by a token for %s: %d %s, want %d", route.method, route.path, name, reply.StatusCode, reply.body, want)
			}
			if got := reply.Header.Get("WWW-Authenticate"); !denied && !strings.HasSuffix(got, `,error="insufficient_scope"`) {
				t.Errorf("%s %s by a token for %s: challenge %s", route.method, route.path, name, got)
			}
		}
	}
}

// raw sends a request line as it is, and reads the reply.
func (a *attacked) raw(method, target, credentials string) (status int, body string) {
	a.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(a.server.URL, "http://"))
	if err != nil {
		a.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: registry.example\r\n%sContent-Length: 0\r\n\r\n", method, target, credentials)
	response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, target, err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return response.StatusCode, string(content)
}

// TestNoSpellingHelps asks for b/app in every spelling, with a token for a/app: what is
// judged is what is served.
func TestNoSpellingHelps(t *testing.T) {
	a := startAttacked(t)
	token := "Authorization: Bearer " + a.token(user("alice"), "repository:a/app:pull,push") + "\r\n"
	a.push(user("alice"), "a/app", "own")
	for _, name := range []string{
		"b/app", "b%2Fapp", "b%2fapp", "%62/app", "%62%2Fapp", "b//app", "/b/app", "./b/app", "a/app/../../b/app", "a/app/..%2F..%2Fb/app", "a%2Fapp%2F..%2F..%2Fb%2Fapp",
		"a/app/%2e%2e/%2e%2e/b/app", "a/../b/app", "..%2Fv2%2Fb/app", "b/app%00", "b/app%0a", "b/app%20", "b/app%2F", "b/app/.", "B/app", "b\\app", "b%5Capp", "b/app;x=y", "b/app%3Fx",
		"b/app%23", "a/app%0d%0aX-Evil:%20b", "%c0%aeb/app", "b%252Fapp", "a/app%2Fmanifests%2Fv1%2F..%2F..%2F..%2Fb%2Fapp", strings.Repeat("b/app/", 60) + "app",
	} {
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE"} {
			for _, suffix := range []string{"/manifests/v1", "/tags/list", "/blobs/" + a.digest, "/blobs/uploads/" + a.upload} {
				status, body := a.raw(method, "/v2/"+name+suffix, token)
				if status < 400 || strings.Contains(body, "treasure") {
					t.Errorf("%s %s%s: %d %s", method, name, suffix, status, body)
				}
			}
		}
	}
	// The decoded spelling is the same repository for those who may read it.
	bob := "Authorization: Bearer " + a.token(user("bob"), "repository:b/app:pull") + "\r\n"
	if status, body := a.raw("GET", "/v2/b%2Fapp/blobs/"+a.digest, bob); status != http.StatusOK || body != "the treasure" {
		t.Errorf("by its owner: %d %s", status, body)
	}
	if n := len(a.metadata.repositories); n != 2 {
		t.Errorf("there are %d repositories", n)
	}
}

// TestDoubledCredentials sends two headers: a proxy may have looked at the other one.
func TestDoubledCredentials(t *testing.T) {
	a := startAttacked(t)
	line := func(header string) string { return "Authorization: " + header + "\r\n" }
	bob, alice := "Bearer "+a.token(user("bob"), "repository:b/app:pull"), "Bearer "+a.token(user("alice"), "repository:a/app:pull")
	for name, c := range map[string]struct {
		headers string
		want    int
	}{
		"one":           {line(bob), 200},
		"twice":         {line(bob) + line(bob), 200},
		"right, wrong":  {line(bob) + line("Bearer x"), 401},
		"wrong, right":  {line("Bearer x") + line(bob), 401},
		"two people":    {line(alice) + line(bob), 401},
		"empty, right":  {line("") + line(bob), 401},
		"in one line":   {line(alice + ", " + bob), 401},
		"no credential": {line("Bearer"), 401},
		"empty":         {line(""), 401},
	} {
		if status, body := a.raw("GET", "/v2/b/app/tags/list", c.headers); status != c.want {
			t.Errorf("%s: %d %s, want %d", name, status, body, c.want)
		}
	}
}

// TestSignaturesOpenOneBlob replays the signature of a redirect everywhere else.
func TestSignaturesOpenOneBlob(t *testing.T) {
	a := startAttacked(t)
	other := a.push(user("bob"), "b/app", "another treasure")
	a.push(user("alice"), "a/app", "the treasure")
	key := a.metadata.keys[0]
	signed := signBlob(key, "b/app", a.digest, time.Now().Add(time.Minute))
	expired := signBlob(key, "b/app", a.digest, time.Now().Add(-2*signatureSkew))
	strange := signBlob(&proto.SigningKey{Id: 1, Secret: []byte("another key")}, "b/app", a.digest, time.Now().Add(time.Minute))
	blob := "/v2/b/app/blobs/" + a.digest
	for _, c := range []struct {
		name, method, path, query string
		who                       as
		want                      int
	}{
		{"as it is", "GET", blob, signed, anonymously, 200},
		{"HEAD", "HEAD", blob, signed, anonymously, 200},
		{"credentials beside it", "GET", blob, signed, bearer("rubbish"), 200},
		{"a wrong password beside it", "GET", blob, signed, basic("bob", "wrong"), 200},
		{"expired", "GET", blob, expired, anonymously, 403},
		{"expired, with credentials", "GET", blob, expired, user("bob"), 403},
		{"another key", "GET", blob, strange, anonymously, 403},
		{"unknown key", "GET", blob, strings.Replace(signed, "atoll-key=1", "atoll-key=2", 1), anonymously, 403},
		{"later", "GET", blob, strings.Replace(signed, "atoll-expires=1", "atoll-expires=9", 1), anonymously, 403},
		{"no signature", "GET", blob, "atoll-signature=", anonymously, 403},
		{"another blob", "GET", "/v2/b/app/blobs/" + other, signed, anonymously, 403},
		{"another repository", "GET", "/v2/a/app/blobs/" + a.digest, signed, anonymously, 403},
		{"delete", "DELETE", blob, signed, anonymously, 401},
		{"manifest", "GET", "/v2/b/app/manifests/v1", signed, anonymously, 401},
		{"manifest by the digest", "GET", "/v2/b/app/manifests/" + a.digest, signed, anonymously, 401},
		{"tags", "GET", "/v2/b/app/tags/list", signed, anonymously, 401},
		{"upload", "POST", "/v2/b/app/blobs/uploads/", signed, anonymously, 401},
		{"upload step", "PATCH", "/v2/b/app/blobs/uploads/" + a.upload, signed, anonymously, 401},
		{"catalog", "GET", "/v2/_catalog", signed, anonymously, 401},
		{"base", "GET", "/v2/", signed, anonymously, 401},
	} {
		if reply := a.do(c.method, c.path+"?"+c.query, "", c.who); reply.StatusCode != c.want {
			t.Errorf("%s: %d %s, want %d", c.name, reply.StatusCode, reply.body, c.want)
		}
	}
	a.want(http.StatusOK, http.MethodGet, blob, "", user("bob"))
	if reply := a.do("GET", blob+"?"+signed, ""); !strings.HasPrefix(reply.Header.Get("Cache-Control"), "private,") {
		t.Errorf("caches may keep it: %v", reply.Header)
	}
}

// TestBodiesOfStrangersAreNotAwaited has a client announce a body and wait: it is told
// to log in at once, and not to go on.
func TestBodiesOfStrangersAreNotAwaited(t *testing.T) {
	a := startAttacked(t)
	for _, target := range []string{"PUT /v2/b/app/manifests/v1", "PATCH /v2/b/app/blobs/uploads/" + a.upload, "POST /v2/b/app/blobs/uploads/?digest=" + a.digest} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(a.server.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n", target)
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "HTTP/1.1 401 ") {
			t.Errorf("%s: %q, %v", target, line, err)
		}
		_ = conn.Close()
	}
}
