package blobstore

import (
	"cmp"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/atollregistry/atoll/proto"
)

// doubtFor is how long a reader does not count on a shard that came late.
const doubtFor = 10 * time.Second

// trust says how much a reader counts on getting a shard. Lower is better.
type trust int

const (
	trustLocal    trust = iota // on this node's disk
	trustPeer                  // on a node that is well
	trustDoubtful              // on a node that is not, or it came late the last time
	trustLast                  // failed this reader before, or was reported damaged
	trustNone                  // nobody has it
)

// extentSource is an extent as one reader sees it: where its shards are, and what
// the reader has learned of them. Safe for concurrent use.
type extentSource struct {
	id      []byte
	layout  layout
	holders []string
	// hasty says that holders that are away are not waited for: the reader itself is
	// tried again.
	hasty bool
	// order is that of shards that are equally good: random, which spreads the load, but the same for all groups, so that
	// each of the disks that are asked reads on from where it was.
	order []int

	mu    sync.Mutex // guards what follows
	trust []trust
	late  []time.Time // when the shard last came late, zero if never
}

// newExtentSource takes an extent of the layout given.
func (s *Store) newExtentSource(extent *proto.Extent, l layout) *extentSource {
	source := &extentSource{
		id: extent.GetId(), layout: l, holders: extent.GetHolders(),
		trust: make([]trust, l.shards()), late: make([]time.Time, l.shards()), order: rand.Perm(l.shards()),
	}
	healthy := make(map[string]bool)
	for _, node := range s.cluster.Nodes() {
		healthy[node.ID] = node.Healthy
	}
	for number, holder := range source.holders {
		switch {
		case holder == "":
			source.trust[number] = trustNone
		case slices.Contains(extent.GetDamagedShards(), uint32(number)):
			source.trust[number] = trustLast
		case holder == s.cluster.Self():
			source.trust[number] = trustLocal
		case healthy[holder]:
			source.trust[number] = trustPeer
		default:
			source.trust[number] = trustDoubtful
		}
	}
	return source
}

// trusted returns how much to count on each shard, by shard number.
func (e *extentSource) trusted() []trust {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := slices.Clone(e.trust)
	for number, late := range e.late {
		if !late.IsZero() && time.Since(late) < doubtFor {
			now[number] = max(now[number], trustDoubtful)
		}
	}
	return now
}

// distrust makes a shard that failed the last choice.
func (e *extentSource) distrust(number int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.trust[number] = trustLast
}

// noteLate makes a shard that came late doubtful for a while.
func (e *extentSource) noteLate(number int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.late[number] = time.Now()
}

// choose returns the shards to fetch for the data shards that are wanted, and the
// others that could stand in, the best first. A wanted shard that can't be counted
// on is among the others.
func (e *extentSource) choose(firstWanted, lastWanted int) (fetch, spares []int) {
	trusted := e.trusted()
	order := slices.Clone(e.order)
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(trusted[a], trusted[b]) })
	// Any k shards are as good as the data. Rebuilding costs far less processor time
	// than another node's sending what this node's disk has.
	anyWill := lastWanted-firstWanted+1 == e.layout.data
	for _, number := range order {
		wanted := trusted[number] < trustDoubtful && (e.layout.mirrored() || number >= firstWanted && number <= lastWanted)
		local := trusted[number] == trustLocal
		switch {
		case trusted[number] == trustNone:
		case len(fetch) < e.layout.data && (wanted || anyWill && local):
			fetch = append(fetch, number)
		default:
			spares = append(spares, number)
		}
	}
	return fetch, spares
}

// noteFailure draws the conclusions from a shard that could not be read.
func (s *Store) noteFailure(source *extentSource, number int, err error) {
	source.distrust(number)
	node := source.holders[number]
	switch {
	case errors.Is(err, ErrChecksum), errors.Is(err, ErrShardUnknown), errors.Is(err, ErrDisk):
		// A disk's error is about this one file, as far as can be known: the node is well,
		// and looks after its disks itself.
		s.damaged.Add(1)
		s.distrustMirror(node, source.id, number)
		s.reports.add(source.id, number, node)
		s.log.Warn().Err(err).Hex("extent", source.id).Int("shard", number).Str("peer", node).Msg("shard is damaged")
	case isNodeFault(err):
		s.suspect(node, err)
	}
}
