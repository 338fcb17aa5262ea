package bench

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// Both ways to log in, and what is said when there is no way.
func TestLogin(t *testing.T) {
	var tokens atomic.Int64
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		query := r.URL.Query()
		if user != "alice" || password != "secret" || query.Get("service") != "reg" || query.Get("x") != "1" ||
			!strings.HasPrefix(query.Get("scope"), "repository:bench/") || !strings.HasSuffix(query.Get("scope"), ":pull,push") {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = fmt.Fprintf(w, `{"token":"token%d","expires_in":300}`, tokens.Add(1))
	}))
	t.Cleanup(service.Close)
	for _, test := range []struct {
		name, challenge, user, accept, want string
	}{
		{"basic", `Basic realm="x"`, "alice", "Basic YWxpY2U6c2VjcmV0", ""},
		{"bearer", `Bearer realm="` + service.URL + `/token?x=1",service="reg"`, "alice", "Bearer token1", ""},
		{"wrong user", `Bearer realm="` + service.URL + `/token?x=1",service="reg"`, "bob", "", "answers 401"},
		{"no user", `Basic realm="x"`, "", "", "wants a login (Basic), and no user is given"},
		{"another kind", `Negotiate`, "alice", "", "wants a login (Negotiate)"},
		{"no realm", `Bearer service="x"`, "alice", "", "is not a URL"},
	} {
		t.Run(test.name, func(t *testing.T) {
			tokens.Store(0)
			fake, urls := newFake(t, 1)
			fake.before = func(w http.ResponseWriter, r *http.Request) bool {
				if test.accept != "" && r.Header.Get("Authorization") == test.accept {
					return false
				}
				w.Header().Set("WWW-Authenticate", test.challenge)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			report, err := Run(t.Context(), testConfig("get-tag", Registry{Name: "fake", URLs: urls, User: test.user, Password: "secret"}))
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") {
					t.Errorf("error is %v, want it to say %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if done, failed := report.Counts(); done != 24 || failed != 0 || tokens.Load() > 1 {
				t.Errorf("%d done, %d failed, %d tokens", done, failed, tokens.Load())
			}
		})
	}
}

// TLS is checked, unless that is not wanted.
func TestTrust(t *testing.T) {
	fake, _ := newFake(t, 1)
	server := httptest.NewTLSServer(fake)
	t.Cleanup(server.Close)
	config := testConfig("push-put", Registry{Name: "fake", URLs: []string{server.URL + "/"}})
	config.TLS.Insecure = true
	if done, failed := runBench(t, config).Counts(); done != 24 || failed != 0 {
		t.Errorf("%d done, %d failed", done, failed)
	}
	config.TLS.Insecure = false
	if _, err := Run(t.Context(), config); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of nobody known: %v", err)
	}
}
