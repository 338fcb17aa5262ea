package history

import (
	"cmp"
	"slices"
	"sort"
	"time"
)

// Recovery says how soon after a fault began balanced clients could write.
type Recovery struct {
	Fault Fault `json:"fault"`
	// Took is the time from the beginning of the fault to the first acknowledgement of a
	// write that was called after it. Without one, it is the time for which writes were
	// asked in vain.
	Took time.Duration `json:"took_ns"`
	// Recovered says that there was such an acknowledgement.
	Recovered bool `json:"recovered"`
	// Asked says that a write was called after the beginning at all. If not, the fault
	// tells nothing.
	Asked bool `json:"asked"`
	// Gap is the longest gap of writes of all kinds together that overlaps the fault or the
	// time of Settling after it. Unlike Took, it also holds when the fault took effect only
	// some time after its recorded beginning, and a write slipped in between.
	Gap Gap `json:"gap"`
}

// Recoveries returns one for each fault, in the order given. isWrite says which operations
// write; of those, what balanced clients asked counts.
func Recoveries(ops []Op, faults []Fault, isWrite func(Op) bool) []Recovery {
	var writes []Op
	var end time.Duration
	for _, op := range ops {
		if op.Balanced && isWrite(op) {
			writes = append(writes, op)
			end = max(end, op.Return)
		}
	}
	slices.SortFunc(writes, func(a, b Op) int { return cmp.Compare(a.Call, b.Call) })
	// first has for each write the first acknowledgement of it and of those called later.
	first := make([]time.Duration, len(writes)+1)
	first[len(writes)] = never
	for i, op := range slices.Backward(writes) {
		first[i] = first[i+1]
		if op.Outcome == OK {
			first[i] = min(first[i], op.Return)
		}
	}
	gaps := gapsOf(writes, 0, end)
	recoveries := make([]Recovery, len(faults))
	for i, fault := range faults {
		r := Recovery{Fault: fault}
		next := sort.Search(len(writes), func(i int) bool { return writes[i].Call >= fault.Begin })
		r.Asked, r.Recovered = next < len(writes), first[next] < never
		switch {
		case r.Recovered:
			r.Took = first[next] - fault.Begin
		case r.Asked:
			r.Took = end - fault.Begin
		}
		r.Gap = longestWithin(gaps, spanOf(fault))
		r.Gap.Fault = fault.Kind
		recoveries[i] = r
	}
	return recoveries
}

// longestWithin returns the longest of the sorted gaps that overlaps a time.
func longestWithin(gaps []Gap, within span) Gap {
	var longest Gap
	i := sort.Search(len(gaps), func(i int) bool { return gaps[i].To >= within.from })
	for ; i < len(gaps) && gaps[i].From <= within.to; i++ {
		if gaps[i].Length() > longest.Length() {
			longest = gaps[i]
		}
	}
	return longest
}
