package nodetest

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/node"
)

var (
	crashPoints = flag.String("crash-points", "some", "which crash points TestCrashPoints tries: some or all; list only names them")
	crashSeed   = flag.Uint64("crash-seed", 1, "chooses among the crash points, and between kill -9 and power loss")
	crashOnly   = flag.String("crash-only", "", "only crash points whose name contains this")
)

const (
	// crashRepeats bounds how many times of the same step are different points. What a
	// sweep removes, and when it looks, differs from run to run.
	crashRepeats = 3
	// crashRounds bounds how often an operation is done until the victim gets to the
	// step at which it is to die: not every node has a part in each. Of the points of
	// an operation, one in crashUnreached may not be reached by then.
	crashRounds, crashUnreached = 6, 10
	// crashImages is how many images stay, for every check to read.
	crashImages = 2
)

// crashRole is a node's part in an operation.
type crashRole string

// The subject is the node that is talked to, damaged or drained; the leader is
// another one, and so is the helper.
const (
	roleSubject crashRole = "subject"
	roleLeader  crashRole = "leader"
	roleHelper  crashRole = "helper"
)

// crashOperation is something that must survive a crash at each of its steps.
type crashOperation struct {
	name string
	// prepare brings about what do works on. Nobody dies meanwhile.
	prepare func(*crashTrial)
	// do does it and waits until it is done, or the victim is dead. It can be done
	// again after a crash, and then completes.
	do func(*crashTrial) error
	// deletes says that do deletes what was acknowledged.
	deletes bool
	// sample is how many of its points are tried if not all are.
	sample int
}

func crashOperations() []crashOperation {
	return []crashOperation{
		{name: "push", prepare: func(*crashTrial) {}, do: (*crashTrial).push, sample: 2},
		{name: "repair", prepare: (*crashTrial).harm, do: (*crashTrial).mend, sample: 1},
		{name: "drain", prepare: func(x *crashTrial) { x.pushAnother(2) }, do: (*crashTrial).drain, sample: 1},
		{name: "collect", prepare: func(x *crashTrial) { x.pushAnother(1) }, do: (*crashTrial).collect, deletes: true, sample: 2},
	}
}

// crashPoint is one process at one step of one operation.
type crashPoint struct {
	operation crashOperation
	// leads says that the subject is the node that leads.
	leads bool
	role  crashRole
	at    CrashAt
}

func (p crashPoint) String() string {
	role := string(p.role)
	if p.leads {
		role += " that leads"
	}
	return fmt.Sprintf("%s, %s: %s", p.operation.name, role, p.at)
}

// A node is killed at every step of a push, a repair, a drain and a collection: the
// one that acts, the leader, and one that only helps. Started again by the same command it
// goes on, what was acknowledged is there, the operation can be done again, and at the end
// of it no shard is missing or left over, and all nodes have the same state.
//
// The steps are those that a run without a crash has gone through.
func TestCrashPoints(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(*crashSeed, 0))
	t.Logf("seed %d", *crashSeed)
	s := &crashSeries{t: t, crashCluster: startCrashCluster(t)}
	for _, operation := range crashOperations() {
		var points []crashPoint
		for _, leads := range []bool{false, true} {
			if *crashPoints != "some" || random.IntN(2) == 0 == leads {
				points = append(points, s.trace(operation, leads)...)
			}
		}
		points = slices.DeleteFunc(points, func(p crashPoint) bool { return !strings.Contains(p.String(), *crashOnly) })
		for i := range points {
			points[i].at.LosePower = (uint64(i)+*crashSeed)%2 == 0
		}
		t.Logf("%s: %d crash points", operation.name, len(points))
		switch *crashPoints {
		case "some":
			random.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
			points = points[:min(len(points), operation.sample)]
		case "list":
			for _, p := range points {
				t.Log(p)
			}
			continue
		}
		s.tryAll(points)
	}
	s.checkState()
	s.checkContent()
}

// tryAll tries points of one operation.
func (s *crashSeries) tryAll(points []crashPoint) {
	s.t.Helper()
	var unreached []crashPoint
	for _, p := range points {
		if !s.try(p) {
			unreached = append(unreached, p)
		}
	}
	s.t.Logf("%d nodes ended at a step", len(points)-len(unreached))
	if len(unreached) > 0 {
		s.t.Logf("not reached in %d rounds: %v", crashRounds, unreached)
	}
	if len(unreached)*crashUnreached > len(points)+crashUnreached {
		s.t.Errorf("%d of %d points were not reached", len(unreached), len(points))
	}
}

// crashSeries is one cluster on which points are tried one after the other.
type crashSeries struct {
	*crashCluster
	t     *testing.T
	count uint64
	// images are the repositories of the images that are there, one image in each.
	images []string
}

// crashTrial is one run of an operation.
type crashTrial struct {
	*crashSeries
	roles   map[crashRole]*crashNode
	subject *crashNode
	// victim is to die; nil for nobody.
	victim *crashNode
	// image is the one that is pushed, or collected.
	image string
	seed  uint64
	// harmed are the files that prepare took away.
	harmed []string
}

// begin chooses the nodes of a trial.
func (s *crashSeries) begin(leads bool) *crashTrial {
	s.t.Helper()
	roles := map[crashRole]*crashNode{}
	leader := s.leader()
	if leads {
		roles[roleSubject] = leader
	} else {
		roles[roleSubject], roles[roleLeader] = s.another(leader), leader
	}
	roles[roleHelper] = s.another(leader, roles[roleSubject])
	return &crashTrial{crashSeries: s, roles: roles, subject: roles[roleSubject]}
}

// prepare prepares the operation on a cluster at rest.
func (x *crashTrial) prepare(operation crashOperation) {
	x.t.Helper()
	for len(x.images) > crashImages {
		if err := x.deleteImage(x.images[0]); err != nil {
			x.t.Fatal(err)
		}
	}
	// Those that were deleted long enough ago.
	if _, err := node.Collect(x.t.Context(), x.subject.Config.Home(), false); err != nil {
		x.t.Fatal(err)
	}
	x.nextImage()
	operation.prepare(x)
}

// trace does an operation without a crash, and returns the crash points that it has.
func (s *crashSeries) trace(operation crashOperation, leads bool) (points []crashPoint) {
	s.t.Helper()
	x := s.begin(leads)
	x.prepare(operation)
	for _, n := range s.nodes {
		n.mustAsk("Trace", true, new([]StepCount))
	}
	if err := x.do(operation); err != nil {
		s.t.Fatalf("%s: %v", operation.name, err)
	}
	for _, role := range []crashRole{roleSubject, roleLeader, roleHelper} {
		if x.roles[role] == nil || leads && role != roleSubject {
			continue // it does the same as if another one led
		}
		var counts []StepCount
		x.roles[role].mustAsk("Trace", true, &counts)
		for _, c := range counts {
			for n := 1; n <= min(c.Count, crashRepeats); n++ {
				points = append(points, crashPoint{operation, leads, role, CrashAt{Step: c.Step, N: n}})
			}
		}
	}
	return points
}

// complete does an operation without a crash, and checks what is left.
func (x *crashTrial) complete(operation crashOperation) {
	x.t.Helper()
	if err := x.do(operation); err != nil {
		x.t.Fatalf("%s: %v", operation.name, err)
	}
	x.check()
}

// do does an operation up to the sweep of what it leaves, or until the victim dies.
func (x *crashTrial) do(operation crashOperation) error {
	x.t.Helper()
	err := operation.do(x)
	if err == nil {
		err = x.settle()
	}
	if err == nil {
		err = x.sweep()
	}
	if x.victim != nil && err != nil {
		if waited := x.until(x.victim, "the victim is dead, since the operation failed: "+err.Error(), func() error { return err }); waited != nil {
			return waited
		}
	}
	return err
}

// try kills the node that the point names and checks what becomes of it. It returns
// false if the node did not get there.
func (s *crashSeries) try(p crashPoint) (reached bool) {
	s.t.Helper()
	began := time.Now()
	defer func() {
		if s.t.Failed() {
			s.t.Logf("that was with %s", p)
			s.t.FailNow()
		}
	}()
	at, rounds := p.at, 0
	var x *crashTrial
	for died := false; !died; rounds++ {
		if rounds == crashRounds {
			return false
		}
		x = s.begin(p.leads)
		x.prepare(p.operation)
		x.victim = x.roles[p.role]
		x.victim.mustAsk("Arm", at, new(bool))
		err := x.do(p.operation)
		if err == nil {
			at, err = x.disarm()
		}
		if died = errors.Is(err, errDied); err != nil && !died {
			s.t.Fatal(err)
		}
	}
	x.revive(p.operation)
	s.t.Logf("%s, round %d, %s", p, rounds, time.Since(began).Round(10*time.Millisecond))
	return true
}

// disarm lets the victim live, and returns at which step it would have died still. It
// fails with errDied if that was the last of all.
func (x *crashTrial) disarm() (at CrashAt, err error) {
	if err = x.victim.ask("Disarm", true, &at); err == nil {
		return at, nil
	}
	return at, x.until(x.victim, "the victim is dead, since it does not answer", func() error { return err })
}

// revive looks at the disk that the dead node has left, starts it again, and does
// the operation once more.
func (x *crashTrial) revive(operation crashOperation) {
	x.t.Helper()
	dead := x.victim
	x.victim = nil
	var found Inspection
	x.Eventually(crashTimeout, "the others know the records", func() (err error) { // they may have to elect first
		found, err = x.inspect(x.another(dead), false, dead)
		return err
	})
	missing := slices.DeleteFunc(found.Missing, func(file string) bool { return slices.Contains(x.harmed, file) })
	if len(missing) > 0 {
		x.t.Errorf("the records name shards that the dead node %s did not have: %v", dead.Config.Name, missing)
	}
	dead.start()
	dead.WaitReady()
	x.reunite()
	if !operation.deletes {
		x.checkContent()
	}
	x.complete(operation)
}

// reunite waits until all nodes know that all are there.
func (x *crashTrial) reunite() {
	x.t.Helper()
	_ = x.until(nil, "the nodes have found each other", func() error { // nobody dies
		for _, n := range x.nodes {
			status, err := n.Status()
			if err != nil {
				return err
			}
			for _, seen := range status.Nodes {
				if seen.State != "active" && seen.State != "draining" {
					return fmt.Errorf("%s says that %s is %s", n.Config.Name, seen.ID, seen.State)
				}
			}
		}
		return nil
	})
}

// settle waits until every shard is where it should be and all nodes have the same
// state.
func (x *crashTrial) settle() error {
	return x.until(x.victim, "the cluster is at rest", func() error {
		var at string
		for _, n := range x.nodes {
			status, err := n.Status()
			if err != nil {
				return err
			}
			if status.Health != node.HealthOK || len(status.Nodes) != len(x.nodes) || len(status.Notes) > 0 {
				return fmt.Errorf("%s says of %d nodes: %s %v %v", n.Config.Name, len(status.Nodes), status.Health, status.Problems, status.Notes)
			}
			state := fmt.Sprintf("%d/%s", status.StateIndex, status.StateHash)
			if at != "" && state != at {
				return fmt.Errorf("nodes are at %s and %s", at, state)
			}
			at = state
		}
		found, err := x.inspect(x.another(x.victim), false, x.nodes...)
		if err != nil {
			return err
		}
		if found.Degraded+len(found.Missing)+len(found.Unfinished) > 0 {
			return errors.New(found.String())
		}
		return nil
	})
}

// sweep lets the nodes sweep until there is no garbage.
func (x *crashTrial) sweep() error {
	for _, n := range x.nodes {
		if err := n.ask("Sweep", true, new(bool)); err != nil {
			return err
		}
	}
	err := x.until(x.victim, "no shard is left over", func() error {
		found, err := x.inspect(x.another(x.victim), true, x.nodes...)
		if err == nil && len(found.Unrecorded)+len(found.Missing) > 0 {
			err = fmt.Errorf("%s: %v", found.String(), found.Unrecorded)
		}
		return err
	})
	for _, n := range x.nodes {
		if err := n.ask("Sweep", false, new(bool)); err != nil && n != x.victim {
			x.t.Error(err)
		}
	}
	return err
}

// check reads everything and finds nothing wrong. All files that are there are on
// record by now, so that a power failure must not take any.
func (x *crashTrial) check() {
	x.t.Helper()
	for _, n := range x.nodes {
		var files []string
		n.mustAsk("Unsynced", true, &files)
		if len(files) > 0 {
			x.t.Errorf("%s has shards on record that are not durable: %v", n.Config.Name, files)
		}
	}
	x.checkState()
	x.checkContent()
	if found, err := x.scrub(); err != nil || found > 0 {
		x.t.Errorf("%d shards are damaged or missing, %v", found, err)
	}
}
