package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/atollregistry/atoll/cmd/bench"
)

// served is a server, or a cluster of them, that takes part in a row.
type served interface {
	// start returns when it serves what is in its folder. It must not run.
	start(ctx context.Context) error
	// stop returns when none of its processes is left. It may be called at any time.
	stop() error
	// place is where its files are.
	place() *place
	// registry is how it is reached.
	registry() bench.Registry
}

// place has the paths of one that is served.
type place struct {
	// folder has all its files. Among them are those of data, which start makes anew if they are
	// missing, and caches, which are copies of that.
	folder       string
	data, caches []string
	// pids is a file with the ids of its processes.
	pids string
}

// writePIDs says which processes are to be measured from now on.
func (p *place) writePIDs(pids []int) error {
	var words []string
	for _, pid := range pids {
		words = append(words, strconv.Itoa(pid))
	}
	return os.WriteFile(p.pids, []byte(strings.Join(words, " ")), 0o600)
}

// do gets a server ready for its next turn.
func (b between) do(ctx context.Context, s served) error {
	p := s.place()
	if b == settle {
		return syncDisk(p.folder)
	}
	if err := s.stop(); err != nil {
		return err
	}
	gone := p.caches
	if b == empty {
		gone = p.data
	}
	for _, path := range gone {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("empty %s: %w", p.folder, err)
		}
	}
	if err := syncDisk(p.folder); err != nil {
		return err
	}
	if b == cool {
		if err := dropPages(p.folder); err != nil {
			return err
		}
	}
	return s.start(ctx)
}
