package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/atollregistry/atoll/cmd/bench"
)

// staticFile serves 64 KiB, unless it is told to fail every so many requests.
func staticFile(t *testing.T, fail int) string {
	t.Helper()
	requests := make(chan int, 1)
	requests <- 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n := <-requests + 1
		requests <- n
		if fail > 0 && n%fail == 0 {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		_, _ = w.Write(make([]byte, 64<<10))
	}))
	t.Cleanup(server.Close)
	return server.URL + "/file"
}

// benchArgs are those of a short run.
func benchArgs(args ...string) []string {
	return append(append([]string{"bench"}, args...), "--size=64KiB", "--chunk=4KiB", "--blobs=2", "--tags=5", "--count=20", "--duration=5m", "--warm-up=0s")
}

func TestBenchFaults(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("- name: a\n  ulrs: [http://x]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const url = "--url=http://127.0.0.1:1"
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"bench", "pul", url}, `unknown workload "pul": did you mean "pull"?`},
		{[]string{"bench", "pull"}, "[url static]"},
		{[]string{"bench", "pull", url, "--size=big"}, `--size: "big" is not a number of bytes`},
		{[]string{"bench", "pull", url, "--size=1"}, "size: 1 is not 1024 to"},
		{[]string{"bench", "pull", url, "--max-error-rate=2"}, "--max-error-rate: 2 is not 0 to 1"},
		{[]string{"bench", "pull", url, "--ca=/nowhere"}, "--ca: open /nowhere"},
		{[]string{"bench", "pull", url, "--user=a", "--password-file=/nowhere"}, "read password: open /nowhere"},
		{[]string{"bench", "pull", url}, "connection refused"},
		{[]string{"bench", "pull", "--static=" + staticFile(t, 0), "--pids=x"}, `"x" is not a process id`},
		{[]string{"bench", "compare", "pull", "--registry=http://x"}, `--registry: "http://x" is not NAME=URL or NAME=URL,URL`},
		{[]string{"bench", "compare", "pull", "--registry=a=http://x"}, "two registries at least"},
		{[]string{"bench", "compare", "pull", "--registries=" + bad}, "field ulrs not found"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			if _, err := runCommand(t, test.args...); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want it to say %q", err, test.want)
			}
		})
	}
}

// The command fails when more operations do than may, and prints what they met.
func TestBenchErrorRate(t *testing.T) {
	args := benchArgs("pull", "--static="+staticFile(t, 5), "--clients=1")
	out, err := runCommand(t, args...)
	if err == nil || err.Error() != "4 of 20 operations failed" || !strings.Contains(out, "status 418, 4 times, first: GET http://") {
		t.Errorf("%v:\n%s", err, out)
	}
	if _, err := runCommand(t, append(args, "--max-error-rate=0.2")...); err != nil {
		t.Error(err)
	}
}

func TestBenchCompareFile(t *testing.T) {
	dir := t.TempDir()
	file, password := filepath.Join(dir, "registries.yaml"), filepath.Join(dir, "password")
	text := fmt.Sprintf(`- name: one
  static: [%[1]s]
  pids: [%[2]d]
- name: two
  static: [%[3]s, %[1]s]
  before: touch %[4]s
  user: alice
  password-file: %[5]s
`, staticFile(t, 0), os.Getpid(), staticFile(t, 0), filepath.Join(dir, "mark"), password)
	for path, content := range map[string]string{file: text, password: "secret\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	registries, err := benchRegistries(nil, nil, file)
	if err != nil || len(registries) != 2 || registries[1].User != "alice" || registries[1].Password != "secret" {
		t.Errorf("%+v, %v", registries, err)
	}
	out, err := runCommand(t, benchArgs("compare", "pull", "--registries="+file, "--json", "--turns=2")...)
	if err != nil {
		t.Fatal(err)
	}
	var report bench.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if len(report.Registries) != 2 || len(report.Registries[1].Turns) != 2 || report.Registries[1].Summary[bench.BytesPerSecond].Ratio == nil || report.Registries[0].Turns[0].Servers == nil {
		t.Errorf("%s", out)
	}
	if _, err := os.Stat(filepath.Join(dir, "mark")); err != nil {
		t.Error(err)
	}
}

func TestPrintBench(t *testing.T) {
	summary := func(median float64, ratio *bench.Ratio) map[bench.Metric]bench.Summary {
		return map[bench.Metric]bench.Summary{bench.BytesPerSecond: {Median: median, Ratio: ratio}}
	}
	turn := func(seconds float64) bench.Turn {
		return bench.Turn{Seconds: seconds, Operations: 1000, Bytes: 1e9, Latency: bench.Latency{P50: 0.001, P99: 0.0123, Max: 0.5}}
	}
	bad := turn(4)
	bad.Failed, bad.Errors = 3, []bench.Fault{{Kind: "status 503", Count: 3, First: "GET x answers 503:\nno leader"}}
	bad.Servers = &bench.Usage{CPUSeconds: 0.5, PeakBytes: 64 << 20}
	bad2 := bad
	bad2.Servers, bad2.ServersError = nil, "measure process 7: gone"
	report := &bench.Report{Workload: "pull", Size: 1 << 20, Clients: 4, DurationSeconds: 2, Registries: []bench.RegistryReport{
		{Name: "a", Turns: []bench.Turn{turn(2), turn(2)}, Summary: summary(5e8, nil)},
		{Name: "b", Turns: []bench.Turn{bad, bad2}, Summary: summary(2.5e8, &bench.Ratio{OfMedians: 0.5, Min: 0.4, Max: 0.625})},
	}}
	var out bytes.Buffer
	if err := printBench(&out, report); err != nil {
		t.Fatal(err)
	}
	want := `pull, blobs of 1.0 MiB, 4 clients, turns of up to 2s
REGISTRY  TURN  OPS   ERRORS  OPS/S  MB/S  P50 MS  P99 MS  MAX MS  CPU S/GB  PEAK RSS MIB
a         1     1000  0       500    500   1.00    12.3    500     -         -
a         2     1000  0       500    500   1.00    12.3    500     -         -
b         1     1000  3       250    250   1.00    12.3    500     0.5       64.0
b         2     1000  3       250    250   1.00    12.3    500     -         -

MEDIAN        a    b    b/a
OPS/S         -    -    -
MB/S          500  250  0.50 (0.40 to 0.62)
P50 MS        -    -    -
P99 MS        -    -    -
MAX MS        -    -    -
CPU S/GB      -    -    -
PEAK RSS MIB  -    -    -
b: measure process 7: gone
b: status 503, 6 times, first: GET x answers 503: no leader
`
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
}

// Every workload runs against a node, and everything that is pulled is what was pushed.
func TestBenchAtoll(t *testing.T) {
	c := startDev(t, t.TempDir(), "--nodes=1", "--set=registry.redirect=always")
	n := c.node("n1")
	for _, w := range bench.Workloads() {
		args := benchArgs(w.Name, "--url="+n.Registry, "--url=http://"+c.host(""), fmt.Sprint("--pids=", n.PID), "--json")
		if strings.HasPrefix(w.Name, "pull") {
			args = append(args, "--verify")
		}
		out, err := runCommand(t, args...)
		if err != nil {
			t.Errorf("%s: %v: %s", w.Name, err, out)
			continue
		}
		var report bench.Report
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			t.Fatalf("%s: %v: %s", w.Name, err, out)
		}
		if turn := report.Registries[0].Turns[0]; turn.Operations != 20 || turn.Servers == nil || turn.Servers.PeakBytes == 0 {
			t.Errorf("%s: %+v", w.Name, turn)
		}
	}
}
