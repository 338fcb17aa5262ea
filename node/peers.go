package node

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/atollregistry/atoll/blobstore"
	atoll "github.com/atollregistry/atoll/proto"
)

const (
	// heartbeatInterval is how often every node is asked how it is.
	heartbeatInterval = time.Second
	// heartbeatTimeout bounds one question.
	heartbeatTimeout = 3 * time.Second
	// healthyFor is how long an answer counts: longer than a question may take, so
	// that a busy node is not taken for a dead one. A node that did not answer for
	// so long is unhealthy and gets no new shards until it answers again.
	healthyFor = 5 * time.Second
	// suspectFor keeps a node that stalled out of new placements even if it
	// answers heartbeats, as one with a hung disk does.
	suspectFor = 10 * time.Second
	// promptFor is how lately a node must have answered for clients to be sent to
	// it: one question, and as long again for a busy node. Clients that end up at a
	// dead node fail, so that here doubt counts against it.
	promptFor = 2 * heartbeatInterval
)

// peers watches the cluster's nodes by heartbeats and tells blobstore which of
// them can take and give shards.
type peers struct {
	self string
	pool *connPool
	// members are the nodes of the state machine that are not removed.
	members func() []*atoll.Node
	// stats describes this node.
	stats func() *atoll.HeartbeatResponse
	// lineage is that of this node's cluster.
	lineage func() lineage
	log     zerolog.Logger
	// removed: another node has said that this one was removed from the cluster.
	removed atomic.Bool
	// superseded takes the error that ends this node, from checkSuperseded.
	superseded chan error

	mu    sync.Mutex // guards known
	known map[string]*peer
}

// peer is what is known of one other node.
type peer struct {
	watched      time.Time // since when it is asked
	answered     time.Time // zero if never
	stats        *atoll.HeartbeatResponse
	suspectUntil time.Time
	// asked is when it last asked this node how it is.
	asked time.Time
	// lostAt is when the connection failed: only an answer to a question asked
	// later shows that the node is back.
	lostAt  time.Time
	asking  bool
	healthy bool // as last logged
}

func newPeers(self string, pool *connPool, members func() []*atoll.Node, log zerolog.Logger) *peers {
	return &peers{self: self, pool: pool, members: members, log: log, superseded: make(chan error, 1), known: make(map[string]*peer)}
}

var _ blobstore.Cluster = (*peers)(nil)

// Run asks all nodes again and again.
func (p *peers) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	ticker := time.NewTicker(heartbeatInterval)
	defer ticker.Stop()
	for {
		for _, member := range p.members() {
			if member.Id != p.self && p.begin(member.Id) {
				running.Go(func() { p.ask(ctx, member) })
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			p.logChanges()
		}
	}
}

// begin claims the right to ask a node: one question at a time.
func (p *peers) begin(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.peer(id)
	if known.asking {
		return false
	}
	known.asking = true
	return true
}

// peer returns the entry of a node. p.mu is held.
func (p *peers) peer(id string) *peer {
	if p.known[id] == nil {
		p.known[id] = &peer{watched: time.Now()}
	}
	return p.known[id]
}

func (p *peers) ask(ctx context.Context, member *atoll.Node) {
	ctx, cancel := context.WithTimeout(ctx, heartbeatTimeout)
	defer cancel()
	asked := time.Now()
	var answer *atoll.HeartbeatResponse
	conn, err := p.pool.Conn(member.ClusterAddress)
	if err == nil {
		answer, err = atoll.NewMembershipClient(conn).Heartbeat(ctx, &atoll.HeartbeatRequest{NodeId: p.self})
	}
	if status.Code(err) == codes.PermissionDenied {
		p.checkSuperseded(ctx, member.ClusterAddress)
	}
	if answer.GetRemoved() {
		p.removed.Store(true)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.peer(member.Id)
	known.asking = false
	switch {
	case err != nil:
	case answer.NodeId != member.Id: // It lost its data, or another took its address over.
		known.lostAt = time.Now()
	case asked.After(known.lostAt):
		known.answered, known.stats = time.Now(), answer
	}
}

func (p *peers) logChanges() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for id, known := range p.known {
		healthy := known.isHealthy(now)
		if healthy == known.healthy {
			continue
		}
		known.healthy = healthy
		event := p.log.Info()
		if !healthy {
			event = p.log.Warn()
		}
		event.Str("peer", p.nameOf(id)).Bool("healthy", healthy).Msg("peer changed")
	}
}

func (p *peers) nameOf(id string) string {
	for _, member := range p.members() {
		if member.Id == id {
			return member.Name
		}
	}
	return id
}

func (k *peer) isHealthy(now time.Time) bool {
	return k.stats != nil && !k.stats.Closing && now.Sub(k.answered) < healthyFor &&
		k.answered.After(k.lostAt) && now.After(k.suspectUntil)
}

// isPrompt says whether clients may be sent there.
func (k *peer) isPrompt(now time.Time) bool {
	return k.isHealthy(now) && k.stats.Ready && now.Sub(k.answered) < promptFor
}

// servesClients tells whether a client that is sent to another node now will be
// served there, as far as can be known: the node said so a moment ago, and the
// connection to it stands. That breaks at once when the process dies.
func (p *peers) servesClients(member *atoll.Node) bool {
	p.mu.Lock()
	known := p.known[member.Id]
	prompt := known != nil && known.isPrompt(time.Now())
	p.mu.Unlock()
	return prompt && p.pool.connected(member.ClusterAddress)
}

// note takes down that a node asks this one how it is.
func (p *peers) note(nodeID string) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if known := p.known[nodeID]; known != nil {
		known.asked = now
	}
}

// askedSince counts the nodes that are there and have asked since then, and those
// that have not, so that they can't know yet what has become of this one.
func (p *peers) askedSince(then time.Time) (asked, missing int) {
	for _, member := range p.members() {
		if member.Id == p.self || !p.pool.connected(member.ClusterAddress) {
			continue
		}
		p.mu.Lock()
		if known := p.known[member.Id]; known != nil && known.asked.After(then) {
			asked++
		} else {
			missing++
		}
		p.mu.Unlock()
	}
	return asked, missing
}

// Self is this node's id.
func (p *peers) Self() string { return p.self }

// Nodes lists all members with what is known of them now.
func (p *peers) Nodes() []blobstore.NodeInfo {
	members := p.members()
	own := p.stats()
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	infos := make([]blobstore.NodeInfo, 0, len(members))
	for _, member := range members {
		info := blobstore.NodeInfo{
			ID:            member.Id,
			Zone:          member.Zone,
			Draining:      member.State == atoll.NodeState_NODE_STATE_DRAINING,
			Down:          member.Liveness == atoll.Liveness_LIVENESS_DOWN,
			CapacityBytes: member.CapacityBytes,
		}
		if member.Id == p.self {
			info.Healthy, info.FreeBytes = !own.Closing, own.FreeBytes
		} else if known := p.known[member.Id]; known != nil && known.stats != nil {
			info.Healthy, info.FreeBytes = known.isHealthy(now), known.stats.FreeBytes
		}
		infos = append(infos, info)
	}
	return infos
}

// Conn returns the connection to a node.
func (p *peers) Conn(nodeID string) (grpc.ClientConnInterface, error) {
	address, err := p.addressOf(nodeID)
	if err != nil {
		return nil, err
	}
	return p.pool.Conn(address)
}

// Dial opens a connection on which a node's shards can be read and written.
func (p *peers) Dial(ctx context.Context, nodeID string) (net.Conn, error) {
	address, err := p.addressOf(nodeID)
	if err != nil {
		return nil, err
	}
	return p.pool.dialShards(ctx, address)
}

// ClusterID returns the id of the cluster; "" while this node belongs to none.
func (p *peers) ClusterID() string { return p.pool.clusterID() }

func (p *peers) addressOf(nodeID string) (string, error) {
	for _, member := range p.members() {
		if member.Id == nodeID {
			return member.ClusterAddress, nil
		}
	}
	return "", fmt.Errorf("connect to node %s: it is not a member of the cluster", nodeID)
}

// Suspect keeps a node out of new placements because a transfer with it failed:
// until it answers again if the connection broke, and for a while if it answers
// but does not get on with its work.
func (p *peers) Suspect(nodeID string, err error) {
	if nodeID == p.self {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	known, now := p.peer(nodeID), time.Now()
	if status.Code(err) == codes.Unavailable {
		known.lostAt = now
	} else {
		known.suspectUntil = now.Add(suspectFor)
	}
	p.log.Warn().Err(err).Str("peer", p.nameOf(nodeID)).Msg("peer suspected")
}

// answer returns a node's last heartbeat and its age; ok is false if it never
// answered.
func (p *peers) answer(nodeID string) (stats *atoll.HeartbeatResponse, age time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.known[nodeID]
	if known == nil || known.stats == nil {
		return nil, 0, false
	}
	return known.stats, time.Since(known.answered), true
}

// sighting gathers what is known of a member for the leader. It knows that itself is
// there.
func (p *peers) sighting(member *atoll.Node) sighting {
	seen := sighting{recorded: member.Liveness, recordedFor: time.Since(time.UnixMilli(member.LivenessUnixMs))}
	if member.Id == p.self {
		seen.answered = true
		return seen
	}
	seen.silence = p.silence(member.Id)
	if stats, _, ok := p.answer(member.Id); ok {
		seen.answered, seen.closing = true, stats.Closing
	}
	return seen
}

// silence is for how long a node has been asked and has not answered; 0 if it was
// never asked. A process that has just started knows of no silence.
func (p *peers) silence(nodeID string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := p.known[nodeID]
	if known == nil {
		return 0
	}
	last := known.watched
	if known.answered.After(last) {
		last = known.answered
	}
	return time.Since(last)
}

// reachable tells whether a node answered lately. Unlike health it does not
// look at suspicions: a suspect's shards may well be readable.
func (p *peers) reachable(nodeID string) bool {
	if nodeID == p.self {
		return true
	}
	_, age, ok := p.answer(nodeID)
	return ok && age < healthyFor
}
