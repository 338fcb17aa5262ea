package workload

import (
	"slices"
	"strings"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
)

const (
	// goneAfter is how long a node must be away, at least, before the others may take what it has
	// for gone. The runs configure 15 s.
	goneAfter = 10 * time.Second
	// lingering is how long a fault may have an effect on what is stored after its end.
	lingering = 15 * time.Second
	// hangTime is how long a request must have been under way to count as one that the network has held up.
	hangTime = 15 * time.Second
)

// networkFaults are the kinds of faults that take nothing from a node but its connections, slowFaults
// those of them that make connections slow.
var (
	networkFaults = []string{"halves", "isolate-leader", "one-way", "bridge", "cut-off", "flap", "latency", "loss", "reorder", "bandwidth"}
	slowFaults    = []string{"flap", "latency", "loss", "reorder", "bandwidth"}
)

// takers begin the kinds of faults that take data from nodes, however short they are.
var takers = []string{"wipe", "rot", "disk", "eio", "membership", "replace"}

// overlaps says whether a fault lasted at any time from one moment to another.
func overlaps(fault history.Fault, from, to time.Duration) bool {
	return fault.Begin <= to && (fault.End == 0 || fault.End >= from)
}

// clockMoved says whether a fault that moves clocks far ahead lasted at any time from one moment to
// another. What else is done to clocks leaves more than promiseTime.
func clockMoved(faults []history.Fault, from, to time.Duration) bool {
	return slices.ContainsFunc(faults, func(fault history.Fault) bool {
		return fault.Kind == "clock-far" && overlaps(fault, from, to)
	})
}

// wereGone says whether what two nodes or more had may have counted as gone at some time from one moment to
// another. What is durable has one shard to spare at least, at the moment of the acknowledgement: the loss of
// one node is no excuse for anything.
func wereGone(faults []history.Fault, from, to time.Duration) bool {
	gone := map[string]bool{}
	for _, fault := range faults {
		takes := slices.ContainsFunc(takers, func(kind string) bool { return strings.HasPrefix(fault.Kind, kind) })
		long := fault.End == 0 || fault.End-fault.Begin >= goneAfter
		if strings.Contains(fault.Kind, "clock") || !takes && !long || !overlaps(fault, from-lingering, to) {
			continue
		}
		for name := range strings.SplitSeq(fault.Target, ",") {
			gone[name] = true
		}
	}
	return len(gone) > 1
}

// isExcused says whether a fault that may keep a node from reading its own disk was there between
// two operations: one on the node, and not of the network. A fault whose target names no node is on all.
func isExcused(node string, before, after history.Op, faults []history.Fault, nodes []Node) bool {
	return slices.ContainsFunc(faults, func(fault history.Fault) bool {
		if slices.Contains(networkFaults, fault.Kind) || !overlaps(fault, before.Call, after.Return) {
			return false
		}
		named := strings.FieldsFunc(fault.Target, func(r rune) bool {
			return !strings.ContainsRune("-_.", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
		})
		anyNode := slices.ContainsFunc(nodes, func(n Node) bool { return slices.Contains(named, n.Name) })
		return slices.Contains(named, node) || !anyNode
	})
}

// isSlow says that an operation took so long because the network may have been slow.
func isSlow(op history.Op, faults []history.Fault) bool {
	return op.Return-op.Call >= hangTime && slices.ContainsFunc(faults, func(fault history.Fault) bool {
		return slices.Contains(slowFaults, fault.Kind) && overlaps(fault, op.Call, op.Return)
	})
}
