package gateway

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// TestRequiredIndexChildren: with the switch, an index comes after what it lists,
// at every level. Children that are no manifests are blobs in any case.
func TestRequiredIndexChildren(t *testing.T) {
	r := newRegistry(t, Config{RequireIndexChildren: true})
	put := func(status int, content string) (digest, reply string) {
		t.Helper()
		response := r.want(status, http.MethodPut, "/v2/a/manifests/latest", strings.NewReader(content), "Content-Type", ociIndexType)
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return digestOf(sha256Algorithm, []byte(content)), string(text)
	}
	list := func(descriptors ...string) string {
		return `{"schemaVersion":2,"manifests":[` + strings.Join(descriptors, ",") + `]}`
	}
	child := digestOf(sha256Algorithm, []byte(list()))
	index := list(descriptorJSON(ociIndexType, child), descriptorJSON(ociManifestType, digestA))
	_, reply := put(http.StatusNotFound, index)
	if strings.Count(reply, codeManifestBlobUnknown) != 2 || !strings.Contains(reply, child) || !strings.Contains(reply, digestA) {
		t.Errorf("got %s", reply)
	}
	put(http.StatusCreated, list())
	_, reply = put(http.StatusNotFound, index)
	if strings.Contains(reply, child) || !strings.Contains(reply, digestA) {
		t.Errorf("got %s", reply)
	}
	inner, _ := put(http.StatusCreated, list(descriptorJSON(dockerListType, child)))
	put(http.StatusCreated, list(descriptorJSON(ociIndexType, inner), descriptorJSON(ociIndexType, child)))

	blob := r.push("a", "a cache entry")
	put(http.StatusCreated, list(descriptorJSON("application/vnd.buildkit.cacheconfig.v0", blob)))
	put(http.StatusNotFound, list(descriptorJSON(ociManifestType, blob)))
	put(http.StatusNotFound, list(descriptorJSON("application/vnd.buildkit.cacheconfig.v0", child)))
	// The subject may still be missing.
	put(http.StatusCreated, indexJSON(`,"subject":`+descriptorJSON("x", digestA)))
}

// TestTagsAtOnce: as many tags as are allowed move in one step, and are all told;
// one more moves none.
func TestTagsAtOnce(t *testing.T) {
	r := newRegistry(t, Config{})
	content := indexJSON("")
	path := "/v2/a/manifests/" + digestOf(sha256Algorithm, []byte(content))
	var tags []string
	for i := range maxTagsAtOnce {
		tags = append(tags, fmt.Sprintf("tag-%02d", i))
	}
	query := url.Values{"tag": append(slices.Clone(tags), "one-more")}
	r.want(http.StatusRequestURITooLong, http.MethodPut, path+"?"+query.Encode(), strings.NewReader(content), "Content-Type", ociIndexType)
	r.want(http.StatusNotFound, http.MethodGet, "/v2/a/tags/list", nil)
	query["tag"] = tags
	response := r.want(http.StatusCreated, http.MethodPut, path+"?"+query.Encode(), strings.NewReader(content), "Content-Type", ociIndexType)
	if got := response.Header.Values("OCI-Tag"); !slices.Equal(got, tags) {
		t.Errorf("OCI-Tag: %v", got)
	}
	for _, tag := range tags {
		r.want(http.StatusOK, http.MethodHead, "/v2/a/manifests/"+tag, nil)
	}
}

// TestLargestManifest: 4 MiB are allowed, with and without a length in advance, and
// come back as they were; a byte more is refused.
func TestLargestManifest(t *testing.T) {
	r := newRegistry(t, Config{})
	filler := MaxManifestBytes - len(indexJSON(`,"filler":""`))
	for extra, want := range map[int]int{0: http.StatusCreated, 1: http.StatusRequestEntityTooLarge} {
		content := indexJSON(`,"filler":"` + strings.Repeat("x", filler+extra) + `"`)
		for name, body := range map[string]io.Reader{"length": strings.NewReader(content), "chunked": io.MultiReader(strings.NewReader(content))} {
			response := r.want(want, http.MethodPut, "/v2/a/manifests/"+name, body, "Content-Type", ociIndexType)
			if want != http.StatusCreated {
				if text, err := io.ReadAll(response.Body); err != nil || !strings.Contains(string(text), codeSizeInvalid) {
					t.Errorf("got %s, %v", text, err)
				}
				continue
			}
			response = r.want(http.StatusOK, http.MethodGet, "/v2/a/manifests/"+name, nil)
			if got, err := io.ReadAll(response.Body); err != nil || string(got) != content {
				t.Errorf("%s: %d bytes came back, %v", name, len(got), err)
			}
		}
	}
}
