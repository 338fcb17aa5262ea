// Package workload has what clients do to a cluster under test, and how what they were
// told is judged. A workload knows only addresses and HTTP.
package workload

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/atollregistry/atoll/jepsen/history"
	"github.com/atollregistry/atoll/jepsen/registry"
)

// Workload drives clients, and judges afterwards. An object is for one run.
type Workload interface {
	// Name is how the command line calls it, and what its operations bear.
	Name() string
	// Run drives its clients until ctx ends; operations under way may take their time
	// still. It fails only if the workload itself can't go on.
	Run(ctx context.Context, env *Env) error
	// Look takes the last looks at every node, and appends them to the history. It is called once,
	// after Run has returned, and only if the cluster is healed and has recovered. It fails if
	// it can't take all looks; what a node does not answer is no failure, but is judged.
	Look(ctx context.Context, env *Env) error
	// Judge judges the whole history, and returns what was found on the way as well. It is called
	// once, after Run, and after Look if that was called, well ended or not; it asks no node. If it can't
	// come to a judgement on everything it fails, and returns what it has found all the same.
	Judge(ctx context.Context, env *Env) ([]Anomaly, error)
	// MinimumOps is how many operations a second must be acknowledged, so that a run counts at all.
	MinimumOps() float64
}

// Anomaly is something that must not happen.
type Anomaly struct {
	Workload string `json:"workload"`
	// Kind is one of the constants below.
	Kind string `json:"kind"`
	// What says which, in words, with keys and times.
	What string `json:"what"`
}

// The kinds of anomalies.
const (
	// NotLinearizable: no order of the operations explains what clients were told.
	NotLinearizable = "not linearizable"
	// Lost: what was acknowledged is not there.
	Lost = "lost"
	// Stale: what was acknowledged was not there at some time after it, and was later.
	Stale = "stale"
	// WrongBytes: a reply ended well and had other bytes than it should.
	WrongBytes = "wrong bytes"
	// Dangling: a manifest is visible whose blobs are not readable.
	Dangling = "dangling"
	// Torn: of what is to be done whole or not at all a part was done.
	Torn = "torn"
	// Refused: what must be possible was refused, and not for want of nodes.
	Refused = "refused"
	// TooLittle: the run shows nothing, since what is to be shown did not happen.
	TooLittle = "too little was done"
)

// Node is a node as clients see it.
type Node struct {
	Name string
	// URL is where its registry port is, without a slash at the end.
	URL string
}

// Env is what a workload has at hand.
type Env struct {
	Client  *registry.Client
	History *history.Log
	Seed    uint64
	// Nodes returns all nodes that are meant to run, whether or not they do now.
	Nodes func() []Node
	// Ready returns those that a balancer would send clients to.
	Ready func() []Node
	// Dir is a folder for files worth keeping, "" for none.
	Dir string
	// Log tells the user something worth reading.
	Log func(format string, args ...any)
}

// Rand returns the random numbers of one client. The same seed gives the same numbers.
func (e *Env) Rand(workload string, client int) *rand.Rand {
	sum := uint64(14695981039346656037) // FNV-1a
	for _, b := range []byte(workload) {
		sum = (sum ^ uint64(b)) * 1099511628211
	}
	return rand.New(rand.NewPCG(e.Seed, sum+uint64(client)))
}

// Session is one client of a workload. It is for one goroutine.
type Session struct {
	*Env
	Workload string
	Client   int
	Rand     *rand.Rand
	// Balanced sends each request to a node that is ready, as a client behind a balancer;
	// otherwise the client is faithful to one node during a step, up or down: the one at this place
	// of Nodes, which is counted around.
	Balanced bool
	Faithful int
}

// Choose returns the node for the next request.
func (s *Session) Choose() Node {
	all := s.Nodes()
	if !s.Balanced {
		return all[s.Faithful%len(all)]
	}
	if ready := s.Ready(); len(ready) > 0 {
		all = ready
	}
	return all[s.Rand.IntN(len(all))]
}

// Do sends one request to the node that Choose returns; path begins with a slash. A
// balanced client takes another node when there is no connection to the first one, which
// is what balancers do; nothing was sent then. op gets node, times, status and error, but not
// its outcome, and is not recorded yet.
func (s *Session) Do(ctx context.Context, op *history.Op, method, path string, body []byte, header ...string) (*registry.Reply, error) {
	op.Workload, op.Client, op.Balanced = s.Workload, s.Client, s.Balanced
	op.Call = s.History.Now()
	defer func() { op.Return = s.History.Now() }()
	for try := 0; ; try++ {
		node := s.Choose()
		op.Node = node.Name
		reply, err := s.Env.Client.Do(ctx, method, node.URL+path, body, header...)
		if err != nil && registry.NotSent(err) && s.Balanced && try < len(s.Nodes()) && ctx.Err() == nil {
			continue
		}
		op.Status, op.Error = 0, ""
		if reply != nil {
			op.Status = reply.Status
		}
		if err != nil {
			op.Error = err.Error()
		} else if reply.Status >= 400 {
			op.Error = string(reply.Body[:min(len(reply.Body), 300)])
		}
		return reply, err
	}
}

// Pause waits, for half of d to one and a half of it, or until ctx ends; it says whether to go on.
func (s *Session) Pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d/2 + time.Duration(s.Rand.Int64N(int64(d))))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}

// drive runs clients side by side until ctx ends: each repeats step, with a pause between.
// Every second client is balanced; the others are faithful to one node, another in each step. Steps get a
// context that outlives ctx, so that what has begun comes to its own end. It returns the first error of a step.
func drive(ctx context.Context, env *Env, workload string, clients int, pause time.Duration, step func(ctx context.Context, s *Session) error) error {
	var all sync.WaitGroup
	failed := make(chan error, clients)
	for client := range clients {
		s := &Session{Env: env, Workload: workload, Client: client, Rand: env.Rand(workload, client), Balanced: client%2 == 1}
		all.Go(func() {
			for s.Pause(ctx, pause) {
				s.Faithful = s.Rand.IntN(len(env.Nodes()))
				if err := step(context.WithoutCancel(ctx), s); err != nil {
					failed <- fmt.Errorf("%s, client %d: %w", workload, s.Client, err)
					return
				}
			}
		})
	}
	all.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}
