package gateway

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/proto"
)

// TestEveryHandlerNeedsRights fails when a handler about a repository is added
// without saying who may use it: it would be refused to all.
func TestEveryHandlerNeedsRights(t *testing.T) {
	s := startAuth(t)
	for about, handlers := range s.gateway.handlers {
		for method := range handlers {
			_, said := neededRights[about][method]
			if elsewhere := slices.Contains([]operation{opBase, opCatalog, opToken}, about); said == elsewhere {
				t.Errorf("%s %s: the rights that it needs are said: %t", method, about, said)
			}
		}
	}
}

// TestWhoMayDoWhat asks for everything as everybody.
func TestWhoMayDoWhat(t *testing.T) {
	s := startAuth(t)
	digest := s.push(user("root"), "a/app", "blob")
	s.push(user("root"), "public/app", "blob")
	for _, repository := range []string{"a/app", "public/app"} {
		if a := s.putManifest(user("root"), repository, "v1"); a.StatusCode != http.StatusCreated {
			t.Fatal(a.body)
		}
	}
	s.accounts.setPolicy(t, testPolicy+"\n  - {repositories: ['a/**'], subjects: ['user:carol'], rights: [delete]}\n")
	s.accounts.addUser(t, "carol", "password of carol")
	all := map[string]as{
		"nobody at all": anonymously, "empty": basic("", ""), "nobody": user("nobody"), "bob": user("bob"),
		"alice": user("alice"), "carol": user("carol"), "robot": basic("ci", s.robot), "root": user("root"),
	}
	const unauthorized, denied = http.StatusUnauthorized, http.StatusForbidden
	pulls := map[string]int{"alice": 200, "carol": 200, "robot": 200, "root": 200, "nobody": denied, "bob": denied, "": unauthorized}
	pushes := map[string]int{"alice": 202, "robot": 202, "root": 202, "carol": denied, "nobody": denied, "bob": denied, "": unauthorized}
	deletes := map[string]int{"carol": 404, "root": 404, "alice": denied, "robot": denied, "nobody": denied, "bob": denied, "": unauthorized}
	public := map[string]int{"": 200, "alice": 200, "carol": 200, "robot": 200, "root": 200, "nobody": 200, "bob": 200}
	missing := digestOf(sha256Algorithm, []byte("missing"))
	for _, c := range []struct {
		method, path string
		want         map[string]int
	}{
		{http.MethodGet, "/v2/", map[string]int{"": unauthorized, "alice": 200, "carol": 200, "robot": 200, "root": 200, "nobody": 200, "bob": 200}},
		{http.MethodGet, "/v2/a/app/blobs/" + digest, pulls},
		{http.MethodHead, "/v2/a/app/blobs/" + digest, pulls},
		{http.MethodGet, "/v2/a/app/manifests/v1", pulls},
		{http.MethodHead, "/v2/a/app/manifests/v1", pulls},
		{http.MethodGet, "/v2/a/app/tags/list", pulls},
		{http.MethodGet, "/v2/a/app/referrers/" + digest, pulls},
		{http.MethodPost, "/v2/a/app/blobs/uploads/", pushes},
		{http.MethodDelete, "/v2/a/app/blobs/" + missing, deletes},
		{http.MethodDelete, "/v2/a/app/manifests/missing", deletes},
		{http.MethodGet, "/v2/public/app/blobs/" + digest, public},
		{http.MethodGet, "/v2/public/app/manifests/v1", public},
		{http.MethodGet, "/v2/public/app/tags/list", public},
		{http.MethodPost, "/v2/public/app/blobs/uploads/", map[string]int{
			"root": 202, "": unauthorized, "alice": denied, "carol": denied, "robot": denied, "nobody": denied, "bob": denied,
		}},
	} {
		for name, who := range all {
			want, named := c.want[name]
			if !named {
				want = c.want[""]
			}
			a := s.do(c.method, c.path, "", who)
			if a.StatusCode != want {
				t.Errorf("%s %s as %s: %d %s, want %d", c.method, c.path, name, a.StatusCode, a.body, want)
			}
			challenges := a.Header.Values("WWW-Authenticate")
			if (a.StatusCode == unauthorized) != (len(challenges) == 1) || len(challenges) > 1 {
				t.Errorf("%s %s as %s: %d with challenges %q", c.method, c.path, name, a.StatusCode, challenges)
			}
		}
	}
}

// TestChallenge reads the one challenge that clients parse.
func TestChallenge(t *testing.T) {
	s := startAuth(t)
	host := strings.TrimPrefix(s.server.URL, "http://")
	base := `Bearer realm="http://` + host + `/token",service="atoll"`
	narrow := s.token(user("alice"), "repository:a/app:pull")
	for _, c := range []struct {
		method, path string
		who          as
		want         string
	}{
		{http.MethodGet, "/v2/", anonymously, base},
		{http.MethodGet, "/v2/", basic("alice", "wrong"), base},
		{http.MethodGet, "/v2/", bearer("rubbish"), base + `,error="invalid_token"`},
		{http.MethodGet, "/v2/a/app/manifests/v1", anonymously, base + `,scope="repository:a/app:pull"`},
		{http.MethodPut, "/v2/a/app/manifests/v1", anonymously, base + `,scope="repository:a/app:pull,push"`},
		{http.MethodDelete, "/v2/a/app/manifests/v1", anonymously, base + `,scope="repository:a/app:pull,delete"`},
		{http.MethodPost, "/v2/a/app/blobs/uploads/", anonymously, base + `,scope="repository:a/app:pull,push"`},
		{http.MethodDelete, "/v2/a/app/blobs/uploads/upload-1", anonymously, base + `,scope="repository:a/app:pull,push"`},
		{http.MethodGet, "/v2/_catalog", anonymously, base + `,scope="registry:catalog:*"`},
		{http.MethodPost, "/v2/a/app/blobs/uploads/", bearer(narrow), base + `,scope="repository:a/app:pull,push",error="insufficient_scope"`},
	} {
		a := s.want(http.StatusUnauthorized, c.method, c.path, "", c.who)
		if got := a.Header.Values("WWW-Authenticate"); !slices.Equal(got, []string{c.want}) {
			t.Errorf("%s %s: %q\nwant %q", c.method, c.path, got, c.want)
		}
		if a.code() != codeUnauthorized {
			t.Errorf("%s %s: %s", c.method, c.path, a.body)
		}
	}
}

// TestRealm has the realm follow the URL that the client used.
func TestRealm(t *testing.T) {
	for _, c := range []struct {
		name, realm, want string
		request           as
	}{
		{"host", "", "http://registry.example:5000/token", func(r *http.Request) { r.Host = "registry.example:5000" }},
		{"operator", "https://login.example/token", "https://login.example/token", anonymously},
		{"stranger", "", "http://registry.example/token", func(r *http.Request) {
			r.Host = "registry.example"
			r.Header.Set("X-Forwarded-Proto", "https")
			r.Header.Set("X-Forwarded-Host", "evil.example")
		}},
	} {
		s := startAuth(t, func(cfg *Config) { cfg.Auth.Realm = c.realm })
		a := s.want(http.StatusUnauthorized, http.MethodGet, "/v2/", "", c.request)
		if got := a.Header.Get("WWW-Authenticate"); !strings.HasPrefix(got, `Bearer realm="`+c.want+`",`) {
			t.Errorf("%s: %s", c.name, got)
		}
	}
	s := startAuth(t)
	s.want(http.StatusBadRequest, http.MethodGet, "/v2/", "", func(r *http.Request) { r.Host = "a'b" })
	s = startAuth(t, func(cfg *Config) { cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	a := s.want(http.StatusUnauthorized, http.MethodGet, "/v2/", "", withHeader("X-Forwarded-Proto", "https"), withHeader("X-Forwarded-Host", "registry.example"))
	if got := a.Header.Get("WWW-Authenticate"); !strings.HasPrefix(got, `Bearer realm="https://registry.example/token",`) {
		t.Errorf("behind a proxy: %s", got)
	}
}

// TestTokenRights asks with tokens of less and more than the subject may do.
func TestTokenRights(t *testing.T) {
	s := startAuth(t)
	s.push(user("alice"), "a/app", "blob")
	s.push(user("alice"), "a/other", "blob")
	if a := s.putManifest(user("alice"), "a/app", "v1"); a.StatusCode != http.StatusCreated {
		t.Fatal(a.body)
	}
	pull := s.token(user("alice"), "repository:a/app:pull")
	push := s.token(user("alice"), "repository:a/app:pull,push")
	greedy := s.token(user("alice"), "repository:a/app:*", "repository:b/app:pull,push", "registry:catalog:*")
	for _, c := range []struct {
		name, token, method, path string
		want                      int
	}{
		{"pull", pull, http.MethodGet, "/v2/a/app/manifests/v1", http.StatusOK},
		{"no push", pull, http.MethodPost, "/v2/a/app/blobs/uploads/", http.StatusUnauthorized},
		{"push", push, http.MethodPost, "/v2/a/app/blobs/uploads/", http.StatusAccepted},
		{"other repository", pull, http.MethodGet, "/v2/a/other/tags/list", http.StatusUnauthorized},
		{"all is not more than there is", greedy, http.MethodDelete, "/v2/a/app/manifests/v1", http.StatusForbidden},
		{"asked in vain", greedy, http.MethodGet, "/v2/b/app/tags/list", http.StatusForbidden},
		{"no catalog", push, http.MethodGet, "/v2/_catalog", http.StatusUnauthorized},
		{"catalog", greedy, http.MethodGet, "/v2/_catalog", http.StatusOK},
		{"base", pull, http.MethodGet, "/v2/", http.StatusOK},
	} {
		if a := s.do(c.method, c.path, "", bearer(c.token)); a.StatusCode != c.want {
			t.Errorf("%s: %d %s, want %d", c.name, a.StatusCode, a.body, c.want)
		}
	}
}

// TestChangesCountAtOnce changes the policy and the account under a token and under a
// password that was found right before.
func TestChangesCountAtOnce(t *testing.T) {
	s := startAuth(t)
	s.push(user("alice"), "a/app", "blob")
	token := s.token(user("alice"), "repository:a/app:pull,push")
	robotToken := s.token(basic("ci", s.robot), "repository:a/app:pull")
	status := func(who as) int { return s.do(http.MethodGet, "/v2/a/app/tags/list", "", who).StatusCode }
	both := func(step string, want int) {
		t.Helper()
		if byToken, byPassword := status(bearer(token)), status(user("alice")); byToken != want || byPassword != want {
			t.Errorf("%s: %d by token, %d by password, want %d", step, byToken, byPassword, want)
		}
	}
	both("in the beginning", http.StatusOK)
	s.accounts.setPolicy(t, "rules: [{repositories: ['b/**'], subjects: [authenticated], rights: [pull]}]")
	both("right taken", http.StatusForbidden)
	s.accounts.setPolicy(t, testPolicy)
	s.accounts.change("alice", func(a *proto.Account) { a.Groups = nil })
	both("group left", http.StatusForbidden)
	s.accounts.change("alice", func(a *proto.Account) { a.Groups = []string{"team-a"} })
	both("group joined", http.StatusOK)
	s.accounts.change("alice", func(a *proto.Account) { a.Disabled = true })
	both("disabled", http.StatusUnauthorized)
	s.accounts.change("alice", func(a *proto.Account) { a.Disabled = false; a.Generation++ })
	if got := status(bearer(token)); got != http.StatusUnauthorized {
		t.Errorf("token of an earlier generation: %d", got)
	}
	s.accounts.remove("alice")
	both("removed", http.StatusUnauthorized)

	if got := status(bearer(robotToken)); got != http.StatusOK {
		t.Errorf("robot's token: %d", got)
	}
	s.accounts.change("ci", func(a *proto.Account) { a.Secrets = nil })
	if byToken, bySecret := status(bearer(robotToken)), status(basic("ci", s.robot)); byToken != 401 || bySecret != 401 {
		t.Errorf("after its secret went: %d by token, %d by secret", byToken, bySecret)
	}
}

// TestForbiddenIsUnknown compares replies about what is there and what is not, to
// somebody who may not know.
func TestForbiddenIsUnknown(t *testing.T) {
	s := startAuth(t)
	digest := s.push(user("root"), "a/app", "blob")
	if a := s.putManifest(user("root"), "a/app", "v1"); a.StatusCode != http.StatusCreated {
		t.Fatal(a.body)
	}
	started := s.want(http.StatusAccepted, http.MethodPost, "/v2/a/app/blobs/uploads/", "", user("root"))
	upload := started.Header.Get("Docker-Upload-UUID")
	for _, who := range []as{anonymously, user("nobody"), bearer(s.token(user("nobody"), "repository:a/app:pull")), bearer(s.token(anonymously, "repository:a/app:pull"))} {
		for _, path := range []string{"/tags/list", "/manifests/v1", "/blobs/" + digest, "/referrers/" + digest, "/blobs/uploads/" + upload} {
			for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodDelete, http.MethodPut, http.MethodPatch, http.MethodPost} {
				there, absent := s.do(method, "/v2/a/app"+path, "", who), s.do(method, "/v2/a/not"+path, "", who)
				if there.StatusCode != absent.StatusCode || strings.ReplaceAll(there.body, "a/app", "a/not") != absent.body ||
					len(there.Header) != len(absent.Header) || there.StatusCode < 400 {
					t.Errorf("%s %s: %d %s\nis told from %d %s", method, path, there.StatusCode, there.body, absent.StatusCode, absent.body)
				}
			}
		}
	}
}

// TestMountNeedsPull mounts from repositories that may be read and others.
func TestMountNeedsPull(t *testing.T) {
	s := startAuth(t)
	private := s.push(user("root"), "b/app", "of team b")
	public := s.push(user("root"), "public/app", "of all")
	own := s.push(user("root"), "a/base", "of team a")
	mount := func(digest, from string) string {
		return "/v2/a/app/blobs/uploads/?" + url.Values{"mount": {digest}, "from": {from}}.Encode()
	}
	scoped := bearer(s.token(user("alice"), "repository:a/app:pull,push", "repository:public/app:pull"))
	for _, c := range []struct {
		name, path string
		who        as
		want       int
	}{
		{"unreadable", mount(private, "b/app"), user("alice"), http.StatusAccepted},
		{"missing", mount(private, "b/not"), user("alice"), http.StatusAccepted},
		{"unreadable, from anywhere", "/v2/a/app/blobs/uploads/?mount=" + private, user("alice"), http.StatusAccepted},
		{"not in the token", mount(own, "a/base"), scoped, http.StatusAccepted},
		{"not in the token, from anywhere", "/v2/a/app/blobs/uploads/?mount=" + own, scoped, http.StatusAccepted},
		{"in the token", mount(public, "public/app"), scoped, http.StatusCreated},
		{"own", mount(own, "a/base"), user("alice"), http.StatusCreated},
	} {
		if a := s.do(http.MethodPost, c.path, "", c.who); a.StatusCode != c.want {
			t.Errorf("%s: %d %s, want %d", c.name, a.StatusCode, a.body, c.want)
		}
	}
	elsewhere := s.push(user("root"), "a/base", "of team a as well")
	s.push(user("root"), "b/aaa", "of team a as well") // Comes before a repository that may be read.
	s.want(http.StatusCreated, http.MethodPost, "/v2/a/z/blobs/uploads/?mount="+elsewhere, "", user("alice"))
}

// TestCatalogIsFiltered pages through what may be seen.
func TestCatalogIsFiltered(t *testing.T) {
	s := startAuth(t)
	for _, name := range []string{"a/1", "a/2", "b/1", "b/2", "b/3", "a/3", "public/1", "zzz"} {
		s.push(user("root"), name, "blob")
	}
	list := func(who as, n string) (names []string) {
		t.Helper()
		for path := "/v2/_catalog?n=" + n; path != ""; {
			a := s.want(http.StatusOK, http.MethodGet, path, "", who)
			if strings.Contains(a.body+a.Header.Get("Link"), "zzz") && len(names) < 5 {
				t.Errorf("%s: %s %s", path, a.body, a.Header.Get("Link"))
			}
			for _, quoted := range strings.Split(a.body, `"`)[3:] {
				if strings.ContainsAny(quoted, "abcdefghijklmnopqrstuvwxyz") {
					names = append(names, quoted)
				}
			}
			path = ""
			if link := a.Header.Get("Link"); link != "" {
				path = link[1:strings.Index(link, ">")]
			}
		}
		return names
	}
	for _, n := range []string{"1", "2", "3", "4", "100"} {
		if got := list(user("alice"), n); !slices.Equal(got, []string{"a/1", "a/2", "a/3", "public/1"}) {
			t.Errorf("alice, %s a page: %q", n, got)
		}
		if got := list(user("bob"), n); !slices.Equal(got, []string{"b/1", "b/2", "b/3", "public/1"}) {
			t.Errorf("bob, %s a page: %q", n, got)
		}
		if got := list(bearer(s.token(anonymously, "registry:catalog:*")), n); !slices.Equal(got, []string{"public/1"}) {
			t.Errorf("anybody, %s a page: %q", n, got)
		}
	}
	s.accounts.setPolicy(t, "rules: [{repositories: ['x/**'], subjects: ['user:root'], rights: [pull]}]")
	if got := list(user("alice"), "5"); len(got) > 0 {
		t.Errorf("without rights: %q", got)
	}
}

// TestUploadsBelongToTheirSubject has others go on with an upload.
func TestUploadsBelongToTheirSubject(t *testing.T) {
	s := startAuth(t)
	s.accounts.addUser(t, "anna", "password of anna", "team-a")
	started := s.want(http.StatusAccepted, http.MethodPost, "/v2/a/app/blobs/uploads/", "", user("alice"))
	location := started.Header.Get("Location")
	digest := digestOf(sha256Algorithm, []byte("blob"))
	for _, who := range []as{user("anna"), basic("ci", s.robot), user("root"), bearer(s.token(user("anna"), "repository:a/app:pull,push"))} {
		for method, path := range map[string]string{
			http.MethodGet: location, http.MethodPatch: location, http.MethodPut: location + "?digest=" + digest, http.MethodDelete: location,
		} {
			if a := s.do(method, path, "blob", who); a.StatusCode != http.StatusNotFound || a.code() != codeUploadUnknown {
				t.Errorf("%s: %d %s", method, a.StatusCode, a.body)
			}
		}
	}
	s.want(http.StatusNoContent, http.MethodGet, location, "", bearer(s.token(user("alice"), "repository:a/app:pull,push")))
	s.want(http.StatusCreated, http.MethodPut, location+"?digest="+digest, "blob", user("alice"))
}

// TestUploadOutlivesToken goes on with an upload after the token has expired.
func TestUploadOutlivesToken(t *testing.T) {
	s := startAuth(t)
	s.accounts.addUser(t, "anna", "password of anna", "team-a")
	alice := bearer(s.token(user("alice"), "repository:a/app:pull,push"))
	anna := bearer(s.token(user("anna"), "repository:a/app:pull,push"))
	started := s.want(http.StatusAccepted, http.MethodPost, "/v2/a/app/blobs/uploads/", "", alice)
	location, digest := started.Header.Get("Location"), digestOf(sha256Algorithm, []byte("blob"))
	without := s.want(http.StatusAccepted, http.MethodPost, "/v2/a/app/blobs/uploads/", "", alice).Header.Get("Location")
	s.want(http.StatusAccepted, http.MethodPatch, location, "b", alice)
	s.pass(2 * time.Hour)
	// An id is no upload yet: anybody could think of one.
	s.want(http.StatusNotFound, http.MethodPatch, without, "b", alice)
	s.want(http.StatusNotFound, http.MethodPut, without+"?digest="+digest, "blob", alice)
	s.want(http.StatusUnauthorized, http.MethodGet, "/v2/a/app/tags/list", "", alice)
	s.want(http.StatusUnauthorized, http.MethodPost, "/v2/a/app/blobs/uploads/", "", alice)
	s.want(http.StatusUnauthorized, http.MethodDelete, location, "", alice)
	s.want(http.StatusNotFound, http.MethodPatch, location, "l", anna)
	s.want(http.StatusAccepted, http.MethodPatch, location, "l", alice)
	s.accounts.setPolicy(t, "rules: []")
	s.want(http.StatusForbidden, http.MethodPatch, location, "ob", alice)
	s.accounts.setPolicy(t, testPolicy)
	s.accounts.change("alice", func(a *proto.Account) { a.Disabled = true })
	s.want(http.StatusUnauthorized, http.MethodPatch, location, "ob", alice)
	s.accounts.change("alice", func(a *proto.Account) { a.Disabled = false })
	s.want(http.StatusCreated, http.MethodPut, location+"?digest="+digest, "ob", alice)
	s.pass(24 * time.Hour)
	s.want(http.StatusUnauthorized, http.MethodPut, location+"?digest="+digest, "", alice)
}

// TestUploadsPerAccount begins more uploads than one account may have.
func TestUploadsPerAccount(t *testing.T) {
	s := startAuth(t, func(cfg *Config) { cfg.UploadsPerAccount = 2 })
	begin := func() (location string) {
		return s.want(http.StatusAccepted, http.MethodPost, "/v2/a/app/blobs/uploads/", "", user("alice")).Header.Get("Location")
	}
	// They count from their first bytes on: one that is begun too many has none.
	uploads := []string{begin(), begin(), begin()}
	for _, location := range uploads[:2] {
		s.want(http.StatusAccepted, http.MethodPatch, location, "bytes", user("alice"))
	}
	s.want(http.StatusTooManyRequests, http.MethodPatch, uploads[2], "bytes", user("alice"))
	a := s.want(http.StatusTooManyRequests, http.MethodPost, "/v2/a/app/blobs/uploads/", "", user("alice"))
	if a.code() != codeTooManyRequests || a.Header.Get("Retry-After") == "" {
		t.Errorf("%v %s", a.Header, a.body)
	}
	s.want(http.StatusAccepted, http.MethodPost, "/v2/a/app/blobs/uploads/", "", basic("ci", s.robot))
	// One that is whole at once is never in progress.
	s.want(http.StatusCreated, http.MethodPut, uploads[2]+"?digest="+digestOf(sha256Algorithm, []byte("bytes")), "bytes", user("alice"))
}

// TestWithoutQuorum reads by digest go on, with a warning; all else is 503.
func TestLoginWithoutQuorum(t *testing.T) {
	s := startAuth(t)
	digest := s.push(user("alice"), "a/app", "blob")
	token := bearer(s.token(user("alice"), "repository:a/app:pull,push"))
	s.accounts.mu.Lock()
	s.accounts.catchUpErr = metadata.ErrUnavailable
	s.accounts.mu.Unlock()
	for _, who := range []as{token, user("alice")} {
		s.want(http.StatusOK, http.MethodGet, "/v2/a/app/blobs/"+digest, "", who)
		s.want(http.StatusServiceUnavailable, http.MethodGet, "/v2/a/app/tags/list", "", who)
		s.want(http.StatusServiceUnavailable, http.MethodPost, "/v2/a/app/blobs/uploads/", "", who)
	}
	// Clients ask for a token before each pull: one that can read by digest, and write no
	// more than the password can.
	fresh := bearer(s.token(user("alice"), "repository:a/app:pull,push"))
	s.want(http.StatusOK, http.MethodGet, "/v2/a/app/blobs/"+digest, "", fresh)
	s.want(http.StatusServiceUnavailable, http.MethodPost, "/v2/a/app/blobs/uploads/", "", fresh)
	s.want(http.StatusOK, http.MethodGet, "/v2/", "", fresh)
	s.want(http.StatusUnauthorized, http.MethodGet, "/token", "", basic("alice", "wrong"))
	s.accounts.mu.Lock()
	s.accounts.availableReads = true
	s.accounts.mu.Unlock()
	s.want(http.StatusOK, http.MethodGet, "/v2/a/app/tags/list", "", fresh)
	s.want(http.StatusServiceUnavailable, http.MethodPost, "/v2/a/app/blobs/uploads/", "", fresh)
	// A key that this node can't know is no reason to throw the token away.
	known := s.accounts.keys
	s.accounts.addKey()
	newer, _, err := s.gateway.auth.tokens.issue(accessToken, tokenClaims{Method: loginNone}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.accounts.mu.Lock()
	s.accounts.keys = known
	s.accounts.mu.Unlock()
	s.want(http.StatusServiceUnavailable, http.MethodGet, "/v2/a/app/blobs/"+digest, "", bearer(newer))
}

// TestRoundsPerRequest counts how often the cluster is asked about who may do what.
func TestRoundsPerRequest(t *testing.T) {
	s := startAuth(t)
	for _, c := range []struct {
		path string
		who  as
		want int
	}{
		{"/v2/", anonymously, 0}, // What balancers ask all the time.
		{"/v2/a/app/tags/list", anonymously, 0},
		{"/v2/public/app/tags/list", anonymously, 1},
		{"/v2/a/app/tags/list", user("alice"), 1},
	} {
		before := s.accounts.catchUps
		s.do(http.MethodGet, c.path, "", c.who)
		if got := s.accounts.catchUps - before; got != c.want {
			t.Errorf("%s: %d rounds, want %d", c.path, got, c.want)
		}
	}
}

// TestOperator does everything without a login by the operator's handler, and nothing
// by a header that claims so.
func TestOperator(t *testing.T) {
	s := startAuth(t)
	digest := s.push(user("bob"), "b/app", "blob")
	handler := AsOperator(s.gateway)
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, "/v2/", 200}, {http.MethodGet, "/v2/_catalog", 200}, {http.MethodGet, "/v2/b/app/blobs/" + digest, 200},
		{http.MethodPost, "/v2/a/app/blobs/uploads/?from=b%2Fapp&mount=" + digest, 201}, {http.MethodPost, "/v2/a/app/blobs/uploads/", 202},
		{http.MethodPatch, "/v2/a/app/blobs/uploads/upload-1", 202}, {http.MethodDelete, "/v2/a/app/blobs/uploads/upload-1", 204},
		{http.MethodDelete, "/v2/b/app/blobs/" + digest, 202},
	} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(c.method, c.path, nil))
		if w.Code != c.want {
			t.Errorf("%s %s: %d %s", c.method, c.path, w.Code, w.Body)
		}
	}
	claims := tokenClaims{Method: loginOperator}
	claims.Subject = "anonymous"
	token, _, err := s.gateway.auth.tokens.issue(accessToken, claims, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.want(http.StatusUnauthorized, http.MethodGet, "/v2/", "", bearer(token))
}
