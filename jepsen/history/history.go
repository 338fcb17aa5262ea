// Package history records what clients asked of a cluster, what they were told, and
// what was done to the cluster meanwhile, all by one clock.
package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Outcome says what a client knows about an operation after it.
type Outcome string

const (
	// OK: it was done, and the client was told so.
	OK Outcome = "ok"
	// Fail: it was not done and never will be, and the client was told so.
	Fail Outcome = "fail"
	// Unknown: it may have been done, or may be done at any later time. A read that
	// told nothing is unknown as well.
	Unknown Outcome = "unknown"
)

// Op is one operation of one client. Its strings mean what the workload says that they do.
type Op struct {
	// Workload and Client say who asked. A client has one operation at a time.
	Workload string `json:"workload"`
	Client   int    `json:"client"`
	// Kind is what was asked: put, get, cas, ...
	Kind string `json:"kind"`
	// Key is what it was asked of: operations with different keys do not depend on
	// each other.
	Key string `json:"key"`
	// Input is what was asked for, Output what was told.
	Input  string `json:"input,omitempty"`
	Output string `json:"output,omitempty"`
	// Node is the name of the node that was asked last.
	Node string `json:"node,omitempty"`
	// Balanced says that the client talked to whichever node a balancer would have
	// chosen, so that a node's death is no excuse.
	Balanced bool `json:"balanced,omitempty"`
	// Call and Return are times since the log was begun.
	Call   time.Duration `json:"call_ns"`
	Return time.Duration `json:"return_ns"`

	Outcome Outcome `json:"outcome"`
	// Status is that of the last HTTP reply, 0 if there was none.
	Status int    `json:"status,omitempty"`
	Error  string `json:"error,omitempty"`
}

// Fault is something that was done to the cluster.
type Fault struct {
	// Kind names the fault as in the list of nemeses, Target the nodes or links.
	Kind   string `json:"kind"`
	Target string `json:"target"`
	// Begin is when it began, End when it was healed, both since the log was begun;
	// End is 0 while it lasts.
	Begin time.Duration `json:"begin_ns"`
	End   time.Duration `json:"end_ns"`
	// Effect says in words what was seen to come of it, NoEffect if that was nothing: the
	// fault shows nothing then. It is empty while the fault lasts, and if nobody looked.
	Effect string `json:"effect,omitempty"`
}

// Names says whether a node is among the targets.
func (f Fault) Names(node string) bool { return slices.Contains(strings.Split(f.Target, ","), node) }

// NoEffect is the effect of a fault of which nothing came.
const NoEffect = "none"

// line is one line of the file.
type line struct {
	Op    *Op    `json:"op,omitempty"`
	Fault *Fault `json:"fault,omitempty"`
}

// Log is a history in the making. It may be used from many goroutines.
type Log struct {
	start time.Time

	mu     sync.Mutex // guards all below
	file   *os.File
	out    *bufio.Writer
	ops    []Op
	faults []*Fault
	err    error // the first error of a write to the file
}

// Create begins a history that is kept in a file, a line of JSON for each operation
// when it has returned, and for each fault when it has ended, or at the close.
func Create(path string) (*Log, error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	return &Log{start: time.Now(), file: file, out: bufio.NewWriter(file)}, nil
}

// Now returns the time since the log was begun.
func (l *Log) Now() time.Duration { return time.Since(l.start) }

// Since returns how long after the beginning of the log a moment is.
func (l *Log) Since(t time.Time) time.Duration { return t.Sub(l.start) }

// Add records an operation that has returned.
func (l *Log) Add(op Op) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ops = append(l.ops, op)
	l.write(line{Op: &op})
}

// BeginFault records the beginning of a fault, and end its healing with what was seen to
// come of the fault. Only the first call of end counts.
func (l *Log) BeginFault(kind, target string) (end func(effects ...string)) {
	fault := &Fault{Kind: kind, Target: target, Begin: l.Now()}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = append(l.faults, fault)
	return func(effects ...string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if fault.End != 0 {
			return
		}
		fault.End, fault.Effect = l.Now(), strings.Join(effects, "; ")
		l.write(line{Fault: fault})
	}
}

func (l *Log) write(one line) {
	encoded, err := json.Marshal(one)
	if err == nil {
		_, err = l.out.Write(append(encoded, '\n'))
	}
	if l.err == nil {
		l.err = err
	}
}

// Ops returns what has returned so far, in that order.
func (l *Log) Ops() []Op {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.ops)
}

// Faults returns what was done so far, in the order in which it began.
func (l *Log) Faults() []Fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	faults := make([]Fault, len(l.faults))
	for i, fault := range l.faults {
		faults[i] = *fault
	}
	return faults
}

// Close completes the file, with the faults that have not ended. It fails if any line could
// not be written. Nothing may be recorded after it.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, fault := range l.faults {
		if fault.End == 0 {
			l.write(line{Fault: fault})
		}
	}
	if err := errors.Join(l.err, l.out.Flush(), l.file.Close()); err != nil {
		return fmt.Errorf("history: %w", err)
	}
	return nil
}
