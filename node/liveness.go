package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

const (
	// livenessInterval is how often the leader compares what it has seen of the nodes
	// with what is recorded of them.
	livenessInterval = time.Second
	// downSilence is for how long the leader itself must have asked a node in vain
	// before it calls it down, whatever its predecessor has recorded: longer than a
	// node and its connections take to come back together with a new leader.
	downSilence = healthyFor + 10*time.Second
)

// sighting is what the leader knows of a node when it decides whether it is there.
type sighting struct {
	recorded atoll.Liveness
	// recordedFor is for how long that has been so, by the leader's clock against
	// that of another leader that has recorded it. It may be negative. 0 if this one
	// has: then silence says more.
	recordedFor time.Duration
	// answered: it has answered this process, if perhaps long ago.
	answered bool
	// closing: it said in its last answer that it was about to stop.
	closing bool
	// silence is for how long this process has asked in vain, by its own clock alone.
	silence time.Duration
}

// liveness says what is to be recorded. A node becomes down only after it was
// unreachable for downAfter. That time goes on when the leader changes, since its
// beginning is in the record; but a leader that has only just begun to watch, or
// whose clock is wrong, first hears for itself that there is nothing to hear. A
// record from a clock that was ahead is no reason to wait for longer than that. And a
// node that has answered this process was there then, so that no clock but the
// process's own counts: one that is set makes nobody down.
func (s sighting) liveness(downAfter time.Duration) atoll.Liveness {
	patience := healthyFor
	if s.closing {
		patience = promptFor
	}
	gone := s.silence - healthyFor
	if !s.answered {
		gone = max(gone, s.recordedFor)
	}
	switch {
	case s.silence < patience && s.answered:
		return atoll.Liveness_LIVENESS_UNSPECIFIED
	case s.silence < patience:
		return s.recorded // this process has just started, and can't know better
	case s.recorded == atoll.Liveness_LIVENESS_UNSPECIFIED:
		return atoll.Liveness_LIVENESS_UNREACHABLE
	case s.recorded == atoll.Liveness_LIVENESS_UNREACHABLE && s.silence >= downSilence && gone >= downAfter:
		return atoll.Liveness_LIVENESS_DOWN
	default:
		return s.recorded
	}
}

// watchLiveness records again and again which nodes are there, until ctx ends.
func (l *leadership) watchLiveness(ctx context.Context) {
	ticker := time.NewTicker(livenessInterval)
	defer ticker.Stop()
	recorded := make(map[string]bool)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := l.recordLiveness(ctx, recorded); err != nil && ctx.Err() == nil {
			l.log.Warn().Err(err).Msg("could not record which nodes are there, trying again")
		}
	}
}

// recordLiveness proposes what has changed. The state of this node will do, since
// it has applied all that was recorded before it began to lead. recorded has the ids
// of those nodes of which this leader has recorded something since, or tried to.
func (l *leadership) recordLiveness(ctx context.Context, recorded map[string]bool) error {
	var errs []error
	for _, node := range l.peers.members() {
		seen := l.peers.sighting(node)
		if recorded[node.Id] {
			seen.recordedFor = 0
		}
		now := seen.liveness(l.downAfter)
		if now == node.Liveness {
			continue
		}
		recorded[node.Id] = true // also if the outcome is unknown
		err := l.store.SetLiveness(ctx, node, now)
		if errors.Is(err, metadata.ErrNodeRemoved) || errors.Is(err, metadata.ErrPrecondition) {
			continue // another node leads, most likely
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("node %s: %w", node.Name, err))
			continue
		}
		event := l.log.Warn()
		if now == atoll.Liveness_LIVENESS_UNSPECIFIED {
			event = l.log.Info()
		}
		event.Str("peer", node.Name).Str("liveness", livenessWord(now)).Dur("silence", seen.silence).Msg("liveness recorded")
	}
	return errors.Join(errs...)
}

// livenessWord is what operators read.
func livenessWord(l atoll.Liveness) string {
	switch l {
	case atoll.Liveness_LIVENESS_UNREACHABLE:
		return stateUnreachable
	case atoll.Liveness_LIVENESS_DOWN:
		return stateDown
	default:
		return "alive"
	}
}
