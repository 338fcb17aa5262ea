package history

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// page is what a test wants to know of a page.
type page struct {
	size  int
	marks map[string]int // rectangles of each class
	paths map[string]int
	text  string
}

// render writes a page and reads it as strict XML, which HTML as we write it is as well.
func render(t *testing.T, ops []Op, faults []Fault, notes []string) page {
	t.Helper()
	var b strings.Builder
	if err := WriteTimeline(&b, `a <title> & "more"`, ops, faults, notes); err != nil {
		t.Fatal(err)
	}
	p := page{size: b.Len(), marks: map[string]int{}, paths: map[string]int{}}
	in := xml.NewDecoder(strings.NewReader(b.String()))
	var all strings.Builder
	for {
		token, err := in.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the page is not well-formed: %v", err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			p.element(t, token)
		case xml.CharData:
			all.Write(token)
		}
	}
	p.text = all.String()
	return p
}

func (p *page) element(t *testing.T, start xml.StartElement) {
	t.Helper()
	attrs := map[string]string{}
	for _, attr := range start.Attr {
		attrs[attr.Name.Local] = attr.Value
	}
	switch start.Name.Local {
	case "script", "link", "img", "iframe", "b":
		t.Errorf("the page has an element %s", start.Name.Local)
	case "rect":
		p.marks[attrs["class"]]++
		x, errX := strconv.ParseFloat(attrs["x"], 64)
		width, errWidth := strconv.ParseFloat(attrs["width"], 64)
		if errX != nil || errWidth != nil || width < 1 || x < labelWidth || x+width > labelWidth+plotWidth+0.1 {
			t.Errorf("a rectangle outside of the picture: %v", attrs)
		}
	case "path":
		p.paths[attrs["class"]]++
		if strings.Contains(attrs["d"], "NaN") || strings.Contains(attrs["d"], "Inf") {
			t.Errorf("a path that can't be drawn: %v", attrs)
		}
	}
}

func TestTimelineEmpty(t *testing.T) {
	if p := render(t, nil, nil, nil); !strings.Contains(p.text, "None.") {
		t.Error("no word that there are no anomalies")
	}
}

func TestTimelineEscapes(t *testing.T) {
	const nasty = "<b onclick='x'>&\"\x00\x1b\xff\uFFFF]]></title></svg>"
	op := Op{Workload: nasty, Client: 1, Kind: nasty, Key: nasty, Input: nasty, Output: nasty, Node: nasty, Error: nasty, Balanced: true,
		Call: s(1), Return: s(2), Outcome: Outcome(nasty), Status: 500}
	p := render(t, []Op{op}, []Fault{{Kind: nasty, Target: nasty, Begin: s(1), End: s(2)}}, []string{nasty})
	if p.marks["unknown"] != 1 {
		t.Error("an outcome that is none is not drawn as unknown")
	}
	if want := "<b onclick='x'>&\"\uFFFD\uFFFD\uFFFD\uFFFD]]></title></svg>"; strings.Count(p.text, want) < 8 {
		t.Errorf("the text is not there as it is:\n%s", p.text)
	}
}

func TestTimelineTellsAllFields(t *testing.T) {
	op := Op{Workload: "tags", Client: 7, Kind: "put", Key: "key1", Input: "input1", Output: "output1", Node: "n3", Balanced: true,
		Call: s(1), Return: s(1.25), Outcome: Unknown, Status: 503, Error: "error1"}
	faults := []Fault{{Kind: "kill", Target: "n1", Begin: s(0.5), End: s(2)}, {Kind: "wipe", Target: "n2", Begin: s(1)}}
	p := render(t, []Op{op}, faults, []string{"lost: key1", "stale"})
	for _, want := range []string{"tags put: unknown, status 503", "client 7 (balanced), node n3", "1.000 s – 1.250 s, took 250 ms", "key: key1", "input: input1",
		"output: output1", "error: error1", "kill n1\nbegan 0.500 s, healed 2.000 s, lasted 1.50 s", "never healed", "lost: key1", "tags · client 7"} {
		if !strings.Contains(p.text, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if p.marks["unknown"] != 1 || p.marks["shade"] != 2 {
		t.Errorf("marks: %v", p.marks)
	}
}

func TestTimelineOddTimes(t *testing.T) {
	render(t, []Op{
		{Workload: "w", Call: s(-3), Return: s(-2), Outcome: OK}, {Workload: "w", Call: s(5), Return: s(4), Outcome: Fail},
		{Workload: "w", Call: s(1e5), Return: s(1e6), Outcome: OK}, {Workload: "v", Call: s(1e6), Return: s(1e6), Outcome: Unknown},
	}, []Fault{{Begin: s(2e6)}}, nil)
}

// TestTimelineBounded draws many operations, of many clients, faults and notes.
func TestTimelineBounded(t *testing.T) {
	const clients, count = 60, 50000
	for _, c := range []struct {
		name string
		bad  int // of 1000 operations, and as many unknown as failed
		slow int
		size int
	}{
		{name: "good", bad: 2, slow: 2, size: 2 << 20},
		{name: "slow", bad: 2, slow: 1000, size: 4 << 20},
		{name: "bad", bad: 900, size: 12 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			ops, failed := randomOps(clients, count, c.bad, c.slow)
			var faults []Fault
			for i := range 100 {
				faults = append(faults, Fault{Kind: "kill", Target: fmt.Sprint("n", i), Begin: s(float64(6 * i)), End: s(float64(6*i + 3))})
			}
			p := render(t, ops, faults, make([]string, 3*maxNotes))
			if p.size > c.size {
				t.Errorf("%d bytes, want at most %d", p.size, c.size)
			}
			drawn := p.marks["fail"] + p.marks["unknown"]
			if drawn != min(failed, maxBadMarks) {
				t.Errorf("%d marks of %d operations that are not acknowledged", drawn, failed)
			}
			if p.marks["ok"] > maxOKMarks {
				t.Errorf("%d marks of acknowledged operations", p.marks["ok"])
			}
			if failed > maxBadMarks && (p.paths["fail shade4"] == 0 || p.paths["unknown shade4"] == 0) {
				t.Error("what failed beyond the marks is not drawn at all")
			}
			if !strings.Contains(p.text, fmt.Sprintf("and %d more", 2*maxNotes)) {
				t.Error("no word that notes are left out")
			}
		})
	}
}

// randomOps returns operations within 600 s, and how many are not acknowledged.
func randomOps(clients, count, badOf1000, slowOf1000 int) (ops []Op, bad int) {
	random := rand.New(rand.NewPCG(1, 2))
	for i := range count {
		op := Op{Workload: []string{"push", "tags"}[i%2], Client: i / 2 % clients, Kind: "put", Key: "some/repository:tag", Node: fmt.Sprint("n", random.IntN(5)),
			Balanced: i%4 < 2, Outcome: OK, Status: 201, Call: time.Duration(i) * s(600) / time.Duration(count), Input: strings.Repeat("x", 500)}
		took := 5 * time.Millisecond
		if random.IntN(1000) < slowOf1000 {
			took = time.Duration(random.Int64N(int64(s(8))))
		}
		op.Return = op.Call + took
		if random.IntN(1000) < badOf1000 {
			bad++
			op.Outcome, op.Error = []Outcome{Fail, Unknown}[random.IntN(2)], strings.Repeat("error ", 100)
		}
		ops = append(ops, op)
	}
	return ops, bad
}

// TestTimelineColumnsKeepFailures has failures beyond what is drawn one by one; each must
// still colour the picture where it was.
func TestTimelineColumnsKeepFailures(t *testing.T) {
	var ops []Op
	for range maxBadMarks {
		ops = append(ops, Op{Workload: "w", Call: s(1), Return: s(1), Outcome: Fail})
	}
	ops = append(ops, Op{Workload: "w", Call: s(50), Return: s(50), Outcome: Unknown}, Op{Workload: "w", Call: s(99), Return: s(100), Outcome: OK})
	if p := render(t, ops, nil, nil); p.marks["fail"] != maxBadMarks || p.paths["unknown shade4"] != 1 {
		t.Errorf("marks %v, paths %v", p.marks, p.paths)
	}
}

func TestTimelineWriteError(t *testing.T) {
	file, err := os.Create(t.TempDir() + "/page")
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	if err := WriteTimeline(file, "", nil, nil, nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("written to a closed file: %v", err)
	}
}
