package gateway

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/atollregistry/atoll/proto"
)

// forge signs any header and claims with any method and key.
func forge(t testing.TB, method jwt.SigningMethod, key any, header map[string]any, claims jwt.MapClaims) string {
	t.Helper()
	token := jwt.NewWithClaims(method, claims)
	maps.Copy(token.Header, header)
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// forgery is a token that only differs in one point from one that counts.
type forgery struct {
	name  string
	token string
}

// forgeries makes tokens for a subject out of a key that counts; the first of them is
// good.
func forgeries(t testing.TB, key *proto.TokenKey, subject string, generation uint64, access []tokenAccess, now time.Time) []forgery {
	t.Helper()
	private := ed25519.NewKeyFromSeed(key.GetSeed())
	kid := strconv.FormatUint(uint64(key.GetId()), 10)
	good := func() (map[string]any, jwt.MapClaims) {
		return map[string]any{"typ": "at+jwt", "kid": kid}, jwt.MapClaims{
			"iss": "atoll", "aud": []string{"atoll"}, "sub": subject, "jti": "1", "amr": "password", "gen": generation, "access": access,
			"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(time.Hour).Unix(),
		}
	}
	change := func(name string, change func(header map[string]any, claims jwt.MapClaims)) forgery {
		header, claims := good()
		change(header, claims)
		return forgery{name, forge(t, jwt.SigningMethodEdDSA, private, header, claims)}
	}
	claim := func(name string, value any) forgery {
		return change("claim "+name, func(_ map[string]any, claims jwt.MapClaims) {
			if claims[name] = value; value == nil {
				delete(claims, name)
			}
		})
	}
	header, claims := good()
	public := private.Public().(ed25519.PublicKey)
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	token := forge(t, jwt.SigningMethodEdDSA, private, header, claims)
	parts := strings.Split(token, ".")
	none := func(alg string) string {
		head, _ := json.Marshal(map[string]any{"alg": alg, "typ": "at+jwt", "kid": kid})
		return base64.RawURLEncoding.EncodeToString(head) + "." + parts[1] + "."
	}
	return []forgery{
		{"good", token},
		{"alg none", none("none")}, {"alg None", none("None")}, {"alg empty", none("")}, {"no signature", none("EdDSA")},
		{"no alg none library", forge(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, header, claims)},
		{"HS256 with the public key", forge(t, jwt.SigningMethodHS256, []byte(public), header, claims)},
		{"HS256 with the public key in DER", forge(t, jwt.SigningMethodHS256, spki, header, claims)},
		{"another key", forge(t, jwt.SigningMethodEdDSA, stranger, header, claims)},
		change("unknown kid", func(header map[string]any, _ jwt.MapClaims) { header["kid"] = "4000000000" }),
		change("kid too large", func(header map[string]any, _ jwt.MapClaims) { header["kid"] = "4294967297" }),
		change("kid is a path", func(header map[string]any, _ jwt.MapClaims) { header["kid"] = "../../dev/null" }),
		change("kid is a number", func(header map[string]any, _ jwt.MapClaims) { header["kid"] = 1 }),
		change("no kid", func(header map[string]any, _ jwt.MapClaims) { delete(header, "kid") }),
		change("no typ", func(header map[string]any, _ jwt.MapClaims) { delete(header, "typ") }),
		change("typ JWT", func(header map[string]any, _ jwt.MapClaims) { header["typ"] = "JWT" }),
		change("typ of refresh", func(header map[string]any, _ jwt.MapClaims) { header["typ"] = "rt+jwt" }),
		claim("iss", "atol"), claim("iss", nil), claim("aud", "other"), claim("aud", []string{"atoll", "other"}), claim("aud", nil),
		claim("aud", "atoll/refresh"), claim("sub", nil), claim("sub", "user:*"), claim("sub", "alice"), claim("sub", "group:team-a"), claim("jti", nil),
		claim("exp", nil), claim("exp", now.Add(-time.Second).Unix()), claim("nbf", nil), claim("nbf", now.Add(2*time.Minute).Unix()),
		claim("exp", "tomorrow"), claim("amr", "none"), claim("gen", generation+1), claim("gen", generation-1),
		claim("sub", "robot:"+strings.TrimPrefix(subject, "user:")), claim("amr", "htpasswd"), claim("sec", "x"),
		{"cut", token[:len(token)-2]}, {"longer", token + "AA"}, {"padded", token + "=="}, {"two parts", parts[0] + "." + parts[1]},
		{"four parts", token + ".x"}, {"other content", parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"user:root"}`)) + "." + parts[2]},
		{"too long", token + strings.Repeat("A", maxTokenBytes)}, {"empty", ""}, {"dots", ".."}, {"rubbish", "rubbish"},
	}
}

func TestForgedTokens(t *testing.T) {
	s := startAuth(t)
	access := []tokenAccess{{Type: scopeRepository, Name: "a/app", Actions: []string{actionPull}}}
	s.push(user("alice"), "a/app", "blob")
	for i, f := range forgeries(t, s.accounts.keys[0], "user:alice", 1, access, time.Now()) {
		a := s.do("GET", "/v2/a/app/tags/list", "", bearer(f.token))
		switch {
		case i == 0 && a.StatusCode != 200:
			t.Fatalf("%s: %d %s", f.name, a.StatusCode, a.body)
		case i > 0 && (a.StatusCode != 401 || len(a.Header.Values("WWW-Authenticate")) != 1 || !strings.Contains(a.Header.Get("WWW-Authenticate"), `error="invalid_token"`)):
			t.Errorf("%s: %d %s %q", f.name, a.StatusCode, a.body, a.Header.Values("WWW-Authenticate"))
		}
	}
}

// TestTokensOfAllKinds uses each kind as itself and as the other.
func TestTokensOfAllKinds(t *testing.T) {
	accounts := newMemoryAccounts(t, testPolicy)
	now := time.Now()
	made := newTokens(accounts.TokenKeys, "atoll", func() time.Time { return now })
	elsewhere := newTokens(accounts.TokenKeys, "other", func() time.Time { return now })
	claims := tokenClaims{Method: loginPassword, Generation: 7}
	claims.Subject = "user:alice"
	kinds := []tokenKind{accessToken, refreshToken}
	for i, kind := range kinds {
		token, issued, err := made.issue(kind, claims, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // The second time it is remembered.
			got, err := made.verify(kind, token)
			if err != nil || got.Subject != "user:alice" || got.Generation != 7 || got.ID != issued.ID {
				t.Fatalf("%+v, %v", got, err)
			}
			if _, err := made.verify(kinds[1-i], token); !errors.Is(err, errTokenMalformed) {
				t.Errorf("taken for the other kind: %v", err)
			}
			if _, err := elsewhere.verify(kind, token); !errors.Is(err, errTokenMalformed) {
				t.Errorf("taken by another service: %v", err)
			}
		}
		now = now.Add(time.Hour - time.Second)
		if _, err := made.verify(kind, token); err != nil {
			t.Errorf("in its last second: %v", err)
		}
		now = now.Add(time.Second)
		if _, err := made.verify(kind, token); !errors.Is(err, errTokenExpired) {
			t.Errorf("after its time: %v", err)
		}
		now = now.Add(-time.Hour - tokenSkew)
		if _, err := made.verify(kind, token); err != nil {
			t.Errorf("by a clock that is a minute late: %v", err)
		}
		now = now.Add(-time.Second)
		if _, err := made.verify(kind, token); !errors.Is(err, errTokenMalformed) {
			t.Errorf("before its time: %v", err)
		}
		now = now.Add(time.Second + tokenSkew)
	}
}

// TestTokenKeysRotate makes new keys; a token lives as long as its key.
func TestTokenKeysRotate(t *testing.T) {
	accounts := newMemoryAccounts(t, testPolicy)
	made := newTokens(accounts.TokenKeys, "atoll", time.Now)
	claims := tokenClaims{Method: loginNone}
	claims.Subject = "anonymous"
	old, _, err := made.issue(accessToken, claims, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	accounts.addKey()
	renewed, _, err := made.issue(accessToken, claims, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{old, renewed} {
		if _, err := made.verify(accessToken, token); err != nil {
			t.Error(err)
		}
	}
	accounts.keys = accounts.keys[:1]
	if _, err := made.verify(accessToken, old); !errors.Is(err, errTokenKey) {
		t.Errorf("its key is gone: %v", err)
	}
	if _, err := made.verify(accessToken, renewed); err != nil {
		t.Error(err)
	}
	accounts.keys = nil
	if _, _, err := made.issue(accessToken, claims, time.Hour); !errors.Is(err, errNoTokenKey) {
		t.Errorf("without keys: %v", err)
	}
}

// TestVerifiedTokensAreBounded has many goroutines check more tokens than are
// remembered.
func TestVerifiedTokensAreBounded(t *testing.T) {
	accounts := newMemoryAccounts(t, testPolicy)
	made := newTokens(accounts.TokenKeys, "atoll", time.Now)
	made.verified.Resize(8)
	claims := tokenClaims{Method: loginNone}
	claims.Subject = "anonymous"
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			for range 20 {
				token, _, err := made.issue(accessToken, claims, time.Hour)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := made.verify(accessToken, token); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	if n := made.verified.Len(); n > 8 {
		t.Errorf("%d tokens are remembered", n)
	}
}
