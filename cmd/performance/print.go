package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// printResult tells of one row.
func printResult(w io.Writer, r *result) error {
	checks, against := r.checks(), r.row.against
	fmt.Fprintf(w, "%s: %s\n", r.Row, r.row.what)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(title, format string, args ...any) { fmt.Fprintf(table, "  "+title+"\t"+format+"\n", args...) }
	if len(checks) > 0 {
		line("wanted", "%s", aimsText(checks))
	}
	line("medians", "atoll %s, %s %s", figure(r.ours(), r.row.by), against, figure(r.reference(), r.row.by))
	line("ratio", "%s", r.ratioText())
	line("CPU", "atoll %s, %s %s", figure(r.ours(), r.costMetric()), against, figure(r.reference(), r.costMetric()))
	line("memory", "%s in the largest node", r.memoryText())
	if len(checks) > 0 {
		line("verdict", "%s", verdict(checks))
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	_, err := fmt.Fprintln(w)
	return err
}

// printMemory tells of the largest node of some rows.
func printMemory(w io.Writer, results []*result) error {
	c, row := memoryCheck(results)
	_, err := fmt.Fprintf(w, "memory of a node in any of these rows: %s in %s, wanted is %s: %s\n", c.short, row, c.aim, verdict([]check{c}))
	return err
}
