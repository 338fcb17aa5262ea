package main

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/atollregistry/atoll/cmd/bench"
)

// testResult is one of a row in which atoll has so many times as much as the reference, with
// so much CPU time.
func testResult(t *testing.T, name string, ratio, cpuPerGB float64) *result {
	t.Helper()
	chosen, err := chooseRows(name)
	if err != nil {
		t.Fatal(err)
	}
	r := chosen[0]
	summary := func(value float64, ratio *bench.Ratio) map[bench.Metric]bench.Summary {
		return map[bench.Metric]bench.Summary{r.by: {Median: value, Ratio: ratio}, bench.CPUPerGB: {Median: cpuPerGB}}
	}
	turns := func() []bench.Turn {
		return []bench.Turn{{Operations: 10, Servers: &bench.Usage{LargestBytes: 100 * mib, OwnBytes: 20 * mib}}}
	}
	return &result{row: r, Row: name, Machine: machine{CPU: "A|B", Cores: 2}, Reads: r.aims.reads, Report: &bench.Report{
		Workload: r.load.Workload, Size: r.load.Size, DurationSeconds: 10,
		Registries: []bench.RegistryReport{
			{Name: string(r.against), Turns: turns(), Summary: summary(1e8, nil)},
			{Name: string(atoll), Turns: turns(), Summary: summary(1e8*ratio, &bench.Ratio{OfMedians: ratio, Min: ratio / 2, Max: ratio * 2})},
		},
	}}
}

func TestVerdict(t *testing.T) {
	failing := testResult(t, "push-1", 2, 1)
	failing.ours().Turns[0].Failed = 3
	twice := testResult(t, "herd", 1.2, 1)
	twice.Reads = 2
	for _, test := range []struct {
		result *result
		want   string
	}{
		{testResult(t, "push-3", 1, 3.5), "met"},
		{testResult(t, "push-3", 0.999, 3.5), "not met: MB/s 1.00x"},
		{testResult(t, "push-3", 0.9, 3.6), "not met: MB/s 0.90x; CPU 3.60 s/GB"},
		{testResult(t, "push-5", 0.1, 99), ""},
		{testResult(t, "herd", 1.3, 1), "met"},
		{testResult(t, "herd", 1.31, 1), "not met: seconds 1.31x"},
		{twice, "not met: a node read shards 2.0 times"},
		{failing, "not met: 3 of 23 operations failed"},
	} {
		if got := verdict(test.result.checks()); got != test.want {
			t.Errorf("%s: %q, want %q", test.result.Row, got, test.want)
		}
	}
}

// The node with most memory of all rows counts.
func TestMemoryCheck(t *testing.T) {
	small, large := testResult(t, "push-3", 1, 1), testResult(t, "push-1", 1, 1)
	large.ours().Turns[0].Servers.LargestBytes = maxNodeBytes
	large.reference().Turns[0].Servers.LargestBytes = 2 * maxNodeBytes // is not atoll's
	if c, row := memoryCheck([]*result{small, large}); row != "push-1" || c.short != "150 MiB" || !c.met() {
		t.Errorf("%+v in %s", c, row)
	}
	large.ours().Turns[0].Servers = &bench.Usage{LargestBytes: maxNodeBytes + 1}
	if c, _ := memoryCheck([]*result{large, small}); c.met() {
		t.Errorf("%+v is met", c)
	}
}

// What can't be told is an error, and says why.
func TestComplete(t *testing.T) {
	for _, test := range []struct {
		want  string
		spoil func(*result)
	}{
		{"", func(*result) {}},
		{"no report of two servers", func(r *result) { r.Report = nil }},
		{"docker-registry: it has ended", func(r *result) { r.reference().Turns[0].ServersError = "it has ended" }},
		{"atoll did no operation in a turn, first error: full", func(r *result) {
			r.ours().Turns[0] = bench.Turn{Errors: []bench.Fault{{First: "full"}}}
		}},
		{"no ratio of bytes_per_second", func(r *result) { r.ours().Summary = nil }},
	} {
		r := testResult(t, "push-3", 1, 1)
		test.spoil(r)
		if err := r.complete(); (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want %q", err, test.want)
		}
	}
}

// Results of several runs are put together, if they are of all rows and of one machine.
func TestLoadResults(t *testing.T) {
	folder := t.TempDir()
	for _, r := range rows() {
		if err := testResult(t, r.name, 1, 1).save(folder); err != nil {
			t.Fatal(err)
		}
	}
	results, err := loadResults(folder)
	if err != nil || len(results) != len(rows()) || results[3].row.what != rows()[3].what || results[3].nodeBytes() != 100*mib {
		t.Fatalf("%d results, %v", len(results), err)
	}
	other := testResult(t, "herd", 1, 1)
	other.Machine.Cores = 4
	if err := other.save(folder); err != nil {
		t.Fatal(err)
	}
	if _, err := loadResults(folder); err == nil || !strings.Contains(err.Error(), "push-3 and herd") {
		t.Errorf("of two machines: %v", err)
	}
	if err := os.Remove(resultPath(folder, "image")); err != nil {
		t.Fatal(err)
	}
	if _, err := loadResults(folder); err == nil || !strings.Contains(err.Error(), "--only image") {
		t.Errorf("without a row: %v", err)
	}
}

func TestReplaceSection(t *testing.T) {
	page := "# Title\n\n" + beginMark + "\nold\n" + endMark + "\n\nend\n"
	got, err := replaceSection(page, "new\n")
	if want := "# Title\n\n" + beginMark + "\n\nnew\n\n" + endMark + "\n\nend\n"; err != nil || got != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if again, err := replaceSection(got, "new"); err != nil || again != got {
		t.Errorf("a second time: %q, %v", again, err)
	}
	for _, bad := range []string{"", beginMark, endMark, endMark + beginMark, beginMark + beginMark + endMark} {
		if got, err := replaceSection(bad, "new"); err == nil {
			t.Errorf("%q becomes %q", bad, got)
		}
	}
}

// The page in docs has a place for results.
func TestPageHasMarks(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", pageName))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := replaceSection(string(page), "new"); err != nil {
		t.Error(err)
	}
}

func TestResultsSection(t *testing.T) {
	got := resultsSection([]*result{testResult(t, "push-3", 1.5, 3), testResult(t, "push-5", 0.5, 3)})
	want := `A\|B, 2 cores, 0 GiB of memory, Linux ; ; ; .

Medians of 1 turns of up to 10 s.

| what | wanted | atoll | compared with | ratio of medians (turns) | CPU of all servers: atoll, compared with | largest node | verdict |
|-|-|-|-|-|-|-|-|
| push blobs of 64 MiB, 4 clients, three nodes (` + "`push-3`" + `) | at least 1.0x the MB/s of docker-registry; CPU at most 3.5 s/GB | 150 MB/s | docker-registry: 100 MB/s | 1.50 (0.75 to 3.00) | 3.00 s/GB, 3.00 s/GB | 100 MiB, own 20 | met |
| push blobs of 64 MiB, 4 clients, five nodes (` + "`push-5`" + `) |  | 50.0 MB/s | docker-registry: 100 MB/s | 0.50 (0.25 to 1.00) | 3.00 s/GB, 3.00 s/GB | 100 MiB, own 20 |  |
| resident memory of a node, in any row | at most 150 MiB | 100 MiB, in push-3 |  |  |  | 100 MiB | met |

![How much of each aim was reached](performance.svg)
`
	if got != want {
		t.Errorf("section is\n%s\nwant\n%s", got, want)
	}
}

// The plot is well-formed, has a bar for each row with an aim for its ratio, and none beyond it.
func TestPlot(t *testing.T) {
	results := []*result{
		testResult(t, "push-3", 0.5, 1), testResult(t, "push-5", 1, 1), testResult(t, "head-tag", 600, 1), testResult(t, "herd", 1.3, 1),
	}
	results[0].Row = `<push> & "3"`
	image := plot(results)
	decoder := xml.NewDecoder(strings.NewReader(image))
	classes, text := map[string]int{}, ""
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in %s", err, image)
		}
		switch token := token.(type) {
		case xml.StartElement:
			for _, attribute := range token.Attr {
				if attribute.Name.Local == "class" {
					classes[token.Name.Local+" "+attribute.Value]++
				}
			}
		case xml.CharData:
			text += string(token) + "\n"
		}
	}
	if classes["rect met"] != 2 || classes["rect missed"] != 1 || classes["line range"] != 3 || classes["line aim"] != 1 {
		t.Errorf("elements are %v", classes)
	}
	for _, want := range []string{`<push> & "3"`, "0.50x MB/s, 1.0 wanted", "600.00x operations/s, 6.0 wanted", "1.30x seconds, at most 1.3 wanted"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in %s", want, text)
		}
	}
	if end := plotX(600); end != plotLabel+plotBars {
		t.Errorf("a long bar ends at %d", end)
	}
}

func TestNginxConfig(t *testing.T) {
	config, err := nginxConfig("alice", "/data/x", "127.0.0.1:8080", "/data/x/files")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"user alice;", "daemon off;", "worker_processes 2;", "pid /data/x/nginx.pid;", "access_log off;", "sendfile on;", "tcp_nopush on;",
		"proxy_temp_path /data/x/proxy;", "listen 127.0.0.1:8080;", "root /data/x/files;",
	} {
		if !strings.Contains(config, want+"\n") {
			t.Errorf("%q is missing in %s", want, config)
		}
	}
	if strings.Contains(config, "%!") || strings.Count(config, "{") != strings.Count(config, "}") {
		t.Errorf("it has faults: %s", config)
	}
	if _, err := nginxConfig("alice", "/data/my files", "127.0.0.1:8080", "/data/my files/files"); err == nil {
		t.Error("a path with a space is taken")
	}
}

func TestSeriesValue(t *testing.T) {
	page := "# HELP atoll_cache_reads_total " + missSeries + " 9\natoll_cache_reads_total{result=\"hit\"} 5\n" + missSeries + " 2\n"
	if value, err := seriesValue(page, missSeries); err != nil || value != 2 {
		t.Errorf("%v, %v", value, err)
	}
	for _, bad := range []string{"", missSeries + " x\n", missSeries + "_more 2\n"} {
		if value, err := seriesValue(bad, missSeries); err == nil {
			t.Errorf("%q is %v", bad, value)
		}
	}
}

func TestOptions(t *testing.T) {
	folder := "--folder=" + t.TempDir()
	o, err := parseOptions([]string{folder, "--only=herd,push-1", "--out=x", "--write"})
	if err != nil || len(o.rows) != 2 || o.rows[0].name != "push-1" || o.turns != 5 {
		t.Errorf("%+v, %v", o, err)
	}
	for _, test := range []struct{ arg, want string }{
		{"--only=herd,hrd", "no row hrd"}, {"--turns=0", "--turns: 0"}, {"--duration=-1s", "--duration: -1s"},
		{"--write", "it needs --out"}, {"--folder=/nowhere/at/all", "is not a folder"}, {"now", `no "now"`},
	} {
		if _, err := parseOptions([]string{folder, test.arg}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.arg, err, test.want)
		}
	}
}

// Every row is one that the bench package takes, and has a name and a text of its own.
func TestRows(t *testing.T) {
	names := map[string]bool{}
	for _, r := range rows() {
		if names[r.name] || r.what == "" || strings.ContainsAny(r.name, ", /") {
			t.Errorf("row %+v", r)
		}
		names[r.name] = true
		config := r.config(&options{turns: defaultTurns, duration: defaultDuration})
		nothing := func(context.Context) error { return nil }
		config.Registries = []bench.Registry{{Name: "x", URLs: []string{"http://127.0.0.1:1"}, BeforeTurn: nothing}}
		if _, err := bench.Run(t.Context(), config); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("%s: %v", r.name, err)
		}
	}
}
