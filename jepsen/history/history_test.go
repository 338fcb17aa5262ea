package history

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func create(t *testing.T) (*Log, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "history.jsonl")
	l, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return l, path
}

func readFile(t *testing.T, path string) ([]Op, []Fault, error) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	return Read(file)
}

func TestRoundTrip(t *testing.T) {
	l, path := create(t)
	ops := []Op{
		{Workload: "tags", Client: 3, Kind: "put", Key: "a/b:c", Input: "<1>", Output: "é\n\"", Node: "n2", Balanced: true,
			Call: 5, Return: 9, Outcome: OK, Status: 201},
		{Workload: "tags", Kind: "get", Call: l.Now(), Return: l.Now(), Outcome: Unknown, Error: "EOF"},
		{Outcome: Fail},
	}
	for _, op := range ops {
		l.Add(op)
	}
	l.BeginFault("kill", "n1")("process 7 is gone", "<none> is left")
	l.BeginFault("wipe", "n4") // lasts
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	gotOps, gotFaults, err := readFile(t, path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(gotOps, ops) || !reflect.DeepEqual(gotOps, l.Ops()) {
		t.Errorf("ops read back: %+v", gotOps)
	}
	if !reflect.DeepEqual(gotFaults, l.Faults()) || len(gotFaults) != 2 || gotFaults[1].End != 0 ||
		gotFaults[0].Effect != "process 7 is gone; <none> is left" {
		t.Errorf("faults read back: %+v", gotFaults)
	}
}

func TestConcurrent(t *testing.T) {
	const writers, each = 8, 200
	l, path := create(t)
	var all sync.WaitGroup
	for client := range writers {
		all.Go(func() {
			for range each {
				end := l.BeginFault("kill", "n1")
				l.Add(Op{Client: client, Call: l.Now(), Return: l.Now(), Outcome: OK})
				end()
				if ops := l.Ops(); len(ops) == 0 || len(l.Faults()) == 0 {
					t.Error("what was added is not there")
				}
			}
		})
	}
	all.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ops, faults, err := readFile(t, path)
	if err != nil || len(ops) != writers*each || len(faults) != writers*each {
		t.Fatalf("%d ops and %d faults read, %v", len(ops), len(faults), err)
	}
	seen := map[int]int{}
	for _, op := range ops {
		seen[op.Client]++
	}
	for client := range writers {
		if seen[client] != each {
			t.Errorf("client %d has %d operations", client, seen[client])
		}
	}
}

func TestFaultEndsOnce(t *testing.T) {
	l, path := create(t)
	end := l.BeginFault("pause", "n1")
	if fault := l.Faults()[0]; fault.End != 0 {
		t.Errorf("a fault that lasts has an end: %+v", fault)
	}
	end("stood still")
	first := l.Faults()[0]
	if first.End < first.Begin || first.End == 0 {
		t.Errorf("fault %+v", first)
	}
	end("another")
	if again := l.Faults()[0]; again != first {
		t.Errorf("the second end counts: %+v, was %+v", again, first)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, faults, err := readFile(t, path); err != nil || !slices.Equal(faults, []Fault{first}) {
		t.Errorf("file has %+v, %v", faults, err)
	}
}

func TestReturnedSlicesAreCopies(t *testing.T) {
	l, _ := create(t)
	defer l.Close()
	l.Add(Op{Key: "a"})
	end := l.BeginFault("kill", "n1")
	defer end()
	l.Ops()[0].Key = "b"
	l.Faults()[0].Kind = "b"
	if l.Ops()[0].Key != "a" || l.Faults()[0].Kind != "kill" {
		t.Error("what a caller changed has changed the log")
	}
}

func TestWriteErrors(t *testing.T) {
	if _, err := Create(filepath.Join(t.TempDir(), "none", "history")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Create in no folder: %v", err)
	}
	for name, fill := range map[string]int{"at the flush": 1, "at a write": 10000} {
		t.Run(name, func(t *testing.T) {
			l, _ := create(t)
			if err := l.file.Close(); err != nil {
				t.Fatal(err)
			}
			for range fill {
				l.Add(Op{Key: "a"})
			}
			if err := l.Close(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("Close of a log whose file was closed: %v", err)
			}
			if len(l.Ops()) != fill {
				t.Error("operations are lost from memory")
			}
		})
	}
	t.Run("full disk", func(t *testing.T) {
		if _, err := os.Stat("/dev/full"); err != nil {
			t.Skip(err)
		}
		l, err := Create("/dev/full")
		if err != nil {
			t.Fatal(err)
		}
		l.Add(Op{Key: "a"})
		if err := l.Close(); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("Close on a full disk: %v", err)
		}
	})
}

func TestRead(t *testing.T) {
	const op, fault = `{"op":{"workload":"w"}}`, `{"fault":{"kind":"kill"}}`
	for _, c := range []struct {
		name, file string
		ops        int
		faults     int
		truncated  bool
		want       string // in the error
	}{
		{name: "empty"},
		{name: "whole", file: op + "\n" + fault + "\n", ops: 1, faults: 1},
		{name: "only the line feed is cut off", file: op + "\n" + op, ops: 2},
		{name: "cut off", file: op + "\n" + fault + "\n" + op[:9], ops: 1, faults: 1, truncated: true, want: "line 3"},
		{name: "cut off at once", file: "{", truncated: true, want: "line 1"},
		{name: "broken in the middle", file: op + "\n" + op[:9] + "\n" + op + "\n", ops: 1, want: "line 2"},
		{name: "broken at the end, but whole", file: op + "\n" + op[:9] + "\n", ops: 1, want: "line 2"},
		{name: "something else", file: op + "\n" + `{"gap":1}` + "\n", ops: 1, want: "line 2: neither"},
		{name: "too long", file: op + "\n" + strings.Repeat(" ", maxLine+1) + "\n", ops: 1, want: "line 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ops, faults, err := Read(strings.NewReader(c.file))
			if len(ops) != c.ops || len(faults) != c.faults {
				t.Errorf("%d ops, %d faults", len(ops), len(faults))
			}
			if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if errors.Is(err, ErrTruncated) != c.truncated {
				t.Errorf("said to be truncated: %v", err)
			}
		})
	}
}

// s makes a time of seconds.
func s(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }
