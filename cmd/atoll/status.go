package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

func newStatusCommand() *cobra.Command {
	var data string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "show the nodes, the cluster's health and how many blobs are whole",
		Long: `Ask a running node on this machine for its view of the cluster. DIR is a node's
data folder, or the folder of dev, where any node that answers will do.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := fetchStatus(cmd.Context(), data)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), status)
			}
			return printStatus(cmd.OutOrStdout(), status)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// fetchStatus asks the node of a data folder. In a folder of several nodes it
// asks all and takes the first answer.
func fetchStatus(ctx context.Context, dir string) (*node.Status, error) {
	folders, err := nodeFolders(dir)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the questions that are still open
	type answer struct {
		status *node.Status
		err    error
	}
	answers := make(chan answer, len(folders))
	for _, folder := range folders {
		go func() { // ends with ctx
			status, err := node.FetchStatus(ctx, folder)
			answers <- answer{status, err}
		}()
	}
	var faults []error
	for range folders {
		a := <-answers
		if a.err == nil {
			return a.status, nil
		}
		if !errors.Is(a.err, syscall.ECONNREFUSED) { // a socket that a dead process has left
			faults = append(faults, a.err)
		}
	}
	return nil, errors.Join(append(faults, fmt.Errorf("no node runs in %s", strings.Join(folders, ", ")))...)
}

// printStatus is the form for people.
func printStatus(w io.Writer, s *node.Status) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "health\t%s\n", s.Health)
	fmt.Fprintf(table, "blobs\t%d whole, %d degraded, %d lost\n", s.Blobs.Whole, s.Blobs.Degraded, s.Blobs.Lost)
	fmt.Fprintf(table, "cluster\t%s, as %s sees it\n", s.Cluster, s.Node)
	for _, problem := range s.Problems {
		fmt.Fprintf(table, "problem\t%s\n", problem)
	}
	for _, note := range s.Notes {
		fmt.Fprintf(table, "note\t%s\n", note)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print status: %w", err)
	}
	fmt.Fprintln(w)
	fmt.Fprintln(table, "NODE\tROLE\tSTATE\tSEEN\tAPPLIED\tSHARDS\tHOLDS\tFREE\tREGISTRY\tCLUSTER\tOPERATIONS")
	for _, n := range s.Nodes {
		fmt.Fprintln(table, strings.Join([]string{
			n.ID, role(n), n.State, seen(n.LastContactMS), fmt.Sprint(n.AppliedIndex), fmt.Sprint(n.Shards), binaryBytes(n.ShardBytes),
			fmt.Sprintf("%s of %s", binaryBytes(n.FreeBytes), binaryBytes(n.CapacityBytes)),
			n.Registry, n.Cluster, n.Operations,
		}, "\t"))
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print status: %w", err)
	}
	return nil
}

// role says in one word what part a node has in Raft.
func role(n node.NodeStatus) string {
	switch {
	case n.Leader:
		return "leader"
	case n.Voter:
		return "voter"
	}
	return "non-voter"
}

func seen(ms int64) string {
	switch {
	case ms < 0:
		return "never"
	case ms < 1000:
		return "now"
	}
	return (time.Duration(ms) * time.Millisecond).Round(time.Second).String() + " ago"
}

// binaryBytes writes a size with three digits at most.
func binaryBytes(n uint64) string {
	size, unit := float64(n), 0
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	for size >= 999.5 && unit < len(units)-1 {
		size /= 1024
		unit++
	}
	if size < 9.95 && unit > 0 {
		return fmt.Sprintf("%.1f %s", size, units[unit])
	}
	return fmt.Sprintf("%.0f %s", size, units[unit])
}
