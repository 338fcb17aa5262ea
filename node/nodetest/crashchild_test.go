package nodetest

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/atollregistry/atoll/blobstore"
	"github.com/atollregistry/atoll/node"
	atoll "github.com/atollregistry/atoll/proto"
)

// crashChild names the file with the configuration of the node that this test
// program is to be, instead of running tests.
const crashChild = "ATOLL_TEST_CRASH_CHILD"

// crashSweepInterval is the time between two rounds of the sweep in children.
const crashSweepInterval = 500 * time.Millisecond

// sideBySide is how many tests run at once unless -parallel says otherwise: most of the
// time they wait, for elections and silences, so that the number of cores would be too few.
const sideBySide = "4"

func TestMain(m *testing.M) {
	file := os.Getenv(crashChild)
	if file == "" {
		if err := flag.Set("test.parallel", sideBySide); err != nil {
			panic(err) // the testing package has had this flag since Go 1.0
		}
		os.Exit(m.Run())
	}
	if err := runCrashChild(file); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runCrashChild is a node as the program's: the same configuration gives the same
// node. Its parent steers it by RPC over stdin and stdout; it ends with its parent.
func runCrashChild(file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var cfg node.Config
	if err := json.Unmarshal(content, &cfg); err != nil {
		return err
	}
	watch, err := newStepWatch(file + ".unsynced")
	if err != nil {
		return err
	}
	child := &CrashChild{watch: watch}
	tune := func(cfg *blobstore.Config) {
		// Shards whose record is on its way are safe without a grace: the parent lets the
		// sweep see garbage only while nothing is being written.
		cfg.SweepInterval, cfg.SweepGrace, cfg.WatchSteps = crashSweepInterval, 0, child.watch.disk
		cfg.InlineBlobBytes = 0 // The steps are those of shards.
	}
	log := zerolog.New(os.Stderr).With().Timestamp().Int("pid", os.Getpid()).Logger()
	child.node, err = node.New(cfg, log, node.WithBlobstore(tune), node.WithSeams(child.watch.seams(&child.sweeping)))
	if err != nil {
		return err
	}
	steering := rpc.NewServer()
	if err := steering.Register(child); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() { // until the process ends
		steering.ServeConn(struct {
			io.Reader
			io.WriteCloser
		}{os.Stdin, os.Stdout})
		if ctx.Err() == nil {
			os.Exit(1) // the parent is gone
		}
	}()
	return child.node.Run(ctx)
}

// CrashChild is what a parent can ask of a child.
type CrashChild struct {
	node  *node.Node
	watch *stepWatch
	// sweeping says that the sweep is told the truth about garbage.
	sweeping atomic.Bool
}

// Arm ends the process at a step.
func (c *CrashChild) Arm(at CrashAt, _ *bool) error {
	c.watch.arm(at)
	return nil
}

// Disarm lets the process live, and returns at which it would have ended still.
func (c *CrashChild) Disarm(_ bool, at *CrashAt) error {
	*at = c.watch.disarm()
	return nil
}

// Trace begins to count steps, and returns what was counted before.
func (c *CrashChild) Trace(_ bool, counts *[]StepCount) error {
	*counts = c.watch.trace()
	return nil
}

// Sweep says whether garbage is to be swept now.
func (c *CrashChild) Sweep(on bool, _ *bool) error {
	c.sweeping.Store(on)
	return nil
}

// Unsynced tells which files are there that a power failure would take.
func (c *CrashChild) Unsynced(_ bool, files *[]string) error {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	*files = c.watch.unsynced.there()
	return nil
}

// DiskOf is a node's id and its data folder, on which the node need not run.
type DiskOf struct{ ID, Data string }

// Inspect is a question for an Inspection.
type Inspect struct {
	Disks []DiskOf
	// Strays says to look for files that no record names, too, which takes longer.
	Strays bool
}

// Inspection compares disks with the records.
type Inspection struct {
	// Missing are files of recorded shards that are not there or have nothing in them.
	Missing []string
	// Unrecorded are files that no record names, Unfinished those that have no name yet.
	Unrecorded, Unfinished []string
	// Degraded counts extents without some of their shards, Extents all.
	Degraded, Extents int
}

// Inspect compares disks, dead ones too, with the newest records.
func (c *CrashChild) Inspect(question Inspect, found *Inspection) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	store := c.node.Metadata()
	if store == nil {
		return errors.New("the node is not open yet")
	}
	if err := store.CatchUp(ctx); err != nil {
		return err
	}
	const limit = 1 << 20
	all, err := store.Extents(nil, limit)
	if err != nil {
		return err
	}
	degraded, err := store.DegradedExtents(nil, limit)
	if err != nil {
		return err
	}
	found.Degraded, found.Extents = len(degraded), len(all)
	for _, disk := range question.Disks {
		member := &Member{Config: node.Config{Data: []string{disk.Data}}}
		for _, e := range all {
			number := slices.Index(e.GetHolders(), disk.ID)
			if number < 0 {
				continue
			}
			file := member.shardFile(e, number)
			if info, err := os.Stat(file); err != nil || info.Size() == 0 {
				found.Missing = append(found.Missing, file)
			}
		}
		unfinished, err := filepath.Glob(filepath.Join(disk.Data, "shards", "tmp", "*"))
		if err != nil {
			return err
		}
		found.Unfinished = append(found.Unfinished, unfinished...)
		if !question.Strays {
			continue
		}
		if err := found.strays(ctx, c.node, disk); err != nil {
			return err
		}
	}
	return nil
}

// strays looks for files that no record names.
func (i *Inspection) strays(ctx context.Context, n *node.Node, disk DiskOf) error {
	files, err := filepath.Glob(filepath.Join(disk.Data, "shards", "[0-9a-f][0-9a-f]", "*"))
	if err != nil {
		return err
	}
	shards := make([]*atoll.ShardRef, len(files))
	for at, file := range files {
		if shards[at], err = shardOf(file); err != nil {
			return err
		}
		shards[at].NodeId = disk.ID
	}
	live, _, err := n.Metadata().LiveShards(ctx, shards)
	if err != nil {
		return err
	}
	for at, file := range files {
		if !live[at] {
			i.Unrecorded = append(i.Unrecorded, file)
		}
	}
	return nil
}

func (i *Inspection) String() string {
	return "missing " + strconv.Itoa(len(i.Missing)) + ", unrecorded " + strconv.Itoa(len(i.Unrecorded)) +
		", unfinished " + strconv.Itoa(len(i.Unfinished)) + ", degraded " + strconv.Itoa(i.Degraded) + " of " + strconv.Itoa(i.Extents)
}
