package node

import (
	"context"
	"net/http"
	"time"
)

// Health is the cluster's state in one word.
type Health string

const (
	// HealthOK: every node answers and every blob has all its shards.
	HealthOK Health = "ok"
	// HealthDegraded: all blobs can be read, but nodes, shards or room are missing.
	HealthDegraded Health = "degraded"
	// HealthReadOnly: there is no quorum. Blobs and manifests can still be pulled
	// by digest.
	HealthReadOnly Health = "read-only"
	// HealthLosing: some blobs can't be read with the nodes that answer.
	HealthLosing Health = "losing"
)

// States of a node, in one word.
const (
	stateActive      = "active"
	stateUnreachable = "unreachable"
	stateDown        = "down"
	stateDraining    = "draining"
)

// Status is what one node knows of its cluster. Its JSON form is part of the
// command line's interface.
type Status struct {
	Health  Health `json:"health"`
	Cluster string `json:"cluster"`
	// Node is the name of the node that answered.
	Node  string       `json:"node"`
	Nodes []NodeStatus `json:"nodes"`
	Blobs BlobCounts   `json:"blobs"`
	// Waiting are how many extents can't be repaired with the nodes that there are, by
	// reason, as far as the leader has looked.
	Waiting map[string]uint32 `json:"waiting,omitempty"`
	// StateIndex and StateHash are the answering node's state: two nodes with the
	// same index must have the same hash.
	StateIndex uint64 `json:"state_index"`
	StateHash  string `json:"state_hash"`
	// Problems says in words what keeps the health from being ok, the worst first, and
	// what to do about it.
	Problems []string `json:"problems,omitempty"`
	// Notes says what goes on besides.
	Notes []string `json:"notes,omitempty"`
}

// NodeStatus is one member of the cluster.
type NodeStatus struct {
	// ID is the node's name, which is what operators identify it by.
	ID string `json:"id"`
	// UUID is the identity of its data folder; a wiped node comes back with
	// another.
	UUID       string `json:"uuid"`
	Cluster    string `json:"cluster"`
	Registry   string `json:"registry"`
	Operations string `json:"operations"`
	Zone       string `json:"zone,omitempty"`
	Leader     bool   `json:"leader"`
	Voter      bool   `json:"voter"`
	// State is active, draining, unreachable if it does not answer the node that was
	// asked, or down if it has not answered the leader for so long that its shards are
	// rebuilt on other nodes.
	State string `json:"state"`
	// LastContactMS is the time since the node last answered, -1 if never.
	LastContactMS int64  `json:"last_contact_ms"`
	AppliedIndex  uint64 `json:"applied_index"`
	// FreeBytes is the room for new shards, 0 if it was never heard of: the reserve is
	// taken off.
	FreeBytes     uint64 `json:"free_bytes"`
	CapacityBytes uint64 `json:"capacity_bytes"`
	// Shards and ShardBytes are what it holds according to the records.
	Shards     uint64 `json:"shards"`
	ShardBytes uint64 `json:"shard_bytes"`
	// Disks are its folders for shards.
	Disks []DiskStatus `json:"disks,omitempty"`
	// CertificateExpires is when its certificate does; nil if that is not known, or the
	// certificate is from a file.
	CertificateExpires *time.Time `json:"certificate_expires,omitempty"`
	// certificateLate says that the certificate should have been renewed long ago.
	certificateLate bool
	// Draining says that it is being emptied, whatever its state.
	Draining bool `json:"draining,omitempty"`
	// PID is the process id, known only of the node that answered.
	PID int `json:"pid,omitempty"`
}

// DiskStatus is one of a node's folders for shards.
type DiskStatus struct {
	Folder string `json:"folder"`
	// FreeBytes is the room for new shards: the reserve is taken off.
	FreeBytes     uint64 `json:"free_bytes"`
	CapacityBytes uint64 `json:"capacity_bytes"`
	// Fault is why the disk is out of service.
	Fault string `json:"fault,omitempty"`
}

// BlobCounts says how many blobs have all their shards on nodes that answer
// (whole), fewer but enough (degraded), or too few to be read now (lost).
type BlobCounts struct {
	Whole    uint64 `json:"whole"`
	Degraded uint64 `json:"degraded"`
	Lost     uint64 `json:"lost"`
}

// FetchStatus asks the node whose data folder is given. It fails when no node
// runs there.
func FetchStatus(ctx context.Context, dataDir string) (*Status, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	status := &Status{}
	return status, askAdmin(ctx, dataDir, http.MethodGet, "/status", status)
}
