package blobstore

import (
	"cmp"
	"slices"
)

const (
	// batchBytes bounds what a node is given at once, so that what becomes urgent
	// meanwhile does not wait for long.
	batchBytes = 1 << 30
	// batchHopeless bounds the extents of a batch that can't be read now. Each may take
	// seconds to fail, at the cost of those that can be saved.
	batchHopeless = 16
)

// batches are jobs by node.
type batches struct {
	idle map[string]bool
	jobs map[string][]job
	size map[string]int64
}

func newBatches(idle map[string]bool) *batches {
	return &batches{idle: idle, jobs: make(map[string][]job), size: make(map[string]int64)}
}

// add takes a job whose node is idle. Another one is found again by a later look.
func (b *batches) add(j job) {
	if b.idle[j.node] {
		b.jobs[j.node] = append(b.jobs[j.node], j)
		b.size[j.node] += j.bytes
	}
}

// full says that a node has as much as it may be given.
func (b *batches) full() bool {
	for node, jobs := range b.jobs {
		if len(jobs) >= maxRepairTasks || b.size[node] >= batchBytes {
			return true
		}
	}
	return false
}

// cut returns for each node what comes first, as much as it may be given at once.
func (b *batches) cut() map[string][]job {
	for node, jobs := range b.jobs {
		slices.SortStableFunc(jobs, func(x, y job) int { return cmp.Compare(x.rank(), y.rank()) })
		take, size, hopeless := 0, int64(0), 0
		for take < min(len(jobs), maxRepairTasks) && (take == 0 || size+jobs[take].bytes <= batchBytes) {
			if jobs[take].hopeless() {
				hopeless++
			}
			if hopeless > batchHopeless {
				break
			}
			size += jobs[take].bytes
			take++
		}
		b.jobs[node] = jobs[:take]
	}
	return b.jobs
}
