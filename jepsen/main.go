// Command jepsen runs a real cluster, breaks it on purpose while clients use it, and judges
// whether what the clients were told can be. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes. What could not be judged is no pass.
const (
	exitValid   = 0
	exitInvalid = 1
	exitUnknown = 2
)

const usage = `usage: go run ./jepsen [flags]            one run
       go run ./jepsen matrix [flags]     every nemesis with every workload, and mixes
       go run ./jepsen mutants [flags]    programs broken on purpose, each of which must be caught
       go run ./jepsen record FILE...     a line for each verdict, to be kept
       go run ./jepsen table FILE...      the tables of runs and mutants, from such lines
       go run ./jepsen list               workloads, nemeses and mutants

Exit code: 0 valid, 1 invalid (an anomaly was found), 2 not judged.

`

func main() {
	code, err := start(os.Args[1:])
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "jepsen:", err)
	}
	os.Exit(code)
}

// start does what the command line asks for.
func start(args []string) (code int, err error) {
	command := "run"
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		command, args = args[0], args[1:]
	}
	switch command {
	case "list":
		return exitValid, list(os.Stdout)
	case "record":
		return exitValid, printRecords(os.Stdout, args)
	case "table":
		return exitValid, table(os.Stdout, args)
	case "run", "matrix", "mutants":
	default:
		return exitUnknown, fmt.Errorf("there is no command %q\n%s", command, usage)
	}
	options, err := parse(command, args)
	if err != nil {
		return exitUnknown, err
	}
	// Mounts that nobody else sees go away with this process, however it ends.
	if again, code, err := inOwnMounts(options); again {
		return code, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch command {
	case "matrix":
		return matrix(ctx, options)
	case "mutants":
		return mutants(ctx, options)
	}
	if options.soak > 0 {
		return soak(ctx, options)
	}
	return single(ctx, options)
}
