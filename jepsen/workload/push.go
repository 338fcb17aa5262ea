package workload

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/registry"
)

const (
	// pushTries is how often clients begin a blob anew.
	pushTries = 4
	// pushPause is the time before they do, on average, if clients do not pause for less anyway.
	pushPause = 400 * time.Millisecond
	// promiseTime is how long a blob must stay, at least, that a node has said is there, or
	// has taken. The runs configure a grace of 15 s; a node that is asked when less than half
	// of it is left begins it anew, so that 7.5 s are promised.
	promiseTime = 5 * time.Second
	// noPromise is a time so long ago that nothing is promised any more.
	noPromise = -time.Hour
)

// pusher pushes blobs and manifests to a repository as docker does.
type pusher struct {
	*Session
	repository string
	// from is a repository that blobs are mounted from if they are there; empty for none.
	from string
	// pause is the time before a blob or manifest is begun anew, on average.
	pause time.Duration
	// once gives a manifest up after a PUT of unknown outcome.
	once bool
}

// kindPush is one try to push a blob. Input are the repository, the digest and the size, Output is the
// last step that was taken, or what is wrong.
const kindPush = "blob"

// pushBlob sees to it that a blob is in the repository. It records "head" and "blob" under
// the key, and returns when the node that said it is there was asked, or noPromise if its word
// does not count.
func (p *pusher) pushBlob(ctx context.Context, key string, blob content) (since time.Duration, ok bool) {
	for try := range pushTries {
		if try > 0 && !p.Pause(ctx, p.pause) {
			return 0, false
		}
		if since, ok = p.headBlob(ctx, key, blob); ok {
			return since, true
		}
		op := history.Op{Kind: kindPush, Key: key, Input: fmt.Sprintf("%s %s %d", p.repository, blob.Digest, blob.Size)}
		begun := p.History.Now()
		since, op.Outcome = p.sendBlob(ctx, &op, blob)
		op.Call = begun
		p.History.Add(op)
		if op.Outcome == history.OK {
			return since, true
		}
	}
	return 0, false
}

// headBlob asks whether a blob is there. That it is, a node without a quorum may believe
// wrongly, and says so by a warning.
func (p *pusher) headBlob(ctx context.Context, key string, blob content) (since time.Duration, there bool) {
	op := history.Op{Kind: kindHead, Key: key, Input: p.repository + " " + blob.Digest}
	reply, err := p.Do(ctx, &op, http.MethodHead, blobPath(p.repository, blob.Digest), nil)
	switch {
	case err != nil:
	case reply.Status == http.StatusOK:
		op.Output = foundWhole
		if wrong := (facts{digest: blob.Digest, mediaType: blobType, size: blob.Size}).check(reply); wrong != "" {
			op.Output = fmt.Sprintf("%s blob %s: %s", foundWrong, blob.Digest, wrong)
		}
	case reply.Status == http.StatusNotFound:
		op.Output = foundMissing
	}
	op.Outcome = outcomeOfRead(op.Output)
	p.History.Add(op)
	if op.Output != foundWhole {
		return 0, false
	}
	if isStale(reply) {
		return noPromise, true
	}
	return op.Call, true
}

// sendBlob sends a blob in one of the ways that clients have, each step to the node that comes
// next. It returns when the step was sent that was answered 201.
func (p *pusher) sendBlob(ctx context.Context, op *history.Op, blob content) (since time.Duration, outcome history.Outcome) {
	bytes := blob.bytes(p.Seed)
	uploads := "/v2/" + p.repository + "/blobs/uploads/"
	way := p.Rand.IntN(4)
	if way == 0 && p.from == "" {
		op.Output = "post"
		return p.created(ctx, op, http.MethodPost, uploads, blob.Digest, bytes)
	}
	query := ""
	if p.from != "" {
		query = "?mount=" + url.QueryEscape(blob.Digest) + "&from=" + url.QueryEscape(p.from)
	}
	op.Output = "start"
	reply, err := p.Do(ctx, op, http.MethodPost, uploads+query, []byte{})
	if err == nil && reply.Status == http.StatusCreated && query != "" {
		op.Output = cmp.Or(checkCreated(reply, blob.Digest), "mount")
		return op.Call, history.OK
	}
	if err != nil || reply.Status != http.StatusAccepted {
		return 0, registry.OutcomeOfWrite(reply, err)
	}
	location := pathOf(reply.Header.Get("Location"))
	if way > 1 {
		size := len(bytes) // one chunk, as docker
		if way == 3 {
			size = 1 + len(bytes)/(2+p.Rand.IntN(3))
		}
		op.Output = "patch"
		location, outcome = p.sendChunks(ctx, op, location, bytes, size, way == 3)
		if outcome != history.OK {
			return 0, outcome
		}
		bytes = []byte{}
	}
	op.Output = "put"
	return p.created(ctx, op, http.MethodPut, location, blob.Digest, bytes)
}

// sendChunks sends bytes by PATCH, and returns where the upload goes on.
func (p *pusher) sendChunks(ctx context.Context, op *history.Op, location string, bytes []byte, size int, ranged bool) (string, history.Outcome) {
	for offset := 0; offset < len(bytes); offset += size {
		chunk := bytes[offset:min(offset+size, len(bytes))]
		var header []string
		if ranged {
			header = []string{"Content-Range", fmt.Sprintf("%d-%d", offset, offset+len(chunk)-1)}
		}
		reply, err := p.Do(ctx, op, http.MethodPatch, location, chunk, header...)
		if outcome := registry.OutcomeOfWrite(reply, err); outcome != history.OK {
			return "", outcome
		}
		location = pathOf(reply.Header.Get("Location"))
	}
	return location, history.OK
}

// created sends the last step of a push.
func (p *pusher) created(ctx context.Context, op *history.Op, method, path, digest string, bytes []byte) (time.Duration, history.Outcome) {
	reply, err := p.Do(ctx, op, method, path+"?digest="+url.QueryEscape(digest), bytes)
	op.Output = cmp.Or(checkCreated(reply, digest), op.Output)
	return op.Call, registry.OutcomeOfWrite(reply, err)
}

// putManifest pushes a manifest by tag or digest, once, and records it as "put" under the key.
// Oldest is when the first of the nodes was asked that said of its blobs that they are there.
func (p *pusher) putManifest(ctx context.Context, key, reference string, manifest []byte, oldest time.Duration) history.Op {
	op := history.Op{Kind: kindPut, Key: key, Input: putInput(reference, oldest)}
	reply, err := p.Do(ctx, &op, http.MethodPut, manifestPath(p.repository, reference), manifest, "Content-Type", registry.ManifestType)
	op.Outcome = registry.OutcomeOfWrite(reply, err)
	if op.Output = checkCreated(reply, registry.Digest(manifest)); err == nil && hasCode(reply, codeBlobUnknown) {
		op.Output = codeBlobUnknown
	}
	p.History.Add(op)
	return op
}

// codeBlobUnknown is what a manifest is refused with whose blobs are not there.
const codeBlobUnknown = "MANIFEST_BLOB_UNKNOWN"

func putInput(reference string, oldest time.Duration) string {
	return fmt.Sprintf("%s %d", reference, oldest)
}

// pushImage pushes the blobs of an image that clients would push, and its manifest. It
// returns whether the manifest was acknowledged, and how many PUTs of it had an unknown outcome.
func (p *pusher) pushImage(ctx context.Context, img image, reference, key string, ownerOf func(content) string) (acked bool, unknown int) {
	for try := range pushTries {
		if try > 0 && (p.once && unknown > 0 || !p.Pause(ctx, p.pause)) {
			break
		}
		oldest := time.Duration(math.MaxInt64)
		for _, blob := range img.blobs() {
			since, ok := p.pushBlob(ctx, ownerOf(blob), blob)
			if !ok {
				return false, unknown
			}
			oldest = min(oldest, since)
		}
		switch p.putManifest(ctx, key, reference, img.manifest(), oldest).Outcome {
		case history.OK:
			return true, unknown
		case history.Unknown:
			unknown++
		}
	}
	return false, unknown
}

// pathOf returns the path and query of a Location, whoever it says is to be asked.
func pathOf(location string) string {
	parsed, err := url.Parse(location)
	if err != nil {
		return "/"
	}
	return parsed.RequestURI()
}
