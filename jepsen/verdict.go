package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/atollregistry/atoll/jepsen/cluster"
	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/nemesis"
	"github.com/atollregistry/atoll/jepsen/workload"
)

const (
	// notRecovered is the kind of an anomaly of the cluster: it did not come back to what it should be.
	notRecovered = "not recovered"
	// exitSlack is how long after a fault a node may end because of it.
	exitSlack = 20 * time.Second
	// maxExits is how many ends of one node are told one by one.
	maxExits = 3
	// tooLittle is the kind of an anomaly of the run: it shows nothing.
	tooLittle = "too little was done"
	// minimumWrites is how many writes a second each workload must have acknowledged.
	minimumWrites = 0.1
	// shardGone is the kind of an anomaly of the cluster: a shard that a record names was not on disk as it
	// was written.
	shardGone = "shard gone"
	// verdictFile is the verdict's name in the run's folder.
	verdictFile = "verdict.json"
	// maxShown is how many anomalies are printed; all are in the file.
	maxShown = 20
)

// disaster is what no log may contain, whatever was done to the node.
var disaster = regexp.MustCompile(`(?m)^(panic: .*|fatal error: .*|.*"error":"panic: .*)$`)

// brokenShard is what a node logs when it comes upon a shard that is not what its record says.
var brokenShard = regexp.MustCompile(`(?m)^.*"message":"(shard is damaged|shards are missing on this node, and will be rebuilt|scrub found a damaged shard)".*$`)

// dyingDisk is what a node is told for the moment that it lives on after its power has failed.
var dyingDisk = []byte("input/output error")

// span is a time of the run.
type span struct {
	Begin time.Duration `json:"begin_ns"`
	End   time.Duration `json:"end_ns"`
}

// Counts says how many operations of a workload ended in which way.
type Counts struct {
	OK      int `json:"ok"`
	Fail    int `json:"fail"`
	Unknown int `json:"unknown"`
}

// Verdict is what one run has shown.
type Verdict struct {
	Workloads string        `json:"workloads"`
	Nemesis   string        `json:"nemesis"`
	Two       bool          `json:"two"`
	Mutant    string        `json:"mutant,omitempty"`
	Seed      uint64        `json:"seed"`
	Nodes     int           `json:"nodes"`
	Time      time.Duration `json:"time_ns"`
	Began     time.Time     `json:"began"`
	// Program is the SHA-256 of the program under test.
	Program string `json:"program"`
	// Measured is when clients worked, Settled how long after that all was whole again.
	Measured span          `json:"measured"`
	Settled  time.Duration `json:"settled_ns"`

	Operations map[string]Counts `json:"operations"`
	// Faults are how many there were of each kind, Effects how many of them had one that was seen.
	Faults    map[string]int     `json:"faults"`
	Effects   map[string]int     `json:"effects"`
	Anomalies []workload.Anomaly `json:"anomalies"`
	// Exits are ends of processes that nobody asked for.
	Exits []cluster.Exit `json:"exits"`
	// Figures and Recoveries are of clients behind a balancer.
	Figures    []history.Figures  `json:"figures"`
	Recoveries []history.Recovery `json:"recoveries"`
}

// Valid says that nothing was found.
func (v *Verdict) Valid() bool { return len(v.Anomalies) == 0 }

// Broken says that something was found that tells of the cluster, and not only of the run.
func (v *Verdict) Broken() bool {
	return slices.ContainsFunc(v.Anomalies, func(a workload.Anomaly) bool { return a.Kind != tooLittle })
}

// anomaly adds something that the run itself has found.
func (v *Verdict) anomaly(kind, format string, args ...any) {
	v.Anomalies = append(v.Anomalies, workload.Anomaly{Workload: "run", Kind: kind, What: fmt.Sprintf(format, args...)})
}

// judge completes the verdict; whole says that the run came to its end.
func (r *run) judge(c *cluster.Cluster, whole bool) {
	v := r.verdict
	ops, faults := r.history.Ops(), r.history.Faults()
	v.Operations, v.Faults, v.Effects = make(map[string]Counts), make(map[string]int), make(map[string]int)
	for _, fault := range faults {
		v.Faults[fault.Kind]++
		if fault.Effect != history.NoEffect {
			v.Effects[fault.Kind]++
		}
	}
	writes := v.count(ops)
	v.Figures = history.Measure(ops, faults, v.Measured.Begin, v.Measured.End)
	v.Recoveries = history.Recoveries(ops, faults, workload.IsWrite)
	for _, n := range append(c.Members(), c.Spares()...) {
		v.Exits = append(v.Exits, n.Exits()...)
	}
	r.judgeExits(faults)
	r.judgeLogs()
	if slices.ContainsFunc(v.Anomalies, func(a workload.Anomaly) bool { return a.Kind == notRecovered }) {
		return // what follows would say no more
	}
	if whole {
		r.judgeAmount(writes)
	}
	r.judgeFailures(ops, faults)
	for _, recovery := range v.Recoveries {
		if recovery.Asked && !recovery.Recovered {
			v.anomaly(notRecovered, "after %s of %s at %s no write was acknowledged any more", recovery.Fault.Kind, recovery.Fault.Target, recovery.Fault.Begin.Round(time.Millisecond))
		}
	}
}

// count counts the operations of the time that was measured, not those of the last looks, and
// returns how many writes of each workload were acknowledged.
func (v *Verdict) count(ops []history.Op) (writes map[string]int) {
	writes = make(map[string]int)
	for _, op := range ops {
		if op.Call >= v.Measured.End {
			continue
		}
		counts := v.Operations[op.Workload]
		switch op.Outcome {
		case history.OK:
			counts.OK++
			if workload.IsWrite(op) {
				writes[op.Workload]++
			}
		case history.Fail:
			counts.Fail++
		default:
			counts.Unknown++
		}
		v.Operations[op.Workload] = counts
	}
	return writes
}

// judgeAmount looks for workloads that did next to nothing, and for faults that did nothing at all.
func (r *run) judgeAmount(writes map[string]int) {
	v := r.verdict
	seconds := (v.Measured.End - v.Measured.Begin).Seconds()
	for _, w := range r.workloads {
		if rate := float64(v.Operations[w.Name()].OK) / seconds; rate < w.MinimumOps() {
			v.anomaly(tooLittle, "%s acknowledged %.2f operations a second, less than %.2f: the run shows nothing", w.Name(), rate, w.MinimumOps())
		}
		if rate := float64(writes[w.Name()]) / seconds; rate < minimumWrites {
			v.anomaly(tooLittle, "%s acknowledged %.2f writes a second, less than %.2f: the run shows nothing", w.Name(), rate, minimumWrites)
		}
	}
	if len(r.nemeses) > 0 && len(v.Effects) == 0 {
		v.anomaly(tooLittle, "no fault had an effect: %v", v.Faults)
	}
}

// judgeExits looks for nodes that ended without a fault of theirs that lets them.
func (r *run) judgeExits(faults []history.Fault) {
	may, told := make(map[string]bool), make(map[string]int)
	for _, n := range nemesis.All() {
		may[n.Name] = n.Exits
	}
	for _, exit := range r.verdict.Exits {
		at := r.history.Since(exit.Time)
		excused := slices.ContainsFunc(faults, func(fault history.Fault) bool {
			around := fault.Begin <= at && (fault.End == 0 || at <= fault.End+exitSlack)
			return around && may[fault.Kind] && fault.Names(exit.Node)
		})
		if excused {
			continue
		}
		if told[exit.Node]++; told[exit.Node] <= maxExits {
			r.verdict.anomaly("ended by itself", "%s ended at %s (%s), and no fault lets it: %s", exit.Node, at.Round(time.Millisecond), exit.How, lastLines(exit.Tail))
		}
	}
}

// deaths are the faults that only clients of the very node may notice: others wait at most.
var deaths = []string{"kill", "kill-leader", "rolling"}

// judgeFailures looks for requests of balanced clients that failed although nothing was broken, or
// nothing but another node's process.
func (r *run) judgeFailures(ops []history.Op, faults []history.Fault) {
	for _, op := range ops {
		if !op.Balanced || op.Outcome == history.OK || op.Status != 0 && op.Status < http.StatusInternalServerError {
			continue
		}
		excused := slices.ContainsFunc(faults, func(fault history.Fault) bool {
			around := fault.Begin <= op.Return && (fault.End == 0 || op.Call <= fault.End+history.Settling)
			return around && (!slices.Contains(deaths, fault.Kind) || fault.Names(op.Node))
		})
		if !excused {
			r.verdict.anomaly(workload.Refused, "%s %s of %s failed on %s at %s, where nothing was broken: status %d, %s",
				op.Workload, op.Kind, op.Key, op.Node, op.Return.Round(time.Millisecond), op.Status, op.Error)
		}
	}
}

// judgeLogs looks for what no node may ever write.
func (r *run) judgeLogs() {
	logs, err := filepath.Glob(filepath.Join(r.dir, "n*.log"))
	if err != nil {
		r.verdict.anomaly("not judged", "logs: %v", err)
	}
	for _, path := range logs {
		content, err := os.ReadFile(path)
		if err != nil {
			r.verdict.anomaly("not judged", "log: %v", err)
		}
		if found := disaster.Find(content); found != nil {
			r.verdict.anomaly("crashed", "%s: %s", filepath.Base(path), found)
		}
		found := slices.DeleteFunc(brokenShard.FindAll(content, -1), func(line []byte) bool { return bytes.Contains(line, dyingDisk) })
		if len(found) > 0 && r.sparesDisks() {
			r.verdict.anomaly(shardGone, "no fault took or damaged what was durable, but %s has %d lines like %s", filepath.Base(path), len(found), found[0])
		}
	}
}

// sparesDisks says that what is durable stays as it is under all nemeses of the run. A shard is
// durable before a record names it, also when power fails.
func (r *run) sparesDisks() bool {
	return !slices.ContainsFunc(r.nemeses, func(n nemesis.Nemesis) bool { return n.Destroys || n.Exits })
}

func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-2):], " | ")
}

// report prints the verdict and writes it, with the picture, into the run's folder.
func (r *run) report() error {
	v := r.verdict
	encoded, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	notes := make([]string, len(v.Anomalies))
	for i, a := range v.Anomalies {
		notes[i] = fmt.Sprintf("%s: %s: %s", a.Workload, a.Kind, a.What)
		if i < maxShown {
			r.say("ANOMALY %s", notes[i])
		}
	}
	var page bytes.Buffer
	title := fmt.Sprintf("%s under %s, seed %d", v.Workloads, v.Nemesis, v.Seed)
	err = errors.Join(
		history.WriteTimeline(&page, title, r.history.Ops(), r.history.Faults(), notes),
		os.WriteFile(filepath.Join(r.dir, "timeline.html"), page.Bytes(), 0o644),
		os.WriteFile(filepath.Join(r.dir, verdictFile), encoded, 0o644),
	)
	for name, counts := range v.Operations {
		r.say("%-10s %6d ok %5d fail %5d unknown", name, counts.OK, counts.Fail, counts.Unknown)
	}
	r.say("faults: %v, with an effect: %v", v.Faults, v.Effects)
	word := "VALID"
	if !v.Valid() {
		word = fmt.Sprintf("INVALID: %d anomalies", len(v.Anomalies))
	}
	r.say("%s: %s", word, r.dir)
	return err
}
