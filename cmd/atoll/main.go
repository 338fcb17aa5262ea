// Command atoll is a container registry that is a cluster: serve runs one node,
// dev runs a whole cluster on this machine, and the others look after it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/cmd/sysmon"
	"github.com/atollregistry/atoll/node"
)

func main() {
	if len(os.Args) > 1 && slices.Contains([]string{"serve", "dev", "bench"}, os.Args[1]) {
		sysmon.Quiet()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once: somebody is in a hurry.
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			fmt.Fprintln(os.Stderr, "atoll:", line)
		}
		os.Exit(exitCode(err))
	}
}

const (
	exitFailed = 1
	// exitRemoved is for a node that was removed from its cluster, or whose cluster was
	// recovered without it. Starting it again is of no use; a service manager should
	// know this number.
	exitRemoved = 3
)

func exitCode(err error) int {
	if errors.Is(err, node.ErrRemoved) || errors.Is(err, node.ErrSuperseded) {
		return exitRemoved
	}
	return exitFailed
}

// run is the program without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}

// newRootCommand has all commands in it.
func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:               "atoll",
		Short:             "a container registry that is a cluster",
		SilenceErrors:     true, // main prints them
		SilenceUsage:      true, // a wrong value is not a wrong command
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		Args:              cobra.ArbitraryArgs, // an unknown command comes as one
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			var names []string
			for _, command := range cmd.Commands() {
				names = append(names, command.Name())
			}
			return unknown("command", args[0], names)
		},
	}
	root.AddCommand(
		newServeCommand(), newDevCommand(), newStatusCommand(),
		newDrainCommand(), newRemoveCommand(), newRepairCommand(), newRebalanceCommand(), newScrubCommand(), newVerifyCommand(), newBackupCommand(), newRestoreCommand(), newRecoverCommand(), newCollectCommand(),
		newUserCommand(), newRobotCommand(), newPolicyCommand(), newKeysCommand(),
		newTokenCommand(), newAuthorityCommand(), newCertsCommand(), newBenchCommand(), newVersionCommand(),
	)
	root.SetFlagErrorFunc(suggestFlag)
	return root
}
