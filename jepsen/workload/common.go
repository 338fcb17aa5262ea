package workload

import (
	"context"
	"fmt"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
)

const (
	// clientPause is between two operations of a client.
	clientPause = 250 * time.Millisecond
	// finalBound is for how long a node of the healed cluster may refuse the last reads.
	finalBound = 60 * time.Second
	// finalPause is between two tries of a last read, at most.
	finalPause = 200 * time.Millisecond
	// finalTries is how many tries a last read has at least: on a busy machine one may take all of
	// the time.
	finalTries = 5
	// leastOperations is how many operations a second a run of one of these workloads has, faults
	// included: a tenth or less of what its clients can do.
	leastOperations = 1.0
)

// common is what the workloads on tags have in common.
type common struct {
	name     string
	pause    time.Duration
	patience time.Duration // finalBound, but in tests
	found    *findings
}

func newCommon(name string) common {
	return common{name: name, pause: clientPause, patience: finalBound, found: &findings{workload: name}}
}

// Name implements Workload.
func (c *common) Name() string { return c.name }

// MinimumOps implements Workload.
func (c *common) MinimumOps() float64 { return leastOperations }

// askAll reads each key from each node after the run, and records what they said: read
// does one try, and is called again until the operation is OK. A node that does not
// come to answer is an anomaly. It fails if ctx ends.
func (c *common) askAll(ctx context.Context, env *Env, keys []string, read func(ctx context.Context, s *Session, key string) *history.Op) error {
	for i, node := range env.Nodes() {
		s := &Session{Env: env, Workload: c.name, Client: i, Rand: env.Rand(c.name+" end", i), Faithful: i}
		for _, key := range keys {
			op := c.ask(ctx, s, key, read)
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("%s: last read of %s: %w", c.name, key, err)
			}
			if op.Outcome != history.OK {
				c.found.add(Refused, "%s: node %s did not answer the last read for %s, without a fault: status %d, %s", key, node.Name, c.patience, op.Status, op.Error)
				break
			}
			env.History.Add(*op)
		}
	}
	return nil
}

// ask repeats a read until it is answered, finalTries times and for as long as patience lasts. It
// returns the last try.
func (c *common) ask(ctx context.Context, s *Session, key string, read func(ctx context.Context, s *Session, key string) *history.Op) *history.Op {
	end := s.History.Now() + c.patience
	for try := 1; ; try++ {
		op := read(ctx, s, key)
		if op.Outcome == history.OK || try >= finalTries && s.History.Now() > end || !s.Pause(ctx, min(finalPause, c.pause)) {
			return op
		}
	}
}
