package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/jepsen/cluster"
	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/nemesis"
	"github.com/atollregistry/atoll/jepsen/workload"
)

func TestParse(t *testing.T) {
	for _, bad := range []string{
		"--nodes=2", "--nodes=10", "--time=10ms", "--workload=none", "--nemesis=earthquake", "--mutant=mouse", "surplus", "--unknown",
	} {
		if _, err := parse("run", []string{bad}); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
	o, err := parse("run", []string{"--workload=register,images", "--nemesis=mix", "--seed=7", "--loopback"})
	if err != nil {
		t.Fatal(err)
	}
	if o.seed != 7 || o.images != "" || !filepath.IsAbs(o.out) {
		t.Errorf("%+v", o)
	}
	if name := runName(o); strings.Contains(name, ",") {
		t.Errorf("%s has a comma, which ends the name of a data folder", name)
	}
}

func TestExitCodes(t *testing.T) {
	if code := exitCode(&Verdict{}, nil); code != exitValid {
		t.Errorf("nothing found: %d", code)
	}
	if code := exitCode(&Verdict{Anomalies: []workload.Anomaly{{}}}, nil); code != exitInvalid {
		t.Errorf("an anomaly: %d", code)
	}
	if code := exitCode(nil, os.ErrClosed); code != exitUnknown {
		t.Errorf("no verdict: %d", code)
	}
	if worse(exitUnknown, exitInvalid) != exitInvalid || worse(exitValid, exitUnknown) != exitUnknown || worse(exitValid, exitValid) != exitValid {
		t.Error("of several runs the worst counts")
	}
}

// testRun is a run without a cluster.
func testRun(t *testing.T) *run {
	t.Helper()
	dir := t.TempDir()
	log, err := history.Create(filepath.Join(dir, "history.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	return &run{options: &options{time: time.Second}, dir: dir, history: log, verdict: &Verdict{}}
}

// A node may end by itself during a fault that lets it, and some time after, and never else.
func TestExitsAreJudged(t *testing.T) {
	second := time.Second
	for _, test := range []struct {
		name    string
		faults  []history.Fault
		at      time.Duration
		excused bool
	}{
		{"without a fault", nil, 10 * second, false},
		{"during one that lets it", []history.Fault{{Kind: "eio-sync", Target: "n1", Begin: 5 * second, End: 12 * second}}, 10 * second, true},
		{"in one that lasts", []history.Fault{{Kind: "full-disk", Target: "n1", Begin: 5 * second}}, 300 * second, true},
		{"soon after", []history.Fault{{Kind: "rot-log", Target: "n2,n1", Begin: 5 * second, End: 12 * second}}, 20 * second, true},
		{"of another node", []history.Fault{{Kind: "rot-log", Target: "n11", Begin: 5 * second, End: 12 * second}}, 10 * second, false},
		{"long after", []history.Fault{{Kind: "eio-sync", Target: "n1", Begin: 5 * second, End: 12 * second}}, 60 * second, false},
		{"before", []history.Fault{{Kind: "eio-sync", Target: "n1", Begin: 15 * second, End: 22 * second}}, 10 * second, false},
		{"during one that does not", []history.Fault{{Kind: "kill", Target: "n1", Begin: 5 * second, End: 12 * second}}, 10 * second, false},
	} {
		r := testRun(t)
		r.verdict.Exits = []cluster.Exit{{Node: "n1", Time: time.Now().Add(test.at - r.history.Now()), How: "exit status 1"}}
		r.judgeExits(test.faults)
		if r.verdict.Valid() != test.excused {
			t.Errorf("%s: anomalies %v", test.name, r.verdict.Anomalies)
		}
	}
}

// Who talks to a node that nobody has touched must not notice that another one died.
func TestFailuresAreJudged(t *testing.T) {
	second := time.Second
	kill := history.Fault{Kind: "kill-leader", Target: "n1,n3", Begin: 10 * second, End: 15 * second}
	halves := history.Fault{Kind: "halves", Target: "n1,n3", Begin: 10 * second, End: 15 * second}
	failed := history.Op{Node: "n2", Balanced: true, Call: 11 * second, Return: 12 * second, Outcome: history.Unknown, Status: 503}
	with := func(change func(*history.Op)) history.Op {
		op := failed
		change(&op)
		return op
	}
	for _, test := range []struct {
		name   string
		op     history.Op
		faults []history.Fault
		valid  bool
	}{
		{"on another node", failed, []history.Fault{kill}, false},
		{"without an answer", with(func(op *history.Op) { op.Status = 0 }), []history.Fault{kill}, false},
		{"without any fault", failed, nil, false},
		{"long after", with(func(op *history.Op) { op.Call, op.Return = 40*second, 41*second }), []history.Fault{halves}, false},
		{"on the dead node", with(func(op *history.Op) { op.Node = "n3" }), []history.Fault{kill}, true},
		{"of a client that is faithful to one node", with(func(op *history.Op) { op.Balanced = false }), []history.Fault{kill}, true},
		{"in a partition", failed, []history.Fault{kill, halves}, true},
		{"refused for what was asked", with(func(op *history.Op) { op.Outcome, op.Status = history.Fail, 404 }), []history.Fault{kill}, true},
	} {
		r := testRun(t)
		r.judgeFailures([]history.Op{test.op}, test.faults)
		if r.verdict.Valid() != test.valid {
			t.Errorf("%s: %v", test.name, r.verdict.Anomalies)
		}
	}
}

func TestPanicsAreFound(t *testing.T) {
	for content, bad := range map[string]bool{
		"{\"message\":\"a panic: of sorts\"}\n":                              false,
		"{}\npanic: runtime error: index out of range\n\ngoroutine 1":        true,
		"fatal error: concurrent map writes\n":                               true,
		"{\"level\":\"error\",\"error\":\"panic: nil map\\ngoroutine 1\"}\n": true,
	} {
		r := testRun(t)
		if err := os.WriteFile(filepath.Join(r.dir, "n1.log"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		r.judgeLogs()
		if r.verdict.Valid() == bad {
			t.Errorf("%q: %v", content, r.verdict.Anomalies)
		}
	}
}

// A shard that is not what its record says is found in the log of whoever came upon it, unless a fault
// may have taken it.
func TestBrokenShardsAreFound(t *testing.T) {
	for _, test := range []struct {
		nemesis, err, message string
		valid                 bool
	}{
		{"power-all", "", "shards are missing on this node, and will be rebuilt", false},
		{"power-all", `"error":"read shard 1: input/output error",`, "scrub found a damaged shard", true},
		{"kill", `"error":"checksum does not match",`, "scrub found a damaged shard", false},
		{"kill", "", "shard is damaged", false},
		{"kill", "", "scrub has read all shards", true},
		{"kill,rot-shards", "", "shard is damaged", true},
		{"eio-read", "", "shard is damaged", true},
	} {
		r := testRun(t)
		var err error
		if r.nemeses, err = nemesis.Find(test.nemesis); err != nil {
			t.Fatal(err)
		}
		line := `{"level":"warn",` + test.err + `"message":"` + test.message + `"}` + "\n"
		if err := os.WriteFile(filepath.Join(r.dir, "n1.log"), []byte("{}\n"+line+"{}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		r.judgeLogs()
		if r.verdict.Valid() != test.valid {
			t.Errorf("%s under %s: %v", test.message, test.nemesis, r.verdict.Anomalies)
		}
	}
}

// That a run did too little says nothing of a mutant.
func TestKinds(t *testing.T) {
	if got := kinds([]workload.Anomaly{{Workload: "run", Kind: tooLittle}}); got != "" {
		t.Errorf("caught by %s", got)
	}
	got := kinds([]workload.Anomaly{{Workload: "images", Kind: workload.Lost}, {Workload: "run", Kind: tooLittle}, {Workload: "images", Kind: workload.Lost}})
	if got != "images: lost (2)" {
		t.Errorf("caught by %s", got)
	}
}

// A verdict counts for a later matrix if it is of the same program and as long.
func TestDone(t *testing.T) {
	o := &options{out: t.TempDir(), workloads: "all", nemesis: "kill", seed: 1, time: time.Minute, nodes: 5}
	if done(o, "hash") != nil {
		t.Error("there is no verdict")
	}
	encoded, err := json.Marshal(&Verdict{Program: "hash", Time: time.Minute, Nodes: 5, Anomalies: []workload.Anomaly{{}}})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(o.out, runName(o))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, verdictFile), encoded, 0o600); err != nil {
		t.Fatal(err)
	}
	if v := done(o, "hash"); v == nil || exitCode(v, nil) != exitInvalid {
		t.Errorf("the verdict is %v", v)
	}
	if done(o, "another") != nil {
		t.Error("the verdict of another program counts")
	}
	o.time = time.Hour
	if done(o, "hash") != nil {
		t.Error("the verdict of a shorter run counts")
	}
}

// What runs have left that were killed goes away, what is in use or was kept to be looked at does not.
func TestImages(t *testing.T) {
	o := &options{images: t.TempDir()}
	left := filepath.Join(o.images, "atoll-jepsen-left")
	if err := os.Mkdir(left, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(left, imagesLock), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	inUse, err := newImages(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); err == nil {
		t.Error("what a killed run has left is there still")
	}
	kept, err := newImages(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(inUse.dir); err != nil {
		t.Errorf("what is in use is gone: %v", err)
	}
	if dir := kept.close(true); dir != kept.dir {
		t.Errorf("kept in %q", dir)
	}
	if dir := inUse.close(false); dir != "" {
		t.Errorf("kept in %q", dir)
	}
	last, err := newImages(o)
	if err != nil {
		t.Fatal(err)
	}
	defer last.close(false)
	if _, err := os.Stat(kept.dir); err != nil {
		t.Errorf("what was kept is gone: %v", err)
	}
	if _, err := os.Stat(inUse.dir); err == nil {
		t.Error("what was not kept is there still")
	}
}

func TestTable(t *testing.T) {
	dir := t.TempDir()
	var files []string
	gap := func(seconds int) history.Gap { return history.Gap{To: time.Duration(seconds) * time.Second} }
	for i, v := range []*Verdict{
		{Nemesis: "kill", Seed: 2, Nodes: 5, Began: time.Unix(20, 0), Time: 2 * time.Minute, Faults: map[string]int{"kill": 11}, Effects: map[string]int{"kill": 10}, Operations: map[string]Counts{"register": {OK: 100}},
			Anomalies:  []workload.Anomaly{{Kind: workload.Lost}},
			Recoveries: []history.Recovery{{Took: 3 * time.Second, Asked: true}, {Took: time.Hour}}},
		{Nemesis: "kill", Seed: 1, Nodes: 3, Began: time.Unix(10, 0), Time: 2 * time.Minute, Faults: map[string]int{"kill": 10}, Effects: map[string]int{"kill": 10}, Operations: map[string]Counts{"register": {OK: 100, Fail: 5, Unknown: 2}},
			Figures: []history.Figures{{Workload: "register", Kind: "put", Gap: gap(2)}, {Workload: "register", Kind: "get", Gap: gap(1)}}},
		{Mutant: "local-reads", Nemesis: "none", Workloads: "register", Began: time.Unix(30, 0)},
		{Mutant: "local-reads", Nemesis: "none", Workloads: "register", Began: time.Unix(31, 0), Anomalies: []workload.Anomaly{{Workload: "register", Kind: workload.NotLinearizable}}},
		{Mutant: "listing-skips", Nemesis: "none", Workloads: "listing", Began: time.Unix(32, 0), Anomalies: []workload.Anomaly{{Workload: "run", Kind: tooLittle}}},
	} {
		encoded, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, filepath.Join(dir, string(rune('a'+i))))
		if err := os.WriteFile(files[i], encoded, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var records, out bytes.Buffer
	if err := printRecords(&records, files); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(records.String(), "\n"); len(lines) != len(files)+1 || !strings.HasPrefix(lines[0], `{"began":"1970-01-01T00:00:10Z"`) {
		t.Errorf("the records are\n%s", records.String())
	}
	file := filepath.Join(dir, "records")
	if err := os.WriteFile(file, records.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := table(&out, []string{file}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| kill | 2 | 3, 5 | 4 | 207 | 0 | 0 | 0 | 0 | 0 | 0 | 21 | 20 | 1 | 1 | 2.0 s (register put) | 3.0 s |\n",
		"| **all** | 2 | 3, 5 | 4 | 207 |",
		" | register | none | 2 | register: not linearizable (1) |\n",
		" | listing | none | 1 | **nothing** |\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the tables are\n%s\nand should have\n%s", out.String(), want)
		}
	}
	if err := printRecords(&out, []string{filepath.Join(dir, "missing")}); err == nil {
		t.Error("a verdict that is not there is passed over")
	}
	if err := table(&out, []string{filepath.Join(dir, "missing")}); err == nil {
		t.Error("records that are not there are passed over")
	}
}

// One run of real processes, where nothing is needed but this machine.
func TestRunOnLoopback(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "atoll")
	build := exec.Command("go", "build", "-trimpath", "-o", program, "github.com/atollregistry/atoll/cmd/atoll")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	o, err := parse("run", []string{
		"--loopback", "--nodes=3", "--workload=register", "--nemesis=kill-leader", "--time=10s", "--seed=3",
		"--program=" + program, "--previous=", "--out=" + filepath.Join(dir, "runs"),
	})
	if err != nil {
		t.Fatal(err)
	}
	v, err := one(t.Context(), o, program, "")
	if err != nil {
		t.Fatal(err)
	}
	if !v.Valid() {
		t.Errorf("anomalies: %v", v.Anomalies)
	}
	if v.Faults["kill-leader"] == 0 || v.Operations["register"].OK == 0 {
		t.Errorf("nothing happened: %v %v", v.Faults, v.Operations)
	}
	for _, name := range []string{"history.jsonl", "timeline.html", "verdict.json", "n1.log", "run.log"} {
		if info, err := os.Stat(filepath.Join(o.out, runName(o), name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
