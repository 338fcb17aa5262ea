package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/atollregistry/atoll/jepsen/cluster"
	"github.com/atollregistry/atoll/jepsen/mutant"
	"github.com/atollregistry/atoll/jepsen/workload"
)

// mutants runs programs that are broken on purpose, each under the nemesis that should show it. The
// verdict of each must be invalid.
func mutants(ctx context.Context, o *options) (code int, err error) {
	chosen := mutant.All()
	if o.mutant != "" {
		if chosen, err = findMutants(o.mutant); err != nil {
			return exitUnknown, err
		}
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	var missed []error
	for _, m := range chosen {
		caught, err := runMutant(ctx, o, m)
		if err == nil && caught == "" {
			err = errors.New("not caught")
		}
		if err != nil {
			missed = append(missed, fmt.Errorf("mutant %s: %w", m.Name, err))
			caught = "NOT CAUGHT: " + err.Error()
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", m.Name, m.Nemesis, caught)
		if ctx.Err() != nil {
			break
		}
	}
	if err := errors.Join(append(missed, table.Flush())...); err != nil {
		return exitInvalid, err
	}
	return exitValid, nil
}

// findMutants returns those with the given names, with commas between them.
func findMutants(names string) ([]mutant.Mutant, error) {
	var found []mutant.Mutant
	for name := range strings.SplitSeq(names, ",") {
		m, ok := mutant.Named(name)
		if !ok {
			return nil, fmt.Errorf("no mutant is called %q: 'go run ./jepsen list' names them", name)
		}
		found = append(found, m)
	}
	return found, nil
}

// runMutant tests one mutant with one seed after the other, and says what caught it, "" if nothing did.
func runMutant(ctx context.Context, o *options, m mutant.Mutant) (string, error) {
	own := *o
	own.mutant, own.nemesis, own.workloads = m.Name, m.Nemesis, strings.Join(m.Workloads, ",")
	program, _, err := build(ctx, &options{out: o.out}, m.Name, nil)
	if err != nil {
		return "", err
	}
	for try := range o.seeds {
		own.seed = o.seed + uint64(try)
		v, err := one(ctx, &own, program, "")
		switch {
		case errors.Is(err, cluster.ErrEnded), errors.Is(err, cluster.ErrNotSo):
			// So broken that not even a cluster comes about.
			return "no cluster is formed: " + firstLine(err.Error()), nil
		case err != nil:
			return "", err
		}
		if caught := kinds(v.Anomalies); caught != "" {
			return caught, nil
		}
	}
	return "", nil
}

// kinds counts what was found by kind, in words. That too little was done shows nothing of a program.
func kinds(anomalies []workload.Anomaly) string {
	counts := make(map[string]int)
	for _, a := range anomalies {
		if a.Kind != tooLittle {
			counts[a.Workload+": "+a.Kind]++
		}
	}
	var words []string
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		words = append(words, fmt.Sprintf("%s (%d)", kind, counts[kind]))
	}
	return strings.Join(words, ", ")
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}
