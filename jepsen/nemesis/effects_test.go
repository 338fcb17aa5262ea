package nemesis

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/netlab"
)

// What was seen of a fault is recorded, and so is that nothing was.
func TestEffects(t *testing.T) {
	f := testField()
	f.Log = t.Logf
	var err error
	if f.History, err = history.Create(filepath.Join(t.TempDir(), "history")); err != nil {
		t.Fatal(err)
	}
	defer f.History.Close()
	idle, seen := f.begin("loss"), f.begin("kill")
	seen.saw("process %d is gone", 7)
	seen.sawNew(map[string]string{"n1": "a", "n2": "b"}, map[string]string{"n1": "c", "n2": "b", "n3": "d"})
	idle.end()
	seen.end()
	faults := f.History.Faults()
	if faults[0].Effect != history.NoEffect || faults[1].Effect != "process 7 is gone; n1 was a and is c" {
		t.Errorf("faults %+v", faults)
	}
}

func TestPackets(t *testing.T) {
	one, other := netlab.Pair{From: "a", To: "b"}, netlab.Pair{From: "b", To: "a"}
	before := map[netlab.Pair]netlab.Counters{one: {Forwarded: 5, Dropped: 7, Delayed: 1}}
	after := map[netlab.Pair]netlab.Counters{one: {Forwarded: 9, Dropped: 9, Delayed: 1}, other: {Dropped: 1, Duplicated: 4}}
	if got := packets(before, after); got != "3 packets dropped, 4 packets doubled" {
		t.Errorf("%q", got)
	}
	if got := packets(before, map[netlab.Pair]netlab.Counters{one: {Forwarded: 100, Dropped: 7, Delayed: 1}}); got != "" {
		t.Errorf("%q", got)
	}
}

func TestLastWords(t *testing.T) {
	for tail, want := range map[string]string{
		"": "",
		"{\"message\":\"begin\"}\natoll: the disk is gone\n":                     "atoll: the disk is gone",
		"{\"message\":\"begin\"}\natoll: it broke\natoll: \tfile.go:7\natoll:\n": "atoll: it broke",
		"{\"level\":\"error\",\"error\":\"EIO\",\"message\":\"ends\"}\n":         "ends: EIO",
		"{\"message\":\"ends\"}\n":                                               "ends",
		"{\"error\":\"EIO\"}\n":                                                  "EIO",
		"{\"cut off":                                                             "{\"cut off",
		strings.Repeat("x", maxWords+1):                                          strings.Repeat("x", maxWords) + "...",
	} {
		if got := lastWords(tail); got != want {
			t.Errorf("last words of %q: %q", tail, got)
		}
	}
	log := "{\"message\":\"hello\"}\n{\"message\":\"failed to install snapshot\",\"error\":\"it is damaged\"}\n"
	if got := aboutSnapshots(log); got != "failed to install snapshot: it is damaged" {
		t.Errorf("%q", got)
	}
}

func TestIsInstalled(t *testing.T) {
	record := func(index, flag byte) []byte {
		r := make([]byte, 60)
		r[indexByte+7], r[installedByte] = index, flag
		return r
	}
	if recordedIndex(record(7, 0)) != 7 || recordedIndex(nil) != 0 {
		t.Error("a record has another index")
	}
	for name, test := range map[string]struct {
		before, now []byte
		want        bool
	}{
		"none":         {nil, nil, false},
		"came":         {nil, record(1, 1), true},
		"came again":   {record(1, 1), record(2, 1), true},
		"was there":    {record(1, 1), record(1, 1), false},
		"its own":      {record(1, 1), record(2, 0), false},
		"half of it":   {nil, record(1, 1)[:20], false},
		"after it own": {record(1, 0), record(2, 1), true},
	} {
		if got := isInstalled(test.before, test.now); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestStruckIn(t *testing.T) {
	calls := "12 fsync(3) = -1 EIO (Input/output error) (INJECTED)\n13 fdatasync(4) = 0\n13 fsync(4) = 0 (DELAYED)\n12 <... fsync resumed>) = 0 (DELAYED)\n"
	if got := struckIn([]byte(calls)); got != 3 {
		t.Errorf("%d calls", got)
	}
}

// Calls of a process are counted that strace let fail or wait.
func TestTracer(t *testing.T) {
	f := testField()
	if !f.has(NeedTrace) {
		t.Skip("it needs " + string(NeedTrace))
	}
	process := exec.Command("sh", "-c", "while :; do sync; done")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = process.Process.Kill()
		_ = process.Wait()
	}()
	dir := t.TempDir()
	s, err := startTracer(dir, process.Process.Pid, "clone,clone3,vfork,fork", "delay_enter=1000")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.attached(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for count := 0; count < 3; {
		if count, err = s.struck(); err != nil || time.Now().After(deadline) {
			t.Fatalf("%d calls, %v: %s", count, err, s.said())
		}
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.forget(); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	s, err = startTracer(dir, 1<<30, "fsync", "delay_enter=1")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.attached(); err == nil {
		t.Error("there is no such process")
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
}
