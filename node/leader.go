package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/gateway"
	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

const (
	// reconcileInterval is the pause between two comparisons of the Raft group
	// with the nodes' records.
	reconcileInterval = time.Second
	// checkpointInterval is the pause between two comparisons of the nodes' state.
	checkpointInterval = 30 * time.Second
	// eraInterval is how often the leader looks whether an era is over.
	eraInterval = time.Second
	// minEraLength is time enough to record an extent that was just stored.
	minEraLength = 2 * time.Second
)

// leadership is what the leader does for the cluster beside replicating.
type leadership struct {
	store   *metadata.Store
	replica *consensus.Replica
	peers   *peers
	blobs   *blobstore.Store
	// acme gets the certificate that clients see; nil if it comes from elsewhere.
	acme *gateway.ACME
	log  zerolog.Logger
	// downAfter is Config.DownAfter.
	downAfter time.Duration
	// eraLength is how long an era lasts at least, and so how long a writer has at
	// least between storing an extent and recording it.
	eraLength time.Duration
}

// Run works while ctx lasts, which is while this node leads. Whatever it does is
// safe to do twice or to leave half done: the next leader goes on.
func (l *leadership) Run(ctx context.Context) {
	var others sync.WaitGroup
	defer others.Wait()
	others.Go(func() { l.watchLiveness(ctx) })
	others.Go(func() { l.watchRotation(ctx) })
	others.Go(func() { l.blobs.RepairCluster(ctx) })
	if l.acme != nil {
		others.Go(func() { l.acme.Keep(ctx) })
	}
	others.Go(func() {
		if err := l.store.Run(ctx); err != nil && ctx.Err() == nil {
			l.log.Error().Err(err).Msg("expiry of records ended")
		}
	})
	reconcile := time.NewTicker(reconcileInterval)
	defer reconcile.Stop()
	checkpoint := time.NewTicker(checkpointInterval)
	defer checkpoint.Stop()
	era := time.NewTicker(eraInterval)
	defer era.Stop()
	for {
		var err error
		var duty string
		select {
		case <-ctx.Done():
			return
		case <-reconcile.C:
			duty, err = "reconcile members", l.reconcileMembers(ctx)
		case <-checkpoint.C:
			duty, err = "compare state", l.compareState(ctx)
		case <-era.C:
			duty, err = "begin the next era", l.store.AdvanceEra(ctx, l.eraLength)
		}
		if err != nil && ctx.Err() == nil {
			l.log.Warn().Err(err).Str("duty", duty).Msg("leader's duty not done, trying again later")
		}
	}
}

// reconcileMembers brings the Raft group in line with the nodes' records: an operator
// has removed a node, or a leader died between changing one and the other. The state
// of this node will do, since nobody else changes the group while it leads, and it
// has applied what the leaders before it went by.
func (l *leadership) reconcileMembers(ctx context.Context) error {
	members := l.replica.Status().Members
	var errs []error
	for _, node := range l.store.LocalNodes() {
		var err error
		at := slices.IndexFunc(members, func(m consensus.Member) bool { return m.ID == node.Id })
		switch removed := node.State == atoll.NodeState_NODE_STATE_REMOVED; {
		case removed && at >= 0 && node.Id == l.peers.self:
			err = l.resign(ctx)
		case removed && at >= 0:
			err = l.replica.RemoveNode(ctx, node.Id)
		case !removed && (at < 0 || members[at].Address != node.ClusterAddress):
			err = l.replica.AddNode(ctx, node.Id, node.ClusterAddress)
		default:
			continue
		}
		if err != nil { // one that can't be helped must not keep the others waiting
			errs = append(errs, fmt.Errorf("node %s: %w", node.Name, err))
		}
	}
	return errors.Join(errs...)
}

// resign hands leadership over, since the leader can't well take itself out of the
// group: the next one does.
func (l *leadership) resign(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	return l.replica.TransferLeadership(ctx)
}

// compareState has every node compare its state with the majority's.
func (l *leadership) compareState(ctx context.Context) error {
	members := l.peers.members()
	reports := make([]metadata.CheckpointReport, 0, len(members))
	for _, member := range members {
		stats := l.peers.stats()
		if member.Id != l.peers.self {
			answer, _, ok := l.peers.answer(member.Id)
			if !ok {
				continue
			}
			stats = answer
		}
		reports = append(reports, metadata.CheckpointReport{LogIndex: stats.CheckpointIndex, Hash: stats.CheckpointHash})
	}
	return l.store.Checkpoint(ctx, len(members), reports)
}
