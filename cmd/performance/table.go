package main

import (
	"fmt"
	"strings"
)

// resultsSection is what the page says of results: machine, table and plot.
func resultsSection(results []*result) string {
	var b strings.Builder
	turns, seconds := leastTurns(results)
	fmt.Fprintf(&b, "%s\n\nMedians of %d turns of up to %g s.\n\n", escape(results[0].Machine.String()), turns, seconds)
	b.WriteString("| what | wanted | atoll | compared with | ratio of medians (turns) | CPU of all servers: atoll, compared with | largest node | verdict |\n")
	b.WriteString("|-|-|-|-|-|-|-|-|\n")
	for _, r := range results {
		writeLine(&b, resultCells(r)...)
	}
	c, row := memoryCheck(results)
	writeLine(&b, "resident memory of a node, in any row", c.aim, c.short+", in "+row, "", "", "", c.short, verdict([]check{c}))
	fmt.Fprintf(&b, "\n![How much of each aim was reached](%s)\n", strings.TrimPrefix(plotName, "docs/"))
	return b.String()
}

// resultCells are those of one line.
func resultCells(r *result) []string {
	checks := r.checks()
	return []string{
		fmt.Sprintf("%s (`%s`)", escape(r.row.what), r.Row),
		aimsText(checks),
		figure(r.ours(), r.row.by),
		fmt.Sprintf("%s: %s", r.row.against, figure(r.reference(), r.row.by)),
		r.ratioText(),
		figure(r.ours(), r.costMetric()) + ", " + figure(r.reference(), r.costMetric()),
		r.memoryText(),
		verdict(checks),
	}
}

func writeLine(b *strings.Builder, cells ...string) {
	b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
}

// escape has a text mean itself in a table of Markdown.
func escape(text string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "&", "&amp;").Replace(text)
}

// leastTurns is how many turns every row has had, and how long they were; both are the least.
func leastTurns(results []*result) (turns int, seconds float64) {
	turns, seconds = len(results[0].ours().Turns), results[0].Report.DurationSeconds
	for _, r := range results {
		turns, seconds = min(turns, len(r.ours().Turns)), min(seconds, r.Report.DurationSeconds)
	}
	return turns, seconds
}
