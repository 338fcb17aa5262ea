package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// commandTimeout bounds one command of an operator, dataTimeout one that reads all the data.
	commandTimeout = 2 * time.Minute
	dataTimeout    = 10 * time.Minute
)

// Status is what 'atoll status --json' tells, as far as it is looked at.
type Status struct {
	Health string   `json:"health"`
	Nodes  []Member `json:"nodes"`
	Blobs  struct {
		Whole, Degraded, Lost int
	} `json:"blobs"`
	StateIndex uint64   `json:"state_index"`
	StateHash  string   `json:"state_hash"`
	Problems   []string `json:"problems"`
}

// Member is what a status tells of one node.
type Member struct {
	ID string `json:"id"`
	// UUID is another one after the node has lost its data.
	UUID   string `json:"uuid"`
	Leader bool   `json:"leader"`
	Voter  bool   `json:"voter"`
	// State is active, draining, unreachable or down.
	State    string `json:"state"`
	Draining bool   `json:"draining"`
	// Shards is how many it has by the records.
	Shards int `json:"shards"`
	Disks  []struct {
		Folder string `json:"folder"`
		Fault  string `json:"fault"`
	} `json:"disks"`
}

// Away says that the node does not answer, or is on record as down.
func (m *Member) Away() bool { return m.State == "unreachable" || m.Down() }

// Down says that the node is on record as down: its shards are rebuilt on others.
func (m *Member) Down() bool { return m.State == "down" }

// Find returns what is told of a node, nil if it is no member.
func (s *Status) Find(name string) *Member {
	i := slices.IndexFunc(s.Nodes, func(m Member) bool { return m.ID == name })
	if i < 0 {
		return nil
	}
	return &s.Nodes[i]
}

// Names returns the names of the nodes.
func (s *Status) Names() []string {
	names := make([]string, len(s.Nodes))
	for i, m := range s.Nodes {
		names[i] = m.ID
	}
	return names
}

// ErrCommand is that a command of an operator failed.
var ErrCommand = errors.New("command failed")

// Command runs an operator's command on a node, with its --data, and returns what it prints. It
// may take commandTimeout.
func (n *Node) Command(ctx context.Context, args ...string) (string, error) {
	return n.command(ctx, commandTimeout, args...)
}

func (n *Node) command(ctx context.Context, timeout time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.cluster.cfg.Program, append(args, "--data="+n.Folders[0])...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return string(out), fmt.Errorf("%w: atoll %s on %s: %w: %s", ErrCommand, strings.Join(args, " "), n.Name, err, strings.TrimSpace(string(exit.Stderr)))
		}
		return "", fmt.Errorf("atoll %s on %s: %w", strings.Join(args, " "), n.Name, err)
	}
	return string(out), nil
}

// Status asks a node.
func (n *Node) Status(ctx context.Context) (*Status, error) {
	out, err := n.Command(ctx, "status", "--json")
	// It fails when the health is not ok, but tells the status all the same.
	status := &Status{}
	if decodeErr := json.Unmarshal([]byte(out), status); decodeErr != nil {
		return nil, errors.Join(err, decodeErr)
	}
	return status, nil
}

// statuses asks nodes all at once. A status is nil where there is an error.
func statuses(ctx context.Context, nodes []*Node) ([]*Status, []error) {
	told, faults := make([]*Status, len(nodes)), make([]error, len(nodes))
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() { told[i], faults[i] = n.Status(ctx) })
	}
	all.Wait()
	return told, faults
}

// View returns what a member tells that is ready and none of but.
func (c *Cluster) View(ctx context.Context, but ...*Node) (*Status, error) {
	faults := []error{errors.New("no other node is ready")}
	for _, n := range c.Ready() {
		if slices.Contains(but, n) {
			continue
		}
		status, err := n.Status(ctx)
		if err == nil {
			return status, nil
		}
		faults = append(faults, err)
	}
	return nil, errors.Join(faults...)
}

// Leader returns the member that says of itself that it leads, and that most nodes which are ready say
// the same of; nil if none does.
func (c *Cluster) Leader(ctx context.Context) *Node {
	ready := c.Ready()
	told, _ := statuses(ctx, ready)
	var leader *Node
	most := 0
	for i, n := range ready {
		if told[i] == nil || !told[i].leads(n.Name) {
			continue
		}
		votes := 0
		for _, status := range told {
			if status != nil && status.leads(n.Name) {
				votes++
			}
		}
		if votes > most {
			leader, most = n, votes
		}
	}
	return leader
}

func (s *Status) leads(name string) bool {
	m := s.Find(name)
	return m != nil && m.Leader
}
