// Package alloctest keeps hot functions from allocating more than they did. How long a
// function takes depends on the machine and on what else it does; how often it
// allocates does not, so a test can fail on it.
//
// A package lists its hot functions once, and gives the list to a benchmark, which
// shows times, and to a test, which compares allocations:
//
//	func BenchmarkHot(b *testing.B)     { alloctest.Bench(b, hotFunctions) }
//	func TestAllocations(t *testing.T) { alloctest.Check(t, hotFunctions) }
package alloctest

import "testing"

// Function is a hot function, as it is called in production.
type Function struct {
	Name string
	// Allocs is how many allocations a call may make: as many as were counted when it was
	// last changed, give or take [slack]. To raise it takes a reason, in the message of
	// the commit that does.
	Allocs int
	Call   func()
}

const (
	// calls is how many calls an average is taken over, rounded down: what happens in a
	// few of them, as when the garbage collector has emptied a pool, does not count.
	calls = 30
	// attempts is how often a count that is too high is taken again. Goroutines that are
	// still ending only ever add to it.
	attempts = 3
	// slack is the part of a bound by which a count may pass it. How often bbolt allocates
	// depends on where its pages split, which differs from run to run: by 3 % in the worst
	// one seen. Bounds under 20 are exact.
	slack = 20
)

// Check fails for each function that allocates more than it may. -v shows the counts.
func Check(t *testing.T, list func(testing.TB) []Function) {
	if raceDetector {
		t.Skip("the race detector allocates, too: .ci/run has a step without it")
	}
	for _, f := range list(t) {
		count, bound := 0, f.Allocs+f.Allocs/slack
		for range attempts {
			count = int(testing.AllocsPerRun(calls, f.Call))
			if count <= bound {
				break
			}
		}
		t.Logf("%s: %d of %d", f.Name, count, f.Allocs)
		if count > bound {
			t.Errorf("%s makes %d allocations, it may make %d", f.Name, count, bound)
		}
	}
}

// Bench measures each function.
func Bench(b *testing.B, list func(testing.TB) []Function) {
	for _, f := range list(b) {
		b.Run(f.Name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f.Call()
			}
		})
	}
}
