package workload

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/registry"
)

// setUpPause is between two tries to set a repository up.
const setUpPause = 500 * time.Millisecond

// repository is one that a workload pushes manifests to. All of them have its config.
type repository struct {
	name   string
	config []byte
	found  *findings
	// layered says that manifests have layers as well, which may be missing.
	layered bool
}

func newRepository(name string, found *findings) *repository {
	return &repository{name: name, config: []byte(`{"repository":"` + name + `"}`), found: found}
}

// path returns a path of the repository: of manifests or blobs, and a digest or tag.
func (r *repository) path(kind, reference string) string {
	return "/v2/" + r.name + "/" + kind + "/" + reference
}

// manifest returns a manifest of the repository, and its digest. Other notes have other digests.
func (r *repository) manifest(note string, layers ...registry.Descriptor) (content []byte, digest string) {
	content = registry.Manifest(registry.Describe(registry.ConfigType, r.config), layers, note)
	return content, registry.Digest(content)
}

// setUp prepares the repository, however often it takes, until ctx ends. It is no part of the history.
func (r *repository) setUp(ctx context.Context, env *Env) error {
	s := &Session{Env: env, Workload: r.found.workload, Rand: env.Rand(r.found.workload+" set-up", 0), Balanced: true}
	for {
		var op history.Op
		if r.pushBlob(ctx, s, &op, r.config) && r.anchor(ctx, s) {
			return nil
		}
		if !s.Pause(ctx, setUpPause) {
			return fmt.Errorf("set up repository %s: status %d: %s: %w", r.name, op.Status, op.Error, ctx.Err())
		}
	}
}

// anchor pushes a manifest without a tag, which keeps the config from being collected: it must
// not be missing for any manifest afterwards.
func (r *repository) anchor(ctx context.Context, s *Session) bool {
	content, digest := r.manifest("anchor")
	var op history.Op
	reply, err := s.Do(ctx, &op, http.MethodPut, r.path("manifests", digest), content, "Content-Type", registry.ManifestType)
	return err == nil && reply.Status == http.StatusCreated
}

// pushBlob pushes a blob in one request, and says whether it was acknowledged.
func (r *repository) pushBlob(ctx context.Context, s *Session, op *history.Op, content []byte) bool {
	path := r.path("blobs", "uploads/") + "?" + url.Values{"digest": {registry.Digest(content)}}.Encode()
	reply, err := s.Do(ctx, op, http.MethodPost, path, content, "Content-Type", "application/octet-stream")
	op.Outcome = registry.OutcomeOfWrite(reply, err)
	r.judgeRefusal(op, reply, err)
	if wrong := checkCreated(reply, registry.Digest(content)); wrong != "" {
		r.found.add(WrongBytes, "%s: POST of a blob: %s (%s, %s)", r.name, wrong, op.Node, seconds(op.Return))
	}
	return op.Outcome == history.OK
}

// put pushes a manifest under a reference, which may have a query. Header may have a
// condition: that it does not hold is an OK as well, with was and what was there as op's Output.
func (r *repository) put(ctx context.Context, s *Session, op *history.Op, reference string, content []byte, header ...string) {
	header = append([]string{"Content-Type", registry.ManifestType}, header...)
	reply, err := s.Do(ctx, op, http.MethodPut, r.path("manifests", reference), content, header...)
	op.Outcome = registry.OutcomeOfWrite(reply, err)
	switch {
	case op.Outcome == history.OK:
		op.Output = done
		if wrong := checkCreated(reply, registry.Digest(content)); wrong != "" {
			r.found.add(WrongBytes, "%s: PUT of a manifest: %s (%s, %s)", r.name, wrong, op.Node, seconds(op.Return))
		}
	case op.Outcome == history.Fail && reply != nil && reply.Status == http.StatusPreconditionFailed && len(header) > 2:
		op.Outcome, op.Output = history.OK, was+foundDigest(reply.Body)
	case op.Outcome == history.Fail && reply != nil && reply.Status == http.StatusNotFound && strings.Contains(string(reply.Body), registry.Digest(r.config)):
		r.found.add(Lost, "%s: the config, acknowledged and in use, is missing for a manifest: %s (%s, %s)", r.name, op.Error, op.Node, seconds(op.Return))
	case op.Outcome == history.Fail && reply != nil && reply.Status == http.StatusNotFound && r.layered && hasCode(reply, codeBlobUnknown):
		// A layer may have been collected before anything needed it. Whoever has pushed it knows when.
		op.Output = codeBlobUnknown
	default:
		r.judgeRefusal(op, reply, err)
	}
}

// remove deletes a tag. That there is none is an OK as well.
func (r *repository) remove(ctx context.Context, s *Session, op *history.Op, tag string) {
	reply, err := s.Do(ctx, op, http.MethodDelete, r.path("manifests", tag), nil)
	op.Outcome = registry.OutcomeOfWrite(reply, err)
	switch {
	case op.Outcome == history.OK:
		op.Output = done
	case op.Outcome == history.Fail && reply != nil && r.isAbsence(op, reply):
		op.Outcome, op.Output = history.OK, absent
	default:
		r.judgeRefusal(op, reply, err)
	}
}

// read asks for a manifest by GET or HEAD. A reply that tells something is OK, with the digest
// or absent as op's Output.
func (r *repository) read(ctx context.Context, s *Session, op *history.Op, method, reference string) *registry.Reply {
	reply, err := s.Do(ctx, op, method, r.path("manifests", reference), nil)
	op.Outcome = history.Unknown
	switch {
	case err != nil:
	case reply.Status == http.StatusOK:
		if r.checkContent(op, method, reply, registry.ManifestType) {
			op.Outcome, op.Output = history.OK, reply.Header.Get("Docker-Content-Digest")
		}
	case method == http.MethodHead && reply.Status == http.StatusNotFound, r.isAbsence(op, reply):
		op.Outcome, op.Output = history.OK, absent
	default:
		r.judgeRefusal(op, reply, err)
	}
	return reply
}

// checkContent says whether the reply to a GET or HEAD has the bytes of the digest that it
// names, and says so of them. If not, it is an anomaly.
func (r *repository) checkContent(op *history.Op, method string, reply *registry.Reply, mediaType string) bool {
	digest := reply.Header.Get("Docker-Content-Digest")
	size, err := strconv.Atoi(reply.Header.Get("Content-Length"))
	etag := reply.Header.Get("ETag")
	wrong := ""
	switch {
	case digest == "":
		wrong = "has no Docker-Content-Digest"
	case etag != `"`+digest+`"`:
		wrong = fmt.Sprintf("has the ETag %s", etag)
	case method == http.MethodGet && registry.Digest(reply.Body) != digest:
		wrong = "has bytes with the digest " + registry.Digest(reply.Body)
	case err != nil || size == 0 || method == http.MethodGet && size != len(reply.Body):
		wrong = fmt.Sprintf("has the Content-Length %q", reply.Header.Get("Content-Length"))
	case reply.Header.Get("Content-Type") != mediaType:
		wrong = fmt.Sprintf("has the Content-Type %q", reply.Header.Get("Content-Type"))
	default:
		return true
	}
	r.found.add(WrongBytes, "%s: %s %s: the reply with digest %q %s (%s, %s)", r.name, op.Kind, op.Key, digest, wrong, op.Node, seconds(op.Return))
	return false
}

// isAbsence says whether a reply is that there is no such tag or manifest. That the repository is
// not there says so too, but is an anomaly: it was set up before.
func (r *repository) isAbsence(op *history.Op, reply *registry.Reply) bool {
	if reply.Status != http.StatusNotFound {
		return false
	}
	switch code, _ := errorOf(reply.Body); code {
	case "MANIFEST_UNKNOWN":
		return true
	case "NAME_UNKNOWN":
		r.found.add(Lost, "%s: the repository, acknowledged before, is unknown (%s, %s)", r.name, op.Node, seconds(op.Return))
		return true
	}
	return false
}

// judgeRefusal adds an anomaly if a reply refuses a request that has nothing wrong: with
// a 4xx that does not say that it is too many.
func (r *repository) judgeRefusal(op *history.Op, reply *registry.Reply, err error) {
	if err != nil || reply.Status < 400 || reply.Status >= 500 {
		return
	}
	switch reply.Status {
	case http.StatusTooManyRequests:
		op.Outcome = history.Fail
	case http.StatusRequestTimeout: // the network may have held the request up
	default:
		r.found.add(Refused, "%s: %s %s %s was answered %d: %s (%s, %s)", r.name, op.Kind, op.Key, op.Input, reply.Status, op.Error, op.Node, seconds(op.Return))
	}
}

// errorOf returns the code of the first error in a body, and its detail.
func errorOf(body []byte) (code string, detail json.RawMessage) {
	var told struct {
		Errors []struct {
			Code   string          `json:"code"`
			Detail json.RawMessage `json:"detail"`
		} `json:"errors"`
	}
	if err := json.Unmarshal(body, &told); err != nil || len(told.Errors) == 0 {
		return "", nil
	}
	return told.Errors[0].Code, told.Errors[0].Detail
}

// foundDigest returns what a failed precondition says that a tag is: a digest or absent; notTold
// if it does not say.
func foundDigest(body []byte) string {
	var found struct {
		Digest *string `json:"digest"`
	}
	_, detail := errorOf(body)
	if err := json.Unmarshal(detail, &found); err != nil || found.Digest == nil {
		return notTold
	}
	if *found.Digest == "" {
		return absent
	}
	return *found.Digest
}
