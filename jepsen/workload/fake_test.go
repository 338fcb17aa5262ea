package workload

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/registry"
)

// fake is a registry of several nodes in memory, which has one state and does one request
// at a time: linearizable, until a fault is put in.
type fake struct {
	nodes []Node

	mu    sync.Mutex // guards all below, and is held while a fault runs
	state *fakeState
	// fault, if there is one, sees every request first. It returns the reply, or nil for the usual one.
	// It may have requests served by f.state or a clone of it, now or at a later request.
	fault func(c fakeCall) *fakeReply
	calls int
	// after calls as many, full is called once.
	after int
	full  func()
}

// fakeCall is a request, and fakeReply its reply. No reply at all has status 0.
type fakeCall struct {
	node   int // that was asked
	method string
	url    *url.URL
	header http.Header
	body   []byte
}

type fakeReply struct {
	status int
	header http.Header
	body   []byte
}

// newFake starts the nodes n0, n1, ... of a registry without content.
func newFake(t *testing.T, nodes int) *fake {
	t.Helper()
	f := &fake{state: newFakeState()}
	for i := range nodes {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f.serve(i, w, r) }))
		t.Cleanup(server.Close)
		f.nodes = append(f.nodes, Node{Name: fmt.Sprintf("n%d", i), URL: server.URL})
	}
	return f
}

// env returns what a workload needs to run against the fake.
func (f *fake) env(t *testing.T) *Env {
	t.Helper()
	log, err := history.Create(filepath.Join(t.TempDir(), "history.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	client := registry.New((&net.Dialer{}).DialContext)
	t.Cleanup(client.HTTP.CloseIdleConnections)
	nodes := func() []Node { return f.nodes }
	return &Env{Client: client, History: log, Seed: 1, Nodes: nodes, Ready: nodes, Dir: t.TempDir(), Log: t.Logf}
}

// setFault puts a fault in, or takes it out.
func (f *fake) setFault(fault func(c fakeCall) *fakeReply) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

func (f *fake) serve(node int, w http.ResponseWriter, r *http.Request) {
	var body bytes.Buffer
	body.Grow(int(max(r.ContentLength, 0)) + bytes.MinRead)
	if _, err := body.ReadFrom(r.Body); err != nil {
		return
	}
	reply := f.answer(fakeCall{node: node, method: r.Method, url: r.URL, header: r.Header.Clone(), body: body.Bytes()})
	if reply.status == 0 {
		panic(http.ErrAbortHandler)
	}
	maps.Copy(w.Header(), reply.header)
	w.Header().Set("Content-Length", strconv.Itoa(len(reply.body)))
	w.WriteHeader(reply.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(reply.body)
	}
}

func (f *fake) answer(c fakeCall) fakeReply {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls++; f.calls == f.after {
		f.full()
	}
	if f.fault != nil {
		if reply := f.fault(c); reply != nil {
			return *reply
		}
	}
	return f.state.serve(c)
}

// fakeState is what a registry knows.
type fakeState struct {
	repositories map[string]*fakeRepository
	uploads      map[string]fakeUpload // by id
	begun        int                   // uploads so far
}

type fakeRepository struct {
	blobs     map[string][]byte
	manifests map[string][]byte // by digest
	tags      map[string]string // digests
}

type fakeUpload struct {
	repository string
	content    []byte
}

func newFakeState() *fakeState {
	return &fakeState{repositories: map[string]*fakeRepository{}, uploads: map[string]fakeUpload{}}
}

// clone returns a state that changes no more with this one.
func (s *fakeState) clone() *fakeState {
	other := &fakeState{repositories: map[string]*fakeRepository{}, uploads: maps.Clone(s.uploads), begun: s.begun}
	for name, r := range s.repositories {
		other.repositories[name] = &fakeRepository{blobs: maps.Clone(r.blobs), manifests: maps.Clone(r.manifests), tags: maps.Clone(r.tags)}
	}
	return other
}

// repository returns a repository, which is made if it is not there.
func (s *fakeState) repository(name string) *fakeRepository {
	r := s.repositories[name]
	if r == nil {
		r = &fakeRepository{blobs: map[string][]byte{}, manifests: map[string][]byte{}, tags: map[string]string{}}
		s.repositories[name] = r
	}
	return r
}

// serve does one request.
func (s *fakeState) serve(c fakeCall) fakeReply {
	path := strings.TrimPrefix(c.url.Path, "/v2/")
	if path == "_catalog" {
		return fakePage(c, "repositories", slices.Sorted(maps.Keys(s.repositories)))
	}
	if name, found := strings.CutSuffix(path, "/tags/list"); found {
		if r := s.repositories[name]; r != nil {
			return fakePage(c, "tags", slices.Sorted(maps.Keys(r.tags)))
		}
		return fakeError(http.StatusNotFound, "NAME_UNKNOWN", nil)
	}
	if name, id, found := strings.Cut(path, "/blobs/uploads/"); found {
		return s.serveUpload(c, name, id)
	}
	if name, digest, found := strings.Cut(path, "/blobs/"); found {
		return s.serveBlob(c, name, digest)
	}
	if name, reference, found := strings.Cut(path, "/manifests/"); found {
		return s.serveManifest(c, name, reference)
	}
	return fakeError(http.StatusNotFound, "UNSUPPORTED", nil)
}

func (s *fakeState) serveUpload(c fakeCall, name, id string) fakeReply {
	if c.method == http.MethodPost {
		return s.beginUpload(c, name)
	}
	upload, found := s.uploads[id]
	if !found || upload.repository != name {
		return fakeError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", nil)
	}
	path := "/v2/" + name + "/blobs/uploads/" + id
	at := func(size int) []string {
		return []string{"Location", path, "Range", fmt.Sprintf("0-%d", max(size-1, 0)), "Docker-Upload-UUID", id}
	}
	switch c.method {
	case http.MethodGet, http.MethodHead:
		return fakeAnswer(http.StatusNoContent, nil, at(len(upload.content))...)
	case http.MethodDelete:
		delete(s.uploads, id)
		return fakeAnswer(http.StatusNoContent, nil)
	case http.MethodPatch, http.MethodPut:
		if from, _, found := strings.Cut(c.header.Get("Content-Range"), "-"); found && strings.TrimPrefix(from, "bytes ") != strconv.Itoa(len(upload.content)) {
			return fakeAnswer(http.StatusRequestedRangeNotSatisfiable, nil, at(len(upload.content))...)
		}
		upload.content = slices.Concat(upload.content, c.body)
		if c.method == http.MethodPatch {
			s.uploads[id] = upload
			return fakeAnswer(http.StatusAccepted, nil, at(len(upload.content))...)
		}
		delete(s.uploads, id)
		return s.storeBlob(name, c.url.Query().Get("digest"), upload.content)
	}
	return fakeError(http.StatusMethodNotAllowed, "UNSUPPORTED", nil)
}

func (s *fakeState) beginUpload(c fakeCall, name string) fakeReply {
	query := c.url.Query()
	if query.Has("digest") {
		return s.storeBlob(name, query.Get("digest"), c.body)
	}
	if from := s.repositories[query.Get("from")]; from != nil {
		if content, found := from.blobs[query.Get("mount")]; found {
			return s.storeBlob(name, query.Get("mount"), content)
		}
	}
	s.begun++
	id := fmt.Sprintf("upload-%d", s.begun)
	s.uploads[id] = fakeUpload{repository: name}
	return fakeAnswer(http.StatusAccepted, nil, "Location", "/v2/"+name+"/blobs/uploads/"+id, "Range", "0-0", "Docker-Upload-UUID", id)
}

func (s *fakeState) storeBlob(name, digest string, content []byte) fakeReply {
	if digest != registry.Digest(content) {
		return fakeError(http.StatusBadRequest, "DIGEST_INVALID", nil)
	}
	s.repository(name).blobs[digest] = content
	return fakeAnswer(http.StatusCreated, nil, "Location", "/v2/"+name+"/blobs/"+digest, "Docker-Content-Digest", digest)
}

func (s *fakeState) serveBlob(c fakeCall, name, digest string) fakeReply {
	r := s.repositories[name]
	if r == nil {
		return fakeError(http.StatusNotFound, "NAME_UNKNOWN", nil)
	}
	content, found := r.blobs[digest]
	switch {
	case !found:
		return fakeError(http.StatusNotFound, "BLOB_UNKNOWN", nil)
	case c.method == http.MethodDelete:
		delete(r.blobs, digest)
		return fakeAnswer(http.StatusAccepted, nil)
	}
	return fakeAnswer(http.StatusOK, content, "Content-Type", "application/octet-stream", "Docker-Content-Digest", digest, "ETag", `"`+digest+`"`)
}

func (s *fakeState) serveManifest(c fakeCall, name, reference string) fakeReply {
	if c.method == http.MethodPut {
		return s.putManifest(c, name, reference)
	}
	r := s.repositories[name]
	if r == nil {
		return fakeError(http.StatusNotFound, "NAME_UNKNOWN", nil)
	}
	digest, tagged := reference, !strings.Contains(reference, ":")
	if tagged {
		digest = r.tags[reference]
	}
	content, found := r.manifests[digest]
	switch {
	case !found:
		return fakeError(http.StatusNotFound, "MANIFEST_UNKNOWN", nil)
	case c.method != http.MethodDelete:
		return fakeAnswer(http.StatusOK, content, "Content-Type", registry.ManifestType, "Docker-Content-Digest", digest, "ETag", `"`+digest+`"`)
	case tagged:
		delete(r.tags, reference)
	default:
		delete(r.manifests, digest)
		maps.DeleteFunc(r.tags, func(_, target string) bool { return target == digest })
	}
	return fakeAnswer(http.StatusAccepted, nil)
}

func (s *fakeState) putManifest(c fakeCall, name, reference string) fakeReply {
	var manifest struct {
		Config *registry.Descriptor
		Layers []registry.Descriptor
	}
	if err := json.Unmarshal(c.body, &manifest); err != nil {
		return fakeError(http.StatusBadRequest, "MANIFEST_INVALID", nil)
	}
	needed := manifest.Layers
	if manifest.Config != nil {
		needed = append(needed, *manifest.Config)
	}
	for _, blob := range needed {
		r := s.repositories[name]
		if r == nil || r.blobs[blob.Digest] == nil {
			return fakeError(http.StatusNotFound, "MANIFEST_BLOB_UNKNOWN", map[string]string{"digest": blob.Digest})
		}
	}
	digest, tags := registry.Digest(c.body), []string{reference}
	if strings.Contains(reference, ":") {
		if tags = c.url.Query()["tag"]; reference != digest {
			return fakeError(http.StatusBadRequest, "DIGEST_INVALID", nil)
		}
	}
	r := s.repository(name)
	for _, tag := range tags {
		if !fakeHolds(c.header, r.tags[tag]) {
			return fakeError(http.StatusPreconditionFailed, "DENIED", map[string]string{"digest": r.tags[tag], "tag": tag})
		}
	}
	r.manifests[digest] = c.body
	for _, tag := range tags {
		r.tags[tag] = digest
	}
	return fakeAnswer(http.StatusCreated, nil, "Location", "/v2/"+name+"/manifests/"+digest, "Docker-Content-Digest", digest)
}

// fakeHolds says whether the conditions hold of a tag that has the digest, "" for none.
func fakeHolds(header http.Header, digest string) bool {
	if header.Get("If-None-Match") == "*" && digest != "" {
		return false
	}
	match := header.Get("If-Match")
	return match == "" || match == "*" && digest != "" || match == `"`+digest+`"`
}

func fakePage(c fakeCall, field string, names []string) fakeReply {
	query := c.url.Query()
	after, _ := slices.BinarySearch(names, query.Get("last")+"\x00")
	names = append([]string{}, names[after:]...)
	var header []string
	if n, err := strconv.Atoi(query.Get("n")); err == nil && n > 0 && n < len(names) {
		names = names[:n]
		next := url.Values{"n": {strconv.Itoa(n)}, "last": {names[n-1]}}
		header = []string{"Link", "<" + c.url.Path + "?" + next.Encode() + `>; rel="next"`}
	}
	encoded, err := json.Marshal(map[string]any{field: names})
	if err != nil {
		panic(err) // strings can be encoded
	}
	return fakeAnswer(http.StatusOK, encoded, header...)
}

func fakeError(status int, code string, detail any) fakeReply {
	encoded, err := json.Marshal(map[string]any{"errors": []any{map[string]any{"code": code, "message": code, "detail": detail}}})
	if err != nil {
		panic(err) // what the callers give can be encoded
	}
	return fakeAnswer(status, encoded, "Content-Type", "application/json")
}

// fakeUnavailable is what a node without a quorum says.
func fakeUnavailable() *fakeReply {
	reply := fakeError(http.StatusServiceUnavailable, "UNAVAILABLE", nil)
	reply.header.Set("Retry-After", "1")
	return &reply
}

func fakeAnswer(status int, body []byte, header ...string) fakeReply {
	reply := fakeReply{status: status, header: http.Header{}, body: body}
	for i := 0; i+1 < len(header); i += 2 {
		reply.header.Set(header[i], header[i+1])
	}
	return reply
}
