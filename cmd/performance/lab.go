package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/atollregistry/atoll/cmd/bench"
)

// lab is what all rows are measured with.
type lab struct {
	options *options
	// root is the module's folder, folder a temporary one for all data.
	root, folder string
	programs     programs
	machine      machine
	// out is where results are told, and progress where they are not due yet.
	out, progress io.Writer
}

// newLab sees to it that all is there that is needed. The caller must close it.
func newLab(ctx context.Context, o *options) (l *lab, err error) {
	l = &lab{options: o, out: os.Stdout, progress: os.Stderr}
	if l.root, err = moduleRoot(ctx); err != nil {
		return nil, err
	}
	if o.out != "" {
		if err := os.MkdirAll(o.out, 0o755); err != nil {
			return nil, fmt.Errorf("--out: %w", err)
		}
	}
	if err := checkDisk(o.folder); err != nil {
		return nil, err
	}
	if l.folder, err = os.MkdirTemp(o.folder, "atoll-performance-"); err != nil {
		return nil, fmt.Errorf("--folder: %w", err)
	}
	if l.programs, err = findPrograms(ctx, l.root, l.folder); err == nil {
		l.machine, err = thisMachine(ctx, l.programs)
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// close removes all data.
func (l *lab) close() error {
	if err := os.RemoveAll(l.folder); err != nil {
		return fmt.Errorf("remove data: %w", err)
	}
	return nil
}

// measureAll measures the chosen rows, tells of each and keeps its report. If one fails, it tells
// why at once and goes on with the next, unless ctx has ended; the error names those that failed.
func (l *lab) measureAll(ctx context.Context) (results []*result, err error) {
	fmt.Fprintf(l.out, "%s\n%d turns of up to %s\n\n", l.machine, l.options.turns, l.options.duration)
	var failed []string
	for _, r := range l.options.rows {
		res, err := l.measure(ctx, r)
		if err == nil {
			err = res.complete()
		}
		if err == nil && l.options.out != "" {
			err = res.save(l.options.out)
		}
		if err == nil {
			err = printResult(l.out, res)
		}
		if err != nil {
			failed = append(failed, r.name)
			fmt.Fprintf(l.progress, "%s failed: %v\n", r.name, err)
		} else {
			results = append(results, res)
		}
		if ctx.Err() != nil {
			return results, fmt.Errorf("interrupted in the row %s: %w", r.name, context.Cause(ctx))
		}
	}
	if len(failed) > 0 {
		return results, fmt.Errorf("rows that could not be measured: %s, see above", strings.Join(failed, ", "))
	}
	return results, nil
}

// measure does one row, with servers and folders of its own, which are gone when it returns.
func (l *lab) measure(ctx context.Context, r row) (_ *result, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.limit(l.options))
	defer cancel()
	folder := filepath.Join(l.folder, r.name)
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	fmt.Fprintf(l.progress, "%s: %s\n", r.name, r.what)
	reference, c, err := l.serve(ctx, r, folder)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, reference.stop(), c.stop()) }()
	for _, s := range []served{reference, c} {
		if err := s.start(ctx); err != nil {
			return nil, err
		}
	}
	return l.turns(ctx, r, reference, c)
}

// serve gets the servers of a row ready to start.
func (l *lab) serve(ctx context.Context, r row, folder string) (reference served, c *cluster, err error) {
	referenceFolder, clusterFolder := filepath.Join(folder, string(r.against)), filepath.Join(folder, string(atoll))
	for _, dir := range []string{referenceFolder, clusterFolder} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, nil, err
		}
	}
	addresses, err := freeAddresses(1 + nodePorts*r.nodes)
	if err != nil {
		return nil, nil, err
	}
	if r.against == dockerRegistry {
		reference, err = newDockerRegistry(l.programs.dockerRegistry, referenceFolder, addresses[0])
	} else {
		reference, err = newNginx(l.programs.nginx, referenceFolder, addresses[0], r.load)
	}
	if err == nil {
		c, err = newCluster(ctx, l.programs.atoll, clusterFolder, addresses[1:])
	}
	return reference, c, err
}

// turns has the two servers, which run, do the row's turns.
func (l *lab) turns(ctx context.Context, r row, reference served, c *cluster) (*result, error) {
	res := &result{row: r, Row: r.name, Machine: l.machine}
	config := r.config(l.options)
	of, ours := reference.registry(), c.registry()
	of.Tags = r.referenceTags
	of.BeforeTurn = func(ctx context.Context) error { return r.between.do(ctx, reference) }
	ours.BeforeTurn = func(ctx context.Context) error {
		if r.dead && len(c.living()) == r.nodes {
			if err := c.killLast(); err != nil {
				return err
			}
		}
		return r.between.do(ctx, c)
	}
	if r.dead {
		ours.URLs = ours.URLs[:r.nodes-1] // as a balancer has it that asks nodes whether they are there
	}
	config.Registries = []bench.Registry{of, ours}
	var readsErr error
	config.Progress = func(name string, number int, turn bench.Turn) {
		fmt.Fprintf(l.progress, "%s: %s, turn %d of %d: %d operations in %.1f s, %d errors\n", r.name, name, number, config.Turns, turn.Operations, turn.Seconds, turn.Failed)
		if r.aims.reads > 0 && name == string(atoll) {
			reads, err := c.mostReads(ctx)
			res.Reads, readsErr = max(res.Reads, reads), errors.Join(readsErr, err)
		}
	}
	var err error
	if res.Report, err = bench.Run(ctx, config); err != nil {
		return nil, err
	}
	return res, readsErr
}

// config is the row's run without its servers.
func (r *row) config(o *options) bench.Config {
	config := r.load
	config.Turns, config.Duration, config.WarmUp, config.Timeout, config.Repository = o.turns, o.duration, warmUp, operationTimeout, "bench"
	if config.Count == 0 {
		config.Count = bench.MaxOperations
	}
	// What the workload does not go by must have a value all the same.
	config.Blobs, config.Tags = max(config.Blobs, 1), max(config.Tags, 1)
	return config
}
