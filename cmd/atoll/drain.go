package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

const (
	// drainPoll is how often drain --wait looks how far the node is.
	drainPoll = time.Second
	// drainPatience is how many looks in a row may fail: elections and the end of the
	// node that is asked are over by then.
	drainPatience = 60
)

func newDrainCommand() *cobra.Command {
	var data string
	var wait, cancel bool
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "empty a node, so that it can be removed",
		Long: `Have a node give its shards to the others and take no new ones, while clients push
and pull as before. It goes on when this command ends; 'atoll status' shows how far
it is, and 'atoll remove' takes the empty node out of the cluster. A drain that the
other nodes have no room for is refused. DIR is a node's data folder, or the folder
of dev; any node of the cluster will do.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case cancel && wait:
				return errors.New("--cancel and --wait don't go together")
			case cancel:
				return cancelDrain(cmd.Context(), cmd.OutOrStdout(), data, args[0])
			}
			return drain(cmd.Context(), cmd.OutOrStdout(), data, args[0], wait)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the node is empty, and show how far it is")
	cmd.Flags().BoolVar(&cancel, "cancel", false, "let the node take shards again")
	return cmd
}

func drain(ctx context.Context, w io.Writer, data, name string, wait bool) error {
	d, err := askNode(data, func(folder string) (*node.Drain, error) { return node.StartDrain(ctx, folder, name) })
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "node %s is draining: %s\n", name, drainLeft(d))
	if wait {
		if err := waitDrain(ctx, w, data, d); err != nil {
			return err
		}
	}
	if wait || d.Shards == 0 {
		fmt.Fprintf(w, "node %s is empty: 'atoll remove %s' takes it out of the cluster\n", name, name)
	}
	return nil
}

// waitDrain waits until the node is empty.
func waitDrain(ctx context.Context, w io.Writer, data string, last *node.Drain) error {
	ticker := time.NewTicker(drainPoll)
	defer ticker.Stop()
	for failed := 0; last.Shards > 0; {
		select {
		case <-ctx.Done():
			return fmt.Errorf("stopped waiting, the drain goes on: %w", ctx.Err())
		case <-ticker.C:
		}
		d, err := askNode(data, func(folder string) (*node.Drain, error) { return node.FetchDrain(ctx, folder, last.Node) })
		if err != nil {
			if failed++; failed > drainPatience {
				return err
			}
			continue
		}
		failed = 0
		if !d.Draining {
			return fmt.Errorf("node %s is not draining any more: somebody has cancelled it", d.Node)
		}
		if d.Shards != last.Shards {
			fmt.Fprintln(w, drainLeft(d))
		}
		last = d
	}
	return nil
}

func drainLeft(d *node.Drain) string {
	return fmt.Sprintf("%d shards, %s left", d.Shards, binaryBytes(d.Bytes))
}

func cancelDrain(ctx context.Context, w io.Writer, data, name string) error {
	if _, err := askNode(data, func(folder string) (*node.Drain, error) { return node.CancelDrain(ctx, folder, name) }); err != nil {
		return err
	}
	fmt.Fprintf(w, "node %s takes shards\n", name)
	return nil
}
