package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

func newRemoveCommand() *cobra.Command {
	var data string
	var force bool
	cmd := &cobra.Command{
		Use:   "remove NODE",
		Short: "take a node out of the cluster for good",
		Long: `Take a node that is empty, or gone for good, out of the cluster. Its process ends,
and its data folder is of no more use. A node that is alive must be drained first,
and what only this node has must not be lost, unless --force gives it up. DIR is a
node's data folder, or the folder of dev; any node of the cluster will do.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			removal, err := askNode(data, func(folder string) (*node.Removal, error) {
				return node.Remove(cmd.Context(), folder, args[0], force)
			})
			if err != nil {
				return err
			}
			return printRemoval(cmd.OutOrStdout(), removal)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().BoolVar(&force, "force", false, "give up what only this node has, and don't wait for a drain")
	return cmd
}

// printRemoval is the form for people. A refusal is an error.
func printRemoval(w io.Writer, r *node.Removal) error {
	verb := "would be lost"
	if r.Removed {
		verb = "lost"
	}
	for _, blob := range r.Lost {
		fmt.Fprintf(w, "%s: %s, %s, in %s\n", verb, blob.Digest, binaryBytes(blob.Bytes), strings.Join(blob.Repositories, ", "))
	}
	if more := r.Blobs - uint64(len(r.Lost)); more > 0 {
		fmt.Fprintf(w, "%s: %d more blobs\n", verb, more)
	}
	if r.Uploads > 0 {
		fmt.Fprintf(w, "%s: %d uploads in progress\n", verb, r.Uploads)
	}
	if !r.Removed {
		return fmt.Errorf("node %s is not removed: %s", r.Node, r.Refusal)
	}
	fmt.Fprintf(w, "node %s is removed from the cluster\n", r.Node)
	return nil
}
