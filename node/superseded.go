package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	atoll "github.com/atollregistry/atoll/proto"
)

// ErrSuperseded ends a node whose cluster was recovered, after a loss of quorum, with
// what another node had. This one still belongs to the cluster as it was. Together with
// others like it, it could be a second cluster of the same name, and take pushes.
var ErrSuperseded = errors.New("the cluster was recovered without this node")

// lineage is where a cluster comes from: its id, and under which it went before.
type lineage struct {
	id         string
	recoveries []*atoll.Recovery
}

// superseded returns an error if a node that answers belongs to a cluster that has taken
// the place of this node's: it was recovered from that; or both were recovered from a
// third, and the other goes on from more, or from as much and did so first. Such two
// can only come of recovering two nodes, and one of them has to give way.
func (l lineage) superseded(answer *atoll.IdentifyResponse) error {
	other := lineage{answer.ClusterId, answer.Recoveries}
	if l.id == "" || l.id == other.id || l.parting(other.id) != nil {
		return nil
	}
	if other.parting(l.id) == nil {
		mine, theirs := l.partingFrom(other)
		if mine == nil || compareRecoveries(mine, theirs) >= 0 {
			return nil
		}
	}
	return fmt.Errorf("%w: node %s says that cluster %s has taken the place of this node's, %s: run 'atoll recover --rejoin' with this node's configuration, "+
		"which brings its shards there; or move its data folder away to start it as a new node", ErrSuperseded, answer.Name, other.id, l.id)
}

// isRelated says whether a node that answers belongs to another cluster that was
// recovered from this one, or this one from that, or both from a third.
func (l lineage) isRelated(answer *atoll.IdentifyResponse) bool {
	other := lineage{answer.ClusterId, answer.Recoveries}
	if l.id == "" || other.id == "" || l.id == other.id {
		return false
	}
	mine, _ := l.partingFrom(other)
	return mine != nil || l.parting(other.id) != nil || other.parting(l.id) != nil
}

// parting is the recovery by which the cluster gave up an id; nil if it never had it.
func (l lineage) parting(former string) *atoll.Recovery {
	i := slices.IndexFunc(l.recoveries, func(r *atoll.Recovery) bool { return r.FormerClusterId == former })
	if i < 0 {
		return nil
	}
	return l.recoveries[i]
}

// partingFrom are the recoveries by which two clusters that were the same parted; nil if
// they never were.
func (l lineage) partingFrom(other lineage) (mine, theirs *atoll.Recovery) {
	for _, mine := range slices.Backward(l.recoveries) {
		if theirs := other.parting(mine.FormerClusterId); theirs != nil {
			return mine, theirs
		}
	}
	return nil, nil
}

// compareRecoveries orders two of one cluster by what they went on with. Of two that went
// on with the same, the earlier comes last, and then an id decides.
func compareRecoveries(a, b *atoll.Recovery) int {
	return cmp.Or(
		cmp.Compare(a.LastTerm, b.LastTerm), cmp.Compare(a.LastIndex, b.LastIndex),
		cmp.Compare(b.RecoveredUnixMs, a.RecoveredUnixMs), cmp.Compare(a.NodeId, b.NodeId),
	)
}

// checkSuperseded asks a node that has refused this one's call why it did.
func (p *peers) checkSuperseded(ctx context.Context, address string) {
	answer, err := p.pool.identify(ctx, address)
	if err != nil {
		return // it is asked again
	}
	if err := p.lineage().superseded(answer); err != nil {
		select {
		case p.superseded <- err:
		default: // one is enough
		}
	}
}

// awaitSuperseded returns an error once this node is superseded, or nil when ctx ends.
func (p *parts) awaitSuperseded(ctx context.Context) error {
	select {
	case err := <-p.peers.superseded:
		return err
	case <-ctx.Done():
		return nil
	}
}
