package gateway

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/atollregistry/atoll/metadata"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestSplitPath(t *testing.T) {
	for path, want := range map[string]route{
		"":                                    {},
		"/":                                   {},
		"/v2":                                 {operation: opBase},
		"/v2/":                                {operation: opBase},
		"/v2//":                               {},
		"/v1/a/tags/list":                     {},
		"v2/a/tags/list":                      {},
		"/v2/_catalog":                        {operation: opCatalog},
		"/v2/_catalog/":                       {},
		"/v2/tags/list":                       {},
		"/v2/manifests/latest":                {},
		"/v2/blobs/uploads/":                  {},
		"/v2/blobs/uploads/id":                {},
		"/v2/a/tags/list":                     {opTags, "a", ""},
		"/v2/a/b/c/tags/list":                 {opTags, "a/b/c", ""},
		"/v2/a/tags/list/":                    {},
		"/v2/a/tags":                          {},
		"/v2/a/manifests/":                    {},
		"/v2/a/manifests/latest":              {opManifest, "a", "latest"},
		"/v2/a/manifests/" + someDigest:       {opManifest, "a", someDigest},
		"/v2/a/referrers/" + someDigest:       {opReferrers, "a", someDigest},
		"/v2/a/blobs/":                        {},
		"/v2/a/blobs/" + someDigest:           {opBlob, "a", someDigest},
		"/v2/a/blobs/uploads":                 {opUploads, "a", ""},
		"/v2/a/blobs/uploads/":                {opUploads, "a", ""},
		"/v2/a/blobs/uploads/id":              {opUpload, "a", "id"},
		"/v2/a/blobs/uploads/id/":             {},
		"/v2/a/uploads/id":                    {},
		"/v2/blobs/blobs/uploads/":            {opUploads, "blobs", ""},
		"/v2/uploads/blobs/uploads/uploads":   {opUpload, "uploads", "uploads"},
		"/v2/blobs/uploads/blobs/uploads/x":   {opUpload, "blobs/uploads", "x"},
		"/v2/blobs/uploads/manifests/latest":  {opManifest, "blobs/uploads", "latest"},
		"/v2/manifests/manifests/manifests":   {opManifest, "manifests", "manifests"},
		"/v2/a/blobs/uploads/tags/list":       {opTags, "a/blobs/uploads", ""},
		"/v2/tags/list/tags/list":             {opTags, "tags/list", ""},
		"/v2/a/tags/list/manifests/list":      {opManifest, "a/tags/list", "list"},
		"/v2/a/tags/manifests/list":           {opManifest, "a/tags", "list"},
		"/v2//a/tags/list":                    {opTags, "/a", ""},
		"/v2/a//tags/list":                    {opTags, "a/", ""},
		"/v2/a/../b/tags/list":                {opTags, "a/../b", ""},
		"/v2/_oci/ext/discover":               {},
		"/v2/a/blobs/uploads/manifests/blobs": {opManifest, "a/blobs/uploads", "blobs"},
	} {
		if got := splitPath(path); got != want {
			t.Errorf("%s: got %v %q %q, want %v %q %q", path,
				got.operation, got.repository, got.reference, want.operation, want.repository, want.reference)
		}
	}
}

func TestValidRepository(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "a/b": true, "a.b": true, "a_b": true, "a__b": true, "a-b": true, "a---b": true, "0/1/2": true, "tags/list": true,
		"": false, "A": false, "a_": false, "_a": false, "a___b": false, "a..b": false, "a._b": false, "a/": false, "/a": false, "a//b": false,
		"a/.": false, "..": false, "a b": false, "a\n": false, "ä": false, "a:b": false, "a/-b": false,
		strings.Repeat("a", 255): true, strings.Repeat("a", 256): false,
	} {
		if got := validRepository(name); got != want {
			t.Errorf("%q: got %v", name, got)
		}
	}
}

func TestRouteCheck(t *testing.T) {
	for _, test := range []struct {
		method string
		route  route
		want   error
	}{
		{http.MethodGet, route{opBase, "", ""}, nil},
		{http.MethodGet, route{opTags, "a", ""}, nil},
		{http.MethodGet, route{opTags, "A", ""}, errNameInvalid},
		{http.MethodGet, route{opBlob, "a", someDigest}, nil},
		{http.MethodGet, route{opBlob, "a", "latest"}, errDigestInvalid},
		{http.MethodGet, route{opReferrers, "a", "latest"}, errDigestInvalid},
		{http.MethodGet, route{opManifest, "a", strings.Repeat("a", 128)}, nil},
		{http.MethodGet, route{opManifest, "a", strings.Repeat("a", 129)}, metadata.ErrTagUnknown},
		{http.MethodDelete, route{opManifest, "a", ".a"}, metadata.ErrTagUnknown},
		{http.MethodPut, route{opManifest, "a", ".a"}, errTagInvalid},
		{http.MethodPut, route{opManifest, "a", "_a.b-C"}, nil},
		{http.MethodPut, route{opManifest, "a", "sha256:a"}, errDigestInvalid},
		{http.MethodPut, route{opManifest, "a", "a\nb"}, errTagInvalid},
		{http.MethodPatch, route{opUpload, "a", "0190-ab"}, nil},
		{http.MethodPatch, route{opUpload, "a", "a b"}, metadata.ErrUploadUnknown},
		{http.MethodPatch, route{opUpload, "a", strings.Repeat("a", 65)}, metadata.ErrUploadUnknown},
	} {
		if err := test.route.check(test.method); !errors.Is(err, test.want) {
			t.Errorf("%s %v %q: got %v, want %v", test.method, test.route.operation, test.route.reference, err, test.want)
		}
	}
}

// FuzzSplitPath: whatever is accepted can be put together again, so that no two
// readings of a path are possible.
func FuzzSplitPath(f *testing.F) {
	f.Add("/v2/a/blobs/uploads/manifests/latest")
	f.Add("/v2/a/blobs/uploads/")
	f.Add("/v2/blobs/uploads/blobs/uploads/x")
	f.Add("/v2//tags/list")
	f.Fuzz(func(t *testing.T, path string) {
		r := splitPath(path)
		base := "/v2/" + r.repository
		var whole []string
		switch r.operation {
		case opUnknown:
			return
		case opBase:
			whole = []string{"/v2", "/v2/"}
		case opCatalog:
			whole = []string{"/v2/_catalog"}
		case opTags:
			whole = []string{base + "/tags/list"}
		case opReferrers:
			whole = []string{base + "/referrers/" + r.reference}
		case opBlob:
			whole = []string{base + "/blobs/" + r.reference}
		case opUploads:
			whole = []string{base + "/blobs/uploads", base + "/blobs/uploads/"}
		case opUpload:
			whole = []string{base + "/blobs/uploads/" + r.reference}
		case opManifest:
			whole = []string{base + "/manifests/" + r.reference}
		}
		for _, candidate := range whole {
			if candidate == path {
				_ = r.check(http.MethodPut)
				return
			}
		}
		t.Errorf("%q was read as %v %q %q", path, r.operation, r.repository, r.reference)
	})
}
