package workload

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
)

// judgeCollect judges a history of images that come and go.
//
//   - Every manifest is a register, present or absent, and must be linearizable: what was
//     acknowledged and not deleted is seen on every node, what was deleted on none, until it is pushed again. Pushes
//     and deletions at the same time may be in any order. What a node said without a quorum, and
//     marked so, is no part of it.
//   - Whoever has seen a manifest finds all its blobs right then, and, whatever is deleted meanwhile, as long as
//     the grace that begins with the deletion: see isDangling. A blob that is missing later counts as a read of its
//     manifest, which can't be there at that moment.
//   - A manifest is refused for want of blobs only if no node said lately that they are there, see judgeRefusals.
//     Nothing else is refused, see judgeStatuses.
//   - All that was read has the right bytes.
//   - After the run each node comes to answer for each manifest, else it is Lost.
func judgeCollect(ctx context.Context, env *Env, f *findings, ops []history.Op, faults []history.Fault, promise time.Duration) error {
	f.judgeBytes(ops)
	f.judgeStatuses(ops)
	f.judgeRefusals(ops, faults, promise)
	keys, groups := byKey(ops, f.workload, kindPut, kindGet, kindDelete, kindBlobs, kindFinal)
	var undecided []error
	for _, key := range keys {
		dangling := f.judgeDangling(key, groups[key], faults, promise)
		if f.judgeLost(key, groups[key]) {
			continue // which says more than that there is no order
		}
		undecided = append(undecided, f.judge(ctx, env, NotLinearizable, key, registerModel(), registerOperations(presences(key, groups[key], dangling))))
	}
	return errors.Join(undecided...)
}

// presences returns the operations on a manifest as a register has them: it holds the manifest's
// digest or nothing. Dangling are the calls of those reads of its blobs that have been judged.
func presences(key string, ops []history.Op, dangling map[time.Duration]bool) (register []history.Op) {
	_, digest, _ := strings.Cut(key, "@")
	for _, op := range ops {
		switch op.Kind {
		case kindPut:
			op.Input = digest
		case kindGet, kindDelete:
		case kindBlobs:
			if !found(op.Output, foundMissing) || dangling[op.Call] {
				continue
			}
			op.Kind, op.Output, op.Outcome = kindGet, absent, history.OK
		default:
			continue
		}
		register = append(register, op)
	}
	return register
}

// judgeDangling finds blobs that were missing while their manifest was there, and returns the calls
// of their reads.
func (f *findings) judgeDangling(key string, ops []history.Op, faults []history.Fault, promise time.Duration) map[time.Duration]bool {
	stale := map[time.Duration]bool{} // calls of gets that were answered without a quorum
	for _, op := range ops {
		if op.Kind == kindGet && strings.HasPrefix(op.Output, "stale ") {
			stale[op.Call] = true
		}
	}
	judged := map[time.Duration]bool{}
	for _, op := range ops {
		if op.Kind != kindBlobs || !found(op.Output, foundMissing) {
			continue
		}
		at, err := strconv.ParseInt(op.Input, 10, 64)
		if err != nil {
			continue // not written by this workload
		}
		if seen := time.Duration(at); isDangling(ops, op, seen, stale[seen], faults, promise) {
			judged[op.Call] = true
			f.add(Dangling, "%s was there at %s, and %s told client %d at %s: %s", key, seconds(seen), op.Node, op.Client, seconds(op.Return), op.Output)
		}
	}
	return judged
}

// isDangling says whether no deletion excuses that a blob was missing. What the manifest referred to begins its grace at
// the deletion, so that it is there for longer than promise after the manifest was asked for, and seen, unless a
// clock was moved. Later, any deletion may have come between that was called before the read of the blob
// returned, and had not returned when the manifest was asked for (it would have been pushed again after
// it), or has no known outcome, since it may be done at any time. If the manifest was seen without a quorum it
// may have been gone for long: any deletion called before is an excuse.
func isDangling(ops []history.Op, read history.Op, seen time.Duration, stale bool, faults []history.Fault, promise time.Duration) bool {
	if stale {
		return !deletedBetween(ops, math.MinInt64, read.Return)
	}
	soon := read.Return-seen < promise && !clockMoved(faults, seen, read.Return)
	return soon || !deletedBetween(ops, seen, read.Return)
}

// deletedBetween says whether a deletion may have been done between two moments.
func deletedBetween(ops []history.Op, from, to time.Duration) bool {
	for _, op := range ops {
		if op.Kind != kindDelete || op.Call > to || op.Outcome == history.Fail || op.Output == absent {
			continue
		}
		if op.Outcome == history.Unknown || op.Return >= from {
			return true
		}
	}
	return false
}

// judgeLost finds manifests that were acknowledged, that nobody has asked to delete, and that are missing
// afterwards, and nodes that do not come to an answer after the run. It says whether there are any.
func (f *findings) judgeLost(key string, ops []history.Op) bool {
	acked, deleted := time.Duration(math.MaxInt64), false
	last := map[string]history.Op{} // by node
	for _, op := range ops {
		switch {
		case op.Kind == kindFinal:
			last[op.Node] = op
		case op.Kind == kindPut && op.Outcome == history.OK:
			acked = min(acked, op.Return)
		case op.Kind == kindDelete && op.Outcome != history.Fail && op.Output != absent:
			deleted = true
		}
	}
	for node, op := range last {
		if op.Outcome != history.OK {
			f.add(Lost, "%s: %s has no answer after the run, for the manifest or its blobs, until %s", key, node, seconds(op.Return))
			return true
		}
	}
	for _, op := range ops {
		if !deleted && op.Kind == kindGet && op.Output == absent && op.Call > acked {
			f.add(Lost, "%s, acknowledged at %s and never deleted, was told by %s to be missing at %s%s", key, seconds(acked), op.Node, seconds(op.Return), again(ops, op.Return))
			return true
		}
	}
	return false
}

// again tells when a manifest was seen after a moment.
func again(ops []history.Op, since time.Duration) string {
	for _, op := range ops {
		if op.Kind == kindGet && op.Call > since && strings.HasPrefix(op.Output, "sha256:") {
			return fmt.Sprintf(", and there by %s at %s", op.Node, seconds(op.Return))
		}
	}
	return ", and was not seen again"
}

// judgeCollected counts how often a node said of a blob that it is gone, of which one had said before that it
// is there. If there was none in a run that was long enough, nothing was collected, or nobody has noticed: the run
// shows nothing. A clock that was ahead makes what was pushed meanwhile stay for as long as it was ahead.
func (f *findings) judgeCollected(ops []history.Op, faults []history.Fault, long bool) (collected int) {
	there := map[string]time.Duration{} // since when at least, by repository and digest
	for _, op := range ops {
		if op.Workload != f.workload || op.Kind != kindPush && op.Kind != kindHead {
			continue
		}
		words := strings.Fields(op.Input)
		if len(words) < 2 || op.Outcome != history.OK {
			continue
		}
		blob := words[0] + " " + words[1]
		since, known := there[blob]
		switch {
		case op.Kind == kindPush, op.Output == foundWhole:
			if !known {
				there[blob] = op.Return
			}
		case found(op.Output, foundMissing) && known && since < op.Call:
			collected++
			delete(there, blob)
		}
	}
	clocks := slices.ContainsFunc(faults, func(fault history.Fault) bool { return strings.Contains(fault.Kind, "clock") })
	if collected == 0 && long && !clocks {
		f.add(TooLittle, "no blob was ever gone that had been pushed before: nothing was collected, or nobody has noticed")
	}
	return collected
}
