package workload

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/atollregistry/atoll/jepsen/history"
)

const (
	registerClients = 6
	registerTags    = 5
)

// register has tags that are put, read, compared and swapped, and deleted: each is a
// register, and must be linearizable.
type register struct {
	common
	repository *repository
	tags       *rotation
}

// NewRegister returns the workload of tags as registers.
func NewRegister() Workload {
	w := &register{common: newCommon("register")}
	w.repository = newRepository("register", w.found)
	w.tags = newRotation(registerTags, func(n int) string { return fmt.Sprintf("tag-%04d", n) })
	return w
}

// Run implements Workload.
func (w *register) Run(ctx context.Context, env *Env) error {
	if err := w.repository.setUp(ctx, env); err != nil {
		return fmt.Errorf("%s: %w", w.name, err)
	}
	return drive(ctx, env, w.name, registerClients, w.pause, w.step)
}

func (w *register) step(ctx context.Context, s *Session) error {
	slot, release := w.tags.hold(s.Rand.IntN(registerTags))
	defer release()
	op := &history.Op{Key: slot.key}
	var seen string
	switch n := s.Rand.IntN(100); {
	case n < 25:
		content, digest := w.repository.manifest(note(s, slot.key))
		op.Kind, op.Input = kindPut, digest
		w.repository.put(ctx, s, op, slot.key, content)
		seen = digest
	case n < 50:
		seen = w.read(ctx, s, op, http.MethodGet)
	case n < 60:
		seen = w.read(ctx, s, op, http.MethodHead)
	case n < 88:
		seen = w.swap(ctx, s, op, slot)
	default:
		op.Kind = kindDelete
		w.repository.remove(ctx, s, op, slot.key)
		seen = absent
	}
	if op.Outcome != history.OK {
		seen = ""
	}
	w.tags.note(slot, op, seen)
	s.History.Add(*op)
	return nil
}

// note returns what makes a manifest unlike all others of the run.
func note(s *Session, key string) string {
	return fmt.Sprintf("%s client %d, %x, %d", key, s.Client, s.Rand.Uint64(), s.History.Now())
}

// read returns what it has found.
func (w *register) read(ctx context.Context, s *Session, op *history.Op, method string) string {
	op.Kind = kindGet
	if method == http.MethodHead {
		op.Kind = kindHead
	}
	w.repository.read(ctx, s, op, method, op.Key)
	return op.Output
}

// swap moves the tag if it is what it was last, or, at times, if it is not there. It returns what the
// tag is then.
func (w *register) swap(ctx context.Context, s *Session, op *history.Op, slot *slot) string {
	wanted := w.tags.seen(slot)
	if s.Rand.IntN(6) == 0 {
		wanted = absent
	}
	condition := []string{"If-Match", `"` + wanted + `"`}
	if wanted == absent {
		condition = []string{"If-None-Match", "*"}
	}
	content, digest := w.repository.manifest(note(s, slot.key))
	op.Kind, op.Input = kindSwap, wanted+" "+digest
	w.repository.put(ctx, s, op, slot.key, content, condition...)
	switch op.Output {
	case done:
		return digest
	case was + notTold:
		return ""
	}
	return op.Output[min(len(op.Output), len(was)):]
}

// Look implements Workload.
func (w *register) Look(ctx context.Context, env *Env) error {
	keys, _ := byKey(env.History.Ops(), w.name, registerKinds...)
	return w.askAll(ctx, env, keys, func(ctx context.Context, s *Session, key string) *history.Op {
		op := &history.Op{Key: key}
		w.read(ctx, s, op, http.MethodGet)
		return op
	})
}

// registerKinds are the kinds of operations of registers.
var registerKinds = []string{kindPut, kindGet, kindHead, kindSwap, kindProbe, kindDelete}

// Judge implements Workload.
func (w *register) Judge(ctx context.Context, env *Env) ([]Anomaly, error) {
	err := w.found.judgeRegisters(ctx, env)
	return w.found.all(), err
}

// judgeRegisters judges a workload's keys as registers. It fails if it can't tell of one.
func (f *findings) judgeRegisters(ctx context.Context, env *Env) error {
	keys, groups := byKey(env.History.Ops(), f.workload, registerKinds...)
	var undecided []error
	for _, key := range keys {
		undecided = append(undecided, f.judge(ctx, env, NotLinearizable, key, registerModel(), registerOperations(groups[key])))
	}
	return errors.Join(undecided...)
}
