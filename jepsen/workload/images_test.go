package workload

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
)

func fastImages() *images {
	w := NewImages().(*images)
	w.pause, w.patience = 2*time.Millisecond, 200*time.Millisecond
	w.pushed = imagesTotal + 1 // so that layers are small
	return w
}

func TestImagesFindNothing(t *testing.T) {
	t.Parallel()
	for _, b := range []*blobFake{{}, {flaky: 12}, {grace: 2 * time.Second, flaky: 3}} {
		w := fastImages()
		if b.flaky > 0 {
			w.patience = finalBound
		}
		anomalies := tryOn(t, b, w, "blob", kindPut, "pull", "range")
		if b.grace > 0 { // shorter than what the workload takes for promised
			anomalies = slices.DeleteFunc(anomalies, func(a Anomaly) bool { return a.Kind == Refused })
		}
		wantNone(t, anomalies)
	}
}

func isBlobRead(c fakeCall) bool {
	return c.method == http.MethodGet && strings.Contains(c.url.Path, "/blobs/sha256:")
}

func TestImagesFindFaults(t *testing.T) {
	t.Parallel()
	lost := false
	for _, test := range []struct {
		name   string
		want   string
		tamper func(b *blobFake, c fakeCall) fakeReply
	}{
		{"a blob is lost", Lost, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			for key := range b.blobs {
				if repository, digest, _ := strings.Cut(key, "@"); !lost && b.refers(repository, digest) {
					delete(b.blobs, key)
					lost = true
				}
			}
			return reply
		}},
		{"a node has a wrong byte", WrongBytes, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if c.node == 2 && isBlobRead(c) && len(reply.body) > 0 && reply.status < 300 {
				reply.body = bytes.Clone(reply.body)
				reply.body[len(reply.body)-1] ^= 1
			}
			return reply
		}},
		{"a node's replies are short", WrongBytes, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if c.node == 3 && isBlobRead(c) && len(reply.body) > 1 && reply.status < 300 {
				reply.body = reply.body[:len(reply.body)-1]
			}
			return reply
		}},
		{"a range is another", WrongBytes, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if reply.status == http.StatusPartialContent && len(reply.body) > 1 {
				reply.body = append(bytes.Clone(reply.body[1:]), reply.body[0])
			}
			return reply
		}},
		{"a range is ignored", WrongBytes, func(b *blobFake, c fakeCall) fakeReply {
			c.header.Del("Range")
			return b.serve(c)
		}},
		{"a type is another", WrongBytes, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if isManifest(c, http.MethodGet) && reply.status == http.StatusOK {
				reply.header.Set("Content-Type", "application/json")
			}
			return reply
		}},
		{"an acknowledgement tells another digest", WrongBytes, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if isManifest(c, http.MethodPut) && reply.status == http.StatusCreated {
				reply.header.Set("Docker-Content-Digest", "sha256:0")
			}
			return reply
		}},
		{"a chunk without a range counts twice", Torn, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if u := uploadOf(b, c); c.method == http.MethodPatch && c.header.Get("Content-Range") == "" && reply.status == http.StatusAccepted {
				u.content = append(u.content, c.body...)
			}
			return reply
		}},
		{"manifests are refused", Refused, func(b *blobFake, c fakeCall) fakeReply {
			if isManifest(c, http.MethodPut) && b.random.IntN(4) == 0 {
				return fakeError(http.StatusForbidden, "DENIED", nil)
			}
			return b.serve(c)
		}},
		{"an upload is unknown at once", Lost, func(b *blobFake, c fakeCall) fakeReply {
			if c.method == http.MethodPut && !isManifest(c, http.MethodPut) && b.random.IntN(4) == 0 {
				return fakeError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", nil)
			}
			return b.serve(c)
		}},
		{"a node lags behind", Stale, func(b *blobFake, c fakeCall) fakeReply {
			if c.node == 4 && c.method == http.MethodGet && strings.Contains(c.url.Path, "/manifests/") && b.random.IntN(2) == 0 {
				return fakeError(http.StatusNotFound, "MANIFEST_UNKNOWN", nil)
			}
			return b.serve(c)
		}},
		{"a node lacks all manifests", Lost, func(b *blobFake, c fakeCall) fakeReply {
			if c.node == 4 && c.method == http.MethodGet && strings.Contains(c.url.Path, "/manifests/") {
				return fakeError(http.StatusNotFound, "MANIFEST_UNKNOWN", nil)
			}
			return b.serve(c)
		}},
		{"blobs said to be there are missing for manifests", Refused, func(b *blobFake, c fakeCall) fakeReply {
			if c.method == http.MethodPut && strings.Contains(c.url.Path, "/manifests/") && b.random.IntN(2) == 0 {
				return fakeError(http.StatusNotFound, codeBlobUnknown, nil)
			}
			return b.serve(c)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := fastImages()
			if test.want == Stale {
				w.patience = finalBound
			}
			var kinds []string
			if strings.Contains(test.name, "range") {
				kinds = []string{"range"}
			}
			anomalies := tryOn(t, &blobFake{tamper: test.tamper}, w, kinds...)
			wantKind(t, anomalies, test.want)
		})
	}
}

// at makes an operation of a history by hand; times are in seconds.
func at(call, end float64, op history.Op) history.Op {
	op.Call, op.Return = time.Duration(call*float64(time.Second)), time.Duration(end*float64(time.Second))
	if op.Outcome == "" {
		op.Outcome = history.OK
	}
	return op
}

func TestJudgeImages(t *testing.T) {
	t.Parallel()
	put := at(1, 2, history.Op{Kind: kindPut, Key: "i", Input: putInput("i", time.Second/2)})
	for _, test := range []struct {
		name string
		ops  []history.Op
		want string // empty for nothing
	}{
		{"missing after the acknowledgement", []history.Op{put, at(3, 4, history.Op{Kind: "pull", Key: "i", Output: "missing blob"})}, Stale},
		{"concurrent with it", []history.Op{put, at(1.9, 4, history.Op{Kind: "pull", Key: "i", Output: "missing blob"})}, ""},
		{"never acknowledged", []history.Op{at(1, 2, history.Op{Kind: kindPut, Key: "i", Outcome: history.Unknown}), at(3, 4, history.Op{Kind: "pull", Key: "i", Output: "missing blob"})}, ""},
		{"missing at last", []history.Op{put, at(8, 9, history.Op{Kind: kindFinal, Key: "i", Node: "n1", Output: "missing blob"})}, Lost},
		{"no answer at last", []history.Op{put, at(8, 9, history.Op{Kind: kindFinal, Key: "i", Node: "n1", Outcome: history.Unknown})}, Lost},
		{"there at last", []history.Op{put,
			at(8, 9, history.Op{Kind: kindFinal, Key: "i", Node: "n1", Outcome: history.Unknown}),
			at(9, 10, history.Op{Kind: kindFinal, Key: "i", Node: "n1", Output: foundWhole})}, ""},
		{"wrong bytes", []history.Op{at(1, 2, history.Op{Kind: "pull", Key: "i", Output: "wrong blob"})}, WrongBytes},
		{"refused at once", []history.Op{at(1, 2, history.Op{Kind: kindPut, Key: "i", Input: putInput("i", time.Second), Output: codeBlobUnknown, Outcome: history.Fail})}, Refused},
		{"refused late", []history.Op{at(6, 7, history.Op{Kind: kindPut, Key: "i", Input: putInput("i", time.Second), Output: codeBlobUnknown, Outcome: history.Fail})}, ""},
		{"refused when nobody promised", []history.Op{at(1, 2, history.Op{Kind: kindPut, Key: "i", Input: putInput("i", noPromise), Output: codeBlobUnknown, Outcome: history.Fail})}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &findings{}
			judgeImages(f, test.ops, nil)
			wantOnly(t, f.all(), test.want)
		})
	}
	t.Run("refused while a clock moved", func(t *testing.T) {
		f := &findings{}
		refusal := at(2, 3, history.Op{Kind: kindPut, Key: "i", Input: putInput("i", time.Second), Output: codeBlobUnknown, Outcome: history.Fail})
		judgeImages(f, []history.Op{refusal}, []history.Fault{{Kind: "clock-far", Begin: 2 * time.Second}})
		wantOnly(t, f.all(), "")
	})
}

// wantOnly fails unless there is one anomaly, of this kind, or none if it is empty.
func wantOnly(t *testing.T, anomalies []Anomaly, kind string) {
	t.Helper()
	if kind == "" && len(anomalies) == 0 || len(anomalies) == 1 && anomalies[0].Kind == kind {
		return
	}
	t.Errorf("got %v, want one %q", anomalies, kind)
}

func TestContentIsMadeAgain(t *testing.T) {
	t.Parallel()
	long, short := generate(7, "name", 5000), generate(7, "name", 100)
	if !bytes.Equal(long[:100], short) {
		t.Error("a shorter content is not the beginning of the longer one")
	}
	if bytes.Equal(generate(8, "name", 100), short) || bytes.Equal(generate(7, "other", 100), short) {
		t.Error("contents with another seed or name are the same")
	}
}
