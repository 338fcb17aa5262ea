package blobstore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/atollregistry/atoll/proto"
)

// maxRepairTasks bounds the tasks that a node is given at once, and with them the
// moves of one command.
const maxRepairTasks = 1000

// Repair carries out tasks on this node, as many at once as the settings say, and
// records what it has done. It returns one error for each task, nil for those that
// are done, and ErrClosed or ErrInvalid if it did nothing.
//
// A shard is durable before it is recorded. Whoever dies in between leaves a file
// that no record names, which the sweep takes, or a later task finds and uses.
func (s *Store) Repair(ctx context.Context, tasks []*proto.RepairTask) ([]error, error) {
	if len(tasks) > maxRepairTasks {
		return nil, fmt.Errorf("%d repair tasks at once, more than %d: %w", len(tasks), maxRepairTasks, ErrInvalid)
	}
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
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
	return errs, nil
}

// repairOne carries out a task. The move of a shard is left to the batch.
func (s *Store) repairOne(ctx context.Context, task *proto.RepairTask, moves *moveBatch) error {
	extent, number := task.GetExtent(), int(task.GetShardNumber())
	if task.GetReencode() {
		extents, err := s.reencode(ctx, extent)
		if err != nil {
			return err
		}
		if err := s.catalog.ReplaceExtent(ctx, extent.GetId(), extents); err != nil {
			return fmt.Errorf("record what extent %x was stored as again: %w", extent.GetId(), err)
		}
		return nil
	}
	if err := s.rebuildShard(ctx, extent, number); err != nil {
		return err
	}
	return moves.add(ctx, &proto.ShardMove{
		ExtentId: extent.GetId(), ShardNumber: uint32(number), From: extent.GetHolders()[number], To: s.cluster.Self(),
	})
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
	conn, err := s.cluster.Conn(node)
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
