package gateway

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// FuzzRequests: whatever clients send, one request after the other, every reply is
// one, none is the gateway's own fault, and nothing is kept under a digest that is
// not its own.
//
// Requests are separated by NUL. Each has a first line METHOD TARGET, headers, an
// empty line and a body. In its header @D stands for the digest of its body, @P for
// that of the request before, @L for the Location answered last.
func FuzzRequests(f *testing.F) {
	const start, octets = "POST /v2/a/blobs/uploads/\n\n\x00", "Content-Type: application/octet-stream\n"
	config := "POST /v2/a/blobs/uploads/?digest=@D\n\n{}\x00"
	image := `{"schemaVersion":2,"mediaType":"` + ociManifestType + `","config":{"mediaType":"a/b","digest":"` +
		digestOf(sha256Algorithm, []byte("{}")) + `","size":2},"layers":[]`
	subject := `,"subject":{"mediaType":"` + ociManifestType + `","digest":"` + digestOf(sha256Algorithm, []byte(image+"}")) + `","size":9}}`
	push := func(reference, header, content string) string {
		return "PUT /v2/a/manifests/" + reference + "\nContent-Type: " + ociManifestType + "\n" + header + "\n" + content + "\x00"
	}
	f.Add(start + "PATCH @L\n" + octets + "\nsome bytes\x00PUT @L?digest=@P\n\n\x00GET @L\nRange: bytes=2-4\n\n\x00GET @L\nRange: bytes=0-1,4-5\n\n\x00")
	f.Add(start + "PATCH @L\nContent-Range: 0-3\n\nsome\x00PATCH @L\nContent-Range: 4-5\nTransfer-Encoding: chunked\n\nby\x00GET @L\n\n\x00DELETE @L\n\n")
	f.Add(start + "PUT @L?digest=@D\nContent-Range: 0-3\n\nsome\x00DELETE @L\n\n\x00POST /v2/b/blobs/uploads/?mount=@P&from=a\n\n")
	f.Add(config + "HEAD @L\nIf-None-Match: \"@P\"\n\n\x00POST /v2/b/blobs/uploads/?mount=@P\n\n\x00GET /v2/_catalog?n=1&last=a\n\n")
	f.Add(config + push("t", "If-None-Match: *\n", image+"}") + push("@D?tag=u&tag=v", "", image+subject) +
		"GET /v2/a/manifests/t\n\n\x00GET /v2/a/tags/list?n=2\n\n\x00GET /v2/a/referrers/@P?artifactType=a/b\n\n\x00DELETE /v2/a/manifests/u\nIf-Match: \"@P\"\n\n")
	f.Add(config + push("t", "Content-Length: 9999\n", image+"}") + "GET /v2/a/manifests/t\nForwarded: for=\"[::1]\";host=b\nAccept: */*\n\n")
	f.Fuzz(func(t *testing.T, input string) {
		requests := strings.Split(input, "\x00")
		if len(requests) > 20 {
			return
		}
		records, blobs := newMemoryMetadata(), newMemoryBlobs()
		blobs.extentBytes = 8
		s := fuzzedServer{t: t, handler: New(Config{Logger: zerolog.Nop()}, records, blobs)}
		for _, text := range requests {
			s.serve(text)
		}
		checkDigests(t, records, blobs)
	})
}

// fuzzedServer hands requests to a gateway as net/http does.
type fuzzedServer struct {
	t       *testing.T
	handler http.Handler
	// last is the digest of the body sent last, location the Location answered last.
	last, location string
}

func (s *fuzzedServer) serve(text string) {
	r := s.request(text)
	if r == nil {
		return
	}
	w := httptest.NewRecorder()
	cut := s.run(w, r)
	if location := w.Header().Get("Location"); location != "" {
		s.location = location
	}
	what := r.Method + " " + r.RequestURI
	body := w.Body.Bytes()
	switch {
	case w.Code >= http.StatusInternalServerError:
		s.t.Errorf("%s: %d %s", what, w.Code, body)
	case cut:
		s.t.Errorf("%s: the connection was cut", what)
	case r.Method == http.MethodHead && len(body) > 0:
		s.t.Errorf("%s: a body of %d bytes", what, len(body))
	case w.Code >= http.StatusBadRequest && r.Method != http.MethodHead:
		s.checkError(what, w.Header(), body)
	}
	if length := w.Header().Get("Content-Length"); length != "" && r.Method != http.MethodHead && length != strconv.Itoa(len(body)) {
		s.t.Errorf("%s: Content-Length %s of %d bytes", what, length, len(body))
	}
	if digest := w.Header().Get("Docker-Content-Digest"); r.Method == http.MethodGet && w.Code == http.StatusOK && digest != "" {
		if algorithm, _, _ := splitDigest(digest); digestOf(algorithm, body) != digest {
			s.t.Errorf("%s: other bytes than those of %s", what, digest)
		}
	}
}

// run says whether the handler has cut the connection.
func (s *fuzzedServer) run(w http.ResponseWriter, r *http.Request) (cut bool) {
	defer func() {
		if value := recover(); value != nil {
			if err, ok := value.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				panic(value)
			}
			cut = true
		}
	}()
	s.handler.ServeHTTP(w, r)
	return false
}

func (s *fuzzedServer) checkError(what string, header http.Header, body []byte) {
	var failure errorsBody
	if err := json.Unmarshal(body, &failure); err != nil || len(failure.Errors) == 0 || header.Get("Content-Type") != "application/json" {
		s.t.Errorf("%s: no errors in %q: %v", what, body, err)
	}
	for _, entry := range failure.Errors {
		if entry.Code == "" || entry.Message == "" {
			s.t.Errorf("%s: an error says nothing: %s", what, body)
		}
	}
}

// request reads a request; nil for what net/http does not let through.
func (s *fuzzedServer) request(text string) *http.Request {
	head, body, _ := strings.Cut(text, "\n\n")
	digest := digestOf(sha256Algorithm, []byte(body))
	head = strings.NewReplacer("@D", digest, "@P", s.last, "@L", s.location).Replace(head)
	lines := strings.Split(head, "\n")
	method, target, ok := strings.Cut(lines[0], " ")
	parsed, err := url.ParseRequestURI(target)
	if !ok || err != nil || strings.ContainsFunc(method+target, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return nil
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Method, r.URL, r.RequestURI, r.ContentLength = method, parsed, target, int64(len(body))
	for _, line := range lines[1:] {
		name, value, ok := strings.Cut(line, ": ")
		if !ok || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
			return nil
		}
		r.Header.Add(name, value)
	}
	switch announced, err := strconv.Atoi(r.Header.Get("Content-Length")); {
	case r.Header.Get("Transfer-Encoding") != "":
		r.ContentLength, r.TransferEncoding = -1, []string{"chunked"}
		r.Body = io.NopCloser(strings.NewReader(body))
	case err == nil && announced > len(body):
		r.ContentLength = int64(announced)
		r.Body = io.NopCloser(io.MultiReader(strings.NewReader(body), failingReader{io.ErrUnexpectedEOF}))
	case body == "":
		r.Body = http.NoBody
	default:
		r.Body = io.NopCloser(strings.NewReader(body))
	}
	if body != "" {
		s.last = digest
	}
	return r
}

// checkDigests checks that all that is kept has its digest, and all that is named
// is there.
func checkDigests(t *testing.T, records *memoryMetadata, blobs *memoryBlobs) {
	t.Helper()
	check := func(digest string, content []byte) {
		if algorithm, _, ok := splitDigest(digest); !ok || digestOf(algorithm, content) != digest {
			t.Errorf("%d other bytes are kept as %q", len(content), digest)
		}
	}
	for digest, blob := range records.blobs {
		content := []byte{}
		for _, extent := range blob.Extents {
			content = append(content, blobs.extents[string(extent.Id)]...)
		}
		check(digest, content)
	}
	for name, repository := range records.repositories {
		for digest, manifest := range repository.manifests {
			if !manifest.StoredAsBlob {
				check(digest, manifest.Content)
			}
		}
		for tag, digest := range repository.tags {
			if repository.manifests[digest] == nil {
				t.Errorf("tag %s of %s names %s, which is not there", tag, name, digest)
			}
		}
	}
}
