package workload

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// maxFindings bounds how many anomalies of one kind of one workload are told one by one. More
// of them would say no more.
const maxFindings = 100

// findings are the anomalies that a workload has come upon, while its clients ran or after. It
// may be used from many goroutines.
type findings struct {
	workload string

	mu     sync.Mutex // guards all below
	seen   []Anomaly
	counts map[string]int // by kind, with those that are not told
}

// add notes an anomaly.
func (f *findings) add(kind, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.counts == nil {
		f.counts = map[string]int{}
	}
	if f.counts[kind]++; f.counts[kind] <= maxFindings {
		f.seen = append(f.seen, Anomaly{Workload: f.workload, Kind: kind, What: fmt.Sprintf(format, args...)})
	}
}

// all returns what was found.
func (f *findings) all() []Anomaly {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := slices.Clone(f.seen)
	told := map[string]bool{} // kinds whose last anomaly says how many more there were
	for i := range slices.Backward(seen) {
		kind := seen[i].Kind
		if more := f.counts[kind] - maxFindings; more > 0 && !told[kind] {
			seen[i].What += fmt.Sprintf(" (and %d more anomalies of this kind)", more)
			told[kind] = true
		}
	}
	return seen
}

// seconds is how times are told.
func seconds(d time.Duration) string { return fmt.Sprintf("%.3fs", d.Seconds()) }
