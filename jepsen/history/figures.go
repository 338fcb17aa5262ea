package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

const (
	// maxErrors is how many errors of a kind of operation are kept as examples, and
	// maxText how many characters of each.
	maxErrors = 3
	maxText   = 300
)

// Figures says how a kind of operation of balanced clients fared, as in Gap: in the whole
// time, with no fault around, or while a kind of fault was around.
type Figures struct {
	Workload string `json:"workload"`
	Kind     string `json:"kind"`
	Fault    string `json:"fault"`

	// Acknowledged were done. Refused were answered: what was asked is not so (400, 404, 412, 416).
	// Failed were not done for another reason. Unknown may have been done.
	Acknowledged int `json:"acknowledged"`
	Refused      int `json:"refused"`
	Failed       int `json:"failed"`
	Unknown      int `json:"unknown"`
	// P50, P99 and Max are of the time from call to return of those acknowledged.
	P50 time.Duration `json:"p50_ns"`
	P99 time.Duration `json:"p99_ns"`
	Max time.Duration `json:"max_ns"`
	// Errors are the first different ones of those that failed or are unknown.
	Errors []string `json:"errors,omitempty"`
	// Gap is the longest, with a length of 0 if there was none.
	Gap Gap `json:"gap"`
}

// Measure returns the figures of each kind of operation, and the longest gaps with them,
// sorted by workload, kind and fault. Operations count that were called from begin on and
// before end, around all faults that their own time overlaps.
func Measure(ops []Op, faults []Fault, begin, end time.Duration) []Figures {
	type row struct {
		name
		fault string
	}
	rows := map[row]*Figures{}
	at := func(r row) *Figures {
		if rows[r] == nil {
			rows[r] = &Figures{Workload: r.workload, Kind: r.kind, Fault: r.fault}
		}
		return rows[r]
	}
	blame := newBlame(faults)
	took := map[row][]time.Duration{}
	for name, group := range byKind(ops) {
		slices.SortStableFunc(group, func(a, b Op) int { return cmp.Compare(a.Call, b.Call) })
		for _, op := range group {
			if op.Call < begin || op.Call >= end {
				continue
			}
			for _, fault := range blame.of(op.Call, op.Return) {
				r := row{name, fault}
				at(r).count(op)
				if op.Outcome == OK {
					took[r] = append(took[r], op.Return-op.Call)
				}
			}
		}
	}
	for _, gap := range Gaps(ops, faults, begin, end) {
		at(row{name{gap.Workload, gap.Kind}, gap.Fault}).Gap = gap
	}
	all := make([]Figures, 0, len(rows))
	for r, figures := range rows {
		slices.Sort(took[r])
		figures.P50, figures.P99, figures.Max = Percentile(took[r], 0.5), Percentile(took[r], 0.99), Percentile(took[r], 1)
		all = append(all, *figures)
	}
	slices.SortFunc(all, func(a, b Figures) int {
		return cmp.Or(cmp.Compare(a.Workload, b.Workload), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Fault, b.Fault))
	})
	return all
}

func (f *Figures) count(op Op) {
	switch {
	case op.Outcome == OK:
		f.Acknowledged++
		return
	case answered(op):
		f.Refused++
		return
	case op.Outcome == Fail:
		f.Failed++
	default:
		f.Unknown++
	}
	text := cut(op.Error)
	if text == "" {
		text = fmt.Sprintf("status %d", op.Status)
	}
	if len(f.Errors) < maxErrors && !slices.Contains(f.Errors, text) {
		f.Errors = append(f.Errors, text)
	}
}

// cut returns the beginning of a text that may be long.
func cut(text string) string {
	n := 0
	for i := range text {
		if n == maxText {
			return text[:i] + "…"
		}
		n++
	}
	return text
}

// Percentile returns the smallest of the durations that is not less than the share p
// (above 0, up to 1) of them; 0 of none. They must be sorted.
func Percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(p * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}
