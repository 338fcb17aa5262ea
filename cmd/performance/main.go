// Command performance measures atoll against what else serves the same bytes on this machine,
// and writes docs/performance.md, which says what the figures mean.
//
// It builds atoll and starts all servers itself: atoll's nodes, each a process, Debian's
// docker-registry, and nginx. Each row of the table (rows.go) has servers of its own on empty
// folders, and goes turn by turn, the reference first and atoll next, through the workloads of
// cmd/bench.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/atollregistry/atoll/cmd/sysmon"
)

func main() {
	sysmon.Quiet() // The client takes as little from the servers as it can.
	// Servers are tied to the thread that starts them (see startProcess): this one, for good.
	runtime.LockOSThread()
	sysmon.Usual() // They are to run as they come; atoll's nodes see to themselves.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends this process at once, and the kernel ends the servers.
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintln(os.Stderr, "performance:", line)
		}
		os.Exit(1)
	}
}

// run does what the command line asks for. A target that is not met is a result, not an error.
func run(ctx context.Context, args []string) error {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	l, err := newLab(ctx, o)
	if err != nil {
		return err
	}
	results, err := l.measureAll(ctx)
	err = errors.Join(err, l.close())
	if len(results) > 0 {
		// What was measured is told even if the rest failed.
		err = errors.Join(err, printMemory(os.Stdout, results))
	}
	if err != nil || !o.write {
		return err
	}
	return l.writeDocs()
}
