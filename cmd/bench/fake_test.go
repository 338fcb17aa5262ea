package bench

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeRegistry is as much of a registry as workloads need, in memory.
type fakeRegistry struct {
	t *testing.T
	// before sees each request first, and answers it itself if it returns true. Set it before use.
	before func(w http.ResponseWriter, r *http.Request) bool

	mu      sync.Mutex
	blobs   map[string][]byte
	uploads map[string][]byte
	tags    map[string]string
	// seen are all requests, as METHOD and the kind of what they were for.
	seen []string
}

// newFake starts as many nodes of one registry and returns their URLs.
func newFake(t *testing.T, nodes int) (*fakeRegistry, []string) {
	t.Helper()
	f := &fakeRegistry{t: t, blobs: map[string][]byte{}, uploads: map[string][]byte{}, tags: map[string]string{}}
	var urls []string
	for range nodes {
		server := httptest.NewServer(f)
		t.Cleanup(server.Close)
		urls = append(urls, server.URL)
	}
	return f, urls
}

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.before != nil && f.before(w, r) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Errorf("%s %s: %v", r.Method, r.URL, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	part := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	switch {
	case r.URL.Path == "/v2/":
	case strings.Contains(r.URL.Path, "/blobs/uploads/"):
		f.upload(w, r, part, body)
	case strings.Contains(r.URL.Path, "/blobs/"):
		f.note(r.Method + " blob")
		content, found := f.blobs[part]
		if !found {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(content)))
	case strings.Contains(r.URL.Path, "/manifests/"):
		f.manifest(w, r, part, body)
	case part == "list":
		f.list(w, r)
	default:
		w.WriteHeader(http.StatusBadRequest)
	}
}

func (f *fakeRegistry) note(what string) { f.seen = append(f.seen, what) }

// counts is how often each kind of request came.
func (f *fakeRegistry) counts() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	counts := map[string]int{}
	for _, what := range f.seen {
		counts[what]++
	}
	return counts
}

func (f *fakeRegistry) upload(w http.ResponseWriter, r *http.Request, id string, body []byte) {
	f.note(r.Method + " upload")
	if r.Method == http.MethodPost {
		id = "u" + strconv.Itoa(len(f.seen))
	} else if got := r.Header.Get("Content-Range"); got != "" {
		if want := fmt.Sprintf("%d-%d", len(f.uploads[id]), len(f.uploads[id])+len(body)-1); got != want {
			f.t.Errorf("Content-Range is %q, want %q", got, want)
		}
	}
	content := append(f.uploads[id], body...)
	f.uploads[id] = content
	if r.Method != http.MethodPut {
		// Relative and with a query, which both happens.
		w.Header().Set("Location", r.URL.Path[:strings.Index(r.URL.Path, "/blobs/")]+"/blobs/uploads/"+id+"?state=a%2Fb")
		w.WriteHeader(http.StatusAccepted)
		return
	}
	sum := sha256.Sum256(content)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	if r.URL.Query().Get("digest") != digest || r.URL.Query().Get("state") != "a/b" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if _, known := f.blobs[digest]; known {
		f.t.Errorf("%s is pushed twice", digest)
	}
	f.blobs[digest] = content
	delete(f.uploads, id)
	w.WriteHeader(http.StatusCreated)
}

func (f *fakeRegistry) manifest(w http.ResponseWriter, r *http.Request, tag string, body []byte) {
	f.note(r.Method + " manifest")
	if r.Method == http.MethodPut {
		if f.tags[tag] == string(body) {
			f.t.Errorf("tag %s is put to what it is already", tag)
		}
		f.tags[tag] = string(body)
		w.WriteHeader(http.StatusCreated)
		return
	}
	manifest, found := f.tags[tag]
	if !found {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	_, _ = io.WriteString(w, manifest)
}

// list has pages of three.
func (f *fakeRegistry) list(w http.ResponseWriter, r *http.Request) {
	f.note("GET list")
	var names []string
	for name := range f.tags {
		if name > r.URL.Query().Get("last") {
			names = append(names, strconv.Quote(name))
		}
	}
	slices.Sort(names)
	if len(names) > 3 {
		names = names[:3]
		w.Header().Set("Link", fmt.Sprintf(`<%s?last=%s>; rel="next"`, r.URL.Path, strings.Trim(names[2], `"`)))
	}
	_, _ = fmt.Fprintf(w, `{"name":"x","tags":[%s]}`, strings.Join(names, ","))
}
