package workload

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
)

// redirected begins the Error of an operation that was refused where a redirect has led.
const redirected = "redirected: "

// judgeStatuses finds refusals (4xx) of requests that had nothing wrong: those that their kind of
// operation has no place for. It is Torn if right bytes were said to have another digest, and Lost if
// what a client was working on, alone, is said not to be there.
func (f *findings) judgeStatuses(ops []history.Op) {
	for _, op := range ops {
		if op.Workload != f.workload || op.Status < 400 || op.Status >= 500 || mayRefuse(op) {
			continue
		}
		kind := Refused
		switch {
		case strings.Contains(op.Error, codeDigestInvalid):
			kind = Torn
		case op.Status == http.StatusNotFound:
			kind = Lost
		}
		f.add(kind, "%s %s of %s was answered %d by %s at %s, client %d, last step %q: %s", op.Kind, op.Input, op.Key, op.Status, op.Node, seconds(op.Return), op.Client, op.Output, op.Error)
	}
}

// mayRefuse says whether the status of an operation, a 4xx, says nothing against the registry, or is judged
// elsewhere.
func mayRefuse(op history.Op) bool {
	switch op.Status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true // the network may have held the request up, or there were too many
	case http.StatusForbidden:
		return strings.HasPrefix(op.Error, redirected) // signatures expire, by the clocks of two nodes
	}
	absence := op.Status == http.StatusNotFound
	switch op.Kind {
	case kindStart, kindPush:
		return false
	case kindPut:
		return op.Output == codeBlobUnknown // see judgeRefusals
	case kindPatch, kindStatus, kindFinish, kindBadFinish, kindCancel: // see judgeUploads
		return absence || op.Status == http.StatusRequestedRangeNotSatisfiable || op.Output == codeDigestInvalid
	}
	return absence || op.Status == http.StatusRequestedRangeNotSatisfiable // a read or a deletion
}

// judgeRefusals finds manifests that were refused for want of blobs although, less than
// promise before the refusal came, nodes said that every one of them is there. Between the two moments
// lies the time from the call of the node's word to the return of the refusal, whatever the order
// in the cluster was, so that nobody is accused wrongly. Where a clock was moved meanwhile,
// nothing is said: ages are differences between clocks.
func (f *findings) judgeRefusals(ops []history.Op, faults []history.Fault, promise time.Duration) {
	for _, op := range ops {
		if op.Workload != f.workload || op.Kind != kindPut || op.Output != codeBlobUnknown {
			continue
		}
		var reference string
		var oldest time.Duration
		if _, err := fmt.Sscan(op.Input, &reference, &oldest); err != nil || op.Return-oldest >= promise || clockMoved(faults, oldest, op.Return) {
			continue
		}
		f.add(Refused, "manifest %s of %s was refused by %s at %s for want of blobs that were all there since %s: %s",
			reference, op.Key, op.Node, seconds(op.Return), seconds(oldest), op.Error)
	}
}
