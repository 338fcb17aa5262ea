package blobstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/atollregistry/atoll/proto"
)

// maxRepairTasks bounds the tasks that a node is given at once, and with them the
// moves of one command.
const maxRepairTasks = 1000

// cutOffWait is how long a batch that is cut off waits for its tasks, which end soon
// unless a disk hangs.
const cutOffWait = time.Second

// Repair carries out tasks on this node, as many at once as the settings say, and
// records what it has done. It returns one error for each task, nil for those that
// are done, and ErrClosed or ErrInvalid if it did nothing. When ctx ends it returns,
// with ErrDisk if tasks hang in a disk: those are left behind.
//
// A shard is durable before it is recorded. Whoever dies in between leaves a file
// that no record names, which the sweep takes, or a later task finds and uses.
func (s *Store) Repair(ctx context.Context, tasks []*proto.RepairTask) ([]error, error) {
	if len(tasks) > maxRepairTasks {
		return nil, fmt.Errorf("%d repair tasks at once, more than %d: %w", len(tasks), maxRepairTasks, ErrInvalid)
	}
	working, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	batch := make(chan []error, 1)
	go func() { // Ends with working, or when the disk answers; Close waits for it.
		defer end()
		batch <- s.repairAll(working, tasks)
	}()
	select {
	case errs := <-batch:
		return errs, nil
	case <-working.Done():
	}
	timer := time.NewTimer(cutOffWait)
	defer timer.Stop()
	select {
	case errs := <-batch:
		return errs, nil
	case <-timer.C:
		return nil, fmt.Errorf("carry out %d repair tasks: not all have ended %s after they were cut off: %w", len(tasks), cutOffWait, ErrDisk)
	}
}

// repairAll carries out tasks and returns one error for each.
func (s *Store) repairAll(ctx context.Context, tasks []*proto.RepairTask) []error {
	errs := make([]error, len(tasks))
	moves := &moveBatch{catalog: s.catalog}
	var group errgroup.Group
	group.SetLimit(int(max(1, s.catalog.LocalSettings().GetRepairConcurrency())))
	for i, task := range tasks {
		group.Go(func() error {
			if errs[i] = ctx.Err(); errs[i] == nil {
				errs[i] = s.repairOne(ctx, task, moves)
			}
			return nil
		})
	}
	_ = group.Wait() // The errors are in errs.
	if err := moves.record(ctx); err != nil {
		for i, task := range tasks {
			if !task.GetReencode() && errs[i] == nil {
				errs[i] = err
			}
		}
	}
	return errs
}

// repairOne carries out a task. The move of a shard is left to the batch.
func (s *Store) repairOne(ctx context.Context, task *proto.RepairTask, moves *moveBatch) error {
	extent, number := task.GetExtent(), int(task.GetShardNumber())
	if task.GetReencode() {
		return s.replaceExtent(ctx, extent)
	}
	era := s.catalog.Era() // before the sweep can see the shard's file
	if err := s.rebuildShard(ctx, extent, number); err != nil {
		return err
	}
	return moves.add(ctx, &proto.ShardMove{
		ExtentId: extent.GetId(), ShardNumber: uint32(number), From: extent.GetHolders()[number], To: s.cluster.Self(), Era: era,
	})
}

// replaceExtent stores an extent again and records what it has become. It fails with
// ErrInsufficientNodes if nothing is gained by that: the leader may reach nodes that
// this one does not, and would ask for it again and again.
func (s *Store) replaceExtent(ctx context.Context, extent *proto.Extent) error {
	l, err := extentLayout(extent)
	if err != nil {
		return err
	}
	v := newSurvey(s.cfg, s.cluster.Nodes())
	c := v.condition(extent, l)
	whole := len(c.lost) == 0 && len(c.leaving) == 0
	if whole {
		fresh, err := v.layoutNow(l)
		if err != nil {
			return fmt.Errorf("store extent %x again: %w", extent.GetId(), err)
		}
		if !betterLayout(fresh, extent.GetLayout()) {
			return noGain(extent, fresh)
		}
	}
	extents, err := s.reencode(ctx, extent)
	if err != nil {
		return err
	}
	for _, e := range extents { // A node may have failed meanwhile.
		if whole && !betterLayout(e.GetLayout(), extent.GetLayout()) {
			return noGain(extent, e.GetLayout())
		}
	}
	if err := s.catalog.ReplaceExtent(ctx, extent.GetId(), extents); err != nil {
		return fmt.Errorf("record what extent %x was stored as again: %w", extent.GetId(), err)
	}
	return nil
}

func noGain(extent *proto.Extent, fresh *proto.Layout) error {
	old := extent.GetLayout()
	return fmt.Errorf("extent %x is whole as %d+%d, and the nodes that this one reaches allow no more than %d+%d: %w", extent.GetId(),
		old.GetDataShards(), old.GetParityShards(), fresh.GetDataShards(), fresh.GetParityShards(), ErrInsufficientNodes)
}

// movesAtOnce is how many moves are recorded by one command: enough that small
// shards don't cost one each, and few enough that little is done again when the
// node dies.
const movesAtOnce = 100

// moveBatch records moves together.
type moveBatch struct {
	catalog Catalog

	mu    sync.Mutex
	moves []*proto.ShardMove
}

// add takes a move, and records those that it has when they are many. An error may
// be about the moves of others: then these shards are found again, whole, by later
// tasks.
func (b *moveBatch) add(ctx context.Context, move *proto.ShardMove) error {
	b.mu.Lock()
	b.moves = append(b.moves, move)
	full := len(b.moves) >= movesAtOnce
	b.mu.Unlock()
	if !full {
		return nil
	}
	return b.record(ctx)
}

// record records the moves that are left.
func (b *moveBatch) record(ctx context.Context) error {
	b.mu.Lock()
	moves := b.moves
	b.moves = nil
	b.mu.Unlock()
	if len(moves) == 0 {
		return nil
	}
	if _, err := b.catalog.MoveShards(ctx, moves); err != nil {
		return fmt.Errorf("record %d shards: %w", len(moves), err)
	}
	return nil
}

// repair is Repair for another node.
func (s *Store) repair(ctx context.Context, request *proto.RepairRequest) (*proto.RepairResponse, error) {
	errs, err := s.Repair(ctx, request.GetTasks())
	if err != nil {
		return nil, err
	}
	answer := &proto.RepairResponse{Errors: make([]string, len(errs))}
	for i, err := range errs {
		if err != nil {
			answer.Errors[i] = err.Error()
		}
	}
	return answer, nil
}

// repairOn has a node carry out tasks. It returns one error for each.
func (s *Store) repairOn(ctx context.Context, node string, tasks []*proto.RepairTask) ([]error, error) {
	if node == s.cluster.Self() {
		return s.Repair(ctx, tasks)
	}
	conn, err := s.connTo(node)
	if err != nil {
		return nil, err
	}
	answer, err := proto.NewShardsClient(conn).Repair(ctx, &proto.RepairRequest{Tasks: tasks})
	if err != nil {
		return nil, fromStatus(err)
	}
	if len(answer.GetErrors()) != len(tasks) {
		return nil, fmt.Errorf("%d answers to %d tasks: %w", len(answer.GetErrors()), len(tasks), ErrInvalid)
	}
	errs := make([]error, len(tasks))
	for i, text := range answer.GetErrors() {
		if text != "" {
			errs[i] = errors.New(text)
		}
	}
	return errs, nil
}
