package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

func newRepairCommand() *cobra.Command {
	var data, rate string
	var concurrency uint32
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "repair",
		Short: "show how repair is doing, or change how fast it may be",
		Long: `Show what has to be repaired, what is being done about it, and what keeps the rest.
With --rate or --concurrency, change how much each node may do at once; the whole
cluster keeps that until it is changed again. DIR is a node's data folder, or the
folder of dev; any node of the cluster will do.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var change node.RepairChange
			if cmd.Flags().Changed("rate") {
				bytes, err := bytesOf(rate)
				if err != nil {
					return fmt.Errorf("--rate: %q is not %s", rate, kindBytes.allowed())
				}
				perSecond := uint64(bytes)
				change.BytesPerSecond = &perSecond
			}
			if cmd.Flags().Changed("concurrency") {
				change.Concurrency = &concurrency
			}
			repair, err := changeRepair(cmd.Context(), data, change)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), repair)
			}
			return printRepair(cmd.OutOrStdout(), repair)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().StringVar(&rate, "rate", "", "BYTES that each node may write a second, like 64MiB; 0 for no bound")
	cmd.Flags().Uint32Var(&concurrency, "concurrency", 0, "how many extents each node works on at once")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newRebalanceCommand() *cobra.Command {
	var data string
	var pause, resume, reencode bool
	cmd := &cobra.Command{
		Use:   "rebalance",
		Short: "show how full the nodes are, or pause and resume moving shards between them",
		Long: `Show how full the nodes are. The leader moves shards from full nodes to emptier ones
while nothing has to be repaired. --pause stops that for the whole cluster, until
--resume. --reencode stores every extent anew that new ones would get a better layout
than, as after growing from three nodes to six; --reencode=false ends that. DIR is a
node's data folder, or the folder of dev; any node of the cluster will do.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var change node.RepairChange
			if pause || resume {
				change.RebalancePaused = &pause
			}
			if cmd.Flags().Changed("reencode") {
				change.Reencode = &reencode
			}
			repair, err := changeRepair(cmd.Context(), data, change)
			if err != nil {
				return err
			}
			status, err := fetchStatus(cmd.Context(), data)
			if err != nil {
				return err
			}
			return printBalance(cmd.OutOrStdout(), repair, status)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().BoolVar(&pause, "pause", false, "move no shards for the sake of balance")
	cmd.Flags().BoolVar(&resume, "resume", false, "move them again")
	cmd.Flags().BoolVar(&reencode, "reencode", false, "store what could have a better layout anew")
	cmd.MarkFlagsMutuallyExclusive("pause", "resume")
	return cmd
}

// changeRepair makes the change, if there is any, and returns what is then.
func changeRepair(ctx context.Context, data string, change node.RepairChange) (*node.Repair, error) {
	return askNode(data, func(folder string) (*node.Repair, error) {
		if change == (node.RepairChange{}) {
			return node.FetchRepair(ctx, folder)
		}
		return node.ChangeRepair(ctx, folder, change)
	})
}

// printRepair is the form for people.
func printRepair(w io.Writer, r *node.Repair) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "to do\t%d extents miss shards; %d shards are on nodes that are down, %d on nodes that are drained\n",
		r.DegradedExtents, r.DownShards, r.DrainingShards)
	if r.Leader == "" {
		fmt.Fprintln(table, "running\tnothing is known: this node hears of no leader")
	} else {
		fmt.Fprintf(table, "running\t%s\n", running(r.Running))
		fmt.Fprintf(table, "done\t%d extents, %s, since %s leads; %d tries failed\n", r.Done, binaryBytes(r.DoneBytes), r.Leader, r.Failed)
	}
	for _, reason := range slices.Sorted(maps.Keys(r.Waiting)) {
		fmt.Fprintf(table, "waiting\t%d extents: %s\n", r.Waiting[reason], reason)
	}
	if r.LastError != "" {
		fmt.Fprintf(table, "last error\t%s\n", r.LastError)
	}
	rate := "as much as they can"
	if r.Settings.BytesPerSecond > 0 {
		rate = binaryBytes(r.Settings.BytesPerSecond) + " a second"
	}
	fmt.Fprintf(table, "limits\teach node writes %s, of %d extents at once\n", rate, r.Settings.Concurrency)
	return table.Flush()
}

// running says how many extents are worked on where.
func running(extents map[string]uint32) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(extents)) {
		parts = append(parts, fmt.Sprintf("%d extents on %s", extents[name], name))
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

// printBalance is the form for people.
func printBalance(w io.Writer, r *node.Repair, s *node.Status) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	rebalance := "on"
	if r.Settings.RebalancePaused {
		rebalance = "paused"
	}
	reencode := "off"
	if r.Settings.Reencode {
		reencode = "on, until every extent has the layout that new ones get"
	}
	fmt.Fprintf(table, "rebalance\t%s\nreencode\t%s\n", rebalance, reencode)
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	fmt.Fprintln(table, "NODE\tSTATE\tSHARDS\tHOLDS\tCAPACITY\tFULL")
	for _, n := range s.Nodes {
		full := 100 * float64(n.ShardBytes) / float64(max(n.CapacityBytes, 1))
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\t%.1f %%\n", n.ID, n.State, n.Shards, binaryBytes(n.ShardBytes), binaryBytes(n.CapacityBytes), full)
	}
	return table.Flush()
}
