package gateway

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/atollregistry/atoll/metadata/policy"
	"github.com/atollregistry/atoll/node/alloctest"
)

func BenchmarkHot(b *testing.B)    { alloctest.Bench(b, hotFunctions) }
func TestAllocations(t *testing.T) { alloctest.Check(t, hotFunctions) }

// hotFunctions are those of every request. A whole one, with the state behind it, is
// among those of package node.
func hotFunctions(t testing.TB) []alloctest.Function {
	return append(append(hotParsing(t), hotAuth(t)...), hotReplies(t)...)
}

// hotParsing is what is made of a request's path and body.
func hotParsing(t testing.TB) []alloctest.Function {
	var layers strings.Builder
	for i := range 10 {
		fmt.Fprintf(&layers, `%s{"mediaType":%q,"digest":"sha256:%064d","size":7}`, ","[:min(i, 1)], "application/vnd.oci.image.layer.v1.tar+gzip", i)
	}
	manifest := []byte(imageJSON(`,"layers":[` + layers.String() + `]`))
	return []alloctest.Function{
		{Name: "parse the path of a manifest", Allocs: 2, Call: func() {
			if err := splitPath("/v2/team/project/app/manifests/v1.2.3").check(http.MethodGet); err != nil {
				t.Fatal(err)
			}
		}},
		{Name: "parse the path of a blob", Allocs: 2, Call: func() {
			if err := splitPath("/v2/team/project/app/blobs/" + digestA).check(http.MethodGet); err != nil {
				t.Fatal(err)
			}
		}},
		{Name: "parse a manifest of 10 layers", Allocs: 576, Call: func() {
			if _, err := parseManifest(manifest, ociManifestType); err != nil {
				t.Fatal(err)
			}
		}},
	}
}

// hotAuth is how a token is looked at, and what its bearer may do.
func hotAuth(t testing.TB) []alloctest.Function {
	s := startAuth(t)
	auth := s.gateway.auth
	token := s.token(user("alice"), "repository:a/app:pull,push")
	r := httptest.NewRequest(http.MethodGet, "/v2/a/app/manifests/v1", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	x := s.gateway.newExchange(httptest.NewRecorder(), r)
	who, err := auth.authenticate(t.Context(), x)
	if err != nil {
		t.Fatal(err)
	}
	return []alloctest.Function{
		{Name: "verify a token for the first time", Allocs: 73, Call: func() {
			if _, err := auth.tokens.verifySignature(accessToken, token, s.accounts.TokenKeys()); err != nil {
				t.Fatal(err)
			}
		}},
		{Name: "authenticate by a token that is known", Allocs: 1, Call: func() {
			if _, err := auth.authenticate(t.Context(), x); err != nil {
				t.Fatal(err)
			}
		}},
		{Name: "decide by the policy", Allocs: 0, Call: func() {
			if err := auth.check(who, "a/app", policy.Push); err != nil {
				t.Fatal(err)
			}
		}},
	}
}

// hotReplies are the whole way of requests whose answers are in memory.
func hotReplies(t testing.TB) []alloctest.Function {
	handler := New(Config{}, newMemoryMetadata(), newMemoryBlobs())
	ask := func(path string, want int) func() {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		client := &discardingClient{header: http.Header{}}
		return func() {
			clear(client.header)
			handler.ServeHTTP(client, r)
			if client.status != want {
				t.Fatalf("status %d", client.status)
			}
		}
	}
	return []alloctest.Function{
		{Name: "reply to a ping", Allocs: 18, Call: ask("/v2/", http.StatusOK)},
		{Name: "reply that there is no such repository", Allocs: 41, Call: ask("/v2/team/app/manifests/v1", http.StatusNotFound)},
	}
}

// discardingClient takes a reply and keeps its status.
type discardingClient struct {
	header http.Header
	status int
}

func (c *discardingClient) Header() http.Header         { return c.header }
func (c *discardingClient) WriteHeader(status int)      { c.status = status }
func (c *discardingClient) Write(p []byte) (int, error) { return len(p), nil }
