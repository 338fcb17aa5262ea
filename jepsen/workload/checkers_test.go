package workload

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
)

// kindsOf returns the kinds of anomalies, each once.
func kindsOf(anomalies []Anomaly) []string {
	var kinds []string
	for _, anomaly := range anomalies {
		kinds = append(kinds, anomaly.Kind)
	}
	slices.Sort(kinds)
	return slices.Compact(kinds)
}

func TestListsOfSeveralPages(t *testing.T) {
	for name, test := range map[string]struct {
		ops  []history.Op
		want []string
	}{
		"whole":                          {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindPut, "b", done), op(4, 5, kindPages, "", "a,b")}, nil},
		"nothing yet":                    {[]history.Op{op(0, 1, kindPages, "", "")}, nil},
		"lacks one":                      {[]history.Op{op(0, 1, kindPut, "a", done), op(4, 5, kindPages, "", "")}, []string{Lost}},
		"lacks one, seen later":          {[]history.Op{op(0, 1, kindPut, "a", done), op(4, 5, kindPages, "", ""), op(6, 7, kindList, "", "a")}, []string{Stale}},
		"put meanwhile, either":          {[]history.Op{op(0, 9, kindPut, "a", done), op(4, 5, kindPages, "", ""), op(6, 7, kindPages, "", "a")}, nil},
		"never put":                      {[]history.Op{op(0, 1, kindPages, "", "a")}, []string{NotLinearizable}},
		"put later":                      {[]history.Op{op(0, 1, kindPages, "", "a"), op(2, 3, kindPut, "a", done)}, []string{NotLinearizable}},
		"put failed":                     {[]history.Op{op(0, 1, kindPut, "a", "fail"), op(4, 5, kindPages, "", "a")}, []string{NotLinearizable}},
		"put of unknown outcome, either": {[]history.Op{op(0, 1, kindPut, "a", "unknown"), op(4, 5, kindPages, "", ""), op(6, 7, kindPages, "", "a")}, nil},
		"deleted":                        {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindDelete, "a", done), op(4, 5, kindPages, "", "a")}, []string{NotLinearizable}},
		"found gone":                     {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindDelete, "a", absent), op(4, 5, kindPages, "", "a")}, []string{NotLinearizable}},
		"deleted meanwhile, either":      {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 9, kindDelete, "a", done), op(4, 5, kindPages, "", "a"), op(6, 7, kindPages, "", "")}, nil},
		"deleted later":                  {[]history.Op{op(0, 1, kindPut, "a", done), op(4, 5, kindPages, "", ""), op(6, 7, kindDelete, "a", done)}, []string{Lost}},
		"deletion of unknown outcome":    {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindDelete, "a", "unknown"), op(4, 5, kindPages, "", "a"), op(6, 7, kindPages, "", "")}, nil},
		"deletion failed":                {[]history.Op{op(0, 1, kindPut, "a", done), op(2, 3, kindDelete, "a", "fail"), op(4, 5, kindPages, "", "")}, []string{Lost}},
		"put again":                      {[]history.Op{op(0, 1, kindDelete, "a", done), op(2, 3, kindPut, "a", done), op(4, 5, kindPages, "", "")}, []string{Lost}},
		"unknown, seen, and then not":    {[]history.Op{op(0, 1, kindPut, "a", "unknown"), op(2, 3, kindPages, "", "a"), op(4, 5, kindPages, "", "")}, []string{Lost}},
		"unknown, seen at the same time": {[]history.Op{op(0, 1, kindPut, "a", "unknown"), op(2, 5, kindPages, "", "a"), op(4, 5, kindPages, "", "")}, nil},
		"unknown, seen, and deleted":     {[]history.Op{op(0, 1, kindPut, "a", "unknown"), op(2, 3, kindPages, "", "a"), op(3, 4, kindDelete, "a", "unknown"), op(4, 5, kindPages, "", "")}, nil},
		"behind a name":                  {[]history.Op{op(0, 1, kindPut, "a", done), op(0, 1, kindMark, "b", done), op(4, 5, kindPages, "a", "b")}, nil},
		"behind a name, lacks one":       {[]history.Op{op(0, 1, kindMark, "b", done), op(4, 5, kindPages, "a", "")}, []string{Lost}},
		"unknown, then deleted":          {[]history.Op{op(0, 1, kindPut, "a", "unknown"), op(2, 3, kindDelete, "a", done), op(4, 5, kindPages, "", "a")}, nil},
		"a repository":                   {[]history.Op{op(0, 1, kindCreate, "r", done), op(4, 5, kindCatalog, "", "")}, []string{Lost}},
	} {
		found := &findings{}
		found.judgeLists(test.ops)
		if got := kindsOf(found.all()); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

func TestFreshGroups(t *testing.T) {
	for name, test := range map[string]struct {
		ops  []history.Op
		want []string
	}{
		"all":                     {[]history.Op{op(0, 1, kindFresh, "g", done), op(2, 3, kindList, "", "g-a,g-b,g-c")}, nil},
		"none":                    {[]history.Op{op(0, 1, kindFresh, "g", "unknown"), op(2, 3, kindList, "", "")}, nil},
		"two":                     {[]history.Op{op(0, 1, kindFresh, "g", "unknown"), op(2, 3, kindList, "", "g-a,g-b")}, []string{Torn}},
		"acknowledged":            {[]history.Op{op(0, 1, kindFresh, "g", done), op(2, 3, kindList, "", "")}, []string{Lost}},
		"acknowledged, and later": {[]history.Op{op(0, 1, kindFresh, "g", done), op(2, 3, kindList, "", ""), op(4, 5, kindList, "", "g-a,g-b,g-c")}, []string{Stale}},
		"unknown, and seen":       {[]history.Op{op(0, 1, kindFresh, "g", "unknown"), op(2, 3, kindList, "", "g-a,g-b,g-c"), op(4, 5, kindList, "", "")}, []string{Lost}},
		"unknown, seen meanwhile": {[]history.Op{op(0, 1, kindFresh, "g", "unknown"), op(2, 5, kindList, "", "g-a,g-b,g-c"), op(4, 5, kindList, "", "")}, nil},
		"meanwhile":               {[]history.Op{op(0, 9, kindFresh, "g", done), op(2, 3, kindList, "", "")}, nil},
		"too early":               {[]history.Op{op(0, 1, kindList, "", "g-a,g-b,g-c"), op(2, 3, kindFresh, "g", done)}, []string{NotLinearizable}},
		"failed":                  {[]history.Op{op(0, 1, kindFresh, "g", "fail"), op(2, 3, kindList, "", "g-a,g-b,g-c")}, []string{NotLinearizable}},
		"of nobody":               {[]history.Op{op(0, 1, kindFresh, "g", done), op(2, 3, kindList, "", "g-a,g-b,g-c,h")}, []string{WrongBytes}},
		"a double":                {[]history.Op{op(0, 1, kindFresh, "g", done), op(2, 3, kindList, "", "g-a,g-a,g-b,g-c")}, []string{WrongBytes}},
	} {
		found := &findings{}
		found.judgeFresh(test.ops)
		if got := kindsOf(found.all()); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

// TestGroupsAreOneRegister shows how reads of different tags are put together: what each tag has done
// may be right while all of them are not.
func TestGroupsAreOneRegister(t *testing.T) {
	for name, test := range map[string]struct {
		ops  []history.Op
		want []string
	}{
		"whole":       {[]history.Op{op(0, 1, kindPut, "1", done), op(2, 9, kindPut, "2", done), op(3, 4, kindGet, "g-a", "1"), op(5, 6, kindGet, "g-b", "2")}, nil},
		"one by one":  {[]history.Op{op(0, 1, kindPut, "1", done), op(2, 9, kindPut, "2", done), op(3, 4, kindGet, "g-a", "2"), op(5, 6, kindGet, "g-b", "1")}, []string{Torn}},
		"one is lost": {[]history.Op{op(0, 1, kindPut, "1", done), op(2, 3, kindGet, "g-a", "1"), op(4, 5, kindGet, "g-b", absent)}, []string{NotLinearizable}},
	} {
		w := NewMultitag().(*multitag)
		if err := w.judgeGroup(t.Context(), &Env{}, "g", test.ops); err != nil {
			t.Fatal(err)
		}
		if got := kindsOf(w.found.all()); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

func TestReadsByDigest(t *testing.T) {
	const second = time.Second
	read := func(call int, node, output string, status int) history.Op {
		one := op(call, call+1, kindDigest, "d", output)
		one.Node, one.Status = node, status
		return one
	}
	nodes := []Node{{Name: "n1"}, {Name: "n2"}}
	refused := []history.Op{read(0, "n1", foundHere, 200), read(10, "n1", "unknown", 503)}
	hung := read(10, "n1", "unknown", 0)
	hung.Return = 30 * second
	cut := read(10, "n1", "unknown", 200)
	cut.Error = "reply was cut off"
	for name, test := range map[string]struct {
		ops    []history.Op
		faults []history.Fault
		want   []string
	}{
		"found":              {[]history.Op{read(0, "n1", foundHere, 200), read(2, "n1", foundAlone, 200)}, nil, nil},
		"gone":               {[]history.Op{read(0, "n1", foundHere, 200), read(2, "n1", absent, 404)}, nil, []string{Lost}},
		"not yet":            {[]history.Op{read(0, "n1", absent, 404), read(2, "n1", foundHere, 200)}, nil, []string{Stale}},
		"refused":            {refused, nil, []string{Refused}},
		"never had it":       {[]history.Op{read(0, "n2", foundHere, 200), read(10, "n1", "unknown", 503)}, nil, nil},
		"no connection":      {[]history.Op{read(0, "n1", foundHere, 200), read(10, "n1", "fail", 0)}, nil, nil},
		"no reply":           {[]history.Op{read(0, "n1", foundHere, 200), read(10, "n1", "unknown", 0)}, nil, []string{Refused}},
		"an error":           {[]history.Op{read(0, "n1", foundHere, 200), read(10, "n1", "unknown", 500)}, nil, []string{Refused}},
		"cut off":            {[]history.Op{read(0, "n1", foundHere, 200), cut}, nil, []string{Refused}},
		"too many":           {[]history.Op{read(0, "n1", foundHere, 200), read(10, "n1", "unknown", 429)}, nil, nil},
		"hangs":              {[]history.Op{read(0, "n1", foundHere, 200), hung}, []history.Fault{{Kind: "halves", Target: "n1", Begin: 3 * second}}, []string{Refused}},
		"hangs, and slow":    {[]history.Op{read(0, "n1", foundHere, 200), hung}, []history.Fault{{Kind: "latency", Target: "n1", Begin: 3 * second}}, nil},
		"killed between":     {refused, []history.Fault{{Kind: "kill", Target: "n1", Begin: 3 * second, End: 5 * second}}, nil},
		"killed, and still":  {refused, []history.Fault{{Kind: "kill", Target: "n1", Begin: 3 * second}}, nil},
		"killed before":      {[]history.Op{read(5, "n1", foundHere, 200), read(10, "n1", "unknown", 503)}, []history.Fault{{Kind: "kill", Target: "n1", Begin: second, End: 2 * second}}, []string{Refused}},
		"killed after":       {refused, []history.Fault{{Kind: "kill", Target: "n1", Begin: 20 * second, End: 30 * second}}, []string{Refused}},
		"another was killed": {refused, []history.Fault{{Kind: "kill", Target: "n2", Begin: 3 * second, End: 5 * second}}, []string{Refused}},
		"all were killed":    {refused, []history.Fault{{Kind: "kill-all", Target: "all", Begin: 3 * second, End: 5 * second}}, nil},
		"was cut off":        {refused, []history.Fault{{Kind: "isolate-leader", Target: "n1", Begin: 3 * second, End: 5 * second}}, []string{Refused}},
	} {
		found := &findings{}
		found.judgeDigest(test.ops, test.faults, nodes)
		if got := kindsOf(found.all()); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

// TestHold shows that a key is given up before too many operations may turn out to be of unknown outcome.
func TestHold(t *testing.T) {
	r := newRotation(1, member)
	first, release := r.hold(0)
	for range maxUncertain - 2 {
		r.note(first, &history.Op{Kind: kindPut, Outcome: history.Unknown}, "")
		if first.unknown == unknownPerKey-1 {
			break
		}
	}
	var releases []func()
	for first.underWay+first.unknown < maxUncertain {
		_, more := r.hold(0)
		releases = append(releases, more)
	}
	if second, _ := r.hold(0); second == first {
		t.Errorf("the key is in use still: %+v", first)
	}
	release()
	for _, more := range releases {
		more()
	}
	if first.underWay != 0 {
		t.Errorf("%d operations are under way for ever", first.underWay)
	}
}

// TestUndecidedIsNoPass shows that a search without an end is an error.
func TestUndecidedIsNoPass(t *testing.T) {
	ops := registerOperations(uncertain(rand.New(rand.NewPCG(1, 2)), true))
	if _, err := linearizable(registerModel(), ops, time.Nanosecond); !errors.Is(err, errUndecided) {
		t.Errorf("the search in no time: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	found := &findings{}
	if err := found.judge(ended, &Env{}, NotLinearizable, "k", registerModel(), ops); !errors.Is(err, context.Canceled) || len(found.all()) > 0 {
		t.Errorf("the judgement under a context that has ended: %v", err)
	}
}

func TestFindingsAreBounded(t *testing.T) {
	found := &findings{workload: "w"}
	for range maxFindings + 2 {
		found.add(Lost, "%s", "what")
	}
	found.add(Stale, "another kind")
	all := found.all()
	if len(all) != maxFindings+1 || all[maxFindings-1].What != "what (and 2 more anomalies of this kind)" || all[maxFindings].What != "another kind" {
		t.Errorf("%d findings, the last are %+v", len(all), all[maxFindings-1:])
	}
}

// TestKeysAreReplaced shows that keys serve for a while only.
func TestKeysAreReplaced(t *testing.T) {
	r := newRotation(1, member)
	first := r.take(0)
	for range operationsPerKey - 1 {
		if r.take(0) != first {
			t.Fatal("a key was replaced too early")
		}
	}
	second := r.take(0)
	if second.key != member(1) {
		t.Errorf("the second key is %s", second.key)
	}
	for range unknownPerKey {
		r.note(second, &history.Op{Kind: kindPut, Outcome: history.Unknown}, "")
	}
	if third := r.take(0); third.key != member(2) || r.seen(third) != absent {
		t.Errorf("the third key is %+v", third)
	}
}

// TestJudgedWithoutLook shows that all workloads judge what they have when nobody could look, or the time is over, and
// ask no node.
func TestJudgedWithoutLook(t *testing.T) {
	for _, w := range All() {
		t.Run(w.Name(), func(t *testing.T) {
			t.Parallel()
			f := newFake(t, 1)
			f.after, f.full = 1, func() { t.Error("a node was asked") }
			env := f.env(t)
			for _, one := range []history.Op{
				op(0, 1, kindPut, "x", done), op(2, 3, kindGet, "", "y"), op(4, 5, kindStart, "", ""), op(4, 5, kindHead, "r sha256:x", "wrong bytes"),
				op(6, 7, kindStatus, "", "7"),
			} {
				one.Workload = w.Name()
				env.History.Add(one)
			}
			foundOf(w).add(Torn, "on the way")
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			if anomalies, _ := w.Judge(ended, env); !slices.Contains(kindsOf(anomalies), Torn) {
				t.Errorf("when the time is over: %v", anomalies)
			}
			anomalies, err := w.Judge(t.Context(), env)
			if err != nil || len(anomalies) == 0 {
				t.Errorf("%v, %v", anomalies, err)
			}
		})
	}
}

// foundOf returns the findings of a workload.
func foundOf(w Workload) *findings {
	switch w := w.(type) {
	case *images:
		return w.found
	case *uploads:
		return w.found
	case *collect:
		return w.found
	case *register:
		return w.found
	case *listing:
		return w.found
	case *multitag:
		return w.found
	case *quorumless:
		return w.found
	}
	return nil
}

func TestJudgeStatuses(t *testing.T) {
	refused := func(kind, output string, status int, text string) history.Op {
		return history.Op{Kind: kind, Output: output, Status: status, Error: text, Outcome: history.Fail}
	}
	for name, test := range map[string]struct {
		op   history.Op
		want string
	}{
		"a blob":                     {refused(kindPush, "patch", 400, "BLOB_UPLOAD_INVALID"), Refused},
		"a blob with another digest": {refused(kindPush, "put", 400, codeDigestInvalid), Torn},
		"an upload that is gone":     {refused(kindPush, "put", 404, "BLOB_UPLOAD_UNKNOWN"), Lost},
		"too many":                   {refused(kindPush, "put", 429, ""), ""},
		"too slow":                   {refused(kindPush, "put", 408, ""), ""},
		"unavailable":                {refused(kindPush, "put", 503, ""), ""},
		"a manifest without blobs":   {refused(kindPut, codeBlobUnknown, 404, ""), ""},
		"a manifest":                 {refused(kindPut, "", 405, ""), Refused},
		"a read":                     {refused(kindGet, "", 403, ""), Refused},
		"a redirected read":          {refused("pull", "", 403, redirected+"DENIED"), ""},
		"a redirected read, wrong":   {refused("pull", "", 400, redirected+"DENIED"), Refused},
		"a read of nothing":          {refused(kindRead, "missing blob", 404, ""), ""},
		"a deletion of nothing":      {refused(kindDelete, absent, 404, ""), ""},
		"a chunk elsewhere":          {refused(kindPatch, "7", 416, ""), ""},
		"a chunk with another size":  {refused(kindPatch, "", 400, "SIZE_INVALID"), Refused},
		"an upload":                  {refused(kindStart, "", 404, ""), Lost},
	} {
		f := &findings{}
		f.judgeStatuses([]history.Op{test.op})
		t.Run(name, func(t *testing.T) { wantOnly(t, f.all(), test.want) })
	}
}

func TestNextPage(t *testing.T) {
	for link, want := range map[string]string{
		"":                         "",
		"</v2/r/tags/list?last=b>": "",
		`</v2/r/tags/list?last=b&n=3>; rel="next"`:         "/v2/r/tags/list?last=b&n=3",
		`<http://n1:80/v2/r/tags/list?last=b>; rel="next"`: "/v2/r/tags/list?last=b",
		`<list?last=b>; rel="next"`:                        "/v2/r/tags/list?last=b",
		`<?last=b>; rel="next"`:                            "/v2/r/tags/list?last=b",
	} {
		if got, more := nextPage("/v2/r/tags/list?n=3", link); got != want || more != (want != "") {
			t.Errorf("%s leads to %q, more %v", link, got, more)
		}
	}
}
