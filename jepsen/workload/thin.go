package workload

import (
	"cmp"
	"math"
	"slices"

	"github.com/anishathalye/porcupine"

	"github.com/atollregistry/atoll/jepsen/history"
)

// thin leaves out reads of a register that say no more than others, which changes nothing about whether there
// is an order: the search takes time that grows exponentially with the reads under way at one time.
//
// Two reads that saw the same may change places in an order, so that it does not matter which of them came first. For
// each of them it matters only behind which of the other operations it came, and before which. If another
// read that saw the same came behind all of those, and before all of those, then this one fits into an order
// next to that one.
func thin(ops []porcupine.Operation) []porcupine.Operation {
	var kept []porcupine.Operation
	var reads []window
	for i := range ops {
		if _, is := sawOf(ops[i]); is {
			reads = append(reads, windowOf(ops, i))
		} else {
			kept = append(kept, ops[i])
		}
	}
	// A window within another one is shorter, or the same.
	slices.SortStableFunc(reads, func(a, b window) int { return cmp.Compare(a.to-a.from, b.to-b.from) })
	narrow := map[string][]window{} // of the reads kept, by what they saw
	for _, read := range reads {
		saw, _ := sawOf(read.op)
		if slices.ContainsFunc(narrow[saw], func(other window) bool { return other.from >= read.from && other.to <= read.to }) {
			continue
		}
		narrow[saw] = append(narrow[saw], read)
		kept = append(kept, read.op)
	}
	return kept
}

// window is a read, and the time in which it may have taken place, in ns: from the last return before its
// call to the first call after its return, of operations that are no reads which saw the same.
type window struct {
	op       porcupine.Operation
	from, to int64
}

// sawOf returns what a read saw; is says that it is one.
func sawOf(op porcupine.Operation) (saw string, is bool) {
	one, known := op.Input.(*history.Op)
	if !known || one.Kind != kindGet && one.Kind != kindHead {
		return "", false
	}
	return one.Output, true
}

func windowOf(ops []porcupine.Operation, i int) window {
	// Far away, so that differences of the two fit into 64 bits.
	w := window{op: ops[i], from: -1, to: math.MaxInt64 / 2}
	saw, _ := sawOf(ops[i])
	for _, other := range ops {
		if told, is := sawOf(other); is && told == saw {
			continue
		}
		if other.Return < ops[i].Call {
			w.from = max(w.from, other.Return)
		}
		if other.Call > ops[i].Return {
			w.to = min(w.to, other.Call)
		}
	}
	return w
}
