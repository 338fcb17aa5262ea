package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/atollregistry/atoll/jepsen/mutant"
	"github.com/atollregistry/atoll/jepsen/workload"
)

// row sums up the runs under one nemesis.
type row struct {
	nemesis   string
	runs      int
	nodes     map[int]bool
	time      time.Duration
	operation map[string]int
	faults    int
	effects   int
	anomalies int
	lost      int
	// gap and writes are the longest of all runs.
	gap    time.Duration
	gapOf  string
	writes time.Duration
}

// table prints the runs of which there are records in the files, and then the mutants, in Markdown.
func table(w io.Writer, files []string) error {
	records, err := readRecords(files)
	if err != nil {
		return err
	}
	rows := make(map[string]*row)
	var broken []Record
	for _, r := range records {
		if r.Mutant != "" {
			broken = append(broken, r)
			continue
		}
		name := r.Nemesis
		if r.Two {
			name += ", two at a time"
		}
		if rows[name] == nil {
			rows[name] = &row{nemesis: name, nodes: map[int]bool{}, operation: map[string]int{}}
		}
		rows[name].add(r)
	}
	tableOfRuns(w, rows)
	if len(broken) > 0 {
		fmt.Fprintln(w)
		tableOfMutants(w, broken)
	}
	return nil
}

func tableOfRuns(w io.Writer, rows map[string]*row) {
	fmt.Fprint(w, "| nemesis | runs | nodes | minutes |")
	for _, one := range workload.All() {
		fmt.Fprintf(w, " %s |", one.Name())
	}
	fmt.Fprintf(w, " faults | with an effect | anomalies | lost | longest gap | writes again |\n|%s\n", strings.Repeat("-|", 10+len(workload.All())))
	sum := &row{nemesis: "**all**", nodes: map[int]bool{}, operation: map[string]int{}}
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		rows[name].print(w)
		sum.join(rows[name])
	}
	sum.print(w)
}

func (t *row) add(r Record) {
	one := &row{
		runs: 1, nodes: map[int]bool{r.Nodes: true}, time: r.Time, operation: map[string]int{}, faults: r.Faults, effects: r.Effects,
		anomalies: r.Anomalies, lost: r.Lost, gap: r.Gap, gapOf: r.GapOf, writes: r.Writes,
	}
	for name, counts := range r.Operations {
		one.operation[name] = counts.OK + counts.Fail + counts.Unknown
	}
	t.join(one)
}

func (t *row) join(o *row) {
	t.runs, t.time, t.faults, t.effects, t.anomalies, t.lost = t.runs+o.runs, t.time+o.time, t.faults+o.faults, t.effects+o.effects, t.anomalies+o.anomalies, t.lost+o.lost
	maps.Copy(t.nodes, o.nodes)
	for name, count := range o.operation {
		t.operation[name] += count
	}
	if o.gap > t.gap {
		t.gap, t.gapOf = o.gap, o.gapOf
	}
	t.writes = max(t.writes, o.writes)
}

func (t *row) print(w io.Writer) {
	var nodes []string
	for _, n := range slices.Sorted(maps.Keys(t.nodes)) {
		nodes = append(nodes, fmt.Sprint(n))
	}
	fmt.Fprintf(w, "| %s | %d | %s | %.0f |", t.nemesis, t.runs, strings.Join(nodes, ", "), t.time.Minutes())
	for _, one := range workload.All() {
		fmt.Fprintf(w, " %d |", t.operation[one.Name()])
	}
	fmt.Fprintf(w, " %d | %d | %d | %d | %.1f s (%s) | %.1f s |\n", t.faults, t.effects, t.anomalies, t.lost, t.gap.Seconds(), t.gapOf, t.writes.Seconds())
}

// tableOfMutants prints for each mutant the run that caught it, or the last one if none did.
func tableOfMutants(w io.Writer, records []Record) {
	fmt.Fprint(w, "| mutant | what does not hold any more | workloads | nemesis | runs | caught by |\n|-|-|-|-|-|-|\n")
	byName := make(map[string][]Record)
	for _, r := range records {
		byName[r.Mutant] = append(byName[r.Mutant], r)
	}
	order := func(a, b string) int { return cmp.Compare(place(a), place(b)) }
	for _, name := range slices.SortedStableFunc(maps.Keys(byName), order) {
		runs := byName[name]
		last := runs[len(runs)-1]
		if i := slices.IndexFunc(runs, func(r Record) bool { return r.Caught != "" }); i >= 0 {
			last = runs[i]
		}
		m, _ := mutant.Named(name)
		fmt.Fprintf(w, "| `%s` | %s | %s | %s | %d | %s |\n", name, m.Breaks, last.Workloads, last.Nemesis, len(runs), cmp.Or(last.Caught, "**nothing**"))
	}
}

// place is a mutant's place in the list of all.
func place(name string) int {
	return slices.IndexFunc(mutant.All(), func(m mutant.Mutant) bool { return m.Name == name })
}
