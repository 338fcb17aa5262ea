package history

import (
	"cmp"
	"net/http"
	"slices"
	"sort"
	"time"
)

const (
	// Settling is how long after its end a fault is still blamed for what is seen.
	Settling = 5 * time.Second
	// Quiet is how long nothing may be asked within one gap. Clients pause for less than
	// that between two attempts; after a longer silence nobody knows how the service was.
	Quiet = 5 * time.Second

	// WholeTime stands in place of a kind of fault for all that was measured.
	WholeTime = "(whole time)"
	// NoFault stands in its place for what happened with no fault around.
	NoFault = "(no fault)"
)

// Gap is a time in which a kind of operation was asked for and never answered.
//
// It begins with a call, or with the answer before it if another call was under way then,
// and ends with the next answer. So the pauses of clients that get answers are no gaps,
// and one slow call is. The pause after a call without an answer does belong to the gap,
// unless it is longer than Quiet: then the gap ends where the silence begins, and a new
// one begins with the next call. A single stuck call makes a gap of the whole time in
// which no other is answered. What lies outside the measured time is cut off.
//
// Only calls of balanced clients count. An answer is an acknowledgement (OK), or the word
// that what was asked is not so (400, 404, 412, 416), which takes as much of a cluster.
// Other refusals are none: a service that refuses everything is not there.
type Gap struct {
	Workload string `json:"workload"`
	Kind     string `json:"kind"`
	// Fault is the kind of fault that is blamed, WholeTime or NoFault.
	Fault string `json:"fault"`
	// From and To are times since the log was begun.
	From time.Duration `json:"from_ns"`
	To   time.Duration `json:"to_ns"`
	// Answered is false if clients fell silent, or the measured time ended, before an answer.
	Answered bool `json:"answered"`
}

// Length returns how long the gap is.
func (g Gap) Length() time.Duration { return g.To - g.From }

// Gaps returns the longest gap between begin and end for each kind of operation of each
// workload: in the whole time, with no fault around, and for each kind of fault among
// those that overlap a fault of that kind or the time of Settling after it. A gap that
// overlaps several is blamed on each. They are sorted by workload, kind and fault.
func Gaps(ops []Op, faults []Fault, begin, end time.Duration) []Gap {
	blame := newBlame(faults)
	var all []Gap
	for name, group := range byKind(ops) {
		longest := map[string]Gap{}
		for _, gap := range gapsOf(group, begin, end) {
			for _, fault := range blame.of(gap.From, gap.To) {
				if gap.Length() > longest[fault].Length() {
					longest[fault] = gap
				}
			}
		}
		for fault, gap := range longest {
			gap.Workload, gap.Kind, gap.Fault = name.workload, name.kind, fault
			all = append(all, gap)
		}
	}
	slices.SortFunc(all, func(a, b Gap) int {
		return cmp.Or(cmp.Compare(a.Workload, b.Workload), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Fault, b.Fault))
	})
	return all
}

// name names a kind of operation.
type name struct{ workload, kind string }

// byKind returns the operations of balanced clients by kind.
func byKind(ops []Op) map[name][]Op {
	groups := map[name][]Op{}
	for _, op := range ops {
		if op.Balanced {
			groups[name{op.Workload, op.Kind}] = append(groups[name{op.Workload, op.Kind}], op)
		}
	}
	return groups
}

// answered says whether an operation that was not acknowledged was answered all the same.
func answered(op Op) bool {
	switch op.Status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable:
		return op.Outcome != OK
	}
	return false
}

// asks are operations by the time of their calls.
type asks struct {
	ops []Op
	// latest has for each operation the last return of it and of those before it.
	latest []time.Duration
}

// newAsks cuts what is outside of begin and end. What is answered after the end is not
// answered.
func newAsks(ops []Op, begin, end time.Duration) asks {
	var a asks
	for _, op := range ops {
		if op.Call >= end || op.Return <= begin {
			continue
		}
		op.Call = max(op.Call, begin)
		if op.Return > end {
			op.Return, op.Outcome, op.Status = end, Unknown, 0
		}
		a.ops = append(a.ops, op)
	}
	slices.SortFunc(a.ops, func(x, y Op) int { return cmp.Compare(x.Call, y.Call) })
	var latest time.Duration
	for _, op := range a.ops {
		latest = max(latest, op.Return)
		a.latest = append(a.latest, latest)
	}
	return a
}

// since returns when, from t on, something was asked first.
func (a asks) since(t time.Duration) (from time.Duration, ok bool) {
	next := sort.Search(len(a.ops), func(i int) bool { return a.ops[i].Call > t })
	switch {
	case next > 0 && a.latest[next-1] > t:
		return t, true
	case next < len(a.ops):
		return a.ops[next].Call, true
	}
	return 0, false
}

// gapsOf returns all gaps of one kind of operation, in the order of time.
func gapsOf(ops []Op, begin, end time.Duration) []Gap {
	asked := newAsks(ops, begin, end)
	var answers []time.Duration
	for _, op := range asked.ops {
		if op.Outcome == OK || answered(op) {
			answers = append(answers, op.Return)
		}
	}
	slices.Sort(answers)

	var gaps []Gap
	for i := 0; i < len(asked.ops); {
		// All calls up to the next silence.
		from, last, ok := asked.ops[i].Call, asked.latest[i], true
		for i++; i < len(asked.ops) && asked.ops[i].Call-last <= Quiet; i++ {
			last = asked.latest[i]
		}
		for len(answers) > 0 && answers[0] <= last {
			if ok && from < answers[0] {
				gaps = append(gaps, Gap{From: from, To: answers[0], Answered: true})
			}
			from, ok = asked.since(answers[0])
			answers = answers[1:]
		}
		if ok && from < last {
			gaps = append(gaps, Gap{From: from, To: last})
		}
	}
	return gaps
}

// blame says which faults something may be due to.
type blame struct {
	kinds []string
	// spans has the times of each kind of fault, with the time to settle, apart from each
	// other and sorted.
	spans map[string][]span
}

type span struct{ from, to time.Duration }

// never is after all that can happen: the end of a fault that lasts.
const never = time.Duration(1<<63 - 1)

func spanOf(fault Fault) span {
	if fault.End == 0 {
		return span{fault.Begin, never}
	}
	return span{fault.Begin, fault.End + Settling}
}

func newBlame(faults []Fault) blame {
	b := blame{spans: map[string][]span{}}
	for _, fault := range faults {
		if b.spans[fault.Kind] == nil {
			b.kinds = append(b.kinds, fault.Kind)
		}
		b.spans[fault.Kind] = append(b.spans[fault.Kind], spanOf(fault))
	}
	slices.Sort(b.kinds)
	for kind, spans := range b.spans {
		slices.SortFunc(spans, func(x, y span) int { return cmp.Compare(x.from, y.from) })
		apart := spans[:1]
		for _, next := range spans[1:] {
			if last := &apart[len(apart)-1]; next.from <= last.to {
				last.to = max(last.to, next.to)
			} else {
				apart = append(apart, next)
			}
		}
		b.spans[kind] = apart
	}
	return b
}

// of returns WholeTime, and the kinds of faults around a time, or NoFault.
func (b blame) of(from, to time.Duration) []string {
	labels := []string{WholeTime}
	for _, kind := range b.kinds {
		spans := b.spans[kind]
		i := sort.Search(len(spans), func(i int) bool { return spans[i].to >= from })
		if i < len(spans) && spans[i].from <= to {
			labels = append(labels, kind)
		}
	}
	if len(labels) == 1 {
		labels = append(labels, NoFault)
	}
	return labels
}
