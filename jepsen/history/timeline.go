package history

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Sizes of the picture, in its own units, and what bounds it.
const (
	labelWidth = 190
	plotWidth  = 1400
	pageWidth  = labelWidth + plotWidth + 20
	// columnWidth is that of the columns in which operations are counted that are not
	// drawn one by one.
	columnWidth = 2
	columns     = plotWidth / columnWidth
	laneHeight  = 14
	markHeight  = 10
	rateHeight  = 44

	// maxLanes is how many clients get a lane of their own. Above it, the operations of a
	// workload are drawn in lanes by node.
	maxLanes = 48
	// maxFaultLanes is how many targets of faults get one. Above it, it is one for each kind.
	maxFaultLanes = 16
	// maxOKMarks and maxBadMarks are how many operations are drawn one by one, each with a
	// tooltip: of those acknowledged the longest, of the others the first. What is above
	// that is drawn in columns.
	maxOKMarks  = 4000
	maxBadMarks = 10000
	// maxTicks is how many times are written along the axis, at most.
	maxTicks = 15
)

// WriteTimeline writes a page of HTML that needs nothing else: a picture of all faults and
// operations over time, and tables of notes (anomalies found) and of Measure.
//
// Its size is bounded by the number of lanes, not of operations. Acknowledged operations
// that are too short to be seen, or too many, are merged into columns, the darker the more
// they are. Failed and unknown ones never vanish among others: each is a mark on top, and
// those beyond some 10,000 still colour the column in which they were, without a tooltip.
func WriteTimeline(w io.Writer, title string, ops []Op, faults []Fault, notes []string) error {
	t := &timeline{out: bufio.NewWriter(w), ops: ops, faults: faults, total: time.Second}
	for _, op := range ops {
		t.total = max(t.total, op.Return)
	}
	for _, fault := range faults {
		t.total = max(t.total, fault.Begin, fault.End)
	}
	t.head(title)
	t.notes(notes)
	t.picture()
	t.figures()
	t.printf("</body></html>\n")
	if err := t.out.Flush(); err != nil { // it keeps the first error of all writes
		return fmt.Errorf("history: write timeline: %w", err)
	}
	return nil
}

// timeline is a page in the making.
type timeline struct {
	out    *bufio.Writer
	ops    []Op
	faults []Fault
	total  time.Duration
	// lanes are those of operations, sorted by workload.
	lanes []*lane
}

func (t *timeline) printf(format string, args ...any) { fmt.Fprintf(t.out, format, args...) }

// x returns where a time is in the picture.
func (t *timeline) x(at time.Duration) float64 {
	share := float64(min(max(at, 0), t.total)) / float64(t.total)
	return labelWidth + share*plotWidth
}

// extent returns where something is drawn, not narrower than can be seen.
func (t *timeline) extent(from, to time.Duration, least float64) (x, width float64) {
	x = t.x(from)
	width = max(t.x(to)-x, least)
	return min(x, labelWidth+plotWidth-width), width
}

// picture draws all rows into an SVG.
func (t *timeline) picture() {
	t.layOut()
	t.fill()
	faultLanes := t.faultLanes()
	workloads := t.workloads()
	top := 24
	faultsAt := top + 6
	ratesAt := faultsAt + len(faultLanes)*laneHeight + 14
	lanesAt := ratesAt + len(workloads)*(rateHeight+10) + 4
	bottom := lanesAt + len(t.lanes)*laneHeight + 6

	t.printf(`<div class="picture"><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="timeline">`+"\n", pageWidth, bottom+24)
	t.axis(top, bottom)
	t.drawFaults(faultLanes, faultsAt, bottom)
	for i, workload := range workloads {
		t.drawRate(workload, ratesAt+i*(rateHeight+10))
	}
	for i, lane := range t.lanes {
		t.drawLane(lane, lanesAt+i*laneHeight)
	}
	t.printf("</svg></div>\n")
}

// axis draws the times, above and below.
func (t *timeline) axis(top, bottom int) {
	step := time.Second
	for _, factor := range []int{1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400} {
		step = time.Duration(factor) * time.Second
		if t.total/step <= maxTicks {
			break
		}
	}
	for step < t.total/maxTicks {
		step *= 2
	}
	for at := time.Duration(0); at <= t.total; at += step {
		x := t.x(at)
		t.printf(`<path class="grid" d="M%.1f %dV%d"/>`, x, top, bottom)
		for _, y := range []int{top - 6, bottom + 14} {
			t.printf(`<text class="tick" x="%.1f" y="%d">%s</text>`, x, y, text(at.String()))
		}
	}
	t.printf("\n")
}

// faultLanes returns the labels of the rows of faults.
func (t *timeline) faultLanes() []string {
	labels := func(name func(Fault) string) []string {
		var all []string
		for _, fault := range t.faults {
			all = append(all, name(fault))
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	if lanes := labels(faultAndTarget); len(lanes) <= maxFaultLanes {
		return lanes
	}
	return labels(func(fault Fault) string { return fault.Kind })
}

func faultAndTarget(fault Fault) string { return strings.TrimSpace(fault.Kind + " " + fault.Target) }

func (t *timeline) drawFaults(lanes []string, top, bottom int) {
	for i, label := range lanes {
		t.label(label, top+i*laneHeight)
	}
	for _, fault := range t.faults {
		row, found := slices.BinarySearch(lanes, faultAndTarget(fault))
		if !found {
			row, _ = slices.BinarySearch(lanes, fault.Kind)
		}
		end, ended := fault.End, "healed "+clock(fault.End)+", lasted "+brief(fault.End-fault.Begin)
		if fault.End == 0 {
			end, ended = t.total, "never healed"
		}
		if fault.Effect != "" {
			ended += "\neffect: " + fault.Effect
		}
		y := top + row*laneHeight
		x, width := t.extent(fault.Begin, end, 2)
		t.printf(`<rect class="shade" x="%.1f" y="%d" width="%.1f" height="%d"/>`, x, y, width, bottom-y)
		t.printf(`<g class="fault"><rect x="%.1f" y="%d" width="%.1f" height="%d" rx="2"><title>%s</title></rect>`, x, y+1, width, laneHeight-2,
			text(fmt.Sprintf("%s\nbegan %s, %s", faultAndTarget(fault), clock(fault.Begin), ended)))
		name := fault.Target
		if name == "" {
			name = fault.Kind
		}
		if width > 6.2*float64(len(name)) {
			t.printf(`<text x="%.1f" y="%d">%s</text>`, x+3, y+laneHeight-4, text(name))
		}
		t.printf("</g>\n")
	}
}

func (t *timeline) label(label string, y int) {
	short := []rune(label)
	if len(short) > 30 {
		short = append(short[:29], '…')
	}
	t.printf(`<text class="label" x="%d" y="%d">%s<title>%s</title></text>`, labelWidth-8, y+laneHeight-4, text(string(short)), text(label))
}

// workloads returns their names.
func (t *timeline) workloads() []string {
	var names []string
	for _, lane := range t.lanes {
		names = append(names, lane.workload)
	}
	return slices.Compact(names)
}

// drawRate draws how many operations of a workload returned in each second, or in longer
// steps if that would be more than there is room for.
func (t *timeline) drawRate(workload string, y int) {
	step := time.Second
	for t.total/step >= columns {
		step *= 2
	}
	good, bad := make([]float64, t.total/step+1), make([]float64, t.total/step+1)
	var most float64
	for i := range t.ops {
		op := &t.ops[i]
		if op.Workload != workload {
			continue
		}
		slot := min(max(op.Return, 0), t.total) / step
		if op.Outcome == OK {
			good[slot] += 1 / step.Seconds()
		} else {
			bad[slot] += 1 / step.Seconds()
		}
		most = max(most, good[slot], bad[slot])
	}
	t.printf(`<text class="label rate" x="%d" y="%d">%s</text>`, labelWidth-8, y+14, text(workload))
	t.printf(`<text class="label" x="%d" y="%d">up to %s/s</text>`, labelWidth-8, y+28, number(most))
	t.printf(`<path class="grid" d="M%d %dh%d"/>`, labelWidth, y+rateHeight, plotWidth)
	for _, series := range []struct {
		class  string
		values []float64
	}{{"ok", good}, {"unknown", bad}} {
		if slices.Max(series.values) == 0 {
			continue
		}
		t.printf(`<path class="area %s" d="M%d %d`, series.class, labelWidth, y+rateHeight)
		for i, value := range series.values {
			t.printf("V%.1fH%.1f", float64(y)+rateHeight*(1-value/most), t.x(time.Duration(i+1)*step))
		}
		t.printf("V%dZ\"/>\n", y+rateHeight)
	}
}
