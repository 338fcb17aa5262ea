package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	// devTick is how often dev looks at its nodes.
	devTick = 250 * time.Millisecond
	// formingPatience is how long dev waits for the last nodes once the first is
	// ready, before it says what to type next.
	formingPatience = 30 * time.Second
	// devIdle is how long nothing must have moved on a connection for it to count as
	// idle.
	devIdle = time.Second
	// devStopTimeout is how long the nodes may take to stop before they are
	// killed: devShutdownTimeout for transfers past the balancer, and the rest for
	// what follows.
	devStopTimeout = 20 * time.Second
	// devDrainTimeout is how long clients may take to read what the nodes have sent
	// them before they stopped.
	devDrainTimeout = 10 * time.Second
)

// devConfig is what dev is told.
type devConfig struct {
	// nodes is the number of nodes; 0 means as many as the folder has, or
	// defaultDevNodes in a new one.
	nodes int
	// listen is the balancer's address; empty means the one of the last time, or
	// defaultDevListen in a new folder.
	listen string
	// data is the folder for everything.
	data string
	// auth has clients log in, by TLS; nil for as the last time, or not in a new folder.
	auth *bool
	// set are settings for all nodes, KEY=VALUE.
	set []string
	// json turns the output into JSON lines, the nodes' whole logs included.
	json bool
	// executable is the program that the nodes run: this one.
	executable string
	out        io.Writer
}

func newDevCommand() *cobra.Command {
	cfg, auth := devConfig{}, false
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "run a whole cluster on this machine",
		Long: `Run a cluster of several nodes on this machine, each a process of its own, with
a balancer in front. Kill nodes and start them again: DIR/dev.json says how.
Ctrl-C stops everything; the data stays in DIR for the next time.

Everybody who reaches the balancer may do everything, unless there is --auth: then
clients speak TLS and log in, with a certificate of an authority that is made in DIR,
as a user admin that is made at the first start.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			executable, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			if cmd.Flags().Changed("nodes") && cfg.nodes < 1 {
				return fmt.Errorf("--nodes: %d is not 1 to %d", cfg.nodes, maxDevNodes)
			}
			if cmd.Flags().Changed("auth") {
				cfg.auth = &auth
			}
			cfg.executable, cfg.out = executable, cmd.OutOrStdout()
			return newDev(cfg).Run(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&cfg.nodes, "nodes", 0, fmt.Sprintf("number of nodes, 1 to %d (default: as many as the data folder has, or %d)", maxDevNodes, defaultDevNodes))
	flags.StringVar(&cfg.listen, "listen", "", "address of the balancer; node i has its port + i, and its cluster and operations ports 100 and 200 above that (default: as before, or "+defaultDevListen+")")
	flags.StringVar(&cfg.data, "data", "./atoll-data", "data folder, made when absent")
	flags.BoolVar(&auth, "auth", false, "have clients log in, by TLS (default: as before, or not)")
	flags.StringArrayVar(&cfg.set, "set", nil, "KEY=VALUE of a setting of serve, for all nodes; may be repeated")
	flags.BoolVar(&cfg.json, "json", false, "print JSON lines, with all the nodes log")
	return cmd
}

// dev is a cluster on one machine.
type dev struct {
	cfg    devConfig
	report *devReport
	plan   devPlan
	nodes  []*devNode
	// balancer is nil until the nodes have started.
	balancer *balancer
	// parent is the process that has started dev.
	parent int
	// releaseChildren lets go of the thread that the children are tied to.
	releaseChildren func()
}

func newDev(cfg devConfig) *dev {
	return &dev{cfg: cfg, report: newDevReport(cfg.out, cfg.json), parent: os.Getppid()}
}

// Run starts the cluster and keeps it until ctx ends. Then it stops all nodes and
// returns when they are gone.
func (d *dev) Run(ctx context.Context) error {
	release, listener, err := d.prepare()
	if err != nil {
		return err
	}
	defer release()
	// What serves the nodes outlasts ctx: transfers are finished while they stop.
	background, end := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	defer running.Wait()
	defer end()
	running.Go(func() { _ = d.report.Run(background) }) // nobody is left to tell if the terminal is gone

	if err := d.start(); err != nil {
		listener.Close()
		return err
	}
	defer d.releaseChildren()
	var targets []*target
	for _, n := range d.nodes {
		targets = append(targets, n.target)
	}
	running.Go(func() { probeAll(background, targets) })
	d.balancer = newBalancer(targets)
	drained := make(chan struct{})
	running.Go(func() {
		defer close(drained)
		_ = d.balancer.Run(background, listener) // never fails
	})

	err = d.form(ctx)
	if err == nil {
		err = d.watch(ctx)
	}
	listener.Close()
	err = errors.Join(err, d.stop())
	select {
	case <-drained:
	case <-time.After(devDrainTimeout):
	}
	return err
}

// prepare checks and makes all that must be there before anything starts.
func (d *dev) prepare() (release func(), listener net.Listener, err error) {
	if d.plan, err = d.cfg.plan(); err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(d.plan.dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make data folder: %w", err)
	}
	lock, err := lockDev(d.plan.dir)
	if err != nil {
		return nil, nil, err
	}
	listener, err = d.plan.claimPorts()
	if err == nil {
		err = d.plan.makeCertificates()
	}
	if err == nil && d.plan.auth {
		err = d.plan.makeRegistryCertificate()
	}
	if err != nil {
		lock.Close()
		if listener != nil {
			listener.Close()
		}
		return nil, nil, err
	}
	return func() { lock.Close() }, listener, nil
}

// lockDev keeps a second dev off the folder.
func lockDev(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "dev.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data folder: %w", err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errors.New("another atoll dev runs on it: stop that one, or choose another --data")
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock data folder %s: %w", dir, err)
	}
	return lock, nil
}

// start starts the nodes and writes down how to reach them.
func (d *dev) start() error {
	d.report.quiet.Store(true)
	var specs []childSpec
	for _, planned := range d.plan.nodes {
		n, spec, err := newDevNode(planned, d.plan.argv(d.cfg.executable, planned), d.report)
		if err != nil {
			return err
		}
		d.nodes, specs = append(d.nodes, n), append(specs, spec)
	}
	children, release, err := startChildren(specs)
	if err != nil {
		return err
	}
	d.releaseChildren = release
	for i, c := range children {
		d.nodes[i].set(c)
	}
	if err := d.writeFile(); err != nil {
		defer release()
		return errors.Join(err, d.stop())
	}
	return nil
}

func (d *dev) writeFile() error {
	file := devFile{Registry: d.plan.url}
	for _, n := range d.nodes {
		file.Nodes = append(file.Nodes, devFileNode{
			ID:         n.plan.name,
			PID:        n.pid,
			Registry:   d.plan.scheme() + "://" + n.plan.registry,
			Cluster:    n.plan.cluster,
			Operations: "http://" + n.plan.operations,
			Data:       n.plan.data,
			Argv:       n.argv,
		})
	}
	return file.write(d.plan.dir)
}

// watch shows what becomes of the nodes until ctx ends.
func (d *dev) watch(ctx context.Context) error {
	ticker := time.NewTicker(devTick)
	defer ticker.Stop()
	for {
		changed := false
		for _, n := range d.nodes {
			changed = n.look(ctx) || changed
		}
		if changed {
			if err := d.writeFile(); err != nil {
				d.report.event(zerolog.ErrorLevel, "", err.Error())
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
		if d.orphaned() {
			return nil
		}
	}
}

// orphaned reports whether dev was started by go run, which is gone. go run does
// not pass a SIGTERM on, so this is how its end reaches dev.
func (d *dev) orphaned() bool {
	return ranByGo(d.cfg.executable) && os.Getppid() != d.parent
}

// stop lets running transfers finish, ends all nodes at once and waits for them. A
// node that takes too long is killed, which costs no data.
func (d *dev) stop() error {
	d.report.quiet.Store(true)
	d.report.event(zerolog.InfoLevel, "", fmt.Sprintf("stopping: running transfers have %s to finish (Ctrl-C again kills at once)", devShutdownTimeout))
	d.waitIdle()
	ctx, cancel := context.WithTimeout(context.Background(), devStopTimeout)
	defer cancel()
	faults := make([]error, len(d.nodes))
	var all sync.WaitGroup
	for i, n := range d.nodes {
		all.Go(func() { faults[i] = n.stop(ctx) })
	}
	all.Wait()
	d.report.event(zerolog.InfoLevel, "", "stopped; the data stays in "+d.plan.dir)
	return errors.Join(faults...)
}

// waitIdle waits until nothing moves through the balancer. Each node finishes its
// own transfers when it is told to stop, but a node that has none would be gone at
// once, and with it the shards that the others still send to their clients.
func (d *dev) waitIdle() {
	if d.balancer == nil {
		return
	}
	deadline := time.After(devShutdownTimeout)
	ticker := time.NewTicker(devTick)
	defer ticker.Stop()
	for d.balancer.busy(devIdle) > 0 {
		select {
		case <-ticker.C:
		case <-deadline:
			return
		}
	}
}
