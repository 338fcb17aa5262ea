package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/atollregistry/atoll/jepsen/cluster"
	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/mutant"
	"github.com/atollregistry/atoll/jepsen/nemesis"
	"github.com/atollregistry/atoll/jepsen/registry"
	"github.com/atollregistry/atoll/jepsen/workload"
)

const (
	// diskBytes is the size of each of a node's disks.
	diskBytes = 1 << 30
	// aftermath is how long clients go on after the last fault.
	aftermath = 5 * time.Second
	// spares is how many nodes there are beside those of the cluster, for joins.
	spares = 1
	// checkTimeout bounds the judging of one workload.
	checkTimeout = 25 * time.Minute
)

// settings are those of all nodes: intervals that let a short run see a collection, and the
// repair of what a node had that is down.
var settings = []string{"--down-after=15s", "--collect-grace=15s", "--collect-interval=2s", "--shutdown-timeout=5s"}

// run is one run.
type run struct {
	options   *options
	dir       string
	program   string
	previous  string
	workloads []workload.Workload
	nemeses   []nemesis.Nemesis
	history   *history.Log
	began     time.Time
	verdict   *Verdict
	// lock keeps other runs out of the folder.
	lock *os.File

	mu  sync.Mutex // guards log
	log *os.File
}

// runName names a run, and its folder.
func runName(o *options) string {
	// A comma would end the name of a data folder.
	name := strings.ReplaceAll(fmt.Sprintf("%s-%s-%d", o.workloads, o.nemesis, o.seed), ",", "+")
	if o.two {
		name = "two-" + name
	}
	if o.mutant != "" {
		name = "mutant-" + o.mutant + "-" + name
	}
	return name
}

// newRun prepares one run in a folder of its own.
func newRun(o *options, program, previous string) (*run, error) {
	r := &run{options: o, dir: filepath.Join(o.out, runName(o)), program: program, previous: previous, began: time.Now()}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return nil, err
	}
	var err error
	if r.lock, err = lockFile(r.dir + ".lock"); err != nil {
		return nil, err
	}
	if err := errors.Join(os.RemoveAll(r.dir), os.MkdirAll(r.dir, 0o755)); err != nil {
		return nil, err
	}
	if r.workloads, err = workload.Find(o.workloads); err != nil {
		return nil, err
	}
	if r.nemeses, err = nemesis.Find(o.nemesis); err != nil {
		return nil, err
	}
	if r.history, err = history.Create(filepath.Join(r.dir, "history.jsonl")); err != nil {
		return nil, err
	}
	if r.log, err = os.Create(filepath.Join(r.dir, "run.log")); err != nil {
		return nil, err
	}
	hash, err := hashFile(program)
	if err != nil {
		return nil, err
	}
	r.verdict = &Verdict{
		Program: hash, Workloads: o.workloads, Nemesis: o.nemesis, Two: o.two, Seed: o.seed, Nodes: o.nodes, Time: o.time, Mutant: o.mutant, Began: r.began,
	}
	return r, nil
}

// unlock ends the run's hold on its folder.
func (r *run) unlock() error { return errors.Join(os.Remove(r.lock.Name()), r.lock.Close()) }

// say tells the user, and the run's log.
func (r *run) say(format string, args ...any) {
	text := fmt.Sprintf("%7.2f  ", time.Since(r.began).Seconds()) + fmt.Sprintf(format, args...)
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Println(text)
	fmt.Fprintln(r.log, text)
}

// do runs it, and returns the verdict. It fails if there can't be one.
func (r *run) do(ctx context.Context) (*Verdict, error) {
	r.say("%s under %s, seed %d, %s, in %s", r.options.workloads, r.options.nemesis, r.options.seed, r.options.time, r.dir)
	place, err := newLab(r.options)
	if err != nil {
		return nil, errors.Join(err, r.unlock())
	}
	disks, err := newImages(r.options)
	if err != nil {
		return nil, errors.Join(err, place.close(), r.unlock())
	}
	c, err := cluster.Start(ctx, r.clusterConfig(place, disks.dir))
	formed := err == nil
	if formed {
		err = r.inCluster(ctx, place, c)
		r.judge(c, err == nil)
	}
	err = errors.Join(err, ctx.Err(), c.Close(), place.close(), r.history.Close())
	// The data is worth looking at only if something was found; that of a mutant never is.
	keep := r.options.keep || r.options.mutant == "" && (err != nil || !r.verdict.Valid())
	if kept := disks.close(keep); kept != "" {
		r.say("the disks are kept in %s: delete them", kept)
	}
	if err != nil && (!formed || !r.verdict.Broken() || ctx.Err() != nil) {
		r.say("not judged: %v", err)
		return nil, errors.Join(err, r.log.Close(), r.unlock())
	}
	if err != nil { // it is invalid in any case
		r.say("not judged in all: %v", err)
	}
	return r.verdict, errors.Join(r.report(), r.log.Close(), r.unlock())
}

func (r *run) clusterConfig(place *lab, images string) cluster.Config {
	config := cluster.Config{
		Program: r.program, Dir: r.dir, Images: images, DiskBytes: diskBytes,
		Nodes: r.options.nodes, Spares: spares, Settings: settings,
		Host: place.host, Client: place.client, Log: r.say,
	}
	if r.ownBuild() {
		config.Env = []string{mutant.ClockVariable + "=" + r.clockFile("{node}")}
	}
	return config
}

// ownBuild says that the program was built for the test, with a clock that can jump.
func (r *run) ownBuild() bool { return r.options.program == "" }

func (r *run) clockFile(node string) string { return filepath.Join(r.dir, node+".clock") }

// inCluster has clients and nemesis work, heals, and has everything checked. It fails if the
// harness does; what it finds is in the verdict.
func (r *run) inCluster(ctx context.Context, place *lab, c *cluster.Cluster) error {
	env := &workload.Env{
		Client: registry.New(place.client.DialContext), History: r.history, Seed: r.options.seed,
		Nodes: func() []workload.Node { return targets(c.Members()) },
		Ready: func() []workload.Node { return targets(c.Ready()) },
		Log:   r.say, Dir: r.dir,
	}
	field := &nemesis.Field{
		Cluster: c, Network: place.network, Rand: rand.New(rand.NewPCG(r.options.seed, 0)), History: r.history, Log: r.say,
		Current: r.program, Previous: r.previous,
	}
	if r.ownBuild() {
		field.ClockFile = r.clockFile
	}
	if err := r.dropMissing(field); err != nil {
		return err
	}
	begin := r.history.Now()
	err := r.work(ctx, env, field)
	r.verdict.Measured = span{begin, r.history.Now()}
	recovered := r.verdict.Valid()
	if err == nil && ctx.Err() == nil && recovered {
		r.close(ctx, c, place)
	}
	faults := []error{err}
	for _, w := range r.workloads {
		faults = append(faults, r.check(ctx, env, w, recovered && err == nil))
	}
	return errors.Join(faults...)
}

// targets returns nodes as clients see them.
func targets(nodes []*cluster.Node) []workload.Node {
	found := make([]workload.Node, len(nodes))
	for i, n := range nodes {
		found[i] = workload.Node{Name: n.Name, URL: n.URL()}
	}
	return found
}

// dropMissing leaves out of a mix what can't be done here. A nemesis that was asked for by name
// must be possible.
func (r *run) dropMissing(field *nemesis.Field) error {
	possible := r.nemeses[:0]
	for _, n := range r.nemeses {
		missing := field.Missing(n)
		switch {
		case len(missing) == 0:
			possible = append(possible, n)
		case r.options.nemesis == "mix":
			r.say("without %s, which needs %v", n.Name, missing)
		default:
			return fmt.Errorf("nemesis %s needs %v", n.Name, missing)
		}
	}
	r.nemeses = possible
	return nil
}

// work drives the clients and the nemesis for the time of the run. A nemesis may need longer, to heal,
// and the clients go on as long as it does, and a little longer to see that all is well.
func (r *run) work(ctx context.Context, env *workload.Env, field *nemesis.Field) error {
	clients, stop := context.WithCancel(ctx)
	defer stop()
	faults := make([]error, len(r.workloads))
	var all sync.WaitGroup
	for i, w := range r.workloads {
		all.Go(func() { faults[i] = w.Run(clients, env) })
	}
	limited, cancel := context.WithTimeout(ctx, r.options.time)
	defer cancel()
	err := nemesis.Run(limited, field, r.nemeses, r.options.two)
	if err != nil && isVerdict(err) {
		r.find("nemesis", err)
		err = nil
	}
	if err == nil {
		wait(ctx, aftermath)
	}
	stop()
	all.Wait()
	return errors.Join(append(faults, err)...)
}

// wait waits, or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// isVerdict says that an error tells of the cluster, not of the harness.
func isVerdict(err error) bool {
	return errors.Is(err, cluster.ErrNotSo) || errors.Is(err, cluster.ErrDiverged) || errors.Is(err, cluster.ErrCommand)
}

// find puts what was found by the checks of the whole cluster into the verdict.
func (r *run) find(what string, err error) {
	kind := notRecovered
	if errors.Is(err, cluster.ErrDiverged) {
		kind = "states differ"
	}
	r.say("%s: %v", kind, err)
	r.verdict.Anomalies = append(r.verdict.Anomalies, workload.Anomaly{Workload: what, Kind: kind, What: err.Error()})
}

// close checks the cluster as a whole, once all faults are healed.
func (r *run) close(ctx context.Context, c *cluster.Cluster, place *lab) {
	if place.network != nil {
		place.network.Heal()
	}
	began := time.Now()
	steps := []struct {
		what string
		do   func() error
	}{
		{"all nodes are ready", func() error { return c.WaitReady(ctx, cluster.SettleTimeout) }},
		{"all is well", func() error { return c.WaitHealthy(ctx) }},
		{"no shard is damaged", func() error { return c.ScrubClean(ctx) }},
		{"all states are the same", func() error { return c.WaitSame(ctx) }},
		{"no shard is there that no record names", func() error { return c.WaitSwept(ctx) }},
		{"everything can be read back without as many nodes as may be lost", func() error { return c.Verify(ctx) }},
	}
	var took []string
	for _, step := range steps {
		before := time.Now()
		err := step.do()
		if ctx.Err() != nil {
			return // it was not given its time
		}
		if err != nil {
			r.find("closing checks: "+step.what, err)
			return
		}
		took = append(took, fmt.Sprintf("%s (%.1f s)", step.what, time.Since(before).Seconds()))
	}
	r.verdict.Settled = time.Since(began)
	r.say("after %.1f s %s", r.verdict.Settled.Seconds(), strings.Join(took, ", "))
}

// check has a workload take its last looks, if there is a cluster to look at, and judge.
func (r *run) check(ctx context.Context, env *workload.Env, w workload.Workload, look bool) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var lookErr error
	if look {
		lookErr = w.Look(ctx, env)
	}
	anomalies, err := w.Judge(ctx, env)
	r.verdict.Anomalies = append(r.verdict.Anomalies, anomalies...)
	if err := errors.Join(lookErr, err); err != nil {
		return fmt.Errorf("check of %s: %w", w.Name(), err)
	}
	return nil
}
