package gateway

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/atollregistry/atoll/metadata"
)

// FuzzAuthorization sends any Authorization header and any query to what takes a login.
// Nothing that was made up is let in, and nothing panics.
func FuzzAuthorization(f *testing.F) {
	s := startAuth(f)
	good := s.token(user("alice"), "repository:a/app:pull")
	for _, header := range []string{"", "Basic Og==", "Basic YWxpY2U6eA==", "Bearer x", "Bearer " + good + "x", "bearer", "Basic", "Digest a=b", "Bearer ..", "\x00"} {
		f.Add(header, "scope=repository:a/app:pull&offline_token=true")
		f.Add(header, "mount=sha256:x&from=b")
	}
	f.Fuzz(func(t *testing.T, header, query string) {
		if strings.Contains(header, good) {
			return
		}
		name, password, isBasic := parseBasic(strings.TrimPrefix(header, "Basic "))
		if isBasic && password == "password of "+name {
			return
		}
		for _, path := range []string{"/v2/", "/v2/a/app/tags/list", "/v2/a/app/blobs/uploads/", "/token"} {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			if strings.HasSuffix(path, "uploads/") {
				r.Method = http.MethodPost
			}
			r.URL.RawQuery = query
			r.Header["Authorization"] = []string{header}
			w := httptest.NewRecorder()
			s.gateway.ServeHTTP(w, r)
			anonymous := header == "" || isBasic && name == "" && password == ""
			switch {
			case w.Code == http.StatusUnauthorized || w.Code == http.StatusTooManyRequests:
			case path == "/token" && (anonymous || strings.TrimSpace(header) == "" || w.Code == http.StatusOK && tokenOfNobody(s, w)):
			default:
				t.Errorf("%s with %q: %d %s", path, header, w.Code, w.Body)
			}
			if len(w.Header().Values("WWW-Authenticate")) > 1 {
				t.Errorf("%s: %q", path, w.Header())
			}
		}
	})
}

// tokenOfNobody reports whether a reply is a token for nobody.
func tokenOfNobody(s *authServer, w *httptest.ResponseRecorder) bool {
	token := strings.Split(w.Body.String(), `"`)[3]
	claims, err := s.gateway.auth.tokens.verify(accessToken, token)
	return err == nil && claims.Method == loginNone
}

// FuzzScopes reads any scope: what comes out names a repository and actions that there
// are, and is within bounds.
func FuzzScopes(f *testing.F) {
	for _, text := range []string{"repository:a/app:pull,push", "registry:catalog:*", "repository(plugin):a:*", ":::", "a:b", strings.Repeat("x:y:z ", 100)} {
		f.Add(text)
	}
	s := startAuth(f)
	f.Fuzz(func(t *testing.T, text string) {
		scopes := parseScopes([]string{text, url.QueryEscape(text)})
		if len(scopes) > maxScopes {
			t.Errorf("%d scopes", len(scopes))
		}
		for _, access := range s.gateway.auth.grant(metadata.SubjectOf(s.accounts.accounts["root"]), scopes) {
			if access.Type == scopeRepository && !validRepository(access.Name) || len(access.Actions) == 0 || len(access.Actions) > 3 {
				t.Errorf("%+v", access)
			}
		}
	})
}
