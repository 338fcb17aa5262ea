package history

import (
	"cmp"
	"fmt"
	"slices"
)

// lane is a row of operations in the picture.
type lane struct {
	workload, label string
	order           int
	// ops are all of its operations, and marks those that are drawn one by one, by outcome.
	ops   []*Op
	marks [outcomes][]*Op
	// counts has for each outcome how many of the others each column has.
	counts [outcomes][]int
}

// The outcomes are drawn one after another, so that what matters most lies on top.
const (
	drawnOK = iota
	drawnFail
	drawnUnknown
	outcomes
)

// classOf names its colour.
func classOf(outcome int) string { return [outcomes]string{"ok", "fail", "unknown"}[outcome] }

func outcomeOf(op *Op) int {
	switch op.Outcome {
	case OK:
		return drawnOK
	case Fail:
		return drawnFail
	}
	return drawnUnknown
}

// layOut puts the operations into as many lanes as can be looked at.
func (t *timeline) layOut() {
	for _, rule := range []func(*Op) (label string, order int){
		func(op *Op) (string, int) { return fmt.Sprintf("%s · client %d", op.Workload, op.Client), op.Client },
		func(op *Op) (string, int) { return op.Workload + " · " + cmp.Or(op.Node, "no node"), 0 },
		func(op *Op) (string, int) { return op.Workload, 0 },
	} {
		t.lanes = t.lanesBy(rule)
		if len(t.lanes) <= maxLanes {
			return
		}
	}
}

func (t *timeline) lanesBy(rule func(*Op) (label string, order int)) []*lane {
	type key struct{ workload, label string }
	byKey := map[key]*lane{}
	var lanes []*lane
	for i := range t.ops {
		op := &t.ops[i]
		label, order := rule(op)
		in := byKey[key{op.Workload, label}]
		if in == nil {
			in = &lane{workload: op.Workload, label: label, order: order}
			byKey[key{op.Workload, label}] = in
			lanes = append(lanes, in)
		}
		in.ops = append(in.ops, op)
	}
	slices.SortFunc(lanes, func(a, b *lane) int {
		return cmp.Or(cmp.Compare(a.workload, b.workload), cmp.Compare(a.order, b.order), cmp.Compare(a.label, b.label))
	})
	return lanes
}

// fill decides which operations are drawn one by one, and counts the others.
func (t *timeline) fill() {
	type placed struct {
		op *Op
		in *lane
	}
	var good, bad []placed
	for _, lane := range t.lanes {
		for _, op := range lane.ops {
			if op.Outcome == OK {
				good = append(good, placed{op, lane})
			} else {
				bad = append(bad, placed{op, lane})
			}
		}
	}
	slices.SortStableFunc(good, func(a, b placed) int { return cmp.Compare(b.op.Return-b.op.Call, a.op.Return-a.op.Call) })
	slices.SortStableFunc(bad, func(a, b placed) int { return cmp.Compare(a.op.Call, b.op.Call) })
	for i, p := range good {
		visible := t.x(p.op.Return)-t.x(p.op.Call) >= columnWidth
		p.in.add(t, p.op, i < maxOKMarks && (visible || len(good) <= maxOKMarks))
	}
	for i, p := range bad {
		p.in.add(t, p.op, i < maxBadMarks)
	}
}

// add takes an operation as a mark, or else into each column that it touches.
func (l *lane) add(t *timeline, op *Op, asMark bool) {
	outcome := outcomeOf(op)
	if asMark {
		l.marks[outcome] = append(l.marks[outcome], op)
		return
	}
	if l.counts[outcome] == nil {
		l.counts[outcome] = make([]int, columns)
	}
	column := func(x float64) int { return min(int(x-labelWidth)/columnWidth, columns-1) }
	first := column(t.x(op.Call))
	for i := first; i <= max(first, column(t.x(op.Return))); i++ {
		l.counts[outcome][i]++
	}
}

func (t *timeline) drawLane(l *lane, y int) {
	t.label(l.label, y)
	t.printf(`<path class="grid" d="M%d %.1fh%d"/>`+"\n", labelWidth, float64(y)+laneHeight-0.5, plotWidth)
	y += (laneHeight - markHeight) / 2
	for outcome := range outcomes {
		t.drawColumns(l.counts[outcome], outcome, y)
		for _, op := range l.marks[outcome] {
			least := 1.0
			if outcome != drawnOK {
				least = columnWidth
			}
			x, width := t.extent(op.Call, op.Return, least)
			t.printf(`<rect class="%s" x="%.1f" y="%d" width="%.1f" height="%d"><title>%s</title></rect>`+"\n",
				classOf(outcome), x, y, width, markHeight, text(describe(op)))
		}
	}
}

// drawColumns draws counts in four shades, in as many paths; what is not acknowledged is
// always in full colour.
func (t *timeline) drawColumns(counts []int, outcome, y int) {
	if counts == nil {
		return
	}
	const shades = 4
	most := slices.Max(counts)
	shade := func(count int) int {
		if count > 0 && outcome != drawnOK {
			return shades
		}
		return (count*shades + most - 1) / most
	}
	for want := 1; want <= shades; want++ {
		var path []byte
		for i := 0; i < columns; {
			run := 0
			for i+run < columns && shade(counts[i+run]) == want {
				run++
			}
			if run > 0 {
				width := run * columnWidth
				path = fmt.Appendf(path, "M%d %dh%dv%dh-%dz", labelWidth+i*columnWidth, y, width, markHeight, width)
			}
			i += max(run, 1)
		}
		if path != nil {
			t.printf(`<path class="%s shade%d" d="%s"><title>many %s operations, up to %d in a column of %s</title></path>`+"\n",
				classOf(outcome), want, path, classOf(outcome), (most*want+shades-1)/shades, brief(t.total/columns))
		}
	}
}
