package workload

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
)

// Look implements Workload.
func (w *listing) Look(ctx context.Context, env *Env) error {
	keys, _ := byKey(env.History.Ops(), w.name, kindPut)
	return w.askAll(ctx, env, append(slices.Clone(keys), catalogKey), w.last)
}

// Judge implements Workload.
func (w *listing) Judge(ctx context.Context, env *Env) ([]Anomaly, error) {
	ops := env.History.Ops()
	keys, groups := byKey(ops, w.name, kindPut, kindDelete, kindPages, kindList)
	for _, key := range keys {
		w.found.judgeLists(groups[key])
	}
	_, groups = byKey(ops, w.name, kindCreate, kindCatalog)
	w.found.judgeLists(groups[catalogKey])
	keys, groups = byKey(ops, w.name, kindPut, kindDelete, kindList)
	var undecided []error
	for _, key := range keys {
		undecided = append(undecided, w.found.judge(ctx, env, NotLinearizable, key, setModel(), setOperations(groups[key])))
	}
	return w.found.all(), errors.Join(undecided...)
}

// last is the last list of a repository, or of the catalog.
func (w *listing) last(ctx context.Context, s *Session, key string) *history.Op {
	if key == catalogKey {
		return w.catalog(ctx, s)
	}
	op := &history.Op{Key: key}
	w.list(ctx, s, op)
	return op
}

// judgeLists looks through the lists of several pages and of the catalog among the operations on
// one key. Each must have what was there all the time that it took, and nothing that was not there at
// any time of it. A list that begins behind a name has that as its Input.
func (f *findings) judgeLists(ops []history.Op) {
	changes, sightings := map[string]presence{}, map[string]presence{} // by name
	for _, op := range ops {
		switch {
		case !isListOf(op.Kind):
			changes[op.Input] = append(changes[op.Input], op)
		case op.Outcome == history.OK:
			for name := range strings.SplitSeq(op.Output, ",") {
				sightings[name] = append(sightings[name], op)
			}
		}
	}
	for _, op := range ops {
		if op.Kind != kindPages && op.Kind != kindCatalog || op.Outcome != history.OK {
			continue
		}
		listed := map[string]bool{}
		for name := range strings.SplitSeq(op.Output, ",") {
			if listed[name] = true; name != "" && changes[name].isOut(op.Call, op.Return) {
				f.add(NotLinearizable, "%s: %s from %s to %s by %s shows %s, which was not there", op.Key, op.Kind, seconds(op.Call), seconds(op.Return), op.Node, name)
			}
		}
		for name, changed := range changes {
			if name > op.Input && !listed[name] && changed.isIn(sightings[name], op.Call, op.Return) {
				f.add(missingKind(ops, name, op.Return), "%s: %s from %s to %s by %s lacks %s, which was there all the time", op.Key, op.Kind, seconds(op.Call), seconds(op.Return), op.Node, name)
			}
		}
	}
}

// isListOf says that operations of a kind are lists of names.
func isListOf(kind string) bool {
	return kind == kindPages || kind == kindCatalog || kind == kindList
}

// missingKind says what it is that a list has lacked a name: Stale if a later one has it.
func missingKind(ops []history.Op, name string, after time.Duration) string {
	for _, op := range ops {
		if isListOf(op.Kind) && op.Call >= after && slices.Contains(strings.Split(op.Output, ","), name) {
			return Stale
		}
	}
	return Lost
}

// presence has the operations that put one name into a set or take it out.
type presence []history.Op

// isIn says that the name was there from one time to another for certain: it was put in before, or
// seen in a list, and nothing can have taken it out since.
func (p presence) isIn(sightings presence, from, to time.Duration) bool {
	stays := func(in history.Op) bool {
		if in.Kind == kindDelete || in.Outcome != history.OK || in.Return >= from {
			return false
		}
		return !slices.ContainsFunc(p, func(op history.Op) bool {
			took := op.Kind == kindDelete && op.Outcome != history.Fail && op.Output != absent
			return took && ended(op) >= in.Call && op.Call <= to
		})
	}
	return slices.ContainsFunc(p, stays) || slices.ContainsFunc(sightings, stays)
}

// isOut says that the name was not there at any time between for certain: whatever can have put it
// in was over before something took it out, or found it gone.
func (p presence) isOut(from, to time.Duration) bool {
	return !slices.ContainsFunc(p, func(put history.Op) bool {
		if put.Kind == kindDelete || put.Outcome == history.Fail || put.Call > to {
			return false
		}
		return !slices.ContainsFunc(p, func(op history.Op) bool {
			return op.Kind == kindDelete && op.Outcome == history.OK && op.Call > ended(put) && op.Return < from
		})
	})
}

// ended returns when an operation can have an effect no more.
func ended(op history.Op) time.Duration {
	if op.Outcome == history.Unknown {
		return math.MaxInt64
	}
	return op.Return
}
