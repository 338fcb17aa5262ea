package bench

import (
	"math"
	"slices"
	"time"
)

// Latency is how long operations took, exactly: each one's time is kept, which
// MaxOperations bounds.
type Latency struct {
	P50 float64 `json:"p50_seconds"`
	P99 float64 `json:"p99_seconds"`
	Max float64 `json:"max_seconds"`
}

// latencyOf sorts the times that it is given.
func latencyOf(took []time.Duration) Latency {
	slices.Sort(took)
	return Latency{P50: percentile(took, 50), P99: percentile(took, 99), Max: percentile(took, 100)}
}

// percentile is the shortest time, in seconds, within which at least so many in a
// hundred operations were done (the nearest rank: always a time that was measured).
func percentile(sorted []time.Duration, percent float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(percent / 100 * float64(len(sorted))))
	return sorted[max(rank, 1)-1].Seconds()
}

// median of some numbers, which are left as they are; 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}
