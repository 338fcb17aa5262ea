package workload

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/registry"
)

func fastCollect() *collect {
	w := NewCollect().(*collect)
	w.pause, w.patience = 2*time.Millisecond, 200*time.Millisecond
	return w
}

func TestCollectFindsNothing(t *testing.T) {
	t.Parallel()
	for _, b := range []*blobFake{{}, {grace: 600 * time.Millisecond}, {grace: 600 * time.Millisecond, flaky: 12}} {
		w := fastCollect()
		if b.grace > 0 {
			w.promise = b.grace / 3
		}
		if b.flaky > 0 {
			w.patience = finalBound
		}
		anomalies := tryOn(t, b, w, kindHead, "blob", kindPut, kindDelete, kindGet, kindBlobs)
		wantNone(t, anomalies)
	}
}

func isManifest(c fakeCall, method string) bool {
	return c.method == method && strings.Contains(c.url.Path, "/manifests/")
}

func TestCollectFindsFaults(t *testing.T) {
	t.Parallel()
	ghosts := map[string][]byte{}
	for _, test := range []struct {
		name   string
		want   string
		tamper func(b *blobFake, c fakeCall) fakeReply
	}{
		{"a layer is collected while its manifest lives", Dangling, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if isManifest(c, http.MethodPut) && reply.status == http.StatusCreated && b.random.IntN(2) == 0 {
				for key := range b.blobs {
					if strings.Contains(string(c.body), key[strings.Index(key, "@")+1:]) {
						delete(b.blobs, key)
						break
					}
				}
			}
			return reply
		}},
		{"a deleted manifest comes back on one node", NotLinearizable, func(b *blobFake, c fakeCall) fakeReply {
			path := c.url.Path
			_, name, _ := strings.Cut(path, "/v2/")
			if content := b.manifests[strings.Replace(name, "/manifests/", "@", 1)]; isManifest(c, http.MethodDelete) && content != nil {
				ghosts[path] = content
			}
			reply := b.serve(c)
			if c.node == 2 && isManifest(c, http.MethodGet) && reply.status == http.StatusNotFound && ghosts[path] != nil {
				return fakeAnswer(http.StatusOK, ghosts[path], "Docker-Content-Digest", path[strings.LastIndex(path, "/")+1:], "Content-Type", registry.ManifestType)
			}
			return reply
		}},
		{"a manifest goes by itself", Lost, func(b *blobFake, c fakeCall) fakeReply {
			if isManifest(c, http.MethodGet) && c.node == 3 {
				return fakeError(http.StatusNotFound, "MANIFEST_UNKNOWN", nil)
			}
			return b.serve(c)
		}},
		{"HEAD says what is not so", Refused, func(b *blobFake, c fakeCall) fakeReply {
			if isManifest(c, http.MethodPut) && b.random.IntN(4) == 0 {
				return fakeError(http.StatusNotFound, codeBlobUnknown, nil)
			}
			return b.serve(c)
		}},
		{"a node has other bytes", WrongBytes, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if c.node == 4 && isBlobRead(c) && reply.status == http.StatusOK {
				reply.body = append([]byte{^reply.body[0]}, reply.body[1:]...)
			}
			return reply
		}},
		{"HEAD tells another length", WrongBytes, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if c.method == http.MethodHead && reply.status == http.StatusOK {
				reply.body = reply.body[1:]
			}
			return reply
		}},
		{"a tag leads to another manifest", WrongBytes, func(b *blobFake, c fakeCall) fakeReply {
			reply := b.serve(c)
			if isManifest(c, http.MethodGet) && reply.status == http.StatusOK && !strings.Contains(c.url.Path, ":") {
				reply.body = append(reply.body[:len(reply.body):len(reply.body)], '\n')
			}
			return reply
		}},
		{"a node never answers", Lost, func(b *blobFake, c fakeCall) fakeReply {
			if c.node == 0 && isBlobRead(c) {
				return *fakeUnavailable()
			}
			return b.serve(c)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			kinds := kindsOf(tryOn(t, &blobFake{tamper: test.tamper, least: 3 * fakeCalls}, fastCollect()))
			// What was never deleted is Lost; chance decides whether there is any.
			if !slices.Contains(kinds, test.want) && (test.want != Lost || !slices.Contains(kinds, NotLinearizable)) {
				t.Errorf("the anomalies are %v, want %q", kinds, test.want)
			}
		})
	}
}

func TestJudgeCollect(t *testing.T) {
	t.Parallel()
	const digest = "sha256:x"
	blobs := func(seen string) history.Op {
		return history.Op{Key: "r@" + digest, Kind: kindBlobs, Input: seen, Output: "missing blob"}
	}
	op := func(kind, input, output string) history.Op {
		return history.Op{Key: "r@" + digest, Kind: kind, Input: input, Output: output}
	}
	unknown := func(op history.Op) history.Op { op.Outcome = history.Unknown; return op }
	put := at(1, 2, op(kindPut, putInput("t", 0), ""))
	get := at(3, 4, op(kindGet, digest, digest))
	dangling := at(5, 6, op(kindBlobs, "3000000000", "missing blob"))
	for _, test := range []struct {
		name string
		ops  []history.Op
		want string
	}{
		{"pushed, read, deleted", []history.Op{put, get, at(4, 5, op(kindBlobs, "3000000000", foundWhole)), at(6, 7, op(kindDelete, "", done)), at(8, 9, op(kindGet, digest, absent))}, ""},
		{"there without a push", []history.Op{get}, NotLinearizable},
		{"lost", []history.Op{put, at(8, 9, op(kindGet, digest, absent))}, Lost},
		{"lost before it was acknowledged", []history.Op{put, at(1.5, 9, op(kindGet, digest, absent))}, ""},
		{"back after a deletion", []history.Op{put, at(6, 7, op(kindDelete, "", done)), at(8, 9, op(kindGet, digest, digest))}, NotLinearizable},
		{"back without a quorum", []history.Op{put, at(6, 7, op(kindDelete, "", done)), unknown(at(8, 9, op(kindGet, digest, "stale "+digest)))}, ""},
		{"pushed and deleted at once", []history.Op{put, at(6, 7, op(kindDelete, "", done)), at(6, 7, op(kindPut, "t 0", "")), at(8, 9, op(kindGet, digest, absent)), at(9, 10, op(kindGet, digest, absent))}, ""},
		{"now this, now that", []history.Op{put, at(6, 7, op(kindDelete, "", done)), at(6, 7, op(kindPut, "t 0", "")), at(8, 9, op(kindGet, digest, absent)), at(9, 10, op(kindGet, digest, digest))}, NotLinearizable},
		{"dangling", []history.Op{put, get, dangling}, Dangling},
		{"dangling, deleted meanwhile", []history.Op{put, get, at(3.5, 7, op(kindDelete, "", done)), dangling}, Dangling},
		{"missing later, deleted meanwhile", []history.Op{put, get, at(3.5, 7, op(kindDelete, "", done)), at(8.5, 9, blobs("3000000000"))}, ""},
		{"missing later, deleted and pushed again", []history.Op{put, get, at(3.5, 7, op(kindDelete, "", done)), at(7.5, 8, op(kindPut, "t 0", "")), at(8.5, 9, blobs("3000000000"))}, NotLinearizable},
		{"missing later, and there again", []history.Op{unknown(at(0.1, 0.2, op(kindDelete, "", ""))), put, get, at(10, 11, blobs("3000000000")), at(12, 13, op(kindGet, digest, digest))}, NotLinearizable},
		{"dangling, deleted before and pushed again", []history.Op{at(0.1, 0.2, op(kindPut, "t 0", "")), at(0.3, 0.5, op(kindDelete, "", done)), put, get, dangling}, Dangling},
		{"dangling, deleted before without an answer", []history.Op{at(0.1, 0.2, op(kindPut, "t 0", "")), unknown(at(0.3, 0.5, op(kindDelete, "", ""))), put, get, dangling}, Dangling},
		{"missing later, deleted before without an answer", []history.Op{at(0.1, 0.2, op(kindPut, "t 0", "")), unknown(at(0.3, 0.5, op(kindDelete, "", ""))), put, get, at(8.5, 9, blobs("3000000000"))}, ""},
		{"dangling, deleted afterwards", []history.Op{put, get, dangling, at(6.5, 7, op(kindDelete, "", done))}, Dangling},
		{"dangling, seen without a quorum", []history.Op{put, at(2.1, 2.2, op(kindDelete, "", done)), unknown(at(3, 4, op(kindGet, digest, "stale "+digest))), dangling}, ""},
		{"no answer after the run", []history.Op{put, unknown(at(8, 9, op(kindFinal, "", "")))}, Lost},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &findings{}
			if err := judgeCollect(t.Context(), &Env{}, f, test.ops, nil, promiseTime); err != nil {
				t.Fatal(err)
			}
			wantOnly(t, f.all(), test.want)
		})
	}
}

// TestClocksExcuseMissingBlobs shows that a grace may be over at once when a clock jumps far ahead.
func TestClocksExcuseMissingBlobs(t *testing.T) {
	t.Parallel()
	const digest = "sha256:x"
	of := func(kind, input, output string) history.Op {
		return history.Op{Key: "r@" + digest, Kind: kind, Input: input, Output: output}
	}
	ops := []history.Op{
		at(1, 2, of(kindPut, putInput("t", 0), "")), at(3, 4, of(kindGet, digest, digest)),
		at(3.5, 5, of(kindDelete, "", done)), at(5, 6, of(kindBlobs, "3000000000", "missing blob")),
	}
	for kind, want := range map[string]string{"clock-far": "", "clock": Dangling} {
		f := &findings{}
		if err := judgeCollect(t.Context(), &Env{}, f, ops, []history.Fault{{Kind: kind, Begin: time.Second}}, promiseTime); err != nil {
			t.Fatal(err)
		}
		wantOnly(t, f.all(), want)
	}
}

func TestNothingIsCollected(t *testing.T) {
	t.Parallel()
	head := func(output string) history.Op { return history.Op{Kind: kindHead, Input: "r sha256:x", Output: output} }
	push := history.Op{Kind: kindPush, Input: "r sha256:x 7"}
	clock := []history.Fault{{Kind: "clock-far"}}
	for name, test := range map[string]struct {
		ops    []history.Op
		faults []history.Fault
		long   bool
		want   string
	}{
		"collected":         {[]history.Op{at(1, 2, push), at(3, 4, head("missing"))}, nil, true, ""},
		"there for ever":    {[]history.Op{at(1, 2, push), at(3, 4, head("whole"))}, nil, true, TooLittle},
		"not there yet":     {[]history.Op{at(0, 0.5, head("missing")), at(1, 2, push)}, nil, true, TooLittle},
		"at the same time":  {[]history.Op{at(1, 2, push), at(1.5, 4, head("missing"))}, nil, true, TooLittle},
		"seen, then gone":   {[]history.Op{at(1, 2, head("whole")), at(3, 4, head("missing"))}, nil, true, ""},
		"a short run":       {[]history.Op{at(1, 2, push)}, nil, false, ""},
		"a clock was ahead": {[]history.Op{at(1, 2, push)}, clock, true, ""},
	} {
		f := &findings{}
		f.judgeCollected(test.ops, test.faults, test.long)
		t.Run(name, func(t *testing.T) { wantOnly(t, f.all(), test.want) })
	}
}
