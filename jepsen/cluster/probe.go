package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

const (
	// probeInterval and probeTimeout are those of a balancer that looks at /readyz.
	probeInterval = 200 * time.Millisecond
	probeTimeout  = time.Second
)

// watch asks a node how it is, as a balancer does, until ctx ends.
func (c *Cluster) watch(ctx context.Context, n *Node) {
	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	for {
		c.readyz(ctx, n)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// get asks a node's operations port, and returns the answer without its body.
func (c *Cluster) get(ctx context.Context, n *Node, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(n.host.Address(), operationsPort)+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.probe.Do(req)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	return resp, nil
}

// readyz asks a node whether it can serve everything, and remembers the answer.
func (c *Cluster) readyz(ctx context.Context, n *Node) bool {
	resp, err := c.get(ctx, n, "/readyz")
	ready := err == nil && resp.StatusCode == http.StatusOK
	n.ready.Store(ready)
	return ready
}

// ClockOffset asks a node what time it is, and returns by how much its clock is ahead of this
// process's, to about half a second. It fails if the process does not answer within probeTimeout.
func (c *Cluster) ClockOffset(ctx context.Context, n *Node) (time.Duration, error) {
	before := time.Now()
	resp, err := c.get(ctx, n, "/livez")
	if err != nil {
		return 0, fmt.Errorf("ask %s for the time: %w", n.Name, err)
	}
	told, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return 0, fmt.Errorf("ask %s for the time: %w", n.Name, err)
	}
	asked := before.Add(time.Since(before) / 2)
	return told.Add(time.Second / 2).Sub(asked), nil // it is told in whole seconds, cut off
}

// WaitReady waits until all members are ready.
func (c *Cluster) WaitReady(ctx context.Context, timeout time.Duration) error {
	return c.Eventually(ctx, timeout, "all nodes are ready", func() error {
		for _, n := range c.Members() {
			if !c.readyz(ctx, n) {
				return fmt.Errorf("%s is not ready: %s", n.Name, n.State())
			}
		}
		return nil
	})
}

// WaitJoined waits until a node is ready.
func (c *Cluster) WaitJoined(ctx context.Context, n *Node) error {
	return c.Eventually(ctx, FormTimeout, n.Name+" is ready", func() error {
		if !c.readyz(ctx, n) {
			return errors.New(n.State())
		}
		return nil
	})
}
