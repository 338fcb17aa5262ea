package workload

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/atollregistry/atoll/jepsen/history"
)

const (
	// searchBound is how long the search for an order of one key's operations may take.
	searchBound = 60 * time.Second
	// explainBound is how long one of the searches may take that look for the operation
	// with which a history went wrong.
	explainBound = 5 * time.Second
)

// errUndecided is that a search came to no end in its time.
var errUndecided = errors.New("can't judge: the search for an order of the operations takes too long")

// linearizable says whether there is an order of the operations that explains what
// clients were told.
func linearizable(model porcupine.Model, ops []porcupine.Operation, bound time.Duration) (bool, error) {
	switch porcupine.CheckOperationsTimeout(model, ops, bound) {
	case porcupine.Ok:
		return true, nil
	case porcupine.Illegal:
		return false, nil
	}
	return false, fmt.Errorf("%w (%d operations, %s)", errUndecided, len(ops), bound)
}

// judge looks for an order of the operations on one key. If there is none it adds an anomaly,
// and draws the operations if env has a folder. It fails only if it can't tell.
func (f *findings) judge(ctx context.Context, env *Env, kind, key string, model porcupine.Model, ops []porcupine.Operation) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: judge %s: %w", f.workload, key, err)
	}
	ok, err := linearizable(model, ops, searchBound)
	if err != nil {
		return fmt.Errorf("%s: judge %s: %w", f.workload, key, err)
	}
	if ok {
		return nil
	}
	what := fmt.Sprintf("%s: no order of its %d operations from %s on explains what clients were told; %s", key, len(ops), seconds(beginning(ops)), culprit(model, ops))
	if env.Dir != "" {
		what += "; " + draw(filepath.Join(env.Dir, f.workload+"-"+strings.ReplaceAll(key, "/", "_")+".html"), model, ops)
	}
	f.add(kind, "%s", what)
	return nil
}

// draw makes a picture of operations, and says where it is, or why there is none.
func draw(path string, model porcupine.Model, ops []porcupine.Operation) string {
	_, info := porcupine.CheckOperationsVerbose(model, ops, explainBound)
	if err := porcupine.VisualizePath(model, info, path); err != nil {
		return fmt.Sprintf("not drawn: %v", err)
	}
	return "drawn in " + path
}

func beginning(ops []porcupine.Operation) time.Duration {
	first := int64(math.MaxInt64)
	for _, op := range ops {
		first = min(first, op.Call)
	}
	return time.Duration(first)
}

// culprit says with which reply operations that have no order went wrong: until
// then there was one.
func culprit(model porcupine.Model, ops []porcupine.Operation) string {
	var told []porcupine.Operation
	for _, op := range ops {
		if op.Return != math.MaxInt64 {
			told = append(told, op)
		}
	}
	slices.SortFunc(told, func(a, b porcupine.Operation) int { return int(a.Return - b.Return) })
	i := sort.Search(len(told), func(i int) bool {
		ok, err := linearizable(model, until(ops, told[i].Return), explainBound)
		return err == nil && !ok
	})
	if i == len(told) {
		return "the reply that has no explanation was not found"
	}
	op := told[i].Metadata.(*history.Op)
	return fmt.Sprintf("the first reply without an explanation: client %d, node %s, %s to %s, %s", op.Client, op.Node, seconds(op.Call), seconds(op.Return), describe(told[i].Input, nil))
}

// until returns the operations that had returned at some time, and the writes under way then.
func until(ops []porcupine.Operation, end int64) []porcupine.Operation {
	var part []porcupine.Operation
	for _, op := range ops {
		switch {
		case op.Return <= end:
		case op.Call <= end && !isRead(op.Metadata.(*history.Op).Kind):
			op.Return = math.MaxInt64
		default:
			continue
		}
		part = append(part, op)
	}
	return part
}

// byKey returns a workload's operations of the given kinds, by their keys. The
// keys are in the order in which they came up.
func byKey(ops []history.Op, workload string, kinds ...string) (keys []string, groups map[string][]history.Op) {
	groups = map[string][]history.Op{}
	for _, op := range ops {
		if op.Workload != workload || !slices.Contains(kinds, op.Kind) {
			continue
		}
		if groups[op.Key] == nil {
			keys = append(keys, op.Key)
		}
		groups[op.Key] = append(groups[op.Key], op)
	}
	return keys, groups
}
