package workload

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/registry"
)

// What a read has found, as the output of an operation. Behind missing and wrong comes a
// space, and what it was. Empty is for a reply that says nothing: none, a part, or a 5xx.
const (
	foundWhole   = "whole"
	foundMissing = "missing"
	foundWrong   = "wrong"
)

// found says whether an output is of this kind.
func found(output, kind string) bool { return output == kind || strings.HasPrefix(output, kind+" ") }

// outcomeOfRead is what is known after a read: something, or nothing.
func outcomeOfRead(output string) history.Outcome {
	if output == "" {
		return history.Unknown
	}
	return history.OK
}

// isStale says that a node has answered without asking the others: what it said was true once.
func isStale(reply *registry.Reply) bool { return reply.Header.Get("Warning") != "" }

// get sends a GET, and once more to where a redirect leads. op is as after Do.
func (s *Session) get(ctx context.Context, op *history.Op, path string, header ...string) (*registry.Reply, error) {
	reply, err := s.Do(ctx, op, http.MethodGet, path, nil, header...)
	if err != nil || reply.Status != http.StatusTemporaryRedirect {
		return reply, err
	}
	reply, err = s.Env.Client.Do(ctx, http.MethodGet, reply.Header.Get("Location"), nil, header...)
	op.Return = s.History.Now()
	if err != nil {
		op.Error = err.Error()
		return reply, err
	}
	if op.Status = reply.Status; reply.Status >= 400 {
		op.Error = redirected + string(reply.Body[:min(len(reply.Body), 300)])
	}
	return reply, nil
}

// readBlob reads a blob and compares it byte by byte.
func (s *Session) readBlob(ctx context.Context, op *history.Op, repository string, blob content) string {
	reply, err := s.get(ctx, op, blobPath(repository, blob.Digest))
	if err != nil {
		return ""
	}
	want := expected{what: "blob " + blob.Digest, digest: blob.Digest, mediaType: blobType, status: http.StatusOK, bytes: blob.bytes(s.Seed)}
	return want.judge(reply)
}

// readRange reads length bytes of a blob from an offset on. A range that goes to the end is asked for
// in one of the three ways that there are.
func (s *Session) readRange(ctx context.Context, op *history.Op, repository string, blob content, offset, length int) string {
	wanted := fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
	if offset+length == blob.Size {
		wanted = []string{wanted, fmt.Sprintf("bytes=%d-", offset), fmt.Sprintf("bytes=-%d", length)}[s.Rand.IntN(3)]
	}
	reply, err := s.get(ctx, op, blobPath(repository, blob.Digest), "Range", wanted)
	if err != nil {
		return ""
	}
	what := fmt.Sprintf("blob %s, %s", blob.Digest, wanted)
	told := fmt.Sprintf("bytes %d-%d/%d", offset, offset+length-1, blob.Size)
	switch reply.Status {
	case http.StatusOK, http.StatusRequestedRangeNotSatisfiable: // other servers may ignore a range
		return fmt.Sprintf("%s %s: %d", foundWrong, what, reply.Status)
	case http.StatusPartialContent:
		if header := reply.Header.Get("Content-Range"); header != told {
			return fmt.Sprintf("%s %s: Content-Range is %q", foundWrong, what, header)
		}
	}
	want := expected{what: what, digest: blob.Digest, mediaType: blobType, status: http.StatusPartialContent, bytes: blob.bytes(s.Seed)[offset : offset+length]}
	return want.judge(reply)
}

// readManifest reads a manifest by tag or digest and compares it.
func (s *Session) readManifest(ctx context.Context, op *history.Op, img image, reference string) string {
	reply, err := s.get(ctx, op, manifestPath(img.Repository, reference))
	if err != nil {
		return ""
	}
	return img.expect(reference).judge(reply)
}

// expect returns the reply to a GET of the image's manifest.
func (i image) expect(reference string) expected {
	return expected{what: "manifest " + reference, digest: i.Digest, mediaType: registry.ManifestType, status: http.StatusOK, bytes: i.manifest()}
}

// expected is what the reply to a read must be.
type expected struct {
	what      string
	digest    string
	mediaType string
	status    int
	bytes     []byte
}

// judge says what a whole reply to a read means.
func (e expected) judge(reply *registry.Reply) string {
	switch {
	case reply.Status == http.StatusNotFound:
		return foundMissing + " " + e.what
	case reply.Status != e.status:
		return ""
	}
	if len(reply.Body) != len(e.bytes) {
		return fmt.Sprintf("%s %s: %d bytes of %d", foundWrong, e.what, len(reply.Body), len(e.bytes))
	}
	if wrong := (facts{digest: e.digest, mediaType: e.mediaType, size: len(e.bytes)}).check(reply); wrong != "" {
		return fmt.Sprintf("%s %s: %s", foundWrong, e.what, wrong)
	}
	if bytes.Equal(reply.Body, e.bytes) {
		return foundWhole
	}
	first := 0
	for reply.Body[first] == e.bytes[first] {
		first++
	}
	return fmt.Sprintf("%s %s: differs from byte %d on", foundWrong, e.what, first)
}

// readImage reads a whole image by tag or digest, each request from the node that comes
// next. op spans all requests.
func (s *Session) readImage(ctx context.Context, op *history.Op, img image, reference string) string {
	output := s.readManifest(ctx, op, img, reference)
	call := op.Call
	defer func() { op.Call = call }()
	for _, blob := range img.blobs() {
		if output != foundWhole {
			return output
		}
		output = s.readBlob(ctx, op, img.Repository, blob)
	}
	return output
}

func blobPath(repository, digest string) string {
	return "/v2/" + repository + "/blobs/" + digest
}

func manifestPath(repository, reference string) string {
	return "/v2/" + repository + "/manifests/" + reference
}

// hasCode says whether an error reply has this code.
func hasCode(reply *registry.Reply, code string) bool {
	return bytes.Contains(reply.Body, []byte(`"`+code+`"`))
}
