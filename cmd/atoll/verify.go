package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

func newVerifyCommand() *cobra.Command {
	var data, rate string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "read everything back and compare it with its digest",
		Long: `Read every blob and manifest of the cluster back, as a client would, and report
each that does not have its digest, or can't be read, with its repositories. It
fails if there is any. DIR is a node's data folder, or the folder of dev; any node
of the cluster will do.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			limit, err := kindBytes.parse(rate)
			if err != nil {
				return fmt.Errorf("--rate: %w", err)
			}
			return verify(cmd.Context(), cmd.OutOrStdout(), data, uint64(limit.(int64)), asJSON)
		},
	}
	addDataFlag(cmd, &data)
	cmd.Flags().StringVar(&rate, "rate", "0", "how many bytes a second to read at most, like 20MiB; 0 for no bound")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a line of JSON for each thing found, and for progress")
	return cmd
}

// verify prints what is found, and fails if that is anything.
func verify(ctx context.Context, w io.Writer, data string, rate uint64, asJSON bool) error {
	encoder := json.NewEncoder(w)
	var last node.Verified
	tell := func(one node.Verified) error {
		last = one
		switch {
		case asJSON:
			return encoder.Encode(one)
		case one.Found != nil:
			fmt.Fprintf(w, "%s %s in %s: %s\n", one.Found.Kind, one.Found.Digest, repositoriesOf(one.Found), one.Found.Error)
		}
		return nil
	}
	_, err := askNode(data, func(folder string) (struct{}, error) {
		return struct{}{}, node.Verify(ctx, folder, rate, tell)
	})
	if err != nil {
		return err
	}
	if !asJSON {
		fmt.Fprintf(w, "read %d blobs and %d manifests, %s\n", last.Blobs, last.Manifests, binaryBytes(last.Bytes))
	}
	if last.Bad > 0 {
		return fmt.Errorf("%d blobs or manifests can't be read back to their digest", last.Bad)
	}
	return nil
}

func repositoriesOf(fault *node.VerifyFault) string {
	if len(fault.Repositories) == 0 {
		return "no repository"
	}
	return strings.Join(fault.Repositories, ", ")
}
