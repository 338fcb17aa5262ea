package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/consensus"
	"github.com/atollregistry/atoll/gateway"
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
	blobs   *blobstore.Store
	peers   *peers
	ready   *readiness
	// registry is what clients speak to.
	registry http.Handler
	// certificates is what clients see; nil for plain HTTP.
	certificates gateway.Certificates
	// downAfter is Config.DownAfter.
	downAfter time.Duration
	log       zerolog.Logger
	// audit is the log of who did what; nil for none.
	audit *gateway.AuditLog
}

func (a *admin) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", a.serveStatus)
	mux.HandleFunc("POST /collect", a.serveCollect)
	mux.HandleFunc("POST /verify", a.serveVerify)
	mux.HandleFunc("GET /backup", a.serveBackup)
	mux.HandleFunc("GET /blobs/{digest}", a.serveBlob)
	mux.Handle("/v2/", a.registry)
	mux.HandleFunc("GET /scrub", a.serveScrub)
	mux.HandleFunc("POST /scrub", a.serveScrub)
	mux.HandleFunc("GET /drain", a.serveDrain)
	mux.HandleFunc("POST /drain", a.serveDrain)
	mux.HandleFunc("POST /remove", a.serveRemove)
	mux.HandleFunc("GET /repair", a.serveRepair)
	mux.HandleFunc("POST /repair", a.serveRepair)
	mux.HandleFunc("POST /tokens", a.serveCreateToken)
	mux.HandleFunc("GET /ca", a.serveAuthority)
	mux.HandleFunc("POST /ca/rotate", a.serveRotateAuthority)
	mux.HandleFunc("POST /keys/rotate", a.serveRotateKeys)
	mux.HandleFunc("GET /tokens", a.serveListTokens)
	mux.HandleFunc("DELETE /tokens/{id}", a.serveRevokeToken)
	mux.HandleFunc("GET /accounts", a.serveAccounts)
	mux.HandleFunc("POST /accounts", a.serveNewAccount)
	mux.HandleFunc("GET /accounts/{name}", a.serveAccount)
	mux.HandleFunc("PATCH /accounts/{name}", a.serveAccountChange)
	mux.HandleFunc("DELETE /accounts/{name}", a.serveAccountRemoval)
	mux.HandleFunc("POST /access", a.serveRestoreAccess)
	mux.HandleFunc("GET /policy", a.servePolicy)
	mux.HandleFunc("PUT /policy", a.serveNewPolicy)
	mux.HandleFunc("GET /policy/check", a.servePolicyCheck)
	profiles(mux)
	return mux
}

func (a *admin) serveStatus(w http.ResponseWriter, r *http.Request) {
	status, err := a.status(r.Context())
	answerAdmin(w, status, err)
}

// answerAdmin answers the operator.
func answerAdmin(w http.ResponseWriter, answer any, err error) {
	var refused refusal
	switch {
	case errors.As(err, &refused):
		http.Error(w, refused.Error(), http.StatusConflict)
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	default:
		w.Header().Set("Content-Type", "application/json")
		// A broken connection is the only way that this fails.
		_ = json.NewEncoder(w).Encode(answer)
	}
}

// adminBodyBytes bounds what an operator sends at once: a policy is the largest.
const adminBodyBytes = 1 << 20

// readAdmin decodes what the operator has sent. If it can't, it answers and returns
// false.
func readAdmin(w http.ResponseWriter, r *http.Request, into any) bool {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, adminBodyBytes))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		http.Error(w, "request is not understood, is the command of another version? "+err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

// status gathers what this node knows. It needs no quorum: an operator asks most
// urgently when there is none.
func (a *admin) status(ctx context.Context) (*Status, error) {
	raft := a.replica.Status()
	status := &Status{Cluster: a.store.ClusterID(), Node: a.self.Name, Nodes: []NodeStatus{}}
	stateIndex, stateHash := a.machine.StateHash()
	status.StateIndex, status.StateHash = stateIndex, hex.EncodeToString(stateHash)
	usage, err := a.store.ShardUsage()
	if err != nil {
		return nil, fmt.Errorf("ask what nodes hold: %w", err)
	}
	for _, member := range a.peers.members() {
		s := a.nodeStatus(member, raft)
		s.Shards, s.ShardBytes = usage[member.Id].GetShards(), usage[member.Id].GetBytes()
		status.Nodes = append(status.Nodes, s)
	}
	slices.SortFunc(status.Nodes, func(x, y NodeStatus) int { return strings.Compare(x.ID, y.ID) })
	if status.Blobs, err = countBlobs(ctx, a.store, a.peers); err != nil {
		return nil, err
	}
	if progress, _ := a.repairProgress(); progress != nil {
		status.Waiting = progress.Waiting
	}
	status.noteCertificates(a.peers.holdings())
	status.judge(a.ready.forWrites(), a.downAfter)
	status.noteRecovery(a.store.Recoveries())
	if state := rotationOf(a.store.LocalAuthority()); state != rotationSettled {
		status.Notes = append(status.Notes, fmt.Sprintf("the nodes' certificate authority is being changed (%s): 'atoll ca status' shows how far that is", state))
	}
	if a.certificates != nil {
		record, err := a.store.RegistryCertificate()
		if err != nil {
			return nil, err
		}
		status.noteRegistryCertificate(a.certificates.NotAfter(), record)
	}
	return status, nil
}

// countBlobs counts the blobs by how many of their shards are on nodes that answer.
func countBlobs(ctx context.Context, store *metadata.Store, peers *peers) (BlobCounts, error) {
	whole, degraded, lost, err := store.Census(ctx, func(nodeID string) bool { return !peers.reachable(nodeID) })
	if err != nil {
		return BlobCounts{}, fmt.Errorf("count blobs: %w", err)
	}
	return BlobCounts{Whole: whole, Degraded: degraded, Lost: lost}, nil
}

func (a *admin) nodeStatus(member *atoll.Node, raft consensus.Status) NodeStatus {
	s := NodeStatus{
		ID: member.Name, UUID: member.Id, Zone: member.Zone,
		Cluster: member.ClusterAddress, Registry: member.RegistryUrl, Operations: member.OperationsAddress,
		Leader: member.Id == raft.LeaderID, CapacityBytes: member.CapacityBytes, LastContactMS: -1,
		State: stateWord(member, a.peers.reachable(member.Id)), Draining: member.State == atoll.NodeState_NODE_STATE_DRAINING,
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
		for _, disk := range stats.Disks {
			s.Disks = append(s.Disks, DiskStatus{Folder: disk.Folder, FreeBytes: disk.FreeBytes, CapacityBytes: disk.CapacityBytes, Fault: disk.Fault})
		}
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
