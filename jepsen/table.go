package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/atollregistry/atoll/jepsen/workload"
)

// row sums up the runs under one nemesis.
type row struct {
	nemesis   string
	seeds     map[uint64]bool
	time      time.Duration
	operation map[string]Counts
	faults    int
	anomalies int
	lost      int
	// gap is the longest time in which operations of one kind were asked for and not answered.
	gap   time.Duration
	gapOf string
}

// table prints the runs whose verdicts are in the files, in Markdown.
func table(w io.Writer, files []string) error {
	rows := make(map[string]*row)
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		v := &Verdict{}
		if err := json.Unmarshal(content, v); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		name := v.Nemesis
		if v.Two {
			name += ", two at a time"
		}
		if rows[name] == nil {
			rows[name] = &row{nemesis: name, seeds: map[uint64]bool{}, operation: map[string]Counts{}}
		}
		rows[name].add(v)
	}
	var sorted []*row
	for _, one := range rows {
		sorted = append(sorted, one)
	}
	slices.SortFunc(sorted, func(a, b *row) int { return cmp.Compare(a.nemesis, b.nemesis) })

	fmt.Fprint(w, "| nemesis | seeds | minutes |")
	for _, one := range workload.All() {
		fmt.Fprintf(w, " %s |", one.Name())
	}
	fmt.Fprint(w, " faults | anomalies | lost | longest gap |\n|-|-|-|")
	for range workload.All() {
		fmt.Fprint(w, "-|")
	}
	fmt.Fprint(w, "-|-|-|-|\n")
	for _, one := range sorted {
		one.print(w)
	}
	return nil
}

func (t *row) add(v *Verdict) {
	t.seeds[v.Seed] = true
	t.time += v.Time
	for name, counts := range v.Operations {
		sum := t.operation[name]
		sum.OK, sum.Fail, sum.Unknown = sum.OK+counts.OK, sum.Fail+counts.Fail, sum.Unknown+counts.Unknown
		t.operation[name] = sum
	}
	for _, count := range v.Faults {
		t.faults += count
	}
	t.anomalies += len(v.Anomalies)
	for _, a := range v.Anomalies {
		if a.Kind == workload.Lost {
			t.lost++
		}
	}
	for _, f := range v.Figures {
		if f.Gap.Length() > t.gap {
			t.gap, t.gapOf = f.Gap.Length(), f.Workload+" "+f.Kind
		}
	}
}

func (t *row) print(w io.Writer) {
	fmt.Fprintf(w, "| %s | %d | %.0f |", t.nemesis, len(t.seeds), t.time.Minutes())
	for _, one := range workload.All() {
		counts := t.operation[one.Name()]
		fmt.Fprintf(w, " %d |", counts.OK+counts.Fail+counts.Unknown)
	}
	fmt.Fprintf(w, " %d | %d | %d | %.1f s (%s) |\n", t.faults, t.anomalies, t.lost, t.gap.Seconds(), t.gapOf)
}
