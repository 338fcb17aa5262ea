package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/metadata"
	atoll "github.com/atollregistry/atoll/proto"
)

// admin answers the operator, who has the right to open the socket in the data
// folder.
type admin struct {
	self    *atoll.Node
	machine *metadata.Machine
	store   *metadata.Store
	replica *consensus.Replica
	peers   *peers
	ready   *readiness
}

func (a *admin) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", a.serveStatus)
	mux.HandleFunc("POST /collect", a.serveCollect)
	profiles(mux)
	return mux
}

func (a *admin) serveStatus(w http.ResponseWriter, r *http.Request) {
	status, err := a.status(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// A broken connection is the only way that this fails.
	_ = json.NewEncoder(w).Encode(status)
}

// status gathers what this node knows. It needs no quorum: an operator asks most
// urgently when there is none.
func (a *admin) status(ctx context.Context) (*Status, error) {
	raft := a.replica.Status()
	status := &Status{Cluster: a.store.ClusterID(), Node: a.self.Name, Nodes: []NodeStatus{}}
	stateIndex, stateHash := a.machine.StateHash()
	status.StateIndex, status.StateHash = stateIndex, hex.EncodeToString(stateHash)
	for _, member := range a.peers.members() {
		status.Nodes = append(status.Nodes, a.nodeStatus(member, raft))
	}
	slices.SortFunc(status.Nodes, func(x, y NodeStatus) int { return strings.Compare(x.ID, y.ID) })
	unreachable := func(nodeID string) bool { return !a.peers.reachable(nodeID) }
	whole, degraded, lost, err := a.store.Census(ctx, unreachable)
	if err != nil {
		return nil, fmt.Errorf("count blobs: %w", err)
	}
	status.Blobs = BlobCounts{Whole: whole, Degraded: degraded, Lost: lost}
	status.judge(a.ready.forWrites())
	return status, nil
}

func (a *admin) nodeStatus(member *atoll.Node, raft consensus.Status) NodeStatus {
	s := NodeStatus{
		ID: member.Name, UUID: member.Id, Zone: member.Zone,
		Cluster: member.ClusterAddress, Registry: member.RegistryUrl, Operations: member.OperationsAddress,
		Leader: member.Id == raft.LeaderID, CapacityBytes: member.CapacityBytes, LastContactMS: -1,
		State: stateWord(member, a.peers.reachable(member.Id)),
	}
	for _, m := range raft.Members {
		if m.ID == member.Id {
			s.Voter = m.Voter
		}
	}
	stats, age, ok := a.peers.answer(member.Id)
	if member.Id == a.self.Id {
		stats, age, ok, s.PID = a.peers.stats(), 0, true, os.Getpid()
	}
	if ok {
		s.LastContactMS, s.AppliedIndex, s.FreeBytes = age.Milliseconds(), stats.AppliedIndex, stats.FreeBytes
	}
	return s
}

// stateWord is a node's state in one word. What the cluster takes for down counts as
// down even if it answers this node: its shards are rebuilt on others.
func stateWord(member *atoll.Node, reachable bool) string {
	switch {
	case member.Liveness == atoll.Liveness_LIVENESS_DOWN:
		return stateDown
	case !reachable:
		return stateUnreachable
	case member.State == atoll.NodeState_NODE_STATE_DRAINING:
		return stateDraining
	default:
		return stateActive
	}
}

// judge sets the health and the problems, the worst first.
func (s *Status) judge(writes error) {
	s.Health = HealthOK
	worsen := func(health Health, format string, args ...any) {
		if s.Health == HealthOK {
			s.Health = health
		}
		s.Problems = append(s.Problems, fmt.Sprintf(format, args...))
	}
	if s.Blobs.Lost > 0 {
		worsen(HealthLosing, "%d blobs can't be read with the nodes that answer", s.Blobs.Lost)
	}
	if writes != nil {
		worsen(HealthReadOnly, "this node can't serve tags or pushes: %v", writes)
	}
	for _, node := range s.Nodes {
		if node.State != stateUnreachable && node.State != stateDown {
			continue
		}
		since := "never seen since this node started"
		if node.LastContactMS >= 0 {
			since = "last seen " + (time.Duration(node.LastContactMS) * time.Millisecond).Round(time.Second).String() + " ago"
		}
		worsen(HealthDegraded, "node %s does not answer, %s", node.ID, since)
	}
	if s.Blobs.Degraded > 0 {
		worsen(HealthDegraded, "%d blobs have fewer shards than they should", s.Blobs.Degraded)
	}
}
