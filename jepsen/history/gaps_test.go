package history

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// put is a put of a balanced client.
func put(call, ret float64, outcome Outcome) Op {
	return Op{Workload: "w", Kind: "put", Balanced: true, Call: s(call), Return: s(ret), Outcome: outcome}
}

func refused(call, ret float64, status int) Op {
	op := put(call, ret, Fail)
	op.Status = status
	return op
}

func gap(from, to float64) Gap { return Gap{From: s(from), To: s(to), Answered: true} }

func unanswered(from, to float64) Gap { return Gap{From: s(from), To: s(to)} }

func TestGapsOf(t *testing.T) {
	for _, c := range []struct {
		name string
		ops  []Op
		want []Gap
	}{
		{name: "nothing asked"},
		{"pauses between answers are no gaps", []Op{put(1, 2, OK), put(4, 5, OK)}, []Gap{gap(1, 2), gap(4, 5)}},
		{"quiet for long between answers", []Op{put(1, 2, OK), put(50, 51, OK)}, []Gap{gap(1, 2), gap(50, 51)}},
		{"a failure and the pause after it", []Op{put(1, 2, OK), put(3, 4, Fail), put(6, 7, Unknown), put(9, 10, OK)}, []Gap{gap(1, 2), gap(3, 10)}},
		{"a call under way goes on counting", []Op{put(1, 9, Unknown), put(2, 3, OK), put(4, 5, OK)}, []Gap{gap(1, 3), gap(3, 5), unanswered(5, 9)}},
		{"a stuck call alone", []Op{put(1, 30, OK)}, []Gap{gap(1, 30)}},
		{"silence after a failure ends the gap", []Op{put(1, 2, Fail), put(60, 61, OK)}, []Gap{unanswered(1, 2), gap(60, 61)}},
		{"silence of just Quiet does not", []Op{put(1, 2, Fail), put(7, 8, OK)}, []Gap{gap(1, 8)}},
		{"never answered, to the last return", []Op{put(1, 2, Fail), put(3, 9, Unknown), put(4, 5, Fail)}, []Gap{unanswered(1, 9)}},
		{"answers at one instant", []Op{put(1, 3, OK), put(2, 3, OK), put(3, 4, OK)}, []Gap{gap(1, 3), gap(3, 4)}},
		{"in any order", []Op{put(9, 10, OK), put(3, 4, Fail), put(1, 2, OK)}, []Gap{gap(1, 2), gap(3, 10)}},
		{"412 and 404 are answers, 403 and 429 are none", []Op{refused(1, 2, 412), refused(3, 4, 404), refused(5, 6, 429), refused(6, 7, 403), put(7, 8, OK)}, []Gap{gap(1, 2), gap(3, 4), gap(5, 8)}},
		{"what lies outside is cut off", []Op{put(-5, -1, OK), put(-1, 2, OK), put(99, 120, OK), put(100, 101, OK)}, []Gap{gap(0, 2), unanswered(99, 100)}},
		{"outside altogether", []Op{put(-5, 0, OK), put(100, 101, OK)}, nil},
		{"no time at all", []Op{put(5, 5, OK)}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := gapsOf(c.ops, 0, s(100)); !slices.Equal(got, c.want) {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
		})
	}
}

func TestGaps(t *testing.T) {
	ops := []Op{
		put(1, 2, OK), put(10, 13, OK), put(30, 30.5, OK), put(50, 54, Unknown), put(54, 55, OK),
		{Workload: "w", Kind: "get", Balanced: true, Call: s(20), Return: s(20.5), Outcome: OK},
		{Workload: "v", Kind: "put", Call: s(20), Return: s(90), Outcome: OK}, // not balanced
	}
	faults := []Fault{
		{Kind: "kill", Begin: s(12), End: s(14)},
		{Kind: "kill", Begin: s(16), End: s(25)}, // overlaps the settling of the first
		{Kind: "pause", Begin: s(25), End: s(26)},
		{Kind: "wipe", Begin: s(53)}, // lasts
	}
	named := func(g Gap, kind, fault string) Gap {
		g.Workload, g.Kind, g.Fault = "w", kind, fault
		return g
	}
	want := []Gap{
		named(gap(20, 20.5), "get", WholeTime),
		named(gap(20, 20.5), "get", "kill"),
		named(gap(1, 2), "put", NoFault),
		named(gap(50, 55), "put", WholeTime),
		named(gap(10, 13), "put", "kill"),
		named(gap(30, 30.5), "put", "pause"),
		named(gap(50, 55), "put", "wipe"),
	}
	if got := Gaps(ops, faults, 0, s(100)); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got := Gaps(nil, faults, 0, s(100)); len(got) != 0 {
		t.Errorf("gaps of nothing: %v", got)
	}
}

func TestBlameEdges(t *testing.T) {
	b := newBlame([]Fault{{Kind: "kill", Begin: s(10), End: s(20)}, {Kind: "kill", Begin: s(11), End: s(12)}})
	after := 20 + Settling.Seconds()
	for _, c := range []struct {
		from, to float64
		want     string
	}{{1, 9.9, NoFault}, {1, 10, "kill"}, {13, 14, "kill"}, {after, after + 1, "kill"}, {after + 0.1, after + 9, NoFault}, {1, 99, "kill"}} {
		if got := b.of(s(c.from), s(c.to)); !slices.Equal(got, []string{WholeTime, c.want}) {
			t.Errorf("%v to %v: %v, want %s", c.from, c.to, got, c.want)
		}
	}
}

func TestMeasure(t *testing.T) {
	failed := func(call float64, outcome Outcome, err string) Op {
		op := put(call, call+0.1, outcome)
		op.Error = err
		return op
	}
	ops := []Op{
		put(-1, 2, OK), put(100, 101, OK), // not within
		failed(12, Unknown, "EOF"), failed(11, Fail, "refused"), failed(13, Unknown, "EOF"),
		failed(14, Fail, "third"), failed(15, Fail, "fourth"), refused(16, 17, 412),
		put(1, 1.5, OK), put(17, 19, OK), put(17, 20, OK),
		{Workload: "w", Kind: "put", Call: s(5), Return: s(50), Outcome: Unknown}, // not balanced
	}
	got := Measure(ops, []Fault{{Kind: "kill", Begin: s(10), End: s(20)}}, 0, s(100))
	if len(got) != 3 || got[0].Fault != NoFault || got[1].Fault != WholeTime || got[2].Fault != "kill" {
		t.Fatalf("rows: %+v", got)
	}
	kill := got[2]
	kill.Gap = Gap{}
	if want := (Figures{Workload: "w", Kind: "put", Fault: "kill", Acknowledged: 2, Refused: 1, Failed: 3, Unknown: 2,
		P50: s(2), P99: s(3), Max: s(3), Errors: []string{"refused", "EOF", "third"}}); !reflect.DeepEqual(kill, want) {
		t.Errorf("got  %+v\nwant %+v", kill, want)
	}
	if got[2].Gap.From != s(11) || got[2].Gap.To != s(17) {
		t.Errorf("gap %+v", got[2].Gap)
	}
	if got[0].Acknowledged != 1 || got[0].P99 != s(0.5) || got[1].Acknowledged != 3 || got[1].Failed != 3 {
		t.Errorf("rows: %+v", got)
	}
	if Measure(nil, nil, 0, s(1)) == nil {
		t.Error("nothing measured is encoded as null")
	}
}

func TestErrorTexts(t *testing.T) {
	long := refused(1, 2, 503)
	long.Error = strings.Repeat("é", 9999)
	got := Measure([]Op{refused(0.5, 1, 429), long}, nil, 0, s(9))[0].Errors
	if len(got) != 2 || got[0] != "status 429" || got[1] != strings.Repeat("é", maxText)+"…" {
		t.Errorf("errors: %q", got)
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, c := range []struct {
		of   []time.Duration
		p    float64
		want time.Duration
	}{{nil, 0.5, 0}, {hundred[:1], 0.01, 1}, {hundred[:1], 1, 1}, {hundred[:2], 0.5, 1}, {hundred[:3], 0.5, 2}, {hundred, 0.99, 99}, {hundred, 1, 100}, {hundred[:50], 0.99, 50}} {
		if got := Percentile(c.of, c.p); got != c.want {
			t.Errorf("the share %v of %d: %d, want %d", c.p, len(c.of), got, c.want)
		}
	}
}

func TestRecoveries(t *testing.T) {
	ops := []Op{
		put(1, 2, OK),
		put(9, 11, OK),       // called before the fault
		put(10, 10.1, Fail),  // an answer, but not done
		refused(11, 12, 412), // the same
		put(14, 20, OK), put(15, 17, OK),
		{Workload: "w", Kind: "get", Balanced: true, Call: s(10), Return: s(10.5), Outcome: OK},
		{Workload: "w", Kind: "put", Call: s(10), Return: s(10.5), Outcome: OK}, // not balanced
		put(30, 31, Unknown), put(33, 34, Fail),
	}
	faults := []Fault{{Kind: "kill", Begin: s(10), End: s(12)}, {Kind: "pause", Begin: s(25), End: s(26)}, {Kind: "kill", Begin: s(40), End: s(41)}}
	got := Recoveries(ops, faults, func(op Op) bool { return op.Kind == "put" })
	if len(got) != 3 {
		t.Fatalf("%+v", got)
	}
	if r := got[0]; r.Took != s(7) || !r.Recovered || !r.Asked || r.Gap.From != s(14) || r.Gap.To != s(17) || r.Gap.Fault != "kill" {
		t.Errorf("recovered: %+v", r)
	}
	if r := got[1]; r.Took != s(9) || r.Recovered || !r.Asked || r.Gap.Length() != s(4) || r.Gap.Answered {
		t.Errorf("never recovered: %+v", r)
	}
	if r := got[2]; r.Took != 0 || r.Recovered || r.Asked || r.Gap.Length() != 0 {
		t.Errorf("never asked: %+v", r)
	}
	for _, r := range Recoveries(nil, faults, func(Op) bool { return true }) {
		if r.Asked || r.Recovered {
			t.Errorf("of no operations: %+v", r)
		}
	}
}

// TestRecoveryBeforeTheFaultWorks has a fault that takes effect a second after it was
// recorded: a write slips in, and only the gap tells of the outage.
func TestRecoveryBeforeTheFaultWorks(t *testing.T) {
	ops := []Op{put(10.1, 10.2, OK), put(11, 18, Unknown), put(18, 19, OK)}
	got := Recoveries(ops, []Fault{{Kind: "kill", Begin: s(10), End: s(12)}}, func(Op) bool { return true })
	if got[0].Gap.Length() != s(8) {
		t.Errorf("gap %+v", got[0].Gap)
	}
}
