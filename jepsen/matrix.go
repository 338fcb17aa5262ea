package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/atollregistry/atoll/jepsen/nemesis"
)

// build makes the programs that runs under some nemeses want.
func build(ctx context.Context, o *options, mutantName string, nemeses []nemesis.Nemesis) (program, previous string, err error) {
	p, err := newPrograms(ctx, o)
	if err != nil {
		return "", "", err
	}
	if program = o.program; program == "" {
		if program, err = p.current(ctx, mutantName); err != nil {
			return "", "", err
		}
	}
	wanted := slices.ContainsFunc(nemeses, func(n nemesis.Nemesis) bool { return slices.Contains(n.Needs, nemesis.NeedPrevious) })
	if !wanted {
		return program, "", nil
	}
	if previous, err = p.of(ctx, o.previous, program); err != nil {
		// A mix goes without; who asked for it by name is told that it is missing.
		fmt.Fprintf(os.Stderr, "jepsen: without mixed versions: %v\n", err)
		return program, "", nil
	}
	return program, previous, nil
}

// buildFor is build for the nemeses of the command line.
func buildFor(ctx context.Context, o *options) (program, previous string, err error) {
	nemeses, err := nemesis.Find(o.nemesis)
	if err != nil {
		return "", "", err
	}
	return build(ctx, o, o.mutant, nemeses)
}

// single does one run.
func single(ctx context.Context, o *options) (code int, err error) {
	program, previous, err := buildFor(ctx, o)
	if err != nil {
		return exitUnknown, err
	}
	v, err := one(ctx, o, program, previous)
	return exitCode(v, err), err
}

func exitCode(v *Verdict, err error) int {
	switch {
	case err != nil || v == nil:
		return exitUnknown
	case !v.Valid():
		return exitInvalid
	}
	return exitValid
}

func one(ctx context.Context, o *options, program, previous string) (*Verdict, error) {
	r, err := newRun(o, program, previous)
	if err != nil {
		return nil, err
	}
	return r.do(ctx)
}

// soak repeats runs with one seed after the other.
func soak(ctx context.Context, o *options) (code int, err error) {
	program, previous, err := buildFor(ctx, o)
	if err != nil {
		return exitUnknown, err
	}
	var faults []error
	for end := time.Now().Add(o.soak); time.Now().Before(end) && ctx.Err() == nil; o.seed++ {
		v, err := one(ctx, o, program, previous)
		code = worse(code, exitCode(v, err))
		faults = append(faults, err)
	}
	return code, errors.Join(faults...)
}

// matrix runs all workloads at once under each nemesis, with some seeds each. What has a verdict in
// the folder already is not run again.
func matrix(ctx context.Context, o *options) (code int, err error) {
	names, nemeses, err := matrixNemeses(o)
	if err != nil {
		return exitUnknown, err
	}
	program, previous, err := build(ctx, o, "", nemeses)
	if err != nil {
		return exitUnknown, err
	}
	hash, err := hashFile(program)
	if err != nil {
		return exitUnknown, err
	}
	var faults []error
	for seed := range uint64(o.seeds) {
		for _, name := range names {
			if ctx.Err() != nil {
				return exitUnknown, errors.Join(append(faults, ctx.Err())...)
			}
			own := *o
			own.nemesis, own.seed = name, o.seed+seed
			if before := done(&own, hash); before != nil {
				code = worse(code, exitCode(before, nil))
				continue
			}
			v, err := one(ctx, &own, program, previous)
			code = worse(code, exitCode(v, err))
			faults = append(faults, err)
		}
	}
	return code, errors.Join(faults...)
}

// matrixNemeses returns what the matrix is of: what was asked for, or all there are and none.
func matrixNemeses(o *options) (names []string, nemeses []nemesis.Nemesis, err error) {
	nemeses = nemesis.All()
	if o.nemesis == "none" {
		names = append(names, "none")
	} else if nemeses, err = nemesis.Find(o.nemesis); err != nil {
		return nil, nil, err
	}
	for _, n := range nemeses {
		names = append(names, n.Name)
	}
	return names, nemeses, nil
}

// done returns the verdict of a run that was done already, of the same program and as long; nil if there
// is none.
func done(o *options, program string) *Verdict {
	content, err := os.ReadFile(filepath.Join(o.out, runName(o), verdictFile))
	if err != nil {
		return nil
	}
	v := &Verdict{}
	if err := json.Unmarshal(content, v); err != nil || v.Program != program || v.Time != o.time || v.Nodes != o.nodes {
		return nil
	}
	return v
}

// worse returns the code that says more against the runs: invalid above all.
func worse(a, b int) int {
	if a == exitInvalid || b == exitInvalid {
		return exitInvalid
	}
	return max(a, b)
}
