package nodetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/atollregistry/atoll/metadata"
	"github.com/atollregistry/atoll/metadata/policy"
	"github.com/atollregistry/atoll/node"
	atoll "github.com/atollregistry/atoll/proto"
)

// addUser makes an account by one of the nodes.
func (c *Cluster) addUser(name, password string, groups ...string) {
	c.t.Helper()
	hash, err := metadata.HashPassword(password)
	if err != nil {
		c.t.Fatal(err)
	}
	account := &atoll.Account{Name: name, Kind: atoll.AccountKind_ACCOUNT_KIND_USER, PasswordHash: hash, Groups: groups}
	if err := c.Members[0].running().Metadata().PutAccount(c.t.Context(), account, nil); err != nil {
		c.t.Fatal(err)
	}
}

// loggedIn starts a cluster where clients log in, with an administrator as whom the
// tests' own requests are made.
func loggedIn(t testing.TB, n int, configure ...func(*node.Config)) *Cluster {
	t.Helper()
	c := Start(t, n, append(configure, func(cfg *node.Config) { cfg.Auth.Enabled = true })...)
	c.addUser("root", "password of root", "admins")
	for _, m := range c.Members {
		m.User = url.UserPassword("root", "password of root")
	}
	return c
}

// token gets a token from a member.
func (m *Member) token(name, scope string) http.Header {
	m.cluster.t.Helper()
	user := http.Header{"Authorization": {basicAuth(name, "password of "+name)}}
	response, content, err := m.Do(http.MethodGet, "/token?scope="+url.QueryEscape(scope), nil, user)
	if err != nil || response.StatusCode != http.StatusOK {
		m.cluster.t.Fatalf("token from %s: %v %s", m.Config.Name, err, content)
	}
	var reply struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(content, &reply); err != nil {
		m.cluster.t.Fatal(err)
	}
	return http.Header{"Authorization": {"Bearer " + reply.Token}}
}

func basicAuth(name, password string) string {
	r := &http.Request{Header: http.Header{}}
	r.SetBasicAuth(name, password)
	return r.Header.Get("Authorization")
}

// wantStatus fails unless a member answers a request with the status.
func (m *Member) wantStatus(status int, method, path string, body []byte, header http.Header) *http.Response {
	m.cluster.t.Helper()
	response, content, err := m.Do(method, path, bytes.NewReader(body), header)
	if err != nil {
		m.cluster.t.Fatal(err)
	}
	if response.StatusCode != status {
		m.cluster.t.Fatalf("%s %s on %s: %s %s, want %d", method, path, m.Config.Name, response.Status, content, status)
	}
	return response
}

// TestOneLoginForAllNodes pushes and pulls by a token, each step on another node than
// the one that has made it, and takes the rights away on yet another one.
func TestOneLoginForAllNodes(t *testing.T) {
	t.Parallel()
	c := loggedIn(t, 3)
	n1, n2, n3 := c.Members[0], c.Members[1], c.Members[2]
	c.addUser("alice", "password of alice", "developers")
	if _, err := c.PushImage("team/app", "v1", [][]byte{Bytes(1, 1<<20)}, c.Members...); err != nil {
		t.Fatal(err)
	}
	alice := n1.token("alice", "repository:team/app:pull,push")
	started := n2.wantStatus(http.StatusAccepted, http.MethodPost, "/v2/team/app/blobs/uploads/", nil, alice)
	location, content := started.Header.Get("Location"), Bytes(2, 1<<20)
	n3.wantStatus(http.StatusNotFound, http.MethodPatch, location, content, nil) // Not even the administrator.
	n3.wantStatus(http.StatusAccepted, http.MethodPatch, location, content, alice)
	n1.wantStatus(http.StatusCreated, http.MethodPut, location+"?digest="+Digest(content), nil, alice)
	for _, m := range c.Members {
		m.wantStatus(http.StatusOK, http.MethodGet, "/v2/team/app/manifests/v1", nil, alice)
		m.wantStatus(http.StatusForbidden, http.MethodDelete, "/v2/team/app/manifests/v1", nil, alice)
		anonymous := http.Header{"Authorization": {basicAuth("", "")}}
		m.wantStatus(http.StatusUnauthorized, http.MethodGet, "/v2/team/app/manifests/v1", nil, anonymous)
	}

	next, err := policy.Parse([]byte(`rules: [{repositories: ["**"], subjects: ["group:admins"], rights: [admin]}]`))
	if err != nil {
		t.Fatal(err)
	}
	if err := n2.running().Metadata().PutPolicy(t.Context(), 0, next); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Members {
		m.wantStatus(http.StatusForbidden, http.MethodGet, "/v2/team/app/manifests/v1", nil, alice)
	}
	_, err = n3.running().Metadata().ChangeAccount(t.Context(), "alice", func(a *atoll.Account) error { a.Disabled = true; return nil })
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Members {
		m.wantStatus(http.StatusUnauthorized, http.MethodGet, "/v2/", nil, alice)
	}
	c.Check()
}

// TestRevocationIsLinearizable takes a right away again and again: once that is
// acknowledged, no node lets the bearer in.
func TestRevocationIsLinearizable(t *testing.T) {
	t.Parallel()
	c := loggedIn(t, 3)
	c.addUser("alice", "password of alice", "developers")
	if _, err := c.PushImage("team/app", "v1", nil, c.Members...); err != nil {
		t.Fatal(err)
	}
	alice := c.Members[0].token("alice", "repository:team/app:pull")
	for round := range 10 {
		by := c.Members[round%3].running().Metadata()
		set := func(groups ...string) {
			if _, err := by.ChangeAccount(t.Context(), "alice", func(a *atoll.Account) error { a.Groups = groups; return nil }); err != nil {
				t.Fatal(err)
			}
		}
		rules := fmt.Sprintf(`rules: [{repositories: ["**"], subjects: ["group:admins"], rights: [admin]}, {repositories: ["**"], subjects: ["group:g%d"], rights: [pull]}]`, round)
		next, err := policy.Parse([]byte(rules))
		if err != nil {
			t.Fatal(err)
		}
		if err := by.PutPolicy(t.Context(), uint64(round), next); err != nil {
			t.Fatal(err)
		}
		other := c.Members[(round+1)%3]
		other.wantStatus(http.StatusForbidden, http.MethodHead, "/v2/team/app/manifests/v1", nil, alice)
		set(fmt.Sprintf("g%d", round))
		other.wantStatus(http.StatusOK, http.MethodHead, "/v2/team/app/manifests/v1", nil, alice)
		set()
		other.wantStatus(http.StatusForbidden, http.MethodHead, "/v2/team/app/manifests/v1", nil, alice)
	}
	c.Check()
}

// TestLoginWithoutQuorum has one node alone: what is known by digest is read on, and
// nothing else is.
func TestLoginWithoutQuorum(t *testing.T) {
	t.Parallel()
	c := loggedIn(t, 3)
	layer := Bytes(1, 1<<10)
	if _, err := c.PushImage("team/app", "v1", [][]byte{layer}, c.Members...); err != nil {
		t.Fatal(err)
	}
	n1 := c.Members[0]
	root := n1.token("root", "repository:team/app:pull,push")
	for _, m := range c.Members[1:] {
		m.Crash()
	}
	begun := time.Now()
	n1.wantStatus(http.StatusOK, http.MethodHead, "/v2/team/app/blobs/"+Digest(layer), nil, root)
	if took := time.Since(begun); took > 8*time.Second {
		t.Errorf("a read by digest took %s", took)
	}
	n1.wantStatus(http.StatusServiceUnavailable, http.MethodPost, "/v2/team/app/blobs/uploads/", nil, root)
	// Most clients begin each pull with a new token.
	fresh := n1.token("root", "repository:team/app:pull,push")
	n1.wantStatus(http.StatusOK, http.MethodHead, "/v2/team/app/blobs/"+Digest(layer), nil, fresh)
	n1.wantStatus(http.StatusServiceUnavailable, http.MethodPost, "/v2/team/app/blobs/uploads/", nil, fresh)
	for _, m := range c.Members[1:] {
		m.Start()
	}
	for _, m := range c.Members {
		m.WaitReady()
	}
	c.Check()
}
