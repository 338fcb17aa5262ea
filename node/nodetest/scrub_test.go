package nodetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/atollregistry/atoll/node"
)

// scrubAll has all members read all their shards, and returns how many they found
// damaged or missing.
func (c *Cluster) scrubAll() (found uint64) {
	c.t.Helper()
	via := c.Members[0].Config.Home()
	if _, err := node.StartScrub(context.Background(), via); err != nil {
		c.t.Fatal(err)
	}
	c.Eventually(settleTimeout, "all nodes have scrubbed", func() error {
		scrubs, err := node.FetchScrub(context.Background(), via)
		if err != nil {
			return err
		}
		found = 0
		for _, s := range scrubs {
			if s.Error != "" || s.Running {
				return fmt.Errorf("%+v", s)
			}
			found += s.Last.Damaged + s.Last.Missing
		}
		return nil
	})
	return found
}

// Of the shards on one node's disk some are rotten, cut off, gone, or in another's
// place, while clients read. What they get is right, the scrub finds the rest, and
// all is mended.
func TestRottenDisk(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	for seed := range uint64(6) {
		push(t, c, "a/image", fmt.Sprint("v", seed), seed, c.Members...)
	}
	victim := c.Members[1]
	files := victim.ShardFiles()
	harmed := uint64(0)
	for i, file := range files {
		var err error
		switch {
		case i%12 == 1:
			err = os.Truncate(file, 50)
		case i%12 == 4:
			err = os.Remove(file)
		case i%12 == 7 && i+1 < len(files):
			err = os.Rename(file, files[i+1])
			harmed++ // two at once
		case i%3 == 0 && i%12 != 9 || i%12 == 10:
			FlipBit(t, file)
		default:
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		harmed++
	}
	l := c.startLoad()
	if found := c.scrubAll(); found < harmed/2 || found == 0 {
		t.Errorf("%d shards were harmed, the scrub found %d", harmed, found) // the clients found others
	}
	c.Eventually(settleTimeout, "every shard is sound", func() error {
		if found := c.scrubAll(); found > 0 {
			return errors.New("some are not yet")
		}
		return nil
	})
	l.end()
	c.Check()
}
