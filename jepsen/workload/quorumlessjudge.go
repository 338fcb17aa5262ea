package workload

import (
	"context"
	"net/http"
	"slices"

	"github.com/atollregistry/atoll/jepsen/history"
)

// Look implements Workload.
func (w *quorumless) Look(ctx context.Context, env *Env) error {
	tags, _ := byKey(env.History.Ops(), w.name, kindPut)
	if err := w.askAll(ctx, env, tags, w.readTag); err != nil {
		return err
	}
	if err := w.askAll(ctx, env, []string{marksKey}, w.list); err != nil {
		return err
	}
	for _, kind := range []string{kindDigest, kindBlob} {
		err := w.askAll(ctx, env, w.finalDigests(env, kind), func(ctx context.Context, s *Session, digest string) *history.Op {
			return w.readDigest(ctx, s, kind, digest)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Judge implements Workload.
func (w *quorumless) Judge(ctx context.Context, env *Env) ([]Anomaly, error) {
	ops, faults := env.History.Ops(), env.History.Faults()
	alone := 0
	digests, byDigest := byKey(ops, w.name, kindDigest, kindBlob)
	for _, digest := range digests {
		alone += w.found.judgeDigest(byDigest[digest], faults, env.Nodes())
	}
	env.Log("%s: %d reads by digest were answered without a quorum", w.name, alone)
	_, marks := byKey(ops, w.name, kindMark, kindPages)
	w.found.judgeLists(marks[marksKey])
	err := w.found.judgeRegisters(ctx, env)
	return w.found.all(), err
}

// finalDigests returns what to ask for at the end: what was missing once, and the last pieces.
func (w *quorumless) finalDigests(env *Env, kind string) []string {
	var digests []string
	for _, op := range env.History.Ops() {
		if op.Workload == w.name && op.Kind == kind && op.Output == absent {
			digests = append(digests, op.Input)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range min(finalPieces, len(w.pieces)) {
		one := w.pieces[(w.pushed-1-i)%len(w.pieces)]
		if kind == kindBlob {
			digests = append(digests, one.blob)
		} else {
			digests = append(digests, one.manifest)
		}
	}
	slices.Sort(digests)
	return slices.Compact(digests)
}

// judgeDigest judges the reads of one manifest or blob that was acknowledged before all of them: a node must not say
// that it is missing, and has to answer for a manifest that it had before, unless more than the network was
// broken between. It returns how many were answered without a quorum.
func (f *findings) judgeDigest(reads []history.Op, faults []history.Fault, nodes []Node) (alone int) {
	lastFound := map[string]history.Op{} // by node
	for i, op := range reads {
		before, seen := lastFound[op.Node]
		switch {
		case op.Outcome == history.OK && op.Output != absent:
			lastFound[op.Node] = op
			if op.Output == foundAlone {
				alone++
			}
		case op.Outcome == history.OK:
			f.add(absenceKind(reads[i+1:], op.Node), "%s %s, acknowledged before, was answered 404 (%s, %s)", op.Kind, op.Input, op.Node, seconds(op.Return))
		case seen && op.Kind == kindDigest && isNoAnswer(op) && !isExcused(op.Node, before, op, faults, nodes) && !isSlow(op, faults):
			f.add(Refused, "manifest %s was answered %d (0: not at all) by %s at %s, asked at %s, which had it at %s; nothing but the network was broken between: %s",
				op.Input, op.Status, op.Node, seconds(op.Return), seconds(op.Call), seconds(before.Return), op.Error)
		}
	}
	return alone
}

// isNoAnswer says that a node was asked, and has given no reply, none that came to its end, or a 5xx.
func isNoAnswer(op history.Op) bool {
	cutOff := op.Status == http.StatusOK && op.Error != ""
	return op.Outcome == history.Unknown && (op.Status == 0 || cutOff || op.Status >= http.StatusInternalServerError)
}

// absenceKind says what it is that a node has not found something: Stale if it did later.
func absenceKind(later []history.Op, node string) string {
	if slices.ContainsFunc(later, func(op history.Op) bool { return op.Node == node && op.Outcome == history.OK && op.Output != absent }) {
		return Stale
	}
	return Lost
}
