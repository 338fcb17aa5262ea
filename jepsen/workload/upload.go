package workload

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/registry"
)

// The kinds of operations on an upload. Sizes, in bytes, are their Output. Input is OFFSET+LENGTH
// where bytes are sent.
const (
	kindStart     = "start"
	kindPatch     = "patch"
	kindStatus    = "status"
	kindFinish    = "finish"    // PUT with the right digest
	kindBadFinish = "badfinish" // PUT with a wrong one
	kindCancel    = "cancel"
	kindRead      = "read"   // GET of the blob that the upload becomes; Output is what was found
	kindAbsent    = "absent" // the same of a blob that must not be there
)

const (
	// maxUploadSteps bounds the requests of one writer of one upload.
	maxUploadSteps = 60
	// uploadPause is before a writer asks how far an upload is that has not told it, if clients do not
	// pause for less anyway.
	uploadPause = 300 * time.Millisecond
	// maxUploadUnknown is after how many requests without a telling reply a writer gives up, and
	// maxSilences after how many chunks of all writers of one upload all of them do: the search for an
	// order takes time that grows exponentially with these.
	maxUploadUnknown = 8
	maxSilences      = 4
	// codeDigestInvalid is what the end of an upload is refused with that has other bytes.
	codeDigestInvalid = "DIGEST_INVALID"
)

// verdict is what a writer was told.
type verdict int

const (
	unknown verdict = iota
	taken           // it was done, or this is how it is
	refused         // the upload is elsewhere: 416
	gone            // there is no such upload in progress: 404
	notSent         // nothing was asked
)

// uploadWriter is one writer of one upload. All writers of an upload write the same content, so
// that whoever wins, the bytes at an offset are known.
type uploadWriter struct {
	*Session
	repository string
	content    content
	bytes      []byte
	path       string // of the upload, as the last reply has told it
	// finished is when the PUT was sent that was answered 201 last.
	finished time.Duration
	// pause is before a writer asks how far an upload is that has not told it, on average.
	pause time.Duration
	// silences counts chunks and ends of the upload without a telling reply, of all its writers.
	silences *atomic.Int64
}

// twin returns another writer of the same upload, for another goroutine.
func (w *uploadWriter) twin() *uploadWriter {
	s := *w.Session
	s.Client += 100
	s.Balanced = true
	s.Rand = rand.New(rand.NewPCG(w.Rand.Uint64(), w.Rand.Uint64()))
	other := *w
	other.Session = &s
	return &other
}

// ask sends one request about the upload and records it. The size is what the reply says of it.
func (w *uploadWriter) ask(ctx context.Context, op *history.Op, method, query string, body []byte, header ...string) (verdict, int) {
	op.Key = w.content.Name
	reply, err := w.Do(ctx, op, method, w.path+query, body, header...)
	said, size := w.understand(op, reply, err)
	switch said {
	case taken:
		op.Outcome = history.OK
		if op.Kind == kindFinish {
			w.finished = op.Call
		}
	case unknown:
		op.Outcome = history.Unknown
		if op.Kind != kindStatus {
			w.silences.Add(1)
		}
	default:
		op.Outcome = history.Fail
	}
	w.History.Add(*op)
	return said, size
}

func (w *uploadWriter) understand(op *history.Op, reply *registry.Reply, err error) (verdict, int) {
	switch {
	case err != nil && registry.NotSent(err):
		return notSent, 0
	case err != nil:
		return unknown, 0
	case reply.Status == http.StatusNotFound:
		return gone, 0
	case reply.Status == http.StatusBadRequest && hasCode(reply, codeDigestInvalid):
		op.Output = codeDigestInvalid
		return unknown, 0
	case reply.Status == http.StatusCreated:
		op.Output = checkCreated(reply, w.content.Digest)
		return taken, len(w.bytes)
	case reply.Status == http.StatusNoContent && op.Kind == kindCancel:
		return taken, 0
	case reply.Status != http.StatusAccepted && reply.Status != http.StatusNoContent && reply.Status != http.StatusRequestedRangeNotSatisfiable:
		return unknown, 0
	}
	if location := reply.Header.Get("Location"); location != "" {
		w.path = pathOf(location)
	}
	size, err := sizeOf(reply.Header.Get("Range"))
	if err != nil {
		op.Error = err.Error()
		return unknown, 0
	}
	op.Output = strconv.Itoa(size)
	if reply.Status == http.StatusRequestedRangeNotSatisfiable {
		return refused, size
	}
	return taken, size
}

var errRange = errors.New("reply has no Range that can be understood")

// sizeOf reads the Range of an upload. 0-0 is for nothing and for one byte; the writers here never
// send a single one, so that it is nothing. A 416 has no Range at all then.
func sizeOf(header string) (int, error) {
	if header == "" || header == "0-0" {
		return 0, nil
	}
	_, last, _ := strings.Cut(header, "-")
	n, err := strconv.Atoi(last)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%w: %q", errRange, header)
	}
	return n + 1, nil
}

func (w *uploadWriter) start(ctx context.Context) verdict {
	w.path = "/v2/" + w.repository + "/blobs/uploads/"
	said, _ := w.ask(ctx, &history.Op{Kind: kindStart}, http.MethodPost, "", []byte{})
	return said
}

func (w *uploadWriter) patch(ctx context.Context, offset, length int) (verdict, int) {
	op := history.Op{Kind: kindPatch, Input: fmt.Sprintf("%d+%d", offset, length)}
	return w.ask(ctx, &op, http.MethodPatch, "", w.bytes[offset:offset+length], "Content-Range", fmt.Sprintf("%d-%d", offset, offset+length-1))
}

func (w *uploadWriter) status(ctx context.Context) (verdict, int) {
	return w.ask(ctx, &history.Op{Kind: kindStatus}, http.MethodGet, "", nil)
}

// finish sends the bytes from an offset on and the digest.
func (w *uploadWriter) finish(ctx context.Context, offset int) (verdict, int) {
	rest := w.bytes[offset:]
	op := history.Op{Kind: kindFinish, Input: fmt.Sprintf("%d+%d", offset, len(rest))}
	var header []string
	if len(rest) > 0 {
		header = []string{"Content-Range", fmt.Sprintf("%d-%d", offset, len(w.bytes)-1)}
	}
	return w.ask(ctx, &op, http.MethodPut, "?digest="+url.QueryEscape(w.content.Digest), rest, header...)
}

// finishWrong ends the upload by a digest that its bytes do not have.
func (w *uploadWriter) finishWrong(ctx context.Context, digest string) verdict {
	op := history.Op{Kind: kindBadFinish, Input: fmt.Sprintf("%d+0", len(w.bytes))}
	said, _ := w.ask(ctx, &op, http.MethodPut, "?digest="+url.QueryEscape(digest), []byte{})
	return said
}

func (w *uploadWriter) cancel(ctx context.Context) verdict {
	said, _ := w.ask(ctx, &history.Op{Kind: kindCancel}, http.MethodDelete, "", nil)
	return said
}

// read reads the blob that the upload has become, or not.
func (w *uploadWriter) read(ctx context.Context) {
	op := history.Op{Kind: kindRead, Key: w.content.Name, Input: w.content.Digest}
	op.Output = w.readBlob(ctx, &op, w.repository, w.content)
	op.Outcome = outcomeOfRead(op.Output)
	w.History.Add(op)
}

// write sends chunks until all is sent, as regctl does: it goes on from what the replies say, and
// asks when there is none. Between is called before each chunk. The last chunk goes with the
// digest, or the digest alone; finished says whether it came to that.
func (w *uploadWriter) write(ctx context.Context, between func(ctx context.Context, offset, length int)) {
	size, silences := 0, 0
	known := true
	for range maxUploadSteps {
		var said verdict
		var told int
		switch {
		case w.silences.Load() >= maxSilences:
			return
		case known && size > len(w.bytes): // more than was ever sent: the checker will say so
			return
		case known:
			said, told = w.send(ctx, size, between)
		default:
			if silences++; silences > maxUploadUnknown || !w.Pause(ctx, w.pause) {
				return
			}
			said, told = w.status(ctx)
		}
		switch said {
		case taken, refused:
			known, size = true, told
		case gone: // or finished, by another writer or by a request that had no reply
			if w.finished == 0 {
				w.finish(ctx, len(w.bytes))
			}
			return
		default:
			known = false
		}
		if w.finished > 0 {
			return
		}
	}
}

// send sends the next chunk from an offset on.
func (w *uploadWriter) send(ctx context.Context, offset int, between func(ctx context.Context, offset, length int)) (verdict, int) {
	length := w.chunk(offset)
	if between != nil && length > 0 {
		between(ctx, offset, length)
	}
	if offset+length == len(w.bytes) && (length == 0 || w.Rand.IntN(2) == 0) {
		return w.finish(ctx, offset)
	}
	return w.patch(ctx, offset, length)
}

// chunk returns how many bytes to send from an offset on: never a single one, and none
// is left over.
func (w *uploadWriter) chunk(offset int) int {
	rest := len(w.bytes) - offset
	if rest < 2*minChunk {
		return rest
	}
	length := minChunk + w.Rand.IntN(len(w.bytes)/2+1)
	if rest-length < minChunk {
		return rest
	}
	return length
}

// minChunk is the smallest chunk, in bytes.
const minChunk = 512
