package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Health is the cluster's state in one word.
type Health string

const (
	// HealthOK: every node answers and every blob has all its shards.
	HealthOK Health = "ok"
	// HealthDegraded: all blobs can be read and pushes work, but nodes or shards
	// are missing.
	HealthDegraded Health = "degraded"
	// HealthReadOnly: there is no quorum. Blobs and manifests can still be pulled
	// by digest.
	HealthReadOnly Health = "read-only"
	// HealthLosing: some blobs can't be read with the nodes that answer.
	HealthLosing Health = "losing"
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
	// StateIndex and StateHash are the answering node's state: two nodes with the
	// same index must have the same hash.
	StateIndex uint64 `json:"state_index"`
	StateHash  string `json:"state_hash"`
	// Problems says in words what keeps the health from being ok.
	Problems []string `json:"problems,omitempty"`
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
	// State is active, draining, removed or, if it does not answer the node that
	// was asked, unreachable.
	State string `json:"state"`
	// LastContactMS is the time since the node last answered, -1 if never.
	LastContactMS int64  `json:"last_contact_ms"`
	AppliedIndex  uint64 `json:"applied_index"`
	FreeBytes     uint64 `json:"free_bytes"`
	CapacityBytes uint64 `json:"capacity_bytes"`
	// PID is the process id, known only of the node that answered.
	PID int `json:"pid,omitempty"`
}

// BlobCounts says how many blobs have all their shards on nodes that answer
// (whole), fewer but enough (degraded), or too few to be read now (lost).
type BlobCounts struct {
	Whole    uint64 `json:"whole"`
	Degraded uint64 `json:"degraded"`
	Lost     uint64 `json:"lost"`
}

// AdminSocket is the operator's socket, in the data folder.
const AdminSocket = "admin.sock"

// adminTimeout bounds one question to a node over its socket.
const adminTimeout = 15 * time.Second

// FetchStatus asks the node whose data folder is given. It fails when no node
// runs there.
func FetchStatus(ctx context.Context, dataDir string) (*Status, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialSocket(ctx, dataDir)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://admin/status", nil)
	if err != nil {
		return nil, fmt.Errorf("ask node in %s: %w", dataDir, err)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask node in %s: no node answers there: %w", dataDir, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask node in %s: it answered %s", dataDir, response.Status)
	}
	var status Status
	if err := json.NewDecoder(response.Body).Decode(&status); err != nil {
		return nil, fmt.Errorf("ask node in %s: read its answer: %w", dataDir, err)
	}
	return &status, nil
}

// A socket's path may have at most 107 bytes on Linux (unix(7)), a data folder's
// path many more. Through /proc/self/fd the folder has a short name.
func socketPath(dir string) (path string, release func(), err error) {
	folder, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return filepath.Join(fmt.Sprintf("/proc/self/fd/%d", folder.Fd()), AdminSocket), func() { folder.Close() }, nil
}

func dialSocket(ctx context.Context, dir string) (net.Conn, error) {
	path, release, err := socketPath(dir)
	if err != nil {
		return nil, err
	}
	defer release()
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", path)
}

func listenSocket(dir string) (net.Listener, error) {
	path, release, err := socketPath(dir)
	if err != nil {
		return nil, err
	}
	defer release()
	// The folder is locked by this process, so a socket found in it is a dead
	// one's.
	if err := os.Remove(filepath.Join(dir, AdminSocket)); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := os.Chmod(filepath.Join(dir, AdminSocket), 0o600); err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}
