package workload

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
)

const (
	// finalWorkers is how many clients look side by side when the run is over.
	finalWorkers = 4
	// finalTime bounds the last looks of one workload in all.
	finalTime = 20 * time.Minute
	// maxUnsettled is after how many last looks that came to no good end the others are not
	// repeated any more: a cluster that is down is told in minutes.
	maxUnsettled = 10
	// kindFinal is the kind of last looks at what must be there. Output is what was found.
	kindFinal = "final"
)

// lastLook is something to be read from one node after the run. Look does one try and records
// it; it says whether another try is of no use.
type lastLook struct {
	node Node
	look func(ctx context.Context, s *Session) (settled bool)
}

// lookAtLast does all looks, each as often as it takes until it is settled, or patience is
// over, with a pause between. It fails if it can't come to an end.
func lookAtLast(ctx context.Context, env *Env, workload string, patience, pause time.Duration, looks []lastLook) error {
	ctx, cancel := context.WithTimeout(ctx, finalTime)
	defer cancel()
	var all sync.WaitGroup
	var next, unsettled atomic.Int64
	for worker := range finalWorkers {
		random := env.Rand(workload+" end", worker)
		all.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(looks) {
					return
				}
				only := *env
				only.Nodes = func() []Node { return []Node{looks[i].node} }
				s := &Session{Env: &only, Workload: workload, Client: worker, Rand: random}
				end := env.History.Now() + patience
				for !looks[i].look(ctx, s) {
					if env.History.Now() > end || unsettled.Load() >= maxUnsettled || !s.Pause(ctx, min(finalPause, pause)) {
						unsettled.Add(1)
						break
					}
				}
			}
		})
	}
	all.Wait()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: last look at %d things: %w", workload, len(looks), err)
	}
	return nil
}

// lookAt returns a look at something that must be whole. read does one try.
func lookAt(node Node, key, what string, read func(ctx context.Context, s *Session, op *history.Op) string) lastLook {
	return lastLook{node: node, look: func(ctx context.Context, s *Session) bool {
		op := history.Op{Kind: kindFinal, Key: key, Input: what}
		op.Output = read(ctx, s, &op)
		op.Outcome = outcomeOfRead(op.Output)
		s.History.Add(op)
		return op.Output == foundWhole || found(op.Output, foundWrong)
	}}
}

// judgeBytes finds reads that ended well with other bytes than they should have. What a digest
// names never changes, so that no order of operations excuses it.
func (f *findings) judgeBytes(ops []history.Op) {
	for _, op := range ops {
		if op.Workload == f.workload && found(op.Output, foundWrong) {
			f.add(WrongBytes, "%s %s of %s from %s at %s: %s", op.Kind, op.Input, op.Key, op.Node, seconds(op.Return), op.Output)
		}
	}
}

// judgeKept finds what was acknowledged and is not kept. acked has, by key, when something was
// acknowledged that nobody takes away again.
//
// A read of such a key that was called after the acknowledgement had come, and was told 404, is
// an anomaly: Lost if a last look at the key on any node, after all tries, was told 404 or
// got no answer; Stale if all last looks found it whole, or there were none. The order of calls and
// returns is that of one clock, so that a read that was concurrent with the acknowledgement
// is not judged. A HEAD may say that a blob is missing that can't be read since two nodes are gone, so that
// it is pushed again. One anomaly for each key.
func (f *findings) judgeKept(ops []history.Op, faults []history.Fault, acked map[string]time.Duration) {
	keys, groups := byKey(ops, f.workload, kindFinal, kindGet, kindHead, kindRead, "pull", "range")
	for _, key := range keys {
		since, must := acked[key]
		if !must {
			continue
		}
		last := map[string]history.Op{} // by node and what was looked at
		var missing *history.Op
		for i, op := range groups[key] {
			if op.Kind == kindFinal {
				last[op.Node+" "+op.Input] = op
			}
			if op.Kind == kindHead && wereGone(faults, op.Call, op.Return) {
				continue
			}
			if missing == nil && op.Call > since && found(op.Output, foundMissing) {
				missing = &groups[key][i]
			}
		}
		lost := false
		for _, op := range last {
			if op.Output == "" || found(op.Output, foundMissing) {
				f.add(Lost, "%s, acknowledged at %s: %s on %s at last: %s (status %d, %s)", key, seconds(since), op.Input, op.Node, op.Output, op.Status, op.Error)
				lost = true
				break
			}
		}
		if missing != nil && !lost {
			f.add(Stale, "%s, acknowledged at %s: %s %s on %s from %s to %s: %s", key, seconds(since), missing.Kind, missing.Input, missing.Node, seconds(missing.Call), seconds(missing.Return), missing.Output)
		}
	}
}
