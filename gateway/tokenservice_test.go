package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// postForm asks for a token by a form.
func (s *authServer) postForm(form url.Values) answer {
	s.t.Helper()
	return s.do(http.MethodPost, "/token", form.Encode(), withHeader("Content-Type", "application/x-www-form-urlencoded"))
}

func TestGetToken(t *testing.T) {
	s := startAuth(t)
	for _, c := range []struct {
		name   string
		who    as
		scopes []string
		want   string
	}{
		{"pull and push", user("alice"), []string{"repository:a/app:pull,push"}, "repository:a/app:pull,push"},
		{"in one parameter", user("alice"), []string{"repository:a/app:pull repository:a/other:push"}, "repository:a/app:pull repository:a/other:push"},
		{"in several", user("alice"), []string{"repository:a/app:pull", "repository:a/other:push,pull"}, "repository:a/app:pull repository:a/other:pull,push"},
		{"twice the same", user("alice"), []string{"repository:a/app:pull", "repository:a/app:push,pull"}, "repository:a/app:pull,push"},
		{"fewer rights", user("alice"), []string{"repository:a/app:pull,push,delete", "repository:b/app:pull", "repository:public/x:push,pull"},
			"repository:a/app:pull,push repository:public/x:pull"},
		{"all", user("alice"), []string{"repository:a/app:*"}, "repository:a/app:pull,push"},
		{"all of root", user("root"), []string{"repository:a/app:*"}, "repository:a/app:pull,push,delete"},
		{"catalog", user("alice"), []string{"registry:catalog:*"}, "registry:catalog:*"},
		{"class", user("alice"), []string{"repository(plugin):a/app:pull"}, "repository:a/app:pull"},
		{"unknown", user("alice"), []string{"repository:a/app:fly", "registry:users:*", "cluster:a:*", "rubbish", ":", "::", "repository:A:pull", "repository::pull", "repository:*:pull"}, ""},
		{"with a port", user("alice"), []string{"repository:localhost:5000/a/app:pull"}, ""},
		{"nothing", user("alice"), nil, ""},
		{"robot", basic("ci", s.robot), []string{"repository:a/app:pull,push"}, "repository:a/app:pull,push"},
		{"anybody", anonymously, []string{"repository:public/app:pull,push", "repository:a/app:pull"}, "repository:public/app:pull"},
		{"anybody, empty", basic("", ""), []string{"repository:public/app:pull"}, "repository:public/app:pull"},
	} {
		reply := s.tokens(c.who, url.Values{"scope": c.scopes, "service": {"whatever"}, "account": {"root"}, "client_id": {"test"}})
		if reply.Scope != c.want {
			t.Errorf("%s: %q, want %q", c.name, reply.Scope, c.want)
		}
		issued, err := time.Parse(time.RFC3339, reply.IssuedAt)
		if reply.Token == "" || reply.AccessToken != reply.Token || reply.ExpiresIn != 1800 || err != nil || time.Since(issued) > time.Minute || reply.RefreshToken != "" {
			t.Errorf("%s: %+v", c.name, reply)
		}
		s.want(http.StatusOK, http.MethodGet, "/v2/", "", bearer(reply.Token))
	}
	a := s.want(http.StatusOK, http.MethodGet, "/token", "", user("alice"))
	if a.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("token may be stored: %v", a.Header)
	}
	for name, who := range map[string]as{
		"wrong": basic("alice", "wrong"), "unknown": basic("mallory", "x"), "bearer": bearer(s.token(user("alice"))), "rubbish": bearer("rubbish"),
	} {
		a := s.want(http.StatusUnauthorized, http.MethodGet, "/token", "", who)
		if got := a.Header.Values("WWW-Authenticate"); !slices.Equal(got, []string{`Basic realm="atoll"`}) || a.code() != codeUnauthorized {
			t.Errorf("%s: %q %s", name, got, a.body)
		}
	}
	s.want(http.StatusMethodNotAllowed, http.MethodPut, "/token", "", user("alice"))
}

func TestManyScopes(t *testing.T) {
	s := startAuth(t)
	scopes := strings.Repeat("repository:a/app:pull ", 1000) + "repository:a/late:pull"
	if got := s.tokens(user("alice"), url.Values{"scope": {scopes}}).Scope; got != "repository:a/app:pull" {
		t.Errorf("%q", got)
	}
}

func TestPostToken(t *testing.T) {
	s := startAuth(t)
	password := url.Values{
		"grant_type": {"password"}, "username": {"alice"}, "password": {"password of alice"}, "service": {"atoll"}, "client_id": {"test"},
		"scope": {"repository:a/app:pull,push"},
	}
	with := func(pairs ...string) url.Values {
		form := url.Values{}
		for name, values := range password {
			form[name] = values
		}
		for i := 0; i < len(pairs); i += 2 {
			form.Set(pairs[i], pairs[i+1])
		}
		return form
	}
	for _, c := range []struct {
		name string
		form url.Values
		want int
	}{
		{"password", password, 200},
		{"wrong", with("password", "wrong"), 401},
		{"no password", with("password", ""), 401},
		{"nobody", with("username", "", "password", ""), 401},
		{"code", with("grant_type", "authorization_code"), 400},
		{"none", with("grant_type", ""), 400},
		{"no refresh token", with("grant_type", "refresh_token"), 401},
		{"access token for refresh", with("grant_type", "refresh_token", "refresh_token", s.token(user("alice"))), 401},
	} {
		a := s.postForm(c.form)
		if a.StatusCode != c.want || (c.want != 400) != (a.Header.Get("Cache-Control") == "no-store") {
			t.Errorf("%s: %d %s", c.name, a.StatusCode, a.body)
		}
	}
	s.want(http.StatusBadRequest, http.MethodPost, "/token?"+password.Encode(), "")
	s.want(http.StatusBadRequest, http.MethodPost, "/token?"+password.Encode(), "", withHeader("Content-Type", "application/x-www-form-urlencoded"))
	s.want(http.StatusBadRequest, http.MethodPost, "/token", `{"grant_type":"password"}`, withHeader("Content-Type", "application/json"))
	a := s.postForm(with("password", strings.Repeat("x", maxTokenFormBytes)))
	if a.StatusCode != http.StatusBadRequest || strings.Contains(a.body, "xxx") {
		t.Errorf("a form that is too long: %d", a.StatusCode)
	}
	a = s.do(http.MethodPost, "/token", "grant_type=password&password=%zz-secret", withHeader("Content-Type", "application/x-www-form-urlencoded"))
	if a.StatusCode != http.StatusBadRequest || strings.Contains(a.body, "secret") {
		t.Errorf("a malformed form: %d %s", a.StatusCode, a.body)
	}
}

// TestRefreshTokens gets access tokens without the password until the account changes.
func TestRefreshTokens(t *testing.T) {
	s := startAuth(t)
	var reply tokenReply
	a := s.postForm(url.Values{"grant_type": {"password"}, "username": {"alice"}, "password": {"password of alice"}, "access_type": {"offline"}})
	if err := json.Unmarshal([]byte(a.body), &reply); err != nil || reply.RefreshToken == "" {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	for name, refresh := range map[string]string{
		"by form": reply.RefreshToken, "by query": s.tokens(user("alice"), url.Values{"offline_token": {"true"}}).RefreshToken,
		"robot": s.tokens(basic("ci", s.robot), url.Values{"offline_token": {"true"}}).RefreshToken,
	} {
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}, "scope": {"repository:a/app:pull,push"}}
		a := s.postForm(form)
		var got tokenReply
		if err := json.Unmarshal([]byte(a.body), &got); err != nil || got.Scope != "repository:a/app:pull,push" || got.RefreshToken != refresh {
			t.Fatalf("%s: %d %s", name, a.StatusCode, a.body)
		}
		s.want(http.StatusAccepted, http.MethodPost, "/v2/a/app/blobs/uploads/", "", bearer(got.Token))
		// It is good for nothing else.
		s.want(http.StatusUnauthorized, http.MethodGet, "/v2/", "", bearer(refresh))
		s.want(http.StatusUnauthorized, http.MethodGet, "/token", "", bearer(refresh))
		s.want(http.StatusUnauthorized, http.MethodGet, "/token", "", basic("alice", refresh))
	}
	if got := s.tokens(anonymously, url.Values{"offline_token": {"true"}}).RefreshToken; got != "" {
		t.Error("nobody got a refresh token")
	}
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {reply.RefreshToken}}
	s.accounts.change("alice", func(a *proto.Account) { a.Disabled = true })
	if a := s.postForm(form); a.StatusCode != http.StatusUnauthorized {
		t.Errorf("disabled: %d", a.StatusCode)
	}
	s.accounts.change("alice", func(a *proto.Account) { a.Disabled = false })
	s.pass(defaultRefreshLife - time.Hour)
	if a := s.postForm(form); a.StatusCode != http.StatusOK {
		t.Errorf("enabled again: %d", a.StatusCode)
	}
	s.pass(time.Hour)
	if a := s.postForm(form); a.StatusCode != http.StatusUnauthorized {
		t.Errorf("expired: %d", a.StatusCode)
	}
	s.pass(-time.Hour)
	s.accounts.change("alice", func(a *proto.Account) { a.Generation++ })
	if a := s.postForm(form); a.StatusCode != http.StatusUnauthorized {
		t.Errorf("of an earlier generation: %d", a.StatusCode)
	}
}

// TestNoLoginNoTokens has the registry without login as it always was.
func TestNoLoginNoTokens(t *testing.T) {
	s := startAuth(t, func(cfg *Config) { cfg.Auth = nil })
	s.want(http.StatusOK, http.MethodGet, "/v2/", "", basic("alice", "wrong"))
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		s.want(http.StatusNotFound, method, "/token", "")
	}
}

// TestLargestToken asks for as much as a token can have, of the longest names: it is
// taken all the same, but not remembered.
func TestLargestToken(t *testing.T) {
	s := startAuth(t)
	var scopes []string
	for i := range maxScopes {
		name := fmt.Sprintf("a/%02d/", i)
		scopes = append(scopes, "repository:"+name+strings.Repeat("x", maxRepositoryBytes-len(name))+":pull,push,delete")
	}
	token := s.token(user("root"), scopes...)
	before := s.gateway.auth.tokens.verified.Len()
	s.want(http.StatusOK, http.MethodGet, "/v2/", "", bearer(token))
	if after := s.gateway.auth.tokens.verified.Len(); after != before || len(token) < 20<<10 {
		t.Errorf("a token of %d bytes is remembered: %d, then %d", len(token), before, after)
	}
}
