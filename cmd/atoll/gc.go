package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

func newCollectCommand() *cobra.Command {
	var data string
	var asJSON, dryRun bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "drop what nothing refers to, or show what would go",
		Long: `Have the cluster drop what is over its grace now: blobs that no manifest refers
to, uploads that rest, and untagged manifests if collect.untagged is set. The
leader does so every collect.interval by itself; pushes and pulls go on. Nodes
delete the files an hour or two later. DIR is a node's data folder, or the folder
of dev; any node of the cluster will do.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			collection, err := askNode(data, func(folder string) (*node.Collection, error) {
				return node.Collect(cmd.Context(), folder, dryRun)
			})
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), collection)
			}
			return printCollection(cmd.OutOrStdout(), collection)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "drop nothing")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printCollection is the form for people.
func printCollection(w io.Writer, c *node.Collection) error {
	for _, garbage := range c.Garbage {
		for _, name := range garbage.Names {
			fmt.Fprintf(w, "%s %s\n", garbage.Kind, name)
		}
		if more := garbage.Due - len(garbage.Names); more > 0 {
			fmt.Fprintf(w, "%s: %d more\n", garbage.Kind, more)
		}
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "WHAT\tDUE\tBYTES\tLATER\tBYTES")
	for _, garbage := range c.Garbage {
		if garbage.Kept {
			fmt.Fprintf(table, "%s\tkept\t\t\t\n", garbage.Kind)
			continue
		}
		fmt.Fprintf(table, "%s\t%d\t%s\t%d\t%s\n", garbage.Kind,
			garbage.Due, binaryBytes(garbage.DueBytes), garbage.Later, binaryBytes(garbage.LaterBytes))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	verdict := fmt.Sprintf("dropped %d records", c.Dropped)
	if c.DryRun {
		verdict = "dry run: nothing was dropped"
	}
	_, err := fmt.Fprintln(w, verdict)
	return err
}
