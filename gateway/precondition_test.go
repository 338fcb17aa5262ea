package gateway

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/atollregistry/atoll/proto"
)

func TestPrecondition(t *testing.T) {
	many := strings.Repeat(`"x", `, maxETags)
	for _, test := range []struct {
		match, noneMatch []string
		want             *proto.Precondition
	}{
		{nil, nil, nil},
		{[]string{"*"}, nil, &proto.Precondition{Exists: true}},
		{[]string{" * "}, nil, &proto.Precondition{Exists: true}},
		{nil, []string{"*"}, &proto.Precondition{Missing: true}},
		{[]string{`"a"`}, nil, &proto.Precondition{Exists: true, Digests: []string{"a"}}},
		{[]string{`"a","b"`, ` "c" , , "d",`}, nil, &proto.Precondition{Exists: true, Digests: []string{"a", "b", "c", "d"}}},
		{[]string{`"a,b"`}, nil, &proto.Precondition{Exists: true, Digests: []string{"a,b"}}},
		{[]string{`W/"a"`}, nil, &proto.Precondition{Exists: true, Digests: []string{"never"}}},
		{[]string{`""`}, nil, &proto.Precondition{Exists: true, Digests: []string{"never"}}},
		{nil, []string{`"a", W/"b"`}, &proto.Precondition{NotDigests: []string{"a", "b"}}},
		{nil, []string{`""`}, nil},
		{[]string{`"a"`}, []string{"*"}, &proto.Precondition{Exists: true, Missing: true, Digests: []string{"a"}}},
		{[]string{many}, nil, &proto.Precondition{Exists: true, Digests: slices.Repeat([]string{"x"}, maxETags)}},
	} {
		got, err := precondition(http.Header{"If-Match": test.match, "If-None-Match": test.noneMatch})
		same := err == nil && (got == nil) == (test.want == nil) && got.GetExists() == test.want.GetExists() && got.GetMissing() == test.want.GetMissing() &&
			slices.Equal(got.GetDigests(), test.want.GetDigests()) && slices.Equal(got.GetNotDigests(), test.want.GetNotDigests())
		if !same {
			t.Errorf("If-Match %q, If-None-Match %q: got %v, %v", test.match, test.noneMatch, got, err)
		}
	}
	for _, header := range []string{
		"", " ", ",", "a", `"a`, `a"`, `"a"b`, `"a" "b"`, `w/"a"`, `W/a`, `W/`, `"a", *`, `*, "a"`, "**", `"a` + "\x00" + `"`, `"a b"`, `'a'`, many + `"x"`,
	} {
		for _, name := range []string{"If-Match", "If-None-Match"} {
			if got, err := precondition(http.Header{name: {header}}); !errors.Is(err, errPreconditionInvalid) {
				t.Errorf("%s %q: got %v, %v", name, header, got, err)
			}
		}
	}
}

// FuzzPrecondition: a header that is there is never read as no condition, unless
// it is one that always holds.
func FuzzPrecondition(f *testing.F) {
	f.Add(`"a", W/"b"`)
	f.Add("*")
	f.Fuzz(func(t *testing.T, header string) {
		wanted, err := precondition(http.Header{"If-Match": {header}})
		if err == nil && !wanted.GetExists() {
			t.Errorf("%q is no condition", header)
		}
		if slices.Contains(wanted.GetDigests(), "") {
			t.Errorf("%q matches what does not exist", header)
		}
	})
}

// TestHeadKeeps: a client that is told "it is there" does not push it, so that
// asking keeps it; reading does not.
func TestHeadKeeps(t *testing.T) {
	r := newRegistry(t, Config{})
	digest := r.push("a", "hello")
	const index = `{"schemaVersion":2,"manifests":[]}`
	manifest := digestOf(sha256Algorithm, []byte(index))
	r.want(http.StatusCreated, http.MethodPut, "/v2/a/manifests/latest", strings.NewReader(index), "Content-Type", ociIndexType)
	for _, test := range []struct {
		line, called string
	}{
		{"HEAD /v2/a/blobs/" + digest, "RetainBlob"},
		{"GET /v2/a/blobs/" + digest, "Blob"},
		{"POST /v2/a/blobs/uploads/?mount=" + digest, "RetainBlob"},
		{"HEAD /v2/a/manifests/" + manifest, "RetainManifest"},
		{"GET /v2/a/manifests/" + manifest, "Manifest"},
		{"HEAD /v2/a/manifests/latest", "ManifestByTag"},
	} {
		method, path, _ := strings.Cut(test.line, " ")
		before := map[string]int{}
		methods := []string{"RetainBlob", "Blob", "RetainManifest", "Manifest", "ManifestByTag"}
		for _, name := range methods {
			before[name] = r.metadata.count(name)
		}
		if response := r.do(method, path, nil); response.StatusCode > 299 {
			t.Fatalf("%s: %d", test.line, response.StatusCode)
		}
		for _, name := range methods {
			want := 0
			if name == test.called {
				want = 1
			}
			if got := r.metadata.count(name) - before[name]; got != want {
				t.Errorf("%s: %s was called %d times", test.line, name, got)
			}
		}
	}
}
