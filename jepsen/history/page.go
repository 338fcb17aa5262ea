package history

import (
	"fmt"
	"html"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// maxNotes is how many notes a page has at most.
const maxNotes = 500

// style is what the page looks like. The colours of outcomes differ for the colour-blind.
const style = `
:root { --ok: #1b9e77; --fail: #e6a100; --unknown: #c2185b; --ink: #1f2933; --pale: #7b8794; --line: #e4e7eb; }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: #f7f8fa; margin: 24px auto; max-width: 1640px; padding: 0 16px; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 28px 0 8px; }
.facts { color: var(--pale); margin: 0 0 12px; }
.legend span { display: inline-block; margin-right: 18px; } .legend i { display: inline-block; width: 14px; height: 10px; border-radius: 2px; margin-right: 6px; }
.legend .ok { background: var(--ok); } .legend .fail { background: var(--fail); } .legend .unknown { background: var(--unknown); } .legend .fault { background: #8793a8; }
.picture, table, .notes { background: #fff; border: 1px solid var(--line); border-radius: 8px; box-shadow: 0 1px 3px rgba(31,41,51,.06); }
.picture { overflow-x: auto; padding: 8px; margin-top: 12px; } svg { width: 100%; min-width: 1100px; display: block; }
svg text { font: 10px system-ui, sans-serif; fill: var(--ink); }
.tick { text-anchor: middle; fill: var(--pale) !important; } .label { text-anchor: end; } .rate { font-weight: 600 !important; }
.grid { stroke: var(--line); stroke-width: 1; fill: none; } .shade { fill: #5f6f8c; fill-opacity: .07; }
.fault rect { fill: #8793a8; } .fault text { fill: #fff; font-size: 9px; }
svg .ok { fill: var(--ok); } svg .fail { fill: var(--fail); } svg .unknown { fill: var(--unknown); } .area { fill-opacity: .75; }
svg .ok.shade1 { fill-opacity: .25; } svg .ok.shade2 { fill-opacity: .45; } svg .ok.shade3 { fill-opacity: .7; }
rect:hover { stroke: var(--ink); stroke-width: 1; }
table { border-collapse: separate; border-spacing: 0; } th, td { padding: 4px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--pale); font-weight: 600; } .left { text-align: left; } td.left.errors { white-space: normal; color: var(--pale); font-size: 12px; max-width: 520px; overflow-wrap: anywhere; }
tr.whole td { background: #f3f5f8; font-weight: 600; } td.bad { color: var(--unknown); }
.notes { margin: 0; padding: 10px 14px 10px 40px; } .notes.some { border-color: var(--unknown); background: #fdf3f7; } .notes li { margin: 3px 0; overflow-wrap: anywhere; white-space: pre-wrap; }
`

// head writes what comes before the picture.
func (t *timeline) head(title string) {
	t.printf("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><title>%s</title><style>%s</style></head><body>\n", text(title), style)
	var count [outcomes]int
	for i := range t.ops {
		count[outcomeOf(&t.ops[i])]++
	}
	t.printf("<h1>%s</h1>\n<p class=\"facts\">%d operations in %s: %d ok, %d failed, %d unknown. %d faults.</p>\n", text(title),
		len(t.ops), brief(t.total), count[drawnOK], count[drawnFail], count[drawnUnknown], len(t.faults))
	t.printf(`<p class="legend"><span><i class="ok"></i>ok (darker: more at once)</span><span><i class="fail"></i>failed: not done</span>` +
		`<span><i class="unknown"></i>unknown: may have been done; in rates: failed or unknown</span><span><i class="fault"></i>fault, until it was healed</span></p>` + "\n")
}

// notes writes what the caller has to say, which is bad news.
func (t *timeline) notes(notes []string) {
	t.printf("<h2>Anomalies and notes</h2>\n")
	if len(notes) == 0 {
		t.printf("<p class=\"facts\">None.</p>\n")
		return
	}
	t.printf("<ol class=\"notes some\">\n")
	for _, note := range notes[:min(len(notes), maxNotes)] {
		t.printf("<li>%s</li>\n", text(note))
	}
	if more := len(notes) - maxNotes; more > 0 {
		t.printf("<li>and %d more</li>\n", more)
	}
	t.printf("</ol>\n")
}

// figures writes the table of what Measure says.
func (t *timeline) figures() {
	t.printf("<h2>Balanced clients: gaps, latency and failures</h2>\n<p class=\"facts\">A gap is a time in which operations were asked for and none was answered. "+
		"Latency is that of acknowledged operations. What was seen up to %s after a fault is put down to it.</p>\n<table><thead><tr>", brief(Settling))
	for i, name := range []string{"operation", "around", "ok", "refused", "failed", "unknown", "p50", "p99", "max", "longest gap", "when", "first errors"} {
		class := ""
		if i < 2 || name == "first errors" {
			class = ` class="left"`
		}
		t.printf("<th%s>%s</th>", class, name)
	}
	t.printf("</tr></thead><tbody>\n")
	for _, f := range Measure(t.ops, t.faults, 0, t.total+1) {
		row := ""
		if f.Fault == WholeTime {
			row = ` class="whole"`
		}
		t.printf(`<tr%s><td class="left">%s</td><td class="left">%s</td><td>%d</td><td>%d</td><td%s>%d</td><td%s>%d</td>`, row,
			text(f.Workload+" "+f.Kind), text(f.Fault), f.Acknowledged, f.Refused, bad(f.Failed), f.Failed, bad(f.Unknown), f.Unknown)
		when := ""
		if f.Gap.Length() > 0 {
			when = clock(f.Gap.From) + " – " + clock(f.Gap.To)
			if !f.Gap.Answered {
				when += ", no answer"
			}
		}
		t.printf(`<td>%s</td><td>%s</td><td>%s</td><td>%s</td><td>%s</td><td class="left errors">%s</td></tr>`+"\n",
			brief(f.P50), brief(f.P99), brief(f.Max), brief(f.Gap.Length()), when, text(strings.Join(f.Errors, " | ")))
	}
	t.printf("</tbody></table>\n")
}

// bad returns the attribute of a cell that should be 0.
func bad(count int) string {
	if count > 0 {
		return ` class="bad"`
	}
	return ""
}

// describe returns all that is known of an operation.
func describe(op *Op) string {
	var b strings.Builder
	client := "faithful to one node"
	if op.Balanced {
		client = "balanced"
	}
	fmt.Fprintf(&b, "%s %s: %s", op.Workload, op.Kind, op.Outcome)
	if op.Status != 0 {
		fmt.Fprintf(&b, ", status %d", op.Status)
	}
	fmt.Fprintf(&b, "\nclient %d (%s), node %s\n%s – %s, took %s", op.Client, client, op.Node, clock(op.Call), clock(op.Return), brief(op.Return-op.Call))
	for _, field := range [][2]string{{"key", op.Key}, {"input", op.Input}, {"output", op.Output}, {"error", op.Error}} {
		if field[1] != "" {
			fmt.Fprintf(&b, "\n%s: %s", field[0], cut(field[1]))
		}
	}
	return b.String()
}

// text makes any string safe, and legal, within HTML and XML.
func text(s string) string {
	return html.EscapeString(strings.Map(func(r rune) rune {
		if r != '\n' && unicode.IsControl(r) || r == '\uFFFE' || r == '\uFFFF' {
			return unicode.ReplacementChar
		}
		return r
	}, s))
}

// clock writes a time since the log was begun.
func clock(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 3, 64) + " s" }

// brief writes a length of time with three digits or so.
func brief(d time.Duration) string {
	switch {
	case d >= 100*time.Second:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 2, 64) + " s"
	case d >= time.Millisecond:
		return number(float64(d)/float64(time.Millisecond)) + " ms"
	}
	return d.String()
}

func number(f float64) string {
	if f >= 100 {
		return strconv.FormatFloat(f, 'f', 0, 64)
	}
	return strconv.FormatFloat(f, 'f', 1, 64)
}
