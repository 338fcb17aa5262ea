package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/registry"
)

// blobFake is the state of a fake for the workloads on blobs: it knows uploads that are
// finished, ranges, mounts and collection. All its methods run under the fake's lock.
type blobFake struct {
	grace     time.Duration        // after which a blob without a manifest is dropped, 0 for never
	blobs     map[string][]byte    // by REPOSITORY@DIGEST
	touched   map[string]time.Time // when the grace of a blob began
	manifests map[string][]byte    // by REPOSITORY@DIGEST
	tags      map[string]string    // digests by REPOSITORY:TAG
	uploads   map[string]*blobUpload
	random    *rand.Rand
	// flaky is how many of a hundred requests get no telling reply, done or not.
	flaky int
	// calls is how many requests there were; every fakeCalls of them, full is called.
	calls     int
	least     int       // calls before full is called at all
	collected time.Time // when collect looked last
	full      func()
	// tamper, if there is one, serves instead, and may call serve.
	tamper func(b *blobFake, c fakeCall) fakeReply
}

type blobUpload struct {
	content  []byte
	finished string
}

const (
	// fakeCalls is how many requests a workload sends to a fake before its run ends, or some
	// times as many until there was an operation of each kind. It takes fakeTime at most.
	fakeCalls = 400
	fakeTime  = time.Minute
)

// tryOn runs a workload on five nodes with a state until operations of some kinds were
// acknowledged, and returns what it finds.
func tryOn(t *testing.T, b *blobFake, w Workload, kinds ...string) []Anomaly {
	t.Helper()
	b.blobs, b.touched, b.manifests = map[string][]byte{}, map[string]time.Time{}, map[string][]byte{}
	b.tags, b.uploads, b.random = map[string]string{}, map[string]*blobUpload{}, rand.New(rand.NewPCG(1, 2))
	ctx, cancel := context.WithTimeout(t.Context(), fakeTime)
	defer cancel()
	f := newFake(t, 5)
	f.setFault(func(c fakeCall) *fakeReply {
		reply := b.answer(c)
		return &reply
	})
	env := f.env(t)
	missing := func(kind string) bool {
		return !slices.ContainsFunc(env.History.Ops(), func(op history.Op) bool { return op.Kind == kind && op.Outcome == history.OK })
	}
	b.full = func() {
		if !slices.ContainsFunc(kinds, missing) {
			cancel()
		}
	}
	if err := w.Run(ctx, env); err != nil {
		t.Fatal(err)
	}
	anomalies := check(t, w, env)
	for _, kind := range slices.DeleteFunc(slices.Clone(kinds), func(kind string) bool { return !missing(kind) }) {
		t.Errorf("no %s was acknowledged in %s", kind, fakeTime)
	}
	return anomalies
}

func (b *blobFake) answer(c fakeCall) fakeReply {
	if b.calls++; b.calls%fakeCalls == 0 && b.calls >= b.least {
		b.full()
	}
	fate := b.random.IntN(100)
	if fate < b.flaky/3 {
		return *fakeUnavailable()
	}
	serve := b.tamper
	if serve == nil {
		serve = (*blobFake).serve
	}
	reply := serve(b, c)
	switch {
	case fate < 2*b.flaky/3:
		return *fakeUnavailable()
	case fate < b.flaky:
		return fakeReply{} // no reply at all
	}
	return reply
}

// collectEvery is the time between two looks for blobs whose grace is over.
const collectEvery = 20 * time.Millisecond

// collect drops blobs whose grace is over.
func (b *blobFake) collect() {
	if b.grace == 0 || time.Since(b.collected) < collectEvery {
		return
	}
	b.collected = time.Now()
	for key, touched := range b.touched {
		repository, digest, _ := strings.Cut(key, "@")
		if time.Since(touched) < b.grace {
			continue
		}
		if b.refers(repository, digest) {
			continue
		}
		delete(b.blobs, key)
		delete(b.touched, key)
	}
}

func (b *blobFake) refers(repository, digest string) bool {
	for key, manifest := range b.manifests {
		if strings.HasPrefix(key, repository+"@") && bytes.Contains(manifest, []byte(digest)) {
			return true
		}
	}
	return false
}

func (b *blobFake) serve(c fakeCall) fakeReply {
	b.collect()
	path := strings.TrimPrefix(c.url.Path, "/v2/")
	if name, id, found := strings.Cut(path, "/blobs/uploads/"); found {
		if c.method == http.MethodPost {
			return b.begin(c, name)
		}
		return b.upload(c, name, id)
	}
	if name, digest, found := strings.Cut(path, "/blobs/"); found {
		return b.blob(c, name+"@"+digest, digest)
	}
	name, reference, _ := strings.Cut(path, "/manifests/")
	return b.manifest(c, name, reference)
}

func (b *blobFake) store(name, digest string, content []byte) fakeReply {
	if registry.Digest(content) != digest {
		return fakeError(http.StatusBadRequest, codeDigestInvalid, nil)
	}
	b.blobs[name+"@"+digest], b.touched[name+"@"+digest] = content, time.Now()
	return fakeAnswer(http.StatusCreated, nil, "Docker-Content-Digest", digest)
}

func (b *blobFake) begin(c fakeCall, name string) fakeReply {
	query := c.url.Query()
	if query.Has("digest") {
		return b.store(name, query.Get("digest"), c.body)
	}
	if content, found := b.blobs[query.Get("from")+"@"+query.Get("mount")]; found {
		return b.store(name, query.Get("mount"), content)
	}
	id := fmt.Sprintf("u%d", len(b.uploads))
	b.uploads[id] = &blobUpload{}
	return b.at(http.StatusAccepted, name, id)
}

func (b *blobFake) at(status int, name, id string) fakeReply {
	last := max(len(b.uploads[id].content)-1, 0)
	return fakeAnswer(status, nil, "Location", "/v2/"+name+"/blobs/uploads/"+id, "Range", fmt.Sprintf("0-%d", last))
}

func (b *blobFake) upload(c fakeCall, name, id string) fakeReply {
	u := b.uploads[id]
	digest := c.url.Query().Get("digest")
	switch {
	case u != nil && u.finished != "" && c.method == http.MethodPut && u.finished == digest && b.blobs[name+"@"+digest] != nil:
		b.touched[name+"@"+digest] = time.Now()
		return fakeAnswer(http.StatusCreated, nil, "Docker-Content-Digest", digest)
	case u == nil || u.finished != "":
		return fakeError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", nil)
	case c.method == http.MethodGet:
		return b.at(http.StatusNoContent, name, id)
	case c.method == http.MethodDelete:
		b.uploads[id] = nil
		return fakeAnswer(http.StatusNoContent, nil)
	}
	if from, _, ranged := strings.Cut(c.header.Get("Content-Range"), "-"); ranged && from != strconv.Itoa(len(u.content)) {
		reply := b.at(http.StatusRequestedRangeNotSatisfiable, name, id)
		if len(u.content) == 0 {
			reply.header.Del("Range")
		}
		return reply
	}
	content := slices.Concat(u.content, c.body)
	if c.method == http.MethodPatch {
		u.content = content
		return b.at(http.StatusAccepted, name, id)
	}
	reply := b.store(name, digest, content)
	if reply.status == http.StatusCreated {
		u.finished = digest
	} else {
		b.uploads[id] = nil
	}
	return reply
}

func (b *blobFake) blob(c fakeCall, key, digest string) fakeReply {
	content, found := b.blobs[key]
	if !found {
		return fakeError(http.StatusNotFound, "BLOB_UNKNOWN", nil)
	}
	if c.method == http.MethodHead {
		b.touched[key] = time.Now()
	}
	header := []string{"Docker-Content-Digest", digest, "Content-Type", blobType}
	if wanted := c.header.Get("Range"); wanted != "" {
		from, to := 0, len(content)-1
		if _, err := fmt.Sscanf(wanted, "bytes=-%d", &from); err == nil {
			from = len(content) - from
		} else {
			_, _ = fmt.Sscanf(wanted, "bytes=%d-%d", &from, &to) // the end may be missing
		}
		return fakeAnswer(http.StatusPartialContent, content[from:to+1], append(header, "Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(content)))...)
	}
	return fakeAnswer(http.StatusOK, content, header...)
}

func (b *blobFake) manifest(c fakeCall, name, reference string) fakeReply {
	digest, tagged := reference, !strings.Contains(reference, ":")
	if tagged {
		digest = b.tags[name+":"+reference]
	}
	if c.method == http.MethodPut {
		return b.putManifest(c, name, reference, tagged)
	}
	content, found := b.manifests[name+"@"+digest]
	switch {
	case !found:
		return fakeError(http.StatusNotFound, "MANIFEST_UNKNOWN", nil)
	case c.method != http.MethodDelete:
		return fakeAnswer(http.StatusOK, content, "Docker-Content-Digest", digest, "Content-Type", registry.ManifestType)
	case tagged:
		delete(b.tags, name+":"+reference)
	default:
		b.deleteManifest(name, digest)
	}
	return fakeAnswer(http.StatusAccepted, nil)
}

func (b *blobFake) deleteManifest(name, digest string) {
	for key := range b.blobs { // what only it referred to begins its grace
		if repository, blob, _ := strings.Cut(key, "@"); repository == name && bytes.Contains(b.manifests[name+"@"+digest], []byte(blob)) {
			b.touched[key] = time.Now()
		}
	}
	delete(b.manifests, name+"@"+digest)
	for tag, target := range b.tags {
		if target == digest && strings.HasPrefix(tag, name+":") {
			delete(b.tags, tag)
		}
	}
}

func (b *blobFake) putManifest(c fakeCall, name, reference string, tagged bool) fakeReply {
	var manifest struct {
		Config registry.Descriptor
		Layers []registry.Descriptor
	}
	if err := json.Unmarshal(c.body, &manifest); err != nil {
		return fakeError(http.StatusBadRequest, "MANIFEST_INVALID", nil)
	}
	for _, blob := range append(manifest.Layers, manifest.Config) {
		if b.blobs[name+"@"+blob.Digest] == nil {
			return fakeError(http.StatusNotFound, codeBlobUnknown, nil)
		}
	}
	digest := registry.Digest(c.body)
	b.manifests[name+"@"+digest] = c.body
	if tagged {
		b.tags[name+":"+reference] = digest
	}
	return fakeAnswer(http.StatusCreated, nil, "Docker-Content-Digest", digest)
}

// wantNone fails if there are anomalies.
func wantNone(t *testing.T, anomalies []Anomaly) {
	t.Helper()
	for _, a := range anomalies {
		t.Errorf("%s: %s", a.Kind, a.What)
	}
}

// wantKind fails if there is no anomaly of a kind, and of the others.
func wantKind(t *testing.T, anomalies []Anomaly, kinds ...string) {
	t.Helper()
	counts := map[string]int{}
	for _, a := range anomalies {
		counts[a.Kind]++
	}
	for _, kind := range kinds {
		if counts[kind] == 0 {
			t.Errorf("no anomaly is %q: %v", kind, counts)
		}
	}
}

// check takes the last looks of a workload and has it judge, as a run does.
func check(t *testing.T, w Workload, env *Env) []Anomaly {
	t.Helper()
	if err := w.Look(t.Context(), env); err != nil {
		t.Fatal(err)
	}
	anomalies, err := w.Judge(t.Context(), env)
	if err != nil {
		t.Fatal(err)
	}
	return anomalies
}
