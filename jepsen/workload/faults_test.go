package workload

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
)

// enough is how many requests a workload sends in a test, and plenty that of one that asks much the same most
// of the time.
const (
	enough = 900
	plenty = 2500
)

// hurry makes the clients of a workload of this file's kind fast.
func hurry(w Workload) Workload {
	var c *common
	switch w := w.(type) {
	case *register:
		c = &w.common
	case *listing:
		c = &w.common
	case *multitag:
		c = &w.common
	case *quorumless:
		c = &w.common
	}
	c.pause, c.patience = time.Millisecond, 20*time.Millisecond
	return w
}

// runAgainst runs a workload against a fake, and returns its judgement. The fault is there until the judgement.
func runAgainst(t *testing.T, f *fake, env *Env, w Workload) []Anomaly {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if f.after, f.full = enough, cancel; w.Name() == "quorumless" {
		f.after = plenty
	}
	if err := hurry(w).Run(ctx, env); err != nil {
		t.Fatal(err)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Fatal("the workload does not send its requests")
	}
	return check(t, w, env)
}

// constructors returns those of these workloads.
func constructors() map[string]func() Workload {
	return map[string]func() Workload{"register": NewRegister, "listing": NewListing, "multitag": NewMultitag, "quorumless": NewQuorumless}
}

func isWrite(c fakeCall) bool { return c.method != http.MethodGet && c.method != http.MethodHead }

// isOf says that a call is about manifests, by tag or by digest.
func isOf(c fakeCall, tags bool) bool {
	_, reference, found := strings.Cut(c.url.Path, "/manifests/")
	return found && strings.Contains(reference, ":") != tags
}

func isTagWrite(c fakeCall) bool { return isWrite(c) && (isOf(c, true) || c.url.Query().Has("tag")) }

// everyNth says yes to each n-th question.
func everyNth(n int) func() bool {
	asked := 0
	return func() bool { asked++; return asked%n == 0 }
}

// later returns a fault that hands calls to meet, and does the calls that it returns when as many
// more requests have come.
func later(f *fake, after int, meet func(c fakeCall) (postponed *fakeCall, reply *fakeReply)) func(c fakeCall) *fakeReply {
	type waiting struct {
		call fakeCall
		left int
	}
	var queue []*waiting
	return func(c fakeCall) *fakeReply {
		queue = slices.DeleteFunc(queue, func(w *waiting) bool {
			if w.left--; w.left == 0 {
				f.state.serve(w.call)
			}
			return w.left == 0
		})
		postponed, reply := meet(c)
		if postponed != nil {
			queue = append(queue, &waiting{call: *postponed, left: after})
		}
		return reply
	}
}

// changed serves a call and changes the reply.
func changed(f *fake, c fakeCall, change func(r *fakeReply)) *fakeReply {
	reply := f.state.serve(c)
	reply.body = bytes.Clone(reply.body)
	if reply.status == http.StatusOK {
		change(&reply)
	}
	return &reply
}

// lagging returns a fault: a node answers some reads by what was there a while ago.
func lagging(f *fake, node int, which func(c fakeCall) bool) func(c fakeCall) *fakeReply {
	old, renew := f.state.clone(), everyNth(60)
	return func(c fakeCall) *fakeReply {
		if renew() {
			old = f.state.clone()
		}
		if c.node != node || isWrite(c) || !which(c) {
			return nil
		}
		reply := old.serve(c)
		return &reply
	}
}

// listChanged returns a fault: some lists, of those with or without pages, have other names.
func listChanged(f *fake, paged bool, from, to string) func(c fakeCall) *fakeReply {
	hit := everyNth(3)
	return func(c fakeCall) *fakeReply {
		isList := strings.HasSuffix(c.url.Path, "/tags/list") || strings.HasSuffix(c.url.Path, "/_catalog")
		if !isList || c.url.Query().Has("n") != paged || !hit() {
			return nil
		}
		return changed(f, c, func(r *fakeReply) { r.body = bytes.ReplaceAll(r.body, []byte(from), []byte(to)) })
	}
}

func TestHealthyRegistryHasNoAnomalies(t *testing.T) {
	for name, newWorkload := range constructors() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, 5)
			env := f.env(t)
			w := newWorkload()
			for _, anomaly := range runAgainst(t, f, env, w) {
				t.Errorf("%+v", anomaly)
			}
			kinds := map[string]int{}
			for _, op := range env.History.Ops() {
				if op.Workload != w.Name() || op.Outcome != history.OK {
					t.Errorf("%+v", op)
				}
				kinds[op.Kind]++
			}
			t.Log(kinds)
		})
	}
}

// TestLegalTroubleIsNoAnomaly has requests fail in all ways that are allowed.
func TestLegalTroubleIsNoAnomaly(t *testing.T) {
	for name, newWorkload := range constructors() {
		for trouble, newFault := range map[string]func(f *fake) func(c fakeCall) *fakeReply{
			"done late": func(f *fake) func(c fakeCall) *fakeReply {
				hit := everyNth(25)
				return later(f, 30, func(c fakeCall) (*fakeCall, *fakeReply) {
					if isTagWrite(c) && hit() {
						return &c, fakeUnavailable()
					}
					return nil, nil
				})
			},
			"done, and no reply": func(f *fake) func(c fakeCall) *fakeReply {
				hit := everyNth(30)
				return func(c fakeCall) *fakeReply {
					// A node that had a manifest and then does not answer for it, with nothing broken, is no legal trouble.
					promised := isOf(c, false) && !isWrite(c)
					if !promised && hit() {
						f.state.serve(c)
						return &fakeReply{}
					}
					return nil
				}
			},
			"never done": func(*fake) func(c fakeCall) *fakeReply {
				hit, many := everyNth(30), everyNth(17)
				return func(c fakeCall) *fakeReply {
					switch {
					case many():
						reply := fakeError(http.StatusTooManyRequests, "TOOMANYREQUESTS", nil)
						return &reply
					case isWrite(c) && hit():
						return fakeUnavailable()
					}
					return nil
				}
			},
		} {
			t.Run(name+"/"+trouble, func(t *testing.T) {
				t.Parallel()
				f := newFake(t, 5)
				f.fault = newFault(f)
				env := f.env(t)
				w := newWorkload()
				anomalies := runAgainst(t, f, env, w)
				for _, anomaly := range anomalies {
					t.Errorf("%+v", anomaly)
				}
				if !slices.ContainsFunc(env.History.Ops(), func(op history.Op) bool { return op.Outcome != history.OK }) {
					t.Error("nothing went wrong")
				}
			})
		}
	}
}

func TestBrokenRegistriesAreCaught(t *testing.T) {
	for name, broken := range breakages() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, 5)
			f.fault = broken.fault(f)
			env := f.env(t)
			env.Dir = "" // TestDrawing has pictures
			anomalies := runAgainst(t, f, env, constructors()[broken.workload]())
			if !slices.ContainsFunc(anomalies, func(a Anomaly) bool { return slices.Contains(broken.want, a.Kind) }) {
				t.Errorf("the anomalies are %+v, want one of %v", anomalies, broken.want)
			}
		})
	}
}

// TestExcuses shows that a refusal is an anomaly unless something is broken that has to do with it.
func TestExcuses(t *testing.T) {
	for _, test := range []struct {
		kind, target string
		excused      bool
	}{
		{"kill", "n0,n1", true},
		{"isolate-leader", "n1", false},
	} {
		f := newFake(t, 5)
		f.fault = cutOff(f)
		env := f.env(t)
		end := env.History.BeginFault(test.kind, test.target)
		anomalies := runAgainst(t, f, env, NewQuorumless())
		end()
		if excused := len(anomalies) == 0; excused != test.excused {
			t.Errorf("%s of %s: excused is %v: %+v", test.kind, test.target, excused, anomalies)
		}
	}
}

// TestAloneIsCounted shows that content without a quorum is as good as any, and counted.
func TestAloneIsCounted(t *testing.T) {
	f := newFake(t, 5)
	f.fault = func(c fakeCall) *fakeReply {
		switch {
		case c.node != 4 || f.calls > f.after:
			return nil
		case isWrite(c) || isOf(c, true):
			return fakeUnavailable()
		}
		return changed(f, c, func(r *fakeReply) { r.header.Set("Warning", `299 - "alone"`) })
	}
	env := f.env(t)
	var logged string
	env.Log = func(format string, args ...any) { logged += format; t.Logf(format, args...) }
	for _, anomaly := range runAgainst(t, f, env, NewQuorumless()) {
		t.Errorf("%+v", anomaly)
	}
	alone := slices.ContainsFunc(env.History.Ops(), func(op history.Op) bool { return op.Output == foundAlone && op.Node == "n4" })
	if !alone || !strings.Contains(logged, "without a quorum") {
		t.Errorf("no read without a quorum was counted; logged: %q", logged)
	}
}

// TestSetUpWaits shows that a run begins when the cluster lets it, and fails if it never does.
func TestSetUpWaits(t *testing.T) {
	f := newFake(t, 5)
	f.fault = func(fakeCall) *fakeReply {
		if f.calls < 3 {
			return fakeUnavailable()
		}
		return nil
	}
	for _, anomaly := range runAgainst(t, f, f.env(t), NewRegister()) {
		t.Errorf("%+v", anomaly)
	}
	f.setFault(func(fakeCall) *fakeReply { return fakeUnavailable() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := NewRegister().Run(ctx, f.env(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("set-up of a registry that refuses everything: %v", err)
	}
}

// TestFakeHasItsOwnPages shows that the fake pages as registries do.
func TestFakeHasItsOwnPages(t *testing.T) {
	request := httptest.NewRequest(http.MethodGet, "/v2/a/tags/list?n=2&last=b", nil)
	reply := fakePage(fakeCall{url: request.URL}, "tags", []string{"a", "b", "c", "d", "e"})
	if string(reply.body) != `{"tags":["c","d"]}` || reply.header.Get("Link") != `</v2/a/tags/list?last=d&n=2>; rel="next"` {
		t.Errorf("%s, Link: %s", reply.body, reply.header.Get("Link"))
	}
}

func TestDrawing(t *testing.T) {
	f := newFake(t, 1)
	env := f.env(t)
	found := &findings{workload: "w"}
	ops := []history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindGet, "", "a"), op(4, 5, kindGet, "", absent), op(6, 7, kindGet, "", "a")}
	if err := found.judge(t.Context(), env, NotLinearizable, "a/b", registerModel(), registerOperations(ops)); err != nil {
		t.Fatal(err)
	}
	path := env.Dir + "/w-a_b.html"
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	if what := found.all()[0].What; !strings.Contains(what, "4.000s to 5.000s, get: -") || !strings.Contains(what, path) {
		t.Error(what)
	}
	env.Dir += "/missing"
	if err := found.judge(t.Context(), env, NotLinearizable, "a/b", registerModel(), registerOperations(ops)); err != nil {
		t.Fatal(err)
	}
	if all := found.all(); len(all) != 2 || !strings.Contains(all[1].What, "not drawn") {
		t.Errorf("without a folder to draw in: %+v", all)
	}
}
