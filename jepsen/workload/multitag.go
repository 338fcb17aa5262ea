package workload

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
)

const (
	// multitagWriters is how many clients write, each to a group of its own, and
	// multitagReaders how many read.
	multitagWriters = 3
	multitagReaders = 4
	// freshPerRepository is how many fresh groups one repository gets, so that its list stays small.
	freshPerRepository = 25

	// kindFresh is a PUT of a manifest with new tags; key: the repository; Input: the group.
	kindFresh = "fresh"
)

// groupTags are how the names of a group's tags end.
var groupTags = []string{"-a", "-b", "-c"}

// multitag moves groups of three tags in one request. A group is one register, whichever of its
// tags is read; and of the tags of a new group one sees all or none.
type multitag struct {
	common
	repository *repository
	groups     *rotation // of the writers, in their order
	fresh      *rotation // repositories for fresh groups
}

// NewMultitag returns the workload of several tags moved at once.
func NewMultitag() Workload {
	w := &multitag{common: newCommon("multitag")}
	w.repository = newRepository(w.name, w.found)
	w.groups = newRotation(multitagWriters, func(n int) string { return fmt.Sprintf("group-%04d", n) })
	w.fresh = newRotation(1, func(n int) string { return fmt.Sprintf("%s/fresh-%04d", w.name, n) })
	return w
}

// Run implements Workload.
func (w *multitag) Run(ctx context.Context, env *Env) error {
	if err := w.repository.setUp(ctx, env); err != nil {
		return fmt.Errorf("%s: %w", w.name, err)
	}
	return drive(ctx, env, w.name, multitagWriters+multitagReaders, w.pause, w.step)
}

func (w *multitag) step(ctx context.Context, s *Session) error {
	writes := s.Client < multitagWriters
	var op *history.Op
	switch often := s.Rand.IntN(100) < 75; {
	case writes && often:
		slot := w.groups.take(s.Client)
		op = w.move(ctx, s, slot.key)
		w.groups.note(slot, op, "")
	case writes:
		op = w.create(ctx, s)
	case often:
		slot := w.groups.take(s.Rand.IntN(multitagWriters))
		op = w.read(ctx, s, slot.key, groupTags[s.Rand.IntN(len(groupTags))])
	default:
		op = w.list(ctx, s, w.fresh.take(0).key)
	}
	if op.Kind != "" {
		s.History.Add(*op)
	}
	return nil
}

// move points all tags of a group at a new manifest.
func (w *multitag) move(ctx context.Context, s *Session, group string) *history.Op {
	content, digest := w.repository.manifest(note(s, group))
	op := &history.Op{Kind: kindPut, Key: group, Input: digest}
	w.repository.put(ctx, s, op, withTags(digest, group), content)
	return op
}

// withTags returns a digest as the reference of a PUT that moves the group's tags.
func withTags(digest, group string) string {
	query := url.Values{}
	for _, end := range groupTags {
		query.Add("tag", group+end)
	}
	return digest + "?" + query.Encode()
}

// read asks for one tag of a group. Which one is op's Input.
func (w *multitag) read(ctx context.Context, s *Session, group, end string) *history.Op {
	op := &history.Op{Kind: kindGet, Key: group, Input: group + end}
	w.repository.read(ctx, s, op, http.MethodGet, op.Input)
	return op
}

// create pushes a manifest with three new tags. If their repository is new as well it is set up,
// and that is all; op has no kind then.
func (w *multitag) create(ctx context.Context, s *Session) *history.Op {
	slot := w.fresh.take(0)
	repository := newRepository(slot.key, w.found)
	op := &history.Op{}
	if !w.fresh.isPrepared(slot) {
		if repository.pushBlob(ctx, s, op, repository.config) && repository.anchor(ctx, s) {
			w.fresh.prepared(slot)
		}
		return &history.Op{}
	}
	group := fmt.Sprintf("fresh-%d-%d", s.Client, s.History.Now())
	content, digest := repository.manifest(note(s, group))
	op.Kind, op.Key, op.Input = kindFresh, slot.key, group
	repository.put(ctx, s, op, withTags(digest, group), content)
	w.fresh.spend(slot, operationsPerKey/freshPerRepository)
	return op
}

// list asks for all tags of a repository of fresh groups. Before it is there it is unknown.
func (w *multitag) list(ctx context.Context, s *Session, repository string) *history.Op {
	op := &history.Op{Kind: kindList, Key: repository}
	reply, err := s.Do(ctx, op, http.MethodGet, tagsPath(repository), nil)
	op.Outcome = history.Unknown
	switch {
	case err != nil:
	case reply.Status == http.StatusOK:
		names, err := namesOf(reply.Body)
		if err != nil {
			w.found.add(WrongBytes, "%s: the list is %q (%s, %s)", repository, reply.Body, op.Node, seconds(op.Return))
			return op
		}
		op.Outcome, op.Output = history.OK, strings.Join(names, ",")
	case reply.Status == http.StatusNotFound: // nothing was pushed yet, or the list lacks it
		if code, _ := errorOf(reply.Body); code == "NAME_UNKNOWN" {
			op.Outcome = history.OK
		}
	default:
		w.repository.judgeRefusal(op, reply, err)
	}
	return op
}

// Look implements Workload.
func (w *multitag) Look(ctx context.Context, env *Env) error {
	ops := env.History.Ops()
	groups, _ := byKey(ops, w.name, kindPut)
	for _, end := range groupTags {
		err := w.askAll(ctx, env, groups, func(ctx context.Context, s *Session, group string) *history.Op {
			return w.read(ctx, s, group, end)
		})
		if err != nil {
			return err
		}
	}
	repositories, _ := byKey(ops, w.name, kindFresh)
	return w.askAll(ctx, env, repositories, w.list)
}

// Judge implements Workload.
func (w *multitag) Judge(ctx context.Context, env *Env) ([]Anomaly, error) {
	ops := env.History.Ops()
	repositories, byRepository := byKey(ops, w.name, kindFresh, kindList)
	for _, repository := range repositories {
		w.found.judgeFresh(byRepository[repository])
	}
	groups, byGroup := byKey(ops, w.name, kindPut, kindGet)
	var undecided []error
	for _, group := range groups {
		undecided = append(undecided, w.judgeGroup(ctx, env, group, byGroup[group]))
	}
	return w.found.all(), errors.Join(undecided...)
}

// judgeGroup judges a group as one register. If it is none, but each tag is one for itself,
// the tags were moved one by one.
func (w *multitag) judgeGroup(ctx context.Context, env *Env, group string, ops []history.Op) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: judge %s: %w", w.name, group, err)
	}
	kind := Torn
	for _, end := range groupTags {
		one := slices.DeleteFunc(slices.Clone(ops), func(op history.Op) bool { return op.Kind == kindGet && op.Input != group+end })
		ok, err := linearizable(registerModel(), registerOperations(one), searchBound)
		if err != nil {
			return fmt.Errorf("%s: judge %s%s: %w", w.name, group, end, err)
		}
		if !ok {
			kind = NotLinearizable
		}
	}
	return w.found.judge(ctx, env, kind, group, registerModel(), registerOperations(ops))
}

// judgeFresh looks through the lists of one repository of fresh groups: of each group they have all
// or nothing; all if its PUT was acknowledged before, or a list before had it, and nothing before it was sent.
func (f *findings) judgeFresh(ops []history.Op) {
	var puts []history.Op
	in := map[string]time.Duration{} // when a group was there at last, by its name
	note := func(group string, at time.Duration) {
		if before, known := in[group]; !known || at < before {
			in[group] = at
		}
	}
	for _, op := range ops {
		switch {
		case op.Kind == kindFresh:
			puts = append(puts, op)
			if op.Outcome == history.OK {
				note(op.Input, op.Return)
			}
		case op.Kind == kindList && op.Outcome == history.OK:
			for name := range strings.SplitSeq(op.Output, ",") {
				note(strings.TrimSuffix(name, groupTags[0]), op.Return)
			}
		}
	}
	for _, op := range ops {
		if op.Kind == kindList && op.Outcome == history.OK {
			f.judgeFreshList(op, puts, in, ops)
		}
	}
}

// judgeFreshList judges one list.
func (f *findings) judgeFreshList(list history.Op, puts []history.Op, in map[string]time.Duration, ops []history.Op) {
	names := strings.Split(list.Output, ",")
	at := fmt.Sprintf("the list by %s from %s to %s", list.Node, seconds(list.Call), seconds(list.Return))
	explained := 0
	for _, put := range puts {
		there := 0
		for _, end := range groupTags {
			if slices.Contains(names, put.Input+end) {
				there++
			}
		}
		explained += there
		since, was := in[put.Input]
		switch {
		case there > 0 && there < len(groupTags):
			f.add(Torn, "%s: %s has %d of the %d tags of %s", list.Key, at, there, len(groupTags), put.Input)
		case there == 0 && was && since < list.Call:
			f.add(missingKind(ops, put.Input+groupTags[0], list.Return), "%s: %s lacks %s, which was acknowledged or listed at %s", list.Key, at, put.Input, seconds(since))
		case there > 0 && (put.Outcome == history.Fail || put.Call > list.Return):
			f.add(NotLinearizable, "%s: %s has %s, which was not pushed", list.Key, at, put.Input)
		}
	}
	if list.Output != "" && explained != len(names) {
		f.add(WrongBytes, "%s: %s has names that nobody has pushed, or doubles: %s", list.Key, at, list.Output)
	}
}
