package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestPercentiles(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(100-i)*time.Second)
	}
	for _, test := range []struct {
		took []time.Duration
		want Latency
	}{
		{nil, Latency{}},
		{[]time.Duration{3 * time.Second}, Latency{3, 3, 3}},
		{[]time.Duration{2 * time.Second, time.Second}, Latency{1, 2, 2}},
		{hundred, Latency{50, 99, 100}},
	} {
		if got := latencyOf(test.took); got != test.want {
			t.Errorf("%v: %+v, want %+v", test.took, got, test.want)
		}
	}
	for _, test := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{5}, 5}, {[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(test.values); got != test.want {
			t.Errorf("median of %v is %v, want %v", test.values, got, test.want)
		}
	}
}

func TestParseStat(t *testing.T) {
	const after = " S 1 2 3 4 5 6 7 8 9 10 250 175 13 14 20 0"
	for _, name := range []string{"(atoll)", "(a) 1 2 (b c)", "()"} {
		if ticks, err := parseStat("42 " + name + after); err != nil || ticks != 425 {
			t.Errorf("%s: %d, %v", name, ticks, err)
		}
	}
	for _, stat := range []string{"", "42 (atoll) S 1 2", "42 (atoll) S 1 2 3 4 5 6 7 8 9 10 x 5 6", "no parenthesis 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"} {
		if _, err := parseStat(stat); err == nil {
			t.Errorf("%q is read", stat)
		}
	}
}

func TestParseStatus(t *testing.T) {
	m, err := parseStatus("Name:\tatoll\nVmPeak:\t 9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nRssAnon:\t     512 kB\nThreads:\t9\n")
	if want := (memory{now: 1 << 20, high: 2 << 20, own: 1 << 19}); err != nil || m != want {
		t.Errorf("%+v, %v", m, err)
	}
	for _, status := range []string{"", "Name:\tzombie\n", "VmHWM:\tx kB\nVmRSS:\t1 kB\nRssAnon:\t1 kB\n", "VmHWM:\t1 kB\nVmRSS:\t1 kB\n"} {
		if _, err := parseStatus(status); err == nil {
			t.Errorf("%q is read", status)
		}
	}
}

// writeProc makes a process that /proc tells of.
func writeProc(t *testing.T, proc, pid string, ticks, kib int) {
	t.Helper()
	dir := filepath.Join(proc, pid)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"stat":   fmt.Sprintf("%s (x) S 1 2 3 4 5 6 7 8 9 10 %d 0 13 14", pid, ticks),
		"status": fmt.Sprintf("VmHWM:\t%d kB\nVmRSS:\t%d kB\nRssAnon:\t%d kB\n", 2*kib, kib, kib/2),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMeter(t *testing.T) {
	proc := t.TempDir()
	writeProc(t, proc, "11", 100, 1024)
	writeProc(t, proc, "12", 1000, 1024)
	p, err := findProcesses(proc, []string{"12 11", "12"})
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.meter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	writeProc(t, proc, "11", 150, 4096)
	writeProc(t, proc, "12", 1025, 1024)
	used, err := m.stop()
	if err != nil || math.Abs(used.CPUSeconds-0.75) > 1e-9 || used.PeakBytes != 5<<20 || used.HighBytes != 10<<20 || used.LargestBytes != 8<<20 || used.OwnBytes != 2<<20 {
		t.Errorf("%+v, %v", used, err)
	}
	if m, err = p.meter(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(proc, "12")); err != nil {
		t.Fatal(err)
	}
	if used, err := m.stop(); err == nil || used != nil || !strings.Contains(err.Error(), "process 12") {
		t.Errorf("a process that has ended: %+v, %v", used, err)
	}
	for _, given := range [][]string{{"0"}, {"-1"}, {"no-such-file"}, {os.DevNull}, {filepath.Join(proc, "11", "stat")}} {
		if _, err := findProcesses(proc, given); err == nil {
			t.Errorf("%q are processes", given)
		}
	}
}

func TestKinds(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("push: %w", &statusError{status: 429}), "status 429"},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), "timeout"},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, "connection refused"},
		{&net.OpError{Op: "write", Err: os.NewSyscallError("write", syscall.EPIPE)}, "connection reset"},
		{fmt.Errorf("x: %w", io.ErrUnexpectedEOF), "cut off"},
		{fmt.Errorf("x: %w", errLength), "length"},
		{errors.New("x"), "other"},
	} {
		if got := kindOf(test.err); got != test.want {
			t.Errorf("%v is %q, want %q", test.err, got, test.want)
		}
	}
}

// However many kinds there are, a bounded number is kept, and all are counted.
func TestFaultsAreBounded(t *testing.T) {
	var f faults
	for i := range 1000 {
		f.add(&statusError{status: 100 + i%500})
	}
	total := 0
	for _, fault := range f.sorted() {
		total += fault.Count
	}
	if len(f) != maxFaults || total != 1000 || f.sorted()[0].Kind != "other" {
		t.Errorf("%d kinds, %d errors, most are %q", len(f), total, f.sorted()[0].Kind)
	}
}

func TestRatios(t *testing.T) {
	turns := func(seconds ...float64) (turns []Turn) {
		for _, s := range seconds {
			turns = append(turns, Turn{Seconds: s, Operations: 100, Bytes: 2e9, Servers: &Usage{CPUSeconds: s}, Latency: Latency{P50: s}})
		}
		return turns
	}
	report := &Report{Registries: []RegistryReport{{Name: "a", Turns: turns(1, 2, 4)}, {Name: "b", Turns: turns(4, 4, 4)}, {Name: "c", Turns: []Turn{{}}}}}
	report.summarize()
	a, b, c := report.Registries[0].Summary, report.Registries[1].Summary, report.Registries[2].Summary
	if got := a[BytesPerSecond]; got.Median != 1e9 || got.Ratio != nil {
		t.Errorf("%+v", got)
	}
	if got := b[BytesPerSecond]; got.Median != 0.5e9 || *got.Ratio != (Ratio{OfMedians: 0.5, Min: 0.25, Max: 1}) {
		t.Errorf("%+v %+v", got, got.Ratio)
	}
	if got := b[CPUPerGB]; got.Median != 2 || *got.Ratio != (Ratio{OfMedians: 2, Min: 1, Max: 4}) {
		t.Errorf("%+v %+v", got, got.Ratio)
	}
	if _, known := b[ClientCPUPerGB]; known || len(c) != 0 {
		t.Errorf("what was not measured is there: %+v, %+v", b, c)
	}
	if ratio := ratioOf([]float64{1}, []float64{0}); ratio != nil {
		t.Errorf("over zero: %+v", ratio)
	}
}
