package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

const (
	// cleanTimeout bounds how long ScrubClean has everything read again and again: damage that a
	// pass has found is repaired before the next, but what no record names any more stays, as it is,
	// until it is swept: after a grace and two eras, which a leader begins, and a busy machine changes
	// leaders now and then. cleanPause is the pause between two passes.
	cleanTimeout = 2 * SettleTimeout
	cleanPause   = 3 * time.Second
)

// Found is what nodes found when they read all their shards again.
type Found struct {
	// Shards were read; Damaged ones were not what had been written, Missing ones not there.
	Shards, Damaged, Missing int
}

// scrubbed is what 'atoll scrub --json' tells of a node.
type scrubbed struct {
	Node    string `json:"node"`
	Error   string `json:"error"`
	Running bool   `json:"running"`
	// Last is the last pass that has ended, nil if none has.
	Last *struct {
		Started                  time.Time
		Shards, Damaged, Missing int
	} `json:"last"`
}

// Scrub has all members read all their shards again, and waits for them. It asks again until each
// of them has done so.
func (c *Cluster) Scrub(ctx context.Context) (found Found, err error) {
	err = c.Eventually(ctx, dataTimeout, "every node has read all its shards again", func() error {
		found, err = c.scrub(ctx)
		return err
	})
	return found, err
}

// ScrubClean has all members read their shards again and again, and what they find repaired,
// until they find nothing. It fails with ErrNotSo if they still find something after cleanTimeout.
func (c *Cluster) ScrubClean(ctx context.Context) error {
	began := time.Now()
	for {
		found, err := c.Scrub(ctx)
		if err != nil || found.Damaged+found.Missing == 0 {
			return err
		}
		c.cfg.Log("of %d shards %d were damaged and %d missing", found.Shards, found.Damaged, found.Missing)
		if time.Since(began) > cleanTimeout {
			return fmt.Errorf("%w, after reading all shards for %s, that none is damaged or missing: %d and %d are", ErrNotSo, cleanTimeout, found.Damaged, found.Missing)
		}
		if err := c.WaitHealthy(ctx); err != nil {
			return err
		}
		pause := time.NewTimer(cleanPause)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// scrub has all members read their shards once.
func (c *Cluster) scrub(ctx context.Context) (Found, error) {
	asked := c.Members()[0]
	if ready := c.Ready(); len(ready) > 0 {
		asked = ready[0]
	}
	before, err := asked.scrubs(ctx)
	if err != nil {
		return Found{}, err
	}
	after, err := asked.scrubs(ctx, "--now")
	if err != nil {
		return Found{}, err
	}
	var names []string
	for _, n := range c.Members() {
		names = append(names, n.Name)
	}
	return sum(names, before, after)
}

// scrubs runs the command. That it fails says nothing if it tells something: it has found damage.
func (n *Node) scrubs(ctx context.Context, args ...string) (map[string]scrubbed, error) {
	out, err := n.command(ctx, dataTimeout, append([]string{"scrub", "--json"}, args...)...)
	var told []scrubbed
	if decodeErr := json.Unmarshal([]byte(out), &told); decodeErr != nil {
		return nil, errors.Join(err, decodeErr)
	}
	byNode := make(map[string]scrubbed, len(told))
	for _, one := range told {
		byNode[one.Node] = one
	}
	return byNode, nil
}

// sum adds up what nodes found. It fails if one of them has told nothing, or has told after the
// command only of the pass from before: it did not hear of the command then.
func sum(names []string, before, after map[string]scrubbed) (Found, error) {
	var found Found
	for _, name := range names {
		told, ok := after[name]
		switch {
		case !ok:
			return Found{}, fmt.Errorf("nothing was told of the shards of %s", name)
		case told.Error != "" || told.Running || told.Last == nil:
			return Found{}, fmt.Errorf("%s has not read all its shards: %s", name, told.Error)
		}
		if old := before[name].Last; old != nil && old.Started.Equal(told.Last.Started) {
			return Found{}, fmt.Errorf("%s has not read its shards again", name)
		}
		found.Shards += told.Last.Shards
		found.Damaged += told.Last.Damaged
		found.Missing += told.Last.Missing
	}
	return found, nil
}
