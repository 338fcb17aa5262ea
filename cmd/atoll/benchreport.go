package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/atollregistry/atoll/cmd/bench"
)

// benchColumn is how people read one metric.
type benchColumn struct {
	metric bench.Metric
	title  string
	// scale is what the metric is multiplied with, to be in the title's unit.
	scale float64
}

// benchColumns are those of a workload: what servers cost is told per GB, or per operation.
func benchColumns(report *bench.Report) []benchColumn {
	columns := []benchColumn{{bench.OperationsPerSecond, "OPS/S", 1}}
	if report.Size > 0 {
		columns = append(columns, benchColumn{bench.BytesPerSecond, "MB/S", 1e-6})
	}
	columns = append(columns,
		benchColumn{bench.P50Seconds, "P50 MS", 1e3}, benchColumn{bench.P99Seconds, "P99 MS", 1e3}, benchColumn{bench.MaxSeconds, "MAX MS", 1e3})
	if report.Size > 0 {
		columns = append(columns, benchColumn{bench.CPUPerGB, "CPU S/GB", 1}, benchColumn{bench.ClientCPUPerGB, "CLIENT CPU S/GB", 1})
	} else {
		columns = append(columns, benchColumn{bench.CPUPerOperation, "CPU MS/OP", 1e3}, benchColumn{bench.ClientPerOperation, "CLIENT CPU MS/OP", 1e3})
	}
	columns = append(columns, benchColumn{bench.PeakBytes, "PEAK RSS MIB", 1.0 / (1 << 20)})
	// What nobody measured has no column.
	return slices.DeleteFunc(columns, func(c benchColumn) bool {
		return !slices.ContainsFunc(report.Registries, func(r bench.RegistryReport) bool {
			return slices.ContainsFunc(r.Turns, func(t bench.Turn) bool {
				_, ok := t.Value(c.metric)
				return ok
			})
		})
	})
}

// three writes a number with three digits or more.
func three(value float64) string {
	switch {
	case value >= 99.95 || value == 0:
		return fmt.Sprintf("%.0f", value)
	case value >= 9.995:
		return fmt.Sprintf("%.1f", value)
	case value >= 0.9995:
		return fmt.Sprintf("%.2f", value)
	}
	return fmt.Sprintf("%.3g", value)
}

// progressTo tells of each turn as soon as it is over, since a run can be long.
func progressTo(w io.Writer, turns int) func(string, int, bench.Turn) {
	return func(registry string, number int, turn bench.Turn) {
		fmt.Fprintf(w, "%s, turn %d of %d: %d operations in %.1f s, %d errors\n", registry, number, turns, turn.Operations, turn.Seconds, turn.Failed)
	}
}

// printBench is the form for people.
func printBench(w io.Writer, report *bench.Report) error {
	fmt.Fprintln(w, benchTitle(report))
	columns := benchColumns(report)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "REGISTRY\tTURN\tOPS\tERRORS")
	for _, c := range columns {
		fmt.Fprint(table, "\t", c.title)
	}
	fmt.Fprintln(table)
	for _, r := range report.Registries {
		for i := range r.Turns {
			fmt.Fprintf(table, "%s\t%d\t%d\t%d", oneLine(r.Name), i+1, r.Turns[i].Operations, r.Turns[i].Failed)
			for _, c := range columns {
				fmt.Fprint(table, "\t", cell(r.Turns[i].Value(c.metric))(c.scale))
			}
			fmt.Fprintln(table)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(report.Registries) > 1 || len(report.Registries[0].Turns) > 1 {
		if err := printBenchSummary(w, report, columns); err != nil {
			return err
		}
	}
	printBenchFaults(w, report)
	return nil
}

// cell is a number in a table, or a dash.
func cell(value float64, ok bool) func(scale float64) string {
	return func(scale float64) string {
		if !ok {
			return "-"
		}
		return three(value * scale)
	}
}

// benchTitle says what was measured.
func benchTitle(report *bench.Report) string {
	parts := []string{report.Workload}
	if report.Cold {
		parts[0] = "cold " + parts[0]
	}
	if report.Size > 0 {
		parts = append(parts, "blobs of "+binaryBytes(uint64(report.Size)))
	}
	if report.Chunk > 0 {
		parts = append(parts, "chunks of "+binaryBytes(uint64(report.Chunk)))
	}
	return strings.Join(append(parts, fmt.Sprintf("%d clients", report.Clients), fmt.Sprintf("turns of up to %gs", report.DurationSeconds)), ", ")
}

// printBenchSummary has a line for each number, and a column for each registry: the
// median, and what that is of the first registry's.
func printBenchSummary(w io.Writer, report *bench.Report, columns []benchColumn) error {
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "MEDIAN")
	first := report.Registries[0].Name
	for i, r := range report.Registries {
		fmt.Fprint(table, "\t", oneLine(r.Name))
		if i > 0 {
			fmt.Fprintf(table, "\t%s/%s", oneLine(r.Name), oneLine(first))
		}
	}
	fmt.Fprintln(table)
	for _, c := range columns {
		fmt.Fprint(table, c.title)
		for i, r := range report.Registries {
			summary, ok := r.Summary[c.metric]
			fmt.Fprint(table, "\t", cell(summary.Median, ok)(c.scale))
			switch ratio := summary.Ratio; {
			case ratio != nil:
				fmt.Fprintf(table, "\t%.2f (%.2f to %.2f)", ratio.OfMedians, ratio.Min, ratio.Max)
			case i > 0:
				fmt.Fprint(table, "\t-")
			}
		}
		fmt.Fprintln(table)
	}
	return table.Flush()
}

// printBenchFaults tells of each kind of error of each registry, in all turns.
func printBenchFaults(w io.Writer, report *bench.Report) {
	for _, r := range report.Registries {
		var kinds []bench.Fault
		for _, turn := range r.Turns {
			for _, fault := range turn.Errors {
				if i := slices.IndexFunc(kinds, func(k bench.Fault) bool { return k.Kind == fault.Kind }); i >= 0 {
					kinds[i].Count += fault.Count
				} else {
					kinds = append(kinds, fault)
				}
			}
			if turn.ServersError != "" {
				fmt.Fprintf(w, "%s: %s\n", oneLine(r.Name), turn.ServersError)
			}
		}
		slices.SortStableFunc(kinds, func(a, b bench.Fault) int { return cmp.Compare(b.Count, a.Count) })
		for _, kind := range kinds {
			fmt.Fprintf(w, "%s: %s, %d times, first: %s\n", oneLine(r.Name), kind.Kind, kind.Count, oneLine(kind.First))
		}
	}
}
