package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/atollregistry/atoll/cmd/bench"
)

// options is what the command line says.
type options struct {
	turns    int
	duration time.Duration
	// rows are those to measure, in the order of the table.
	rows []row
	// folder is where the temporary folder for data is made.
	folder string
	// out is the folder for reports; empty for none.
	out   string
	write bool
}

const (
	defaultTurns    = 5
	defaultDuration = 10 * time.Second
	// maxDuration bounds one turn, so that all of it ends on the same day.
	maxDuration = 10 * time.Minute
	// defaultFolder is on a disk where /tmp often is not.
	defaultFolder = "/var/tmp"
)

const usage = `usage: go run ./cmd/performance [flags]

Measures atoll with one, three and five nodes against docker-registry and nginx, which must be
installed, and prints what comes out. See docs/performance.md. The rows are:

`

// parseOptions reads flags.
func parseOptions(args []string) (*options, error) {
	o, only := &options{}, ""
	flags := flag.NewFlagSet("performance", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		listRows(flags.Output())
		fmt.Fprintln(flags.Output())
		flags.PrintDefaults()
	}
	flags.IntVar(&o.turns, "turns", defaultTurns, "how many turns each server gets in a row")
	flags.DurationVar(&o.duration, "duration", defaultDuration, "how long a turn begins operations")
	flags.StringVar(&only, "only", "", "rows to measure, with commas (default: all)")
	flags.StringVar(&o.folder, "folder", defaultFolder, "folder on a disk, in which a temporary one is made for all data")
	flags.StringVar(&o.out, "out", "", "folder for the reports, one JSON file a row; made if need be")
	flags.BoolVar(&o.write, "write", false, "write docs/performance.md and its plot from the reports in --out: those of this run, and of earlier ones for other rows")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("there are flags only, and no %q", flags.Arg(0))
	}
	var err error
	o.rows, err = chooseRows(only)
	return o, errors.Join(err, o.validate())
}

// validate returns all that is wrong.
func (o *options) validate() error {
	var wrong []error
	if o.turns < 1 || o.turns > bench.MaxTurns {
		wrong = append(wrong, fmt.Errorf("--turns: %d is not 1 to %d", o.turns, bench.MaxTurns))
	}
	if o.duration <= 0 || o.duration > maxDuration {
		wrong = append(wrong, fmt.Errorf("--duration: %s is not up to %s", o.duration, maxDuration))
	}
	if o.write && o.out == "" {
		wrong = append(wrong, errors.New("--write: it needs --out, where the reports of all rows are"))
	}
	if info, err := os.Stat(o.folder); err != nil || !info.IsDir() {
		wrong = append(wrong, fmt.Errorf("--folder: %s is not a folder: name one on a disk", o.folder))
	}
	return errors.Join(wrong...)
}

// chooseRows returns the rows of some names with commas between them, all without any.
func chooseRows(only string) (chosen []row, err error) {
	if only == "" {
		return rows(), nil
	}
	names := strings.Split(only, ",")
	for _, r := range rows() {
		if slices.Contains(names, r.name) {
			chosen = append(chosen, r)
			names = slices.DeleteFunc(names, func(name string) bool { return name == r.name })
		}
	}
	if len(names) > 0 {
		return nil, fmt.Errorf("--only: there is no row %s: see --help", strings.Join(names, ", "))
	}
	return chosen, nil
}

// listRows says what rows there are.
func listRows(w io.Writer) {
	for _, r := range rows() {
		fmt.Fprintf(w, "  %-16s %s\n", r.name, r.what)
	}
}
