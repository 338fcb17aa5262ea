package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/atollregistry/atoll/jepsen/mutant"
	"github.com/atollregistry/atoll/jepsen/nemesis"
	"github.com/atollregistry/atoll/jepsen/workload"
)

// options is what the command line says.
type options struct {
	workloads string
	nemesis   string
	nodes     int
	time      time.Duration
	soak      time.Duration
	seed      uint64
	seeds     int
	out       string
	images    string
	program   string
	previous  string
	mutant    string
	two       bool
	loopback  bool
	keep      bool
	// command is run, matrix or mutants.
	command string
}

const (
	// minNodes is the least number of nodes with a majority when one is missing.
	minNodes = 3
	maxNodes = 9
	// tmpfs is where images of disks are put if there is one: what a disk does is decided by
	// its file system, not by what is below.
	tmpfs = "/dev/shm"
)

// parse reads the flags of a command.
func parse(command string, args []string) (*options, error) {
	o := &options{command: command}
	flags := flag.NewFlagSet("jepsen "+command, flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	flags.StringVar(&o.workloads, "workload", "all", "workloads, with commas, or all of them at once")
	flags.StringVar(&o.nemesis, "nemesis", "none", "nemeses, with commas, of which each fault is one; mix for all, none for none")
	flags.IntVar(&o.nodes, "nodes", 5, "how many nodes the cluster has")
	flags.DurationVar(&o.time, "time", time.Minute, "how long clients and nemesis work in one run")
	flags.DurationVar(&o.soak, "soak", 0, "repeat runs, each with the next seed, for so long")
	flags.Uint64Var(&o.seed, "seed", 0, "seed of all choices; 0 for one by the clock")
	flags.IntVar(&o.seeds, "seeds", 3, "matrix: how many seeds each nemesis gets")
	flags.StringVar(&o.out, "out", "jepsen-runs", "folder for histories, logs, pictures and verdicts")
	flags.StringVar(&o.images, "images", "", "folder for the images of disks (default "+tmpfs+" if it is there)")
	flags.StringVar(&o.program, "program", "", "atoll to test, instead of this tree built with a clock that can jump and short intervals")
	flags.StringVar(&o.previous, "previous", "", "commit whose program the nemesis mixed-versions uses (default: the one before the last change of the program)")
	flags.StringVar(&o.mutant, "mutant", "", "test this mutant of the tree; with the command mutants: only these, with commas")
	flags.BoolVar(&o.two, "two", false, "two faults of different kinds at a time")
	flags.BoolVar(&o.loopback, "loopback", false, "plain processes on 127.77.0.0/24: no root needed, and no nemesis of network and disks")
	flags.BoolVar(&o.keep, "keep", false, "keep the data of the nodes also when nothing was found")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("%q is no flag", flags.Arg(0))
	}
	return o, o.complete()
}

// complete checks the flags, and fills in what follows from the machine.
func (o *options) complete() error {
	if o.nodes < minNodes || o.nodes > maxNodes {
		return fmt.Errorf("--nodes: %d is not %d to %d", o.nodes, minNodes, maxNodes)
	}
	if o.time < time.Second {
		return fmt.Errorf("--time: %s is less than a second", o.time)
	}
	if _, err := workload.Find(o.workloads); err != nil {
		return fmt.Errorf("--workload: %w", err)
	}
	if _, err := nemesis.Find(o.nemesis); err != nil {
		return fmt.Errorf("--nemesis: %w", err)
	}
	if o.mutant != "" && o.command == "matrix" {
		return errors.New("--mutant: the matrix is of the program as it is")
	}
	if o.program != "" && o.command == "mutants" {
		return errors.New("--program: mutants are built from the tree")
	}
	if o.mutant != "" {
		if _, err := findMutants(o.mutant); err != nil {
			return fmt.Errorf("--mutant: %w", err)
		}
	}
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	if os.Getuid() != 0 {
		o.loopback = true
	}
	var err error
	if o.out, err = filepath.Abs(o.out); err != nil {
		return err
	}
	if o.images == "" && !o.loopback {
		o.images = o.out
		if info, err := os.Stat(tmpfs); err == nil && info.IsDir() {
			o.images = tmpfs
		}
	}
	return nil
}

// list prints what can be named in flags.
func list(w io.Writer) error {
	fmt.Fprintln(w, "workloads:")
	for _, one := range workload.All() {
		fmt.Fprintf(w, "  %s\n", one.Name())
	}
	fmt.Fprintln(w, "nemeses:")
	for _, one := range nemesis.All() {
		fmt.Fprintf(w, "  %-16s %s\n", one.Name, one.Does)
	}
	fmt.Fprintln(w, "mutants:")
	for _, one := range mutant.All() {
		fmt.Fprintf(w, "  %-28s %s\n", one.Name, one.Breaks)
	}
	return nil
}
