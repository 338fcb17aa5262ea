package main

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// Measures of the plot, in its own units, which are pixels if it is not scaled.
const (
	plotWidth    = 880
	plotLabel    = 130 // where bars begin: row names stand before
	plotBars     = 520 // what plotShare is long
	plotBar      = 18
	plotStep     = 30
	plotTop      = 64
	plotShare    = 3.0 // a bar ends there, however far its value goes
	plotMargin   = 16
	plotBaseline = 14 // of a text below the top of its bar
)

// plotStyle has colours for light and dark pages. Text is never on a bar.
const plotStyle = `text{font:13px sans-serif;fill:#1f2328}.title{font-weight:bold}.back{fill:#ffffff}.met{fill:#2a7ab8}.missed{fill:#c4561b}.range{stroke:#1f2328;stroke-width:2}.aim{stroke:#1f2328;stroke-dasharray:4 3}` +
	`@media(prefers-color-scheme:dark){text{fill:#e6edf3}.back{fill:#0d1117}.met{fill:#58a6dd}.missed{fill:#e8864f}.range,.aim{stroke:#e6edf3}}`

// bar is one row that has an aim for its ratio.
type bar struct {
	name, label string
	// share is how much of the aim was reached, least and most in which turns.
	share, least, most float64
}

// barsOf leaves out rows without an aim for their ratio.
func barsOf(results []*result) (bars []bar) {
	for _, r := range results {
		ratio, aims := r.ours().Summary[r.row.by].Ratio, r.row.aims
		switch unit := unitOf(r.row.by).name; {
		case aims.least > 0:
			bars = append(bars, bar{
				r.Row, fmt.Sprintf("%.2fx %s, %s wanted", ratio.OfMedians, unit, plain(aims.least)),
				atLeast(ratio.OfMedians, aims.least), atLeast(ratio.Min, aims.least), atLeast(ratio.Max, aims.least),
			})
		case aims.most > 0:
			bars = append(bars, bar{
				r.Row, fmt.Sprintf("%.2fx %s, at most %s wanted", ratio.OfMedians, unit, plain(aims.most)),
				atMost(ratio.OfMedians, aims.most), atMost(ratio.Max, aims.most), atMost(ratio.Min, aims.most),
			})
		}
	}
	return bars
}

// plot is an SVG image with a bar for each row that has an aim: how much of it was reached.
func plot(results []*result) string {
	bars := barsOf(results)
	height := plotTop + plotStep*len(bars) + plotMargin
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img">`+"\n<style>%s</style>\n", plotWidth, height, plotStyle)
	fmt.Fprintf(&b, `<rect class="back" width="%d" height="%d"/>`+"\n", plotWidth, height)
	writeText(&b, plotMargin, 24, "title", "How much of each aim was reached: a bar that reaches the dashed line is enough")
	writeText(&b, plotMargin, 44, "", "The bar is the median, the line on it goes from the worst turn to the best.")
	for i, one := range bars {
		one.write(&b, plotTop+plotStep*i)
	}
	aim := plotX(1)
	fmt.Fprintf(&b, `<line class="aim" x1="%[1]d" y1="%[2]d" x2="%[1]d" y2="%[3]d"/>`+"\n</svg>\n", aim, plotTop-8, height-plotMargin/2)
	return b.String()
}

// write draws the bar with its top at y.
func (o *bar) write(b *strings.Builder, y int) {
	class := "missed"
	if o.share >= 1 {
		class = "met"
	}
	writeText(b, plotMargin, y+plotBaseline, "", o.name)
	fmt.Fprintf(b, `<rect class="%s" x="%d" y="%d" width="%d" height="%d"/>`+"\n", class, plotLabel, y, plotX(o.share)-plotLabel, plotBar)
	middle := y + plotBar/2
	fmt.Fprintf(b, `<line class="range" x1="%d" y1="%d" x2="%d" y2="%d"/>`+"\n", plotX(o.least), middle, plotX(o.most), middle)
	writeText(b, max(plotX(o.share), plotX(o.most), plotX(1))+8, y+plotBaseline, "", o.label)
}

// plotX is where a share is, from left to right.
func plotX(share float64) int { return plotLabel + int(min(share, plotShare)/plotShare*plotBars) }

func writeText(b *strings.Builder, x, y int, class, text string) {
	fmt.Fprintf(b, `<text class="%s" x="%d" y="%d">`, class, x, y)
	_ = xml.EscapeText(b, []byte(text)) // a Builder takes everything
	b.WriteString("</text>\n")
}
