package gateway

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// testPolicy is the policy of tests: what belongs to team a, what to team b, and what
// is public.
const testPolicy = `
rules:
  - repositories: ["public/**"]
    subjects: [anonymous]
    rights: [pull]
  - repositories: ["a/**"]
    subjects: ["group:team-a", "robot:ci"]
    rights: [pull, push]
  - repositories: ["b/**"]
    subjects: ["group:team-b"]
    rights: [pull, push]
  - repositories: ["**"]
    subjects: ["user:root"]
    rights: [admin]
`

// authServer is a registry with login, and its state.
type authServer struct {
	t        testing.TB
	accounts *memoryAccounts
	metadata *memoryMetadata
	gateway  *gateway
	server   *httptest.Server
	// skew is added to the clock.
	skew atomic.Int64
	// robot is the secret of robot ci; alice is of team a, bob of b, root may do
	// everything, and the passwords of all are "password of NAME".
	robot string
}

func startAuth(t testing.TB, configure ...func(*Config)) *authServer {
	t.Helper()
	s := &authServer{t: t, accounts: newMemoryAccounts(t, testPolicy), metadata: newMemoryMetadata()}
	s.accounts.addUser(t, "alice", "password of alice", "team-a")
	s.accounts.addUser(t, "bob", "password of bob", "team-b")
	s.accounts.addUser(t, "root", "password of root")
	s.accounts.addUser(t, "nobody", "password of nobody")
	s.robot = s.accounts.addRobot("ci")
	cfg := Config{Logger: zerolog.Nop(), Auth: &AuthConfig{Accounts: s.accounts}}
	for _, change := range configure {
		change(&cfg)
	}
	s.gateway = New(cfg, s.metadata, newMemoryBlobs()).(*gateway)
	if s.gateway.auth != nil {
		s.gateway.auth.hasher.spend = func(int) {} // The tests' hashes are cheap on purpose.
	}
	s.gateway.now = func() time.Time { return time.Now().Add(time.Duration(s.skew.Load())) }
	s.server = httptest.NewUnstartedServer(nil)
	s.server.Config = NewServer(s.gateway, nil, zerolog.Nop())
	s.server.Start()
	t.Cleanup(s.server.Close)
	s.server.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return s
}

// answer is a reply with its body.
type answer struct {
	*http.Response
	body string
}

// code returns the first code of the errors JSON; empty if there is none.
func (a answer) code() string {
	var body errorsBody
	if json.Unmarshal([]byte(a.body), &body) != nil || len(body.Errors) == 0 {
		return ""
	}
	return body.Errors[0].Code
}

// as says with which credentials a request is made.
type as func(*http.Request)

func anonymously(*http.Request) {}

func basic(name, password string) as {
	return func(r *http.Request) { r.SetBasicAuth(name, password) }
}

// user is one of those that startAuth makes.
func user(name string) as { return basic(name, "password of "+name) }

func bearer(token string) as {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

func withHeader(name, value string) as {
	return func(r *http.Request) { r.Header.Add(name, value) }
}

func (s *authServer) do(method, path, body string, options ...as) answer {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.server.URL+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, option := range options {
		option(r)
	}
	response, err := s.server.Client().Do(r)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer{response, string(content)}
}

// want makes a request and fails the test unless the status is the wanted one.
func (s *authServer) want(status int, method, path, body string, options ...as) answer {
	s.t.Helper()
	a := s.do(method, path, body, options...)
	if a.StatusCode != status {
		s.t.Fatalf("%s %s: %d %s, want %d", method, path, a.StatusCode, a.body, status)
	}
	return a
}

// token gets an access token for some scopes.
func (s *authServer) token(who as, scopes ...string) string {
	s.t.Helper()
	return s.tokens(who, url.Values{"service": {"atoll"}, "scope": scopes}).Token
}

func (s *authServer) tokens(who as, query url.Values) (reply tokenReply) {
	s.t.Helper()
	a := s.want(http.StatusOK, http.MethodGet, "/token?"+query.Encode(), "", who)
	if err := json.Unmarshal([]byte(a.body), &reply); err != nil {
		s.t.Fatal(err)
	}
	return reply
}

// push pushes a blob by name and password and returns its digest.
func (s *authServer) push(who as, repository, content string) (digest string) {
	s.t.Helper()
	digest = digestOf(sha256Algorithm, []byte(content))
	s.want(http.StatusCreated, http.MethodPost, "/v2/"+repository+"/blobs/uploads/?digest="+digest, content, who)
	return digest
}

// putManifest pushes an image index without children under a tag.
func (s *authServer) putManifest(who as, repository, tag string) answer {
	s.t.Helper()
	return s.do(http.MethodPut, "/v2/"+repository+"/manifests/"+tag, emptyIndex, who, withHeader("Content-Type", indexType))
}

const (
	indexType  = "application/vnd.oci.image.index.v1+json"
	emptyIndex = `{"schemaVersion":2,"mediaType":"` + indexType + `","manifests":[]}`
)

// pass moves the registry's clock on.
func (s *authServer) pass(d time.Duration) { s.skew.Add(int64(d)) }
