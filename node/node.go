// Package node is one atoll process: it puts the layers together in the order
// in which they depend on each other, joins the cluster, watches the other
// nodes, and takes itself down in reverse order. It has no domain logic.
package node

import (
	"context"
	"errors"

	"github.com/rs/zerolog"
)

// Node is one process of the cluster.
type Node struct {
	cfg Config
	log zerolog.Logger
}

// New returns a node that Run starts. It touches neither disk nor network.
func New(cfg Config, log zerolog.Logger) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Node{cfg: cfg, log: log}, nil
}

// Run starts the node and blocks until ctx ends or the node can't go on.
func (n *Node) Run(ctx context.Context) error {
	return errors.New("not wired")
}
