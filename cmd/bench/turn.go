package bench

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// errorPause is how long a client waits after an operation that failed: a registry that
// refuses everything is not to be asked as fast as this machine can.
const errorPause = 20 * time.Millisecond

// Turn is what was measured between two looks at the clock. Operations that failed
// count nowhere but in Failed and Errors.
type Turn struct {
	// Seconds is the time from the first operation's beginning to the last one's end.
	Seconds    float64 `json:"seconds"`
	Operations int     `json:"operations"`
	Failed     int     `json:"failed"`
	// Bytes of blobs that were moved.
	Bytes int64 `json:"bytes"`
	Latency
	Errors []Fault `json:"errors,omitempty"`
	// Servers is what the registry's processes took, nil if none were named, or one of
	// them has ended, as ServersError says then.
	Servers      *Usage `json:"servers,omitempty"`
	ServersError string `json:"servers_error,omitempty"`
	// Client is what this process took, on Linux.
	Client *Usage `json:"client,omitempty"`
}

// span is when operations may begin.
type span struct {
	duration time.Duration
	// operations is how many may.
	operations int
}

// tally is what one client has done, or all together.
type tally struct {
	took   []time.Duration
	moved  int64
	failed int
	faults faults
}

func (a *tally) merge(b tally) {
	a.took = append(a.took, b.took...)
	a.moved, a.failed = a.moved+b.moved, a.failed+b.failed
	a.faults.merge(b.faults)
}

// run has all clients do operations, one after the other each, and returns when the
// last that has begun in the span has ended.
func (t *target) run(ctx context.Context, w work, s span) (total tally) {
	clients := t.config.Clients
	if w.alone {
		clients = 1
	}
	var begun atomic.Int64
	end := time.Now().Add(s.duration)
	tallies := make([]tally, clients)
	var running sync.WaitGroup
	for i := range tallies {
		running.Go(func() {
			for ctx.Err() == nil && time.Now().Before(end) && begun.Add(1) <= int64(s.operations) {
				t.operate(ctx, w, &tallies[i])
			}
		})
	}
	running.Wait()
	for _, one := range tallies {
		total.merge(one)
	}
	return total
}

// operate does one operation.
func (t *target) operate(ctx context.Context, w work, result *tally) {
	bounded, cancel := context.WithTimeout(ctx, t.config.Timeout)
	defer cancel()
	began := time.Now()
	moved, err := w.operation(bounded, t.next.Add(1)-1)
	took := time.Since(began)
	switch {
	case err == nil:
		result.took = append(result.took, took)
		result.moved += moved
	case ctx.Err() == nil: // otherwise the run has ended, which is nobody's fault
		result.failed++
		result.faults.add(err)
		select {
		case <-time.After(errorPause):
		case <-ctx.Done():
		}
	}
}

// turn does one turn: the user's command, warm-up, and the measured time.
func (t *target) turn(ctx context.Context, w work) (Turn, error) {
	if err := t.runBefore(ctx); err != nil {
		return Turn{}, err
	}
	servers, err := findProcesses(procFolder, t.Processes)
	if err != nil {
		return Turn{}, err
	}
	// The servers may be others now, or have closed what was idle.
	t.client.http.CloseIdleConnections()
	if w.heat != nil {
		if err := w.heat(ctx); err != nil {
			return Turn{}, err
		}
	}
	if !t.config.Cold {
		t.run(ctx, w, span{t.config.WarmUp, MaxOperations})
	}
	s := span{t.config.Duration, t.config.Count}
	if w.most > 0 {
		s.operations = min(s.operations, w.most)
	}
	return t.measure(ctx, w, s, servers)
}

// measure is the part of a turn that counts.
func (t *target) measure(ctx context.Context, w work, s span, servers processes) (Turn, error) {
	ofServers, err := servers.meter(ctx)
	if err != nil {
		return Turn{}, err
	}
	ofClient, err := thisProcess().meter(ctx)
	if err != nil {
		return Turn{}, err
	}
	began := time.Now()
	total := t.run(ctx, w, s)
	turn := Turn{
		Seconds: time.Since(began).Seconds(), Operations: len(total.took), Failed: total.failed, Bytes: total.moved,
		Latency: latencyOf(total.took), Errors: total.faults.sorted(),
	}
	if turn.Servers, err = ofServers.stop(); err != nil {
		turn.ServersError = err.Error()
	}
	if turn.Client, err = ofClient.stop(); err != nil {
		return Turn{}, err
	}
	return turn, ctx.Err()
}
