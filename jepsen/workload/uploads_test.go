package workload

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
)

func fastUploads() *uploads {
	w := NewUploads().(*uploads)
	w.pause, w.patience = 2*time.Millisecond, 200*time.Millisecond
	return w
}

func TestUploadsFindNothing(t *testing.T) {
	t.Parallel()
	for _, b := range []*blobFake{{}, {flaky: 15}} {
		w := fastUploads()
		if b.flaky > 0 {
			w.patience = finalBound
		}
		anomalies := tryOn(t, b, w, kindPatch, kindStatus, kindFinish, kindCancel, kindRead, kindPut)
		wantNone(t, anomalies)
	}
}

// uploadOf returns the upload of a request, or nil.
func uploadOf(b *blobFake, c fakeCall) *blobUpload {
	_, id, _ := strings.Cut(c.url.Path, "/blobs/uploads/")
	return b.uploads[id]
}

func TestUploadsFindFaults(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		want   []string
		tamper func(b *blobFake, c fakeCall) fakeReply
	}{
		{"a chunk is applied twice", []string{NotLinearizable}, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if u := uploadOf(b, c); c.method == http.MethodPatch && reply.status == http.StatusAccepted && b.random.IntN(10) == 0 {
				u.content = append(u.content, c.body...)
			}
			return reply
		}},
		{"a chunk that was kept is refused", []string{NotLinearizable}, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if c.method == http.MethodPatch && reply.status == http.StatusAccepted && b.random.IntN(10) == 0 {
				reply.status = http.StatusRequestedRangeNotSatisfiable
			}
			return reply
		}},
		{"a chunk is accepted at the wrong offset", []string{NotLinearizable, Torn}, func(b *blobFake, c fakeCall) fakeReply {
			if c.method == http.MethodPatch {
				c.header.Del("Content-Range")
			}
			return b.serve(c)
		}},
		{"a wrong offset is taken and the bytes dropped", []string{NotLinearizable}, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if c.method == http.MethodPatch && reply.status == http.StatusRequestedRangeNotSatisfiable {
				reply.status = http.StatusAccepted
			}
			return reply
		}},
		{"two writers' bytes mix", []string{Torn}, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if u := uploadOf(b, c); c.method == http.MethodPatch && reply.status == http.StatusAccepted && b.random.IntN(10) == 0 {
				u.content = slices.Clone(u.content)
				u.content[len(u.content)-1] ^= 1
			}
			return reply
		}},
		{"a node's status goes back", []string{NotLinearizable}, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if u := uploadOf(b, c); c.method == http.MethodGet && u != nil && len(u.content) > 20 && c.node < 3 {
				reply.header.Set("Range", fmt.Sprintf("0-%d", len(u.content)/2))
			}
			return reply
		}},
		{"a PUT can't be repeated", []string{NotLinearizable}, func(b *blobFake, c fakeCall) fakeReply {
			if u := uploadOf(b, c); c.method == http.MethodPut && u != nil && u.finished != "" {
				return fakeError(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", nil)
			}
			return b.serve(c)
		}},
		{"a blob is on one node only at first", []string{NotLinearizable}, func(b *blobFake, c fakeCall) fakeReply {
			if isBlobRead(c) && c.node == 1 {
				return fakeError(http.StatusNotFound, "BLOB_UNKNOWN", nil)
			}
			return b.serve(c)
		}},
		{"a wrong digest is accepted", []string{WrongBytes}, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if reply.status == http.StatusBadRequest {
				reply.status = http.StatusCreated
			}
			return reply
		}},
		{"a cancelled upload goes on", []string{NotLinearizable}, func(b *blobFake, c fakeCall) fakeReply {
			if c.method == http.MethodDelete {
				return fakeAnswer(http.StatusNoContent, nil)
			}
			return b.serve(c)
		}},
		{"an upload vanishes", []string{NotLinearizable}, func(b *blobFake, c fakeCall) fakeReply {
			if u := uploadOf(b, c); c.method == http.MethodPatch && u != nil && b.random.IntN(10) == 0 {
				_, id, _ := strings.Cut(c.url.Path, "/blobs/uploads/")
				b.uploads[id] = nil
			}
			return b.serve(c)
		}},
		{"kept blobs are lost", []string{Lost}, func(b *blobFake, c fakeCall) fakeReply {
			if isBlobRead(c) && len(b.manifests) > 2 {
				return fakeError(http.StatusNotFound, "BLOB_UNKNOWN", nil)
			}
			return b.serve(c)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			anomalies := tryOn(t, &blobFake{tamper: test.tamper, least: 3 * fakeCalls}, fastUploads())
			wantKind(t, anomalies, test.want...)
		})
	}
}

// told makes operations on an upload by hand. A refusal has its size as output, status 416.
func told(kind, input, output string) history.Op {
	op := history.Op{Workload: "uploads", Key: "u", Kind: kind, Input: input, Output: output, Outcome: history.OK}
	switch output {
	case "404":
		op.Status, op.Output, op.Outcome = http.StatusNotFound, "", history.Fail
	case "unknown":
		op.Output, op.Outcome = "", history.Unknown
	}
	if size, found := strings.CutPrefix(output, "416 "); found {
		op.Status, op.Output, op.Outcome = http.StatusRequestedRangeNotSatisfiable, size, history.Fail
	}
	return op
}

func TestJudgeUploads(t *testing.T) {
	t.Parallel()
	start := at(0, 0.1, told(kindStart, "", ""))
	first := at(1, 2, told(kindPatch, "0+100", "100"))
	whole := at(3, 4, told(kindFinish, "100+50", ""))
	missing := told(kindRead, "sha256:x", "missing blob")
	for _, test := range []struct {
		name string
		ops  []history.Op
		want string
	}{
		{"all in order", []history.Op{start, first, at(2, 3, told(kindStatus, "", "100")), whole, at(4, 5, told(kindFinish, "100+50", "")), at(5, 6, told(kindRead, "x", foundWhole))}, ""},
		{"a status that goes back", []history.Op{start, first, at(3, 4, told(kindStatus, "", "0"))}, NotLinearizable},
		{"a status at the same time", []history.Op{start, first, at(1.5, 4, told(kindStatus, "", "0"))}, ""},
		{"more than was sent", []history.Op{start, first, at(3, 4, told(kindStatus, "", "101"))}, NotLinearizable},
		{"a chunk twice", []history.Op{start, first, at(3, 4, told(kindPatch, "0+100", "100"))}, NotLinearizable},
		{"both of two at once", []history.Op{start, first, at(1, 2, told(kindPatch, "0+100", "100"))}, NotLinearizable},
		{"one of two at once", []history.Op{start, first, at(1, 2, told(kindPatch, "0+100", "416 100"))}, ""},
		{"a refusal of what fits", []history.Op{start, first, at(3, 4, told(kindPatch, "100+50", "416 100"))}, NotLinearizable},
		{"a refused chunk that was kept", []history.Op{start, first, at(3, 4, told(kindPatch, "90+50", "416 100")), at(5, 6, told(kindStatus, "", "140"))}, NotLinearizable},
		{"a lost reply of a chunk that was kept", []history.Op{start, at(1, 2, told(kindPatch, "0+100", "unknown")), at(5, 6, told(kindStatus, "", "100"))}, ""},
		{"kept in part", []history.Op{start, at(1, 2, told(kindPatch, "0+100", "unknown")), at(5, 6, told(kindStatus, "", "64")), at(6, 7, told(kindPatch, "64+36", "100"))}, ""},
		{"kept late", []history.Op{start, at(1, 2, told(kindPatch, "0+100", "unknown")), at(5, 6, told(kindStatus, "", "0")), at(6, 7, told(kindStatus, "", "100"))}, ""},
		{"kept and forgotten", []history.Op{start, at(1, 2, told(kindPatch, "0+100", "unknown")), at(5, 6, told(kindStatus, "", "100")), at(7, 8, told(kindStatus, "", "0"))}, NotLinearizable},
		{"gone without a reason", []history.Op{start, first, at(3, 4, told(kindStatus, "", "404"))}, NotLinearizable},
		{"gone after a rest", []history.Op{start, first, at(30, 31, told(kindStatus, "", "404"))}, NotLinearizable},
		{"gone after a rest and a chunk", []history.Op{start, at(12, 13.5, told(kindPatch, "0+100", "100")), at(13.55, 13.6, told(kindStatus, "", "404"))}, NotLinearizable},
		{"a PUT without a reply, and gone", []history.Op{start, first, at(2, 3, told(kindPatch, "100+50", "150")), at(3, 4, told(kindFinish, "150+0", "unknown")), at(5, 6, told(kindStatus, "", "404")), at(6.1, 7, told(kindFinish, "150+0", "404"))}, NotLinearizable},
		{"of two PUTs at once one is told 404", []history.Op{start, first, at(3, 4, told(kindFinish, "100+50", "")), at(3, 4, told(kindFinish, "100+50", "404"))}, ""},
		{"a PUT is told 404 while another has no reply yet", []history.Op{start, first, at(3, 4, told(kindFinish, "100+50", "unknown")), at(6, 7, told(kindFinish, "100+50", "404"))}, ""},
		{"gone after a cancellation without a reply", []history.Op{start, first, at(2, 3, told(kindCancel, "", "unknown")), at(3, 4, told(kindStatus, "", "404"))}, ""},
		{"there after a cancellation", []history.Op{start, first, at(3, 4, told(kindCancel, "", "")), at(5, 6, told(kindStatus, "", "100"))}, NotLinearizable},
		{"a PUT repeated in vain", []history.Op{start, first, whole, at(5, 6, told(kindFinish, "100+50", "404"))}, NotLinearizable},
		{"a PUT repeated too late", []history.Op{start, first, whole, at(16, 17, told(kindFinish, "100+50", "404"))}, ""},
		{"a PUT without a reply, repeated", []history.Op{start, first, at(3, 4, told(kindFinish, "100+50", "unknown")), at(5, 6, told(kindStatus, "", "404")), at(6, 7, told(kindFinish, "100+50", ""))}, ""},
		{"the blob is not there", []history.Op{start, first, whole, at(5, 6, missing)}, NotLinearizable},
		{"the blob is not there yet", []history.Op{start, first, whole, at(3.5, 6, missing)}, ""},
		{"the blob was renewed", []history.Op{start, first, at(3, 13.2, told(kindFinish, "100+50", "unknown")), at(13.6, 13.9, told(kindFinish, "150+0", "")), at(13.95, 14, missing)}, NotLinearizable},
		{"another status", []history.Op{start, at(1, 2, refusal(http.StatusBadRequest, "BLOB_UPLOAD_INVALID"))}, Refused},
		{"too many", []history.Op{start, at(1, 2, refusal(http.StatusTooManyRequests, "TOOMANYREQUESTS"))}, ""},
		{"lost without a reason", []history.Op{start, first, at(3, 4, refusal(http.StatusServiceUnavailable, "the "+uploadLost))}, Lost},
		{"the blob was collected", []history.Op{start, first, whole, at(16, 17, missing)}, ""},
		{"the blob was kept and collected", []history.Op{start, first, whole, at(5, 6, told(kindPut, "x 3", "")), at(16, 17, missing)}, Stale},
		{"the blob is there before the end", []history.Op{start, first, at(2.5, 2.9, told(kindRead, "x", foundWhole)), whole}, NotLinearizable},
		{"other bytes", []history.Op{start, first, whole, at(5, 6, told(kindRead, "x", "wrong blob"))}, WrongBytes},
		{"a right digest refused", []history.Op{start, first, at(3, 4, history.Op{Workload: "uploads", Key: "u", Kind: kindFinish, Input: "100+50", Output: codeDigestInvalid, Outcome: history.Unknown})}, Torn},
		{"a wrong digest accepted", []history.Op{start, first, at(3, 4, told(kindBadFinish, "100+0", ""))}, WrongBytes},
		{"open after a wrong digest", []history.Op{start, first, at(3, 4, history.Op{Workload: "uploads", Key: "u", Kind: kindBadFinish, Input: "100+0", Output: codeDigestInvalid, Outcome: history.Unknown}), at(5, 6, told(kindStatus, "", "100")), at(6, 7, told(kindStatus, "", "404"))}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &findings{workload: "uploads"}
			if err := judgeUploads(t.Context(), f, test.ops, nil); err != nil {
				t.Fatal(err)
			}
			wantOnly(t, f.all(), test.want)
		})
	}
}

// refusal makes a PUT by hand that was answered with an error.
func refusal(status int, body string) history.Op {
	return history.Op{Workload: "uploads", Key: "u", Kind: kindFinish, Input: "100+50", Outcome: history.Unknown, Status: status, Error: body}
}

// TestLostUploads shows what excuses that an upload is lost: that two nodes are gone, by faults that take
// what they have or last for long.
func TestLostUploads(t *testing.T) {
	t.Parallel()
	const second = time.Second
	ops := []history.Op{
		at(0, 0.1, told(kindStart, "", "")), at(1, 2, told(kindPatch, "0+100", "100")), at(3, 4, refusal(http.StatusServiceUnavailable, uploadLost)),
		at(5, 6, told(kindStatus, "", "404")), at(6.1, 7, told(kindFinish, "100+50", "404")),
	}
	for name, test := range map[string]struct {
		faults  []history.Fault
		excused bool
	}{
		"nothing":         {nil, false},
		"a wiped node":    {[]history.Fault{{Kind: "wipe", Target: "n1", Begin: second, End: 2 * second}}, false},
		"two of them":     {[]history.Fault{{Kind: "wipe-two", Target: "n1,n2", Begin: second, End: 2 * second}}, true},
		"two short kills": {[]history.Fault{{Kind: "kill", Target: "n1", Begin: second, End: 2 * second}, {Kind: "kill", Target: "n2", Begin: second, End: 2 * second}}, false},
		"two are away":    {[]history.Fault{{Kind: "away", Target: "n1", Begin: -30 * second}, {Kind: "cut-off", Target: "n2", Begin: -30 * second, End: second}}, true},
		"clocks":          {[]history.Fault{{Kind: "clock", Target: "n1,n2", Begin: -30 * second}}, false},
		"long before":     {[]history.Fault{{Kind: "wipe-two", Target: "n1,n2", Begin: -30 * second, End: -20 * second}}, false},
	} {
		f := &findings{workload: "uploads"}
		if err := judgeUploads(t.Context(), f, ops, test.faults); err != nil {
			t.Fatal(err)
		}
		if excused := len(f.all()) == 0; excused != test.excused {
			t.Errorf("%s: excused is %v: %v", name, excused, f.all())
		}
	}
}

// TestUploadSearchEnds has chunks of unknown outcome in an upload whose end can't be explained.
func TestUploadSearchEnds(t *testing.T) {
	t.Parallel()
	ops := []history.Op{at(0, 0.1, told(kindStart, "", ""))}
	for i := range 12 { // the same ones again, as writers send them that have no reply
		ops = append(ops, at(1, 2, told(kindPatch, fmt.Sprintf("%d+1000", i%maxSilences*1000), "unknown")))
	}
	for i := range 40 {
		ops = append(ops, at(float64(2+i), float64(3+i), told(kindStatus, "", fmt.Sprint(i/10*1000))))
	}
	for _, last := range []history.Op{told(kindStatus, "", "2000"), told(kindStatus, "", "404")} {
		f := &findings{workload: "uploads"}
		if err := judgeUploads(t.Context(), f, append(ops[:len(ops):len(ops)], at(60, 61, last)), nil); err != nil {
			t.Fatal(err)
		}
		wantOnly(t, f.all(), NotLinearizable)
	}
}

func TestSizeOf(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]int{"": 0, "0-0": 0, "0-1": 2, "0-99": 100} {
		if got, err := sizeOf(header); got != want || err != nil {
			t.Errorf("sizeOf(%q) is %d, %v, want %d", header, got, err, want)
		}
	}
	if _, err := sizeOf("bytes"); err == nil {
		t.Error("sizeOf takes what is no range")
	}
}
