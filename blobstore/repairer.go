package blobstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/proto"
)

const (
	// repairTick is how often the leader looks for work while it has none.
	repairTick = time.Second
	// scanPage is how many extents are listed at once.
	scanPage = 500
	// scanExtents bounds what one look finds to do, and with it its memory. Of these
	// the extents with the fewest shards to spare come first; the next look goes on
	// where this one has ended. scanVain bounds what it goes by without finding anything
	// that is sure to help: extents that rest, are being worked on, wait for nodes, or
	// can't be read. Both bound how long it keeps a processor busy; each list has its
	// share of both, so that none keeps another waiting.
	scanExtents, scanVain = 20_000, 40_000
	// nodeRest is for how long a node that failed as a whole is given nothing.
	nodeRest = 10 * time.Second
	// Bounds of how long an extent rests that could not be repaired.
	extentRestMin, extentRestMax = 2 * time.Second, 5 * time.Minute
	// maxFailed bounds the extents that rest. Beyond it, all are tried again.
	maxFailed = 100_000
	// What a batch may take: a basis, and the time that its bytes take on a slow disk.
	batchTimeout       = 5 * time.Minute
	slowBytesPerSecond = 1 << 20
)

// RepairStatus is what the node that leads knows of the repair.
type RepairStatus struct {
	// Running is how many extents are being worked on, by node id.
	Running map[string]int `json:"running"`
	// Done and Failed count tasks since this node leads, DoneBytes what was written
	// by the former.
	Done      uint64 `json:"done"`
	DoneBytes uint64 `json:"done_bytes"`
	Failed    uint64 `json:"failed"`
	// Waiting is how many extents of the last look can't be repaired with the nodes
	// that there are, by reason.
	Waiting map[string]int `json:"waiting,omitempty"`
	// LastError is why a task failed last.
	LastError string `json:"last_error,omitempty"`
}

// extentKey is an extent's id.
type extentKey [ExtentIDBytes]byte

func keyOfExtent(e *proto.Extent) extentKey { return extentKey(e.GetId()) }

// repairer is the leader's part in repair: it finds extents that miss shards, or
// have some where they should not be, and has nodes work on them. All that it
// knows is in the records, so that the next leader goes on where it was. Its state
// is used by one goroutine.
type repairer struct {
	store *Store
	log   zerolog.Logger
	now   func() time.Time

	// busy are the nodes that have a batch, resting those that get none until then.
	busy    map[string][]job
	resting map[string]time.Time
	// inWork are the extents of all batches, failed those that rest.
	inWork map[extentKey]bool
	failed map[extentKey]failure
	// cursors are where lists go on, by list.
	cursors map[string][]byte
	results chan batchResult
	status  RepairStatus
	// improvable says that this pass over all extents has met one in a layout that a
	// new one would not get, or may not, and improving that one is being stored again.
	improvable, improving bool
	// vain is until when there is no use in looking for what could be better, by kind.
	vain map[string]time.Time
}

// failure is when to try an extent again, and how.
type failure struct {
	attempts int
	until    time.Time
	// nodes have failed since all that could do it were asked.
	nodes []string
}

// batchResult is the end of a batch.
type batchResult struct {
	node string
	errs []error
	err  error
}

// RepairCluster finds and mends what is wrong with the shards of the whole cluster,
// through the nodes that are to hold the result, until ctx ends. One node is
// enough: the leader.
func (s *Store) RepairCluster(ctx context.Context) {
	r := newRepairer(s)
	var running sync.WaitGroup
	defer running.Wait()
	defer s.repairStatus.Store(nil)
	ticker := time.NewTicker(repairTick)
	defer ticker.Stop()
	for {
		for node, jobs := range r.plan(ctx) {
			running.Go(func() {
				select {
				case r.results <- r.carryOut(ctx, node, jobs):
				case <-ctx.Done():
				}
			})
		}
		r.publish()
		select {
		case <-ctx.Done():
			return
		case result := <-r.results:
			r.settle(result)
		case <-ticker.C:
		}
	}
}

// RepairStatus returns how the repair is doing; ok is false on a node that does not
// lead.
func (s *Store) RepairStatus() (status RepairStatus, ok bool) {
	if now := s.repairStatus.Load(); now != nil {
		return *now, true
	}
	return RepairStatus{}, false
}

func newRepairer(s *Store) *repairer {
	return &repairer{
		store: s, log: s.log, now: time.Now,
		busy: make(map[string][]job), resting: make(map[string]time.Time),
		inWork: make(map[extentKey]bool), failed: make(map[extentKey]failure),
		cursors: make(map[string][]byte), results: make(chan batchResult), vain: make(map[string]time.Time),
	}
}

// publish makes a copy of the status for others.
func (r *repairer) publish() {
	status := r.status
	status.Running = make(map[string]int)
	for node, jobs := range r.busy {
		status.Running[node] = len(jobs)
	}
	status.Waiting = maps.Clone(r.status.Waiting)
	r.store.repairStatus.Store(&status)
}

// plan returns a batch for each node that has something to do and nothing yet.
// What is missing comes before what is to leave, and that before better layouts
// and balance, which are sought only while all else is well.
func (r *repairer) plan(ctx context.Context) map[string][]job {
	v := newSurvey(r.store.cfg, r.store.cluster.Nodes())
	idle := r.idle(v)
	if len(idle) == 0 || ctx.Err() != nil {
		return nil
	}
	batches, err := r.planRepair(v, idle)
	if err == nil && len(batches) == 0 && len(r.busy) == 0 && len(r.status.Waiting) == 0 && v.allWell() {
		batches, err = r.planImprovement(ctx, v, idle)
	}
	if err != nil {
		r.log.Warn().Err(err).Msg("could not look for extents to repair, trying again")
	}
	for node, jobs := range batches {
		r.busy[node] = jobs
		for _, j := range jobs {
			r.inWork[keyOfExtent(j.task.GetExtent())] = true
		}
	}
	return batches
}

// idle returns the nodes that can be given something.
func (r *repairer) idle(v *survey) map[string]bool {
	idle := make(map[string]bool)
	for _, node := range v.nodes {
		if node.Healthy && r.busy[node.ID] == nil && r.now().After(r.resting[node.ID]) {
			idle[node.ID] = true
		}
	}
	return idle
}

// allWell says that every node answers and stays.
func (v *survey) allWell() bool {
	return !slices.ContainsFunc(v.nodes, func(n NodeInfo) bool { return !n.Healthy || n.Down || n.Draining })
}

// planRepair looks for extents that miss shards or have some that are to leave.
func (r *repairer) planRepair(v *survey, idle map[string]bool) (map[string][]job, error) {
	r.status.Waiting = make(map[string]int)
	b := newBatches(idle)
	seen := make(map[extentKey]bool)
	lists := r.lists(v)
	for _, list := range lists {
		found, vain := 0, 0
		err := r.scan(list, func(extent *proto.Extent) bool {
			if key := keyOfExtent(extent); !seen[key] && r.consider(v, extent, b) {
				found++
			} else {
				vain++
			}
			seen[keyOfExtent(extent)] = true
			return found < scanExtents/len(lists) && vain < scanVain/len(lists)
		})
		if err != nil {
			return nil, err
		}
	}
	return b.cut(), nil
}

// lists are those with all extents that may need something.
func (r *repairer) lists(v *survey) []extentList {
	lists := []extentList{{name: "degraded", page: r.store.catalog.DegradedExtents}}
	for _, node := range v.nodes {
		if node.Down || node.Draining {
			lists = append(lists, extentList{name: node.ID, page: func(after []byte, limit int) ([]*proto.Extent, error) {
				return r.store.catalog.ExtentsOn(node.ID, after, limit)
			}})
		}
	}
	return lists
}

// consider adds the job that an extent needs, and says whether that is one that
// should succeed.
func (r *repairer) consider(v *survey, extent *proto.Extent, b *batches) bool {
	if !r.mayTry(extent) {
		return false
	}
	switch what, todo, why := v.plan(extent, r.failed[keyOfExtent(extent)]); what {
	case needNothing:
		return false
	case needNode:
		r.status.Waiting[waitingFor(why)]++
		return false
	default:
		b.add(*todo)
		return !todo.hopeless()
	}
}

// waitingFor says in a few words why an extent can't be repaired now.
func waitingFor(why error) string {
	switch {
	case errors.Is(why, ErrNoSpace):
		return "no room on the nodes that could take it"
	case errors.Is(why, ErrInsufficientNodes):
		return "too few healthy nodes"
	}
	return "its record makes no sense"
}

// extentList is a list that is taken in page by page.
type extentList struct {
	name string
	page func(after []byte, limit int) ([]*proto.Extent, error)
}

// scan shows extents of a list, from where the last scan of it has ended, once
// around, until take has enough.
func (r *repairer) scan(list extentList, take func(*proto.Extent) bool) error {
	start := r.cursors[list.name]
	wrapped := start == nil
	for after := start; ; {
		extents, err := list.page(after, scanPage)
		if err != nil {
			return fmt.Errorf("list extents: %w", err)
		}
		for _, extent := range extents {
			after = extent.GetId()
			if wrapped && start != nil && bytes.Compare(after, start) > 0 {
				return nil // all around
			}
			r.cursors[list.name] = after
			if !take(extent) {
				return nil
			}
		}
		if len(extents) < scanPage {
			delete(r.cursors, list.name)
			if wrapped {
				return nil
			}
			wrapped, after = true, nil
		}
	}
}

// mayTry says whether nobody works on the extent, and it has rested if it failed.
func (r *repairer) mayTry(extent *proto.Extent) bool {
	key := keyOfExtent(extent)
	return !r.inWork[key] && !r.now().Before(r.failed[key].until)
}

// carryOut has a node do its batch.
func (r *repairer) carryOut(ctx context.Context, node string, jobs []job) batchResult {
	tasks, size := make([]*proto.RepairTask, len(jobs)), int64(0)
	for i, j := range jobs {
		tasks[i], size = j.task, size+j.bytes
	}
	slowest := int64(slowBytesPerSecond)
	if limit := int64(r.store.catalog.LocalSettings().GetRepairBytesPerSecond()); limit > 0 {
		slowest = min(slowest, limit/2+1)
	}
	ctx, cancel := context.WithTimeout(ctx, batchTimeout+time.Duration(size/slowest)*time.Second)
	defer cancel()
	errs, err := r.store.repairOn(ctx, node, tasks)
	return batchResult{node: node, errs: errs, err: err}
}

// settle draws the conclusions from a batch that has ended.
func (r *repairer) settle(result batchResult) {
	jobs := r.busy[result.node]
	delete(r.busy, result.node)
	var last error
	failed := 0
	for i, j := range jobs {
		key := keyOfExtent(j.task.GetExtent())
		delete(r.inWork, key)
		err := result.err // All rest then, or the same batch would be tried next.
		if err == nil {
			err = result.errs[i]
		}
		if err != nil {
			failed, last = failed+1, err
			r.rest(key, result.node)
			continue
		}
		delete(r.failed, key)
		r.status.Done++
		r.status.DoneBytes += uint64(j.bytes)
	}
	r.status.Failed += uint64(failed)
	if result.err != nil {
		r.resting[result.node] = r.now().Add(nodeRest)
	}
	if last != nil {
		r.status.LastError = last.Error()
		r.log.Warn().Err(last).Str("peer", result.node).Int("extents", len(jobs)).Int("failed", failed).Msg("repair failed, trying again later")
		return
	}
	r.log.Info().Str("peer", result.node).Int("extents", len(jobs)).Msg("extents repaired")
}

// rest keeps an extent that failed from being tried again at once, and then on the
// same node if there are others.
func (r *repairer) rest(key extentKey, node string) {
	if len(r.failed) >= maxFailed {
		clear(r.failed)
	}
	before := r.failed[key]
	pause := min(extentRestMin<<min(before.attempts, 10), extentRestMax)
	nodes := before.nodes
	if slices.Contains(nodes, node) { // It was asked again, so there is no other.
		nodes = nil
	}
	r.failed[key] = failure{attempts: before.attempts + 1, until: r.now().Add(pause), nodes: append(nodes, node)}
}
