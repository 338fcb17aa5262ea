package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testConfig is a run that is over after some operations.
func testConfig(workload string, registries ...Registry) Config {
	return Config{
		Workload: workload, Registries: registries, Size: 64 << 10, Chunk: 10_000, Clients: 4, Duration: time.Minute, Count: 12,
		Timeout: 10 * time.Second, Turns: 2, Blobs: 3, Tags: 5, Repository: "bench",
	}
}

func runBench(t *testing.T, config Config) *Report {
	t.Helper()
	report, err := Run(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// What each workload asks for, with what it prepares and what it heats.
func TestWorkloads(t *testing.T) {
	const turns, count, nodes = 2, 12, 2
	const operations = turns * count
	for _, test := range []struct {
		workload string
		verify   bool
		bytes    int64
		want     map[string]int
	}{
		{"push-stream", false, 64 << 10, map[string]int{"POST upload": operations, "PATCH upload": operations, "PUT upload": operations}},
		{"push-put", false, 64 << 10, map[string]int{"POST upload": operations, "PUT upload": operations}},
		{"push-chunked", false, 64 << 10, map[string]int{"POST upload": operations, "PATCH upload": 7 * operations, "PUT upload": operations}},
		{"pull", true, 64 << 10, map[string]int{"POST upload": 3, "PUT upload": 3, "GET blob": operations + turns*3*nodes}},
		{"pull-herd", true, 4 * 64 << 10, map[string]int{"POST upload": 3, "PUT upload": 3, "GET blob": 4*operations + turns*3*nodes}},
		{"pull-range", true, 10_000, map[string]int{"POST upload": 3, "PUT upload": 3, "GET blob": operations + turns*3*nodes}},
		{"head-tag", false, 0, map[string]int{"POST upload": 4, "PUT upload": 4, "PUT manifest": 5, "HEAD manifest": operations}},
		{"get-tag", false, 0, map[string]int{"POST upload": 4, "PUT upload": 4, "PUT manifest": 5, "GET manifest": operations}},
		{"put-tag", false, 0, map[string]int{"POST upload": 4, "PUT upload": 4, "PUT manifest": operations}},
		{"list-tags", false, 0, map[string]int{"POST upload": 4, "PUT upload": 4, "PUT manifest": 5, "GET list": 2 * operations}},
		{"image", false, 3*16<<10 + 2<<10, map[string]int{
			"HEAD blob": 4 * operations, "POST upload": 4 * operations, "PATCH upload": 4 * operations, "PUT upload": 4 * operations, "PUT manifest": operations,
		}},
	} {
		t.Run(test.workload, func(t *testing.T) {
			fake, urls := newFake(t, nodes)
			config := testConfig(test.workload, Registry{Name: "fake", URLs: urls})
			config.Verify = test.verify
			if test.workload == "put-tag" {
				config.Clients = 1 // the order of PUTs to one tag is not certain otherwise
			}
			report := runBench(t, config)
			for i, turn := range report.Registries[0].Turns {
				if turn.Operations != count || turn.Failed != 0 || turn.Bytes != count*test.bytes || turn.Max < turn.P99 || turn.P99 < turn.P50 || turn.P50 <= 0 {
					t.Errorf("turn %d: %+v", i, turn)
				}
			}
			got := fake.counts()
			if fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("requests were %v, want %v", got, test.want)
			}
		})
	}
	if len(Workloads()) != 11 {
		t.Errorf("there are %d workloads: are all of them above?", len(Workloads()))
	}
}

// Nodes are asked in turns, and one thing of all of them.
func TestRoundRobin(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]map[string]int{}
	fake, urls := newFake(t, 3)
	fake.before = func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.Method == http.MethodHead {
			if asked[r.URL.Path] == nil {
				asked[r.URL.Path] = map[string]int{}
			}
			asked[r.URL.Path][r.Host]++
		}
		return false
	}
	config := testConfig("head-tag", Registry{Name: "fake", URLs: urls})
	config.Tags, config.Count, config.Turns = 3, 27, 1
	runBench(t, config)
	if len(asked) != 3 {
		t.Errorf("%d tags were asked for", len(asked))
	}
	for path, hosts := range asked {
		for _, url := range urls {
			if n := hosts[strings.TrimPrefix(url, "http://")]; n != 3 {
				t.Errorf("%s was asked of %s %d times, want 3", path, url, n)
			}
		}
	}
}

// A registry can have a number of tags of its own.
func TestTagsOfOneRegistry(t *testing.T) {
	few, fewURLs := newFake(t, 1)
	many, manyURLs := newFake(t, 1)
	config := testConfig("head-tag", Registry{Name: "few", URLs: fewURLs, Tags: 2}, Registry{Name: "many", URLs: manyURLs})
	report := runBench(t, config)
	if len(few.tags) != 2 || len(many.tags) != config.Tags {
		t.Errorf("there are %d and %d tags, want 2 and %d", len(few.tags), len(many.tags), config.Tags)
	}
	if done, failed := report.Counts(); done != 48 || failed != 0 {
		t.Errorf("%d done, %d failed", done, failed)
	}
}

// Errors are counted by kind, with the first text, and do not count as work.
func TestErrorsAreCounted(t *testing.T) {
	var n atomic.Int64
	fake, urls := newFake(t, 1)
	fake.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || r.URL.Path == "/v2/" {
			return false
		}
		switch n.Add(1) % 4 {
		case 0:
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte("no\nleader"))
		case 1:
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("cut"))
		case 2:
			_, _ = w.Write([]byte("short"))
		default:
			return false
		}
		return true
	}
	config := testConfig("get-tag", Registry{Name: "fake", URLs: urls})
	config.Turns = 1
	report := runBench(t, config)
	turn := report.Registries[0].Turns[0]
	kinds := map[string]int{}
	for _, fault := range turn.Errors {
		kinds[fault.Kind] = fault.Count
		if fault.Kind == "status 503" && !strings.HasSuffix(fault.First, "answers 503: no leader") {
			t.Errorf("the first 503 is %q", fault.First)
		}
	}
	if turn.Operations != 3 || turn.Failed != 9 || fmt.Sprint(kinds) != "map[cut off:3 length:3 status 503:3]" {
		t.Errorf("%d done, %d failed: %v", turn.Operations, turn.Failed, kinds)
	}
	if done, failed := report.Counts(); done != 3 || failed != 9 {
		t.Errorf("%d done, %d failed", done, failed)
	}
}

// What was pulled is compared with what was pushed, if that is wanted.
func TestVerify(t *testing.T) {
	fake, urls := newFake(t, 1)
	for _, workload := range []string{"pull", "pull-range"} {
		var spoil atomic.Bool
		fake.before = func(_ http.ResponseWriter, r *http.Request) bool {
			if spoil.Load() && r.Method == http.MethodGet {
				fake.mu.Lock()
				defer fake.mu.Unlock()
				for _, content := range fake.blobs {
					for i := 0; i < len(content); i += 100 {
						content[i]++
					}
				}
				spoil.Store(false)
			}
			return false
		}
		config := testConfig(workload, Registry{Name: "fake", URLs: urls})
		config.Verify, config.Turns, config.Clients = true, 2, 1
		config.Progress = func(string, int, Turn) { spoil.Store(true) }
		_, err := Run(t.Context(), config)
		if !errors.Is(err, errContent) || kindOf(err) != "content" { // heat meets it first
			t.Errorf("%s: %v", workload, err)
		}
	}
}

// A pull goes where the registry sends it.
func TestRedirects(t *testing.T) {
	fake, urls := newFake(t, 1)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fake.ServeHTTP(w, r)
	}))
	t.Cleanup(elsewhere.Close)
	var redirected atomic.Int64
	fake.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || r.URL.Path == "/v2/" || "http://"+r.Host == elsewhere.URL {
			return false
		}
		redirected.Add(1)
		http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
	config := testConfig("pull-range", Registry{Name: "fake", URLs: urls})
	config.Verify = true
	report := runBench(t, config)
	if turn := report.Registries[0].Turns[1]; turn.Failed > 0 || redirected.Load() != 2*12+2*3 {
		t.Errorf("%d were redirected, %+v", redirected.Load(), turn)
	}
}

// A cold turn reads each blob once, after the user's command.
func TestCold(t *testing.T) {
	fake, urls := newFake(t, 2)
	marks := filepath.Join(t.TempDir(), "marks")
	config := testConfig("pull", Registry{Name: "fake", URLs: urls, Before: "echo mark >> " + marks})
	config.Cold, config.WarmUp = true, time.Minute
	report := runBench(t, config)
	if got := fake.counts()["GET blob"]; got != 2*3 {
		t.Errorf("%d blobs were read, want each of 3 in each of 2 turns", got)
	}
	if turn := report.Registries[0].Turns[1]; turn.Operations != 3 {
		t.Errorf("%+v", turn)
	}
	if content, err := os.ReadFile(marks); err != nil || string(content) != "mark\nmark\n" {
		t.Errorf("the command left %q, %v", content, err)
	}
	config.Registries[0].Before = ""
	called := 0
	config.Registries[0].BeforeTurn = func(context.Context) error { called++; return nil }
	if runBench(t, config); called != config.Turns {
		t.Errorf("the function before turns was called %d times", called)
	}
	broken := errors.New("it does not start again")
	config.Registries[0].BeforeTurn = func(context.Context) error { return broken }
	if _, err := Run(t.Context(), config); !errors.Is(err, broken) {
		t.Errorf("a function that fails: %v", err)
	}
	config.Registries[0].Before = "echo no caches here; false"
	if _, err := Run(t.Context(), config); err == nil || !strings.Contains(err.Error(), "exit status 1: no caches here") {
		t.Errorf("a command that fails: %v", err)
	}
}

// Registries are measured in turns, and a static server can be one of them.
func TestCompare(t *testing.T) {
	_, urls := newFake(t, 1)
	static := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 64<<10))
	}))
	t.Cleanup(static.Close)
	var order []string
	config := testConfig("pull", Registry{Name: "a", URLs: urls}, Registry{Name: "b", Static: []string{static.URL + "/file"}})
	config.Progress = func(name string, number int, _ Turn) { order = append(order, fmt.Sprint(name, number)) }
	report := runBench(t, config)
	if got := strings.Join(order, " "); got != "a1 b1 a2 b2" {
		t.Errorf("turns were %s", got)
	}
	a, b := report.Registries[0], report.Registries[1]
	if b.Turns[1].Operations != 12 || b.Turns[1].Failed != 0 {
		t.Errorf("%+v", b.Turns[1])
	}
	if a.Summary[BytesPerSecond].Ratio != nil || b.Summary[BytesPerSecond].Ratio == nil {
		t.Errorf("ratios: %+v, %+v", a.Summary, b.Summary)
	}
}

// A turn ends with its time, also when the registry never answers.
func TestTimeAndTimeout(t *testing.T) {
	fake, urls := newFake(t, 1)
	fake.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		<-r.Context().Done()
		return true
	}
	config := testConfig("push-put", Registry{Name: "fake", URLs: urls})
	config.Turns, config.Timeout, config.Duration, config.Count = 1, 10*time.Millisecond, 50*time.Millisecond, MaxOperations
	turn := runBench(t, config).Registries[0].Turns[0]
	if turn.Failed == 0 || turn.Operations != 0 || len(turn.Errors) != 1 || turn.Errors[0].Kind != "timeout" {
		t.Errorf("%+v", turn)
	}
	config.Timeout, config.Duration = time.Minute, time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	fake.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			cancel()
			<-r.Context().Done()
		}
		return r.Method == http.MethodPost
	}
	if _, err := Run(ctx, config); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted run ends with %v", err)
	}
}

// The processes of a registry are measured, and one that ends is told of.
func TestServersAreMeasured(t *testing.T) {
	_, urls := newFake(t, 1)
	pidFile := filepath.Join(t.TempDir(), "pid")
	if err := os.WriteFile(pidFile, fmt.Appendln(nil, os.Getpid()), 0o600); err != nil {
		t.Fatal(err)
	}
	config := testConfig("push-put", Registry{Name: "fake", URLs: urls, Processes: []string{pidFile}})
	report := runBench(t, config)
	for _, turn := range report.Registries[0].Turns {
		if turn.Servers == nil || turn.Servers.PeakBytes < 1<<20 || turn.Servers.HighBytes < turn.Servers.PeakBytes || turn.Servers.LargestBytes != turn.Servers.HighBytes || turn.Client == nil {
			t.Errorf("servers %+v, client %+v", turn.Servers, turn.Client)
		}
	}
	if report.Registries[0].Summary[PeakBytes].Median < 1<<20 {
		t.Errorf("%+v", report.Registries[0].Summary)
	}
	config.Registries[0].Processes = []string{"999999999"}
	if _, err := Run(t.Context(), config); err == nil || !strings.Contains(err.Error(), "measure process 999999999") {
		t.Errorf("a process that is not there: %v", err)
	}
}

func TestValidate(t *testing.T) {
	good := Registry{Name: "a", URLs: []string{"http://127.0.0.1:5000"}}
	for _, test := range []struct {
		want   string
		change func(*Config)
	}{
		{`no workload "pusch"`, func(c *Config) { c.Workload = "pusch" }},
		{"size: 5 is not 1024 to 17179869184", func(c *Config) { c.Size = 5 }},
		{"chunk: 0 is not 1 to", func(c *Config) { c.Chunk = 0 }},
		{"more than 100000 requests", func(c *Config) { c.Size, c.Chunk = MaxSize, 1000 }},
		{"clients: 0 is not", func(c *Config) { c.Clients = 0 }},
		{"clients: 1025 is not", func(c *Config) { c.Clients = MaxClients + 1 }},
		{"turns: 0 is not", func(c *Config) { c.Turns = 0 }},
		{"blobs: 0 is not", func(c *Config) { c.Blobs = 0 }},
		{"tags: 0 is not", func(c *Config) { c.Tags = 0 }},
		{"count: 5000001 is not", func(c *Config) { c.Count = MaxOperations + 1 }},
		{"a turn lasts up to 24h", func(c *Config) { c.Duration = 0 }},
		{"a turn lasts up to 24h", func(c *Config) { c.WarmUp = -1 }},
		{"timeout: it can be up to", func(c *Config) { c.Timeout = 0 }},
		{`repository: "Bench/" is not`, func(c *Config) { c.Repository = "Bench/" }},
		{"push-chunked can't be cold", func(c *Config) { c.Cold = true }},
		{"push-chunked pulls nothing", func(c *Config) { c.Verify = true }},
		{"registries: 0 is not", func(c *Config) { c.Registries = nil }},
		{`registry "a": each needs a name of its own`, func(c *Config) { c.Registries = []Registry{good, good} }},
		{"to be cold it needs a command", func(c *Config) { c.Workload, c.Cold = "pull", true }},
		{"it needs the URLs of its nodes, or", func(c *Config) { c.Registries = []Registry{{Name: "a"}} }},
		{"static files can only be pulled", func(c *Config) { c.Registries = []Registry{{Name: "a", Static: good.URLs}} }},
		{"can't be verified", func(c *Config) {
			c.Workload, c.Verify, c.Registries = "pull", true, []Registry{{Name: "a", Static: good.URLs}}
		}},
		{`"ftp://x" is not http`, func(c *Config) { c.Registries = []Registry{{Name: "a", URLs: []string{"ftp://x"}}} }},
		{`"http://x/v2/" has more than`, func(c *Config) { c.Registries = []Registry{{Name: "a", URLs: []string{"http://x/v2/"}}} }},
		{"tags: -1 is not 0 to", func(c *Config) { c.Registries[0].Tags = -1 }},
		{"65 nodes", func(c *Config) { c.Registries = []Registry{{Name: "a", URLs: make([]string, 65)}} }},
		{"has no certificate", func(c *Config) { c.TLS.CA = []byte("nonsense") }},
	} {
		config := testConfig("push-chunked", good)
		test.change(&config)
		if _, err := Run(t.Context(), config); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("error is %v, want it to say %q", err, test.want)
		}
	}
}
