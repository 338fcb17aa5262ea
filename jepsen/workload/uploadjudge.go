package workload

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/atollregistry/atoll/jepsen/history"
)

const (
	// restTime is how long a blob without a manifest stays at least after its PUT was called. The
	// runs configure a grace of 15 s.
	restTime = 10 * time.Second
	// uploadLost is what a PUT is told if too much of the upload is lost.
	uploadLost = "upload was lost"
)

// judgeUploads judges a history of uploads. Each upload is an object of its own: an append-only
// buffer that is finished, cancelled, or neither. Porcupine looks for an order of its operations
// in which
//
//   - a chunk answered 202 begins exactly where the buffer ends, and the reply tells its end;
//   - a 416 tells the size, which is not where the refused chunk begins, and nothing of the chunk is kept;
//   - a status tells the size;
//   - a PUT answered 201 brings the rest, or repeats one that has;
//   - 404 is told of an upload that is finished or cancelled only, and for a PUT of the right digest of
//     one that is cancelled only;
//   - the blob is read when the upload is finished, and not found when it is not.
//
// So sizes never go back, no chunk counts twice, and whoever is told 201 finds the blob on all nodes
// from then on. What has no telling reply may have happened at any time after its call, or never.
// An upload may rest for a day, longer than any run. Of three kinds of steps no client knows, so they are added
// where they can have been:
//
//   - A chunk whose reply was lost, or that lost against another writer, or is under way, may have been kept in part:
//     up to one of the sizes that clients were told.
//   - A PUT with a wrong digest ends the upload, but if the cluster is not well, later or never.
//   - A PUT that was told 404 may have found the upload open, and finished by another one only when it
//     wanted to record what it had brought. If it finds the upload finished, it is told 201.
//
// A PUT without a reply may have ended an upload of which too much was lost, but only if two nodes were gone. The word
// of that without such a reason is Lost.
//
// A 404 for the blob, or a PUT, after the upload was finished is excused if no PUT had promised
// the blob lately, see isPromised, since no manifest may have kept it; reads of those that have one are
// judged by judgeKept.
//
// Besides: a right digest answered DIGEST_INVALID means that bytes were mixed (Torn), and a wrong
// digest that is accepted, or can be read, is WrongBytes.
func judgeUploads(ctx context.Context, f *findings, ops []history.Op, faults []history.Fault) error {
	f.judgeBytes(ops)
	f.judgeStatuses(ops)
	keys, groups := byKey(ops, f.workload, kindStart, kindPatch, kindStatus, kindFinish, kindBadFinish, kindCancel, kindRead, kindAbsent)
	var undecided []error
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%s: judge %s: %w", f.workload, key, err)
		}
		begun := groups[key][0].Call
		f.judgeDigests(key, groups[key], func(op history.Op) bool { return wereGone(faults, begun, op.Return) })
		if f.judgeSizes(key, groups[key]) {
			continue // which says more than that there is no order
		}
		ok, err := linearizable(uploadModel(), uploadSteps(groups[key], faults), searchBound)
		if err != nil {
			undecided = append(undecided, fmt.Errorf("%s: judge %s: %w", f.workload, key, err))
		} else if !ok {
			f.add(NotLinearizable, "upload %s: no order of its operations explains what clients were told: %s", key, tell(groups[key]))
		}
	}
	acked := map[string]time.Duration{}
	for _, op := range ops {
		if op.Workload == f.workload && op.Kind == kindPut && op.Outcome == history.OK {
			acked[op.Key] = op.Return
		}
	}
	f.judgeKept(ops, faults, acked)
	f.judgeRefusals(ops, faults, promiseTime)
	return errors.Join(undecided...)
}

// judgeDigests finds digests that were accepted or refused wrongly, and uploads that were said to be lost
// although they may not be.
func (f *findings) judgeDigests(key string, ops []history.Op, mayBeLost func(op history.Op) bool) {
	for _, op := range ops {
		at := fmt.Sprintf("by %s at %s", op.Node, seconds(op.Return))
		switch {
		case op.Kind == kindFinish && op.Output == codeDigestInvalid:
			f.add(Torn, "upload %s: the right digest was refused %s: %s", key, at, tell(ops))
		case op.Kind == kindFinish && strings.Contains(op.Error, uploadLost) && !mayBeLost(op):
			f.add(Lost, "upload %s: %s at %s", key, op.Error, at)
		case op.Kind == kindBadFinish && op.Outcome == history.OK:
			f.add(WrongBytes, "upload %s: a wrong digest was accepted %s", key, at)
		case op.Kind == kindAbsent && op.Output == foundWhole:
			f.add(WrongBytes, "upload %s: bytes that nobody has sent were served %s", key, at)
		}
	}
}

// tell lists the operations on an upload by their calls.
func tell(ops []history.Op) string {
	ops = slices.Clone(ops)
	slices.SortFunc(ops, func(a, b history.Op) int { return int(a.Call - b.Call) })
	var told []string
	for _, op := range ops {
		told = append(told, fmt.Sprintf("[%s-%s %s] %s %s: %d %s", seconds(op.Call), seconds(op.Return), op.Node, op.Kind, short(op.Input), op.Status, short(op.Output)))
	}
	return strings.Join(told, "; ")
}

// judgeSizes finds an upload whose size has gone back, which needs no search. It says whether it has.
func (f *findings) judgeSizes(key string, ops []history.Op) bool {
	for _, later := range ops {
		size, err := strconv.Atoi(later.Output)
		if err != nil {
			continue // tells no size
		}
		for _, earlier := range ops {
			if before, err := strconv.Atoi(earlier.Output); err == nil && before > size && earlier.Return < later.Call {
				f.add(NotLinearizable, "upload %s had %d bytes at %s, and %d at %s: %s", key, before, seconds(earlier.Return), size, seconds(later.Return), tell(ops))
				return true
			}
		}
	}
	return false
}

// uploadSteps returns what judgeUploads says of the operations on one upload.
func uploadSteps(ops []history.Op, faults []history.Fault) (steps []porcupine.Operation) {
	told := surveyUpload(ops)
	add := func(step uploadStep, call, end time.Duration) {
		if step.said == unknown || step.kind == kindVanish {
			end = math.MaxInt64
		}
		steps = append(steps, porcupine.Operation{ClientId: step.op.Client, Input: step, Call: int64(call), Return: int64(end), Metadata: step.op})
	}
	var sighted sights
	for i := range ops {
		op := &ops[i]
		step := uploadStep{op: op, kind: op.Kind, said: saidOf(op), id: i + 1}
		if step.said == notSent || step.said == unknown && (op.Kind == kindStatus || op.Kind == kindRead) || op.Kind == kindStart || op.Kind == kindAbsent {
			continue
		}
		_, _ = fmt.Sscanf(op.Input, "%d+%d", &step.offset, &step.length) // reads have none
		step.size, _ = strconv.Atoi(op.Output)                           // 0 where no size is told
		step.lossy = op.Kind == kindFinish && wereGone(faults, ops[0].Call, op.Return)
		if step.said == unknown && told.isAgain(ops, i) && !step.lossy {
			continue
		}
		step.excused = !told.isPromised(op, faults)
		if step.kind == kindBadFinish {
			vanish := step
			vanish.kind = kindVanish
			add(vanish, op.Call, 0)
		}
		if step.kind == kindFinish && step.said == gone {
			step.sight = sighted.next()
			sight := step
			sight.kind = kindSight
			add(sight, op.Call, op.Return)
		}
		for _, size := range told.sizes {
			if size > step.offset && size < step.offset+step.length {
				step.parts = append(step.parts, size)
			}
		}
		if len(step.parts) > 0 && step.said != gone {
			part := step
			part.kind = kindPart
			add(part, op.Call, op.Return)
		}
		add(step, op.Call, op.Return)
	}
	return steps
}

// uploadSurvey is what has to be known of all operations on an upload to make a step of one.
type uploadSurvey struct {
	sizes       []int         // all that clients were told
	firstFinish time.Duration // when the first PUT was called
	dones       []history.Op  // PUTs that were answered 201
	// first has, by kind and input, the place of the first chunk or PUT without a telling reply. Of those that are
	// the same one at most has an effect, since none fits where the upload has grown; the first may have it
	// whenever the others may.
	first map[string]int
}

func surveyUpload(ops []history.Op) *uploadSurvey {
	u := &uploadSurvey{firstFinish: math.MaxInt64, first: map[string]int{}}
	for i := range ops {
		op := &ops[i]
		said := saidOf(op)
		if op.Kind == kindFinish && said != notSent {
			u.firstFinish = min(u.firstFinish, op.Call)
		}
		if op.Kind == kindFinish && said == taken {
			u.dones = append(u.dones, *op)
		}
		if name := op.Kind + " " + op.Input; said == unknown && (op.Kind == kindPatch || op.Kind == kindFinish) {
			if before, known := u.first[name]; !known || op.Call < ops[before].Call {
				u.first[name] = i
			}
		}
		if size, err := strconv.Atoi(op.Output); err == nil {
			u.sizes = append(u.sizes, size)
		}
	}
	slices.Sort(u.sizes)
	u.sizes = slices.Compact(u.sizes)
	return u
}

// isAgain says whether the i-th operation, one without a telling reply, repeats another one that was called before.
func (u *uploadSurvey) isAgain(ops []history.Op, i int) bool {
	first, known := u.first[ops[i].Kind+" "+ops[i].Input]
	return known && first != i
}

// isPromised says whether a finished upload's blob had to be there all the time while an operation lasted: less than
// promiseTime after the call of the last PUT that had been answered 201 before, which renews it, or than
// restTime after that of the first PUT of all, and no clock was moved meanwhile.
func (u *uploadSurvey) isPromised(op *history.Op, faults []history.Fault) bool {
	stays := func(since, stay time.Duration) bool {
		return op.Return < since || op.Return-since <= stay && !clockMoved(faults, since, op.Return)
	}
	renewed := slices.ContainsFunc(u.dones, func(done history.Op) bool {
		return done.Return <= op.Call && stays(done.Call, promiseTime)
	})
	return renewed || stays(u.firstFinish, restTime)
}

// saidOf returns what the writer of a recorded operation was told.
func saidOf(op *history.Op) verdict {
	switch {
	case op.Kind == kindRead && found(op.Output, foundMissing):
		return gone
	case op.Kind == kindRead && op.Outcome == history.OK:
		return taken
	case op.Outcome == history.OK:
		return taken
	case op.Outcome == history.Unknown:
		return unknown
	case op.Status == http.StatusRequestedRangeNotSatisfiable:
		return refused
	case op.Status == http.StatusNotFound:
		return gone
	}
	return notSent
}
