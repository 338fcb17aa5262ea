package main

import (
	"fmt"
	"strings"

	"github.com/atollregistry/atoll/cmd/bench"
)

// check is one aim, and what came of it.
type check struct {
	// aim says it to people: "at least 1.0x the MB/s of docker-registry".
	aim string
	// short is what is not met if it isn't: "MB/s 0.91x".
	short string
	// share is how much of the aim was reached: 1 is just enough, more is better.
	share float64
}

func (c check) met() bool { return c.share >= 1 }

// atLeast and atMost compare a value with a bound.
func atLeast(value, bound float64) float64 { return value / bound }
func atMost(value, bound float64) float64 {
	if value == 0 {
		return 1
	}
	return bound / value
}

// checks are those of a row's aims, none for a row without, and that nothing failed.
func (r *result) checks() (all []check) {
	aims, ratio := r.row.aims, r.ours().Summary[r.row.by].Ratio.OfMedians
	unit := unitOf(r.row.by)
	short := fmt.Sprintf("%s %.2fx", unit.name, ratio)
	if aims.least > 0 {
		all = append(all, check{fmt.Sprintf("at least %sx the %s of %s", plain(aims.least), unit.name, r.row.against), short, atLeast(ratio, aims.least)})
	}
	if aims.most > 0 {
		all = append(all, check{fmt.Sprintf("at most %sx the %s of %s", plain(aims.most), unit.name, r.row.against), short, atMost(ratio, aims.most)})
	}
	if aims.cpuPerGB > 0 {
		cpu := r.ours().Summary[bench.CPUPerGB].Median
		all = append(all, check{fmt.Sprintf("CPU at most %s s/GB", plain(aims.cpuPerGB)), fmt.Sprintf("CPU %.2f s/GB", cpu), atMost(cpu, aims.cpuPerGB)})
	}
	if aims.reads > 0 {
		all = append(all, check{"no node reads a shard twice", fmt.Sprintf("a node read shards %s times", plain(r.Reads)), atMost(r.Reads, aims.reads)})
	}
	if done, failed := r.Report.Counts(); failed > 0 {
		all = append(all, check{"no operation fails", fmt.Sprintf("%d of %d operations failed", failed, done+failed), 0})
	}
	return all
}

// plain writes a bound as it was given, with one digit after the point at least.
func plain(value float64) string {
	text := fmt.Sprintf("%.2f", value)
	return strings.TrimSuffix(text, "0")
}

// aimsText is what was wanted, in a few words.
func aimsText(checks []check) string {
	var texts []string
	for _, c := range checks {
		texts = append(texts, c.aim)
	}
	return strings.Join(texts, "; ")
}

// verdict says whether all was met, and what was not.
func verdict(checks []check) string {
	var missed []string
	for _, c := range checks {
		if !c.met() {
			missed = append(missed, c.short)
		}
	}
	switch {
	case len(missed) > 0:
		return "not met: " + strings.Join(missed, "; ")
	case len(checks) > 0:
		return "met"
	}
	return ""
}

// memoryCheck is that of the memory of nodes, over all rows; row says in which it was most.
func memoryCheck(results []*result) (c check, row string) {
	var most int64
	for _, r := range results {
		if bytes := r.nodeBytes(); bytes > most {
			most, row = bytes, r.Row
		}
	}
	return check{
		aim:   fmt.Sprintf("at most %d MiB", maxNodeBytes/mib),
		short: fmt.Sprintf("%d MiB", most/mib),
		share: atMost(float64(most), maxNodeBytes),
	}, row
}
