package gateway

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

// testIssuer is another issuer of tokens.
type testIssuer struct {
	t      *testing.T
	key    *rsa.PrivateKey
	server *httptest.Server
	// requests counts, broken fails them.
	requests atomic.Int64
	broken   atomic.Bool
}

func startIssuer(t *testing.T) *testIssuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := &testIssuer{t: t, key: key}
	i.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.requests.Add(1)
		if i.broken.Load() {
			http.Error(w, "broken", http.StatusInternalServerError)
			return
		}
		var document any = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey, KeyID: "1", Algorithm: "RS256", Use: "sig"}}}
		if r.URL.Path == "/.well-known/openid-configuration" {
			document = map[string]any{"issuer": i.server.URL, "jwks_uri": i.server.URL + "/keys", "id_token_signing_alg_values_supported": []string{"RS256"}}
		}
		_ = json.NewEncoder(w).Encode(document)
	}))
	t.Cleanup(i.server.Close)
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	return i
}

// token makes a token of the issuer's with some claims changed.
func (i *testIssuer) token(kid string, change jwt.MapClaims) string {
	claims := jwt.MapClaims{
		"iss": i.server.URL, "aud": "atoll", "sub": "repo:team/app:ref:refs/heads/main", "groups": []string{"team-a"},
		"jti": "1", "iat": time.Now().Unix(), "exp": time.Now().Add(10 * time.Minute).Unix(),
	}
	for name, value := range change {
		if claims[name] = value; value == nil {
			delete(claims, name)
		}
	}
	return forge(i.t, jwt.SigningMethodRS256, i.key, map[string]any{"kid": kid}, claims)
}

// issuerPolicy gives rights to those of the issuer, and to accounts of the same names.
const issuerPolicy = `
rules:
  - {repositories: ["a/**"], subjects: ["group:sso:team-a"], rights: [pull, push]}
  - {repositories: ["b/**"], subjects: ["group:team-a"], rights: [pull]}
  - {repositories: ["main/**"], subjects: ["user:sso:repo:team/app:ref:refs/heads/main"], rights: [pull, push]}
`

func startWithIssuer(t *testing.T) (*authServer, *testIssuer) {
	t.Helper()
	i := startIssuer(t)
	s := startAuth(t, func(cfg *Config) {
		cfg.Auth.Issuers = []Issuer{{URL: i.server.URL, Audience: "atoll", GroupsClaim: "groups", Prefix: "sso:"}}
	})
	s.accounts.setPolicy(t, issuerPolicy)
	return s, i
}

// TestIssuer logs in with a token of another issuer, as password and as it is.
func TestIssuer(t *testing.T) {
	s, i := startWithIssuer(t)
	token := i.token("1", nil)
	exchanged := s.tokens(basic(IssuerUser, token), map[string][]string{
		"scope": {"repository:a/app:pull,push repository:b/app:pull repository:main/app:pull"}, "offline_token": {"true"},
	})
	if exchanged.Scope != "repository:a/app:pull,push repository:main/app:pull" || exchanged.RefreshToken != "" || exchanged.ExpiresIn > 600 {
		t.Errorf("%+v", exchanged)
	}
	for name, who := range map[string]as{"password": basic(IssuerUser, token), "bearer": bearer(token), "exchanged": bearer(exchanged.Token)} {
		for path, want := range map[string]int{"/v2/a/app/blobs/uploads/": 202, "/v2/b/app/blobs/uploads/": 403, "/v2/public/app/blobs/uploads/": 403} {
			if a := s.do(http.MethodPost, path, "", who); a.StatusCode != want {
				t.Errorf("%s: %s: %d %s, want %d", name, path, a.StatusCode, a.body, want)
			}
		}
	}
	if n := i.requests.Load(); n != 2 {
		t.Errorf("the issuer was asked %d times", n)
	}
	s.pass(15 * time.Minute)
	for name, who := range map[string]as{"password": basic(IssuerUser, token), "bearer": bearer(token), "exchanged": bearer(exchanged.Token)} {
		s.want(http.StatusUnauthorized, http.MethodPost, "/v2/a/app/blobs/uploads/", "", who)
		_ = name
	}
}

// TestIssuerOfStrangers has an issuer that gives tokens to anybody.
func TestIssuerOfStrangers(t *testing.T) {
	i := startIssuer(t)
	s := startAuth(t, func(cfg *Config) {
		cfg.Auth.Issuers = []Issuer{{URL: i.server.URL, Audience: "atoll", Prefix: "gh:", RequiredClaim: "owner=team"}}
	})
	for _, c := range []struct {
		owner any
		want  int
	}{
		{"team", 200}, {[]string{"other", "team"}, 200},
		{nil, 401}, {"", 401}, {"teams", 401}, {[]string{"other"}, 401}, {1, 401}, {map[string]any{"team": "team"}, 401},
	} {
		token := i.token("1", jwt.MapClaims{"owner": c.owner})
		for name, who := range map[string]as{"password": basic(IssuerUser, token), "bearer": bearer(token)} {
			if a := s.do(http.MethodGet, "/v2/", "", who); a.StatusCode != c.want {
				t.Errorf("owner %v, as %s: %d %s, want %d", c.owner, name, a.StatusCode, a.body, c.want)
			}
		}
	}
}

func TestIssuersForgedTokens(t *testing.T) {
	s, i := startWithIssuer(t)
	other := startIssuer(t)
	for name, token := range map[string]string{
		"other audience": i.token("1", jwt.MapClaims{"aud": "other"}),
		"no audience":    i.token("1", jwt.MapClaims{"aud": nil}),
		"expired":        i.token("1", jwt.MapClaims{"exp": time.Now().Add(-time.Minute).Unix()}),
		"not yet valid":  i.token("1", jwt.MapClaims{"nbf": time.Now().Add(time.Hour).Unix()}),
		"no name":        i.token("1", jwt.MapClaims{"sub": nil}),
		"a pattern":      i.token("1", jwt.MapClaims{"sub": "*"}),
		"a line break":   i.token("1", jwt.MapClaims{"sub": "a\nb"}),
		"another's key":  other.token("1", jwt.MapClaims{"iss": i.server.URL}),
		"unknown issuer": other.token("1", nil),
		"our own name":   i.token("1", jwt.MapClaims{"iss": "atoll"}),
		"alg none":       forge(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil, jwt.MapClaims{"iss": i.server.URL, "aud": "atoll", "sub": "x", "exp": time.Now().Add(time.Hour).Unix()}),
		"HS256":          forge(t, jwt.SigningMethodHS256, []byte("1"), map[string]any{"kid": "1"}, jwt.MapClaims{"iss": i.server.URL, "aud": "atoll", "sub": "x", "exp": time.Now().Add(time.Hour).Unix()}),
	} {
		for _, who := range []as{bearer(token), basic(IssuerUser, token)} {
			if a := s.do(http.MethodGet, "/v2/", "", who); a.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s: %d %s", name, a.StatusCode, a.body)
			}
		}
	}
}

// TestIssuerIsNotFlooded sends tokens with keys that the issuer does not have, and
// tokens while it is broken; others log in meanwhile.
func TestIssuerIsNotFlooded(t *testing.T) {
	s, i := startWithIssuer(t)
	for range 50 {
		a := s.do(http.MethodGet, "/v2/", "", bearer(i.token("unknown", nil)))
		if a.StatusCode != http.StatusUnauthorized && a.StatusCode != http.StatusServiceUnavailable {
			t.Fatalf("%d %s", a.StatusCode, a.body)
		}
	}
	if n := i.requests.Load(); n > issuerRequestBurst+1 {
		t.Errorf("the issuer was asked %d times", n)
	}
	s.want(http.StatusOK, http.MethodGet, "/v2/", "", bearer(i.token("1", nil)))

	s, i = startWithIssuer(t)
	i.broken.Store(true)
	for range 20 {
		s.want(http.StatusServiceUnavailable, http.MethodGet, "/v2/", "", bearer(i.token("1", nil)))
		s.want(http.StatusOK, http.MethodGet, "/v2/", "", user("alice"))
	}
	if n := i.requests.Load(); n != 1 {
		t.Errorf("the broken issuer was asked %d times", n)
	}
	i.broken.Store(false)
	s.pass(issuerPause)
	s.want(http.StatusOK, http.MethodGet, "/v2/", "", bearer(i.token("1", nil)))
}
