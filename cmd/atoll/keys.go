package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

func newKeysCommand() *cobra.Command {
	cmd := newGroupCommand("keys", "change the keys that tokens and redirects are signed with",
		`The cluster makes these keys itself, and new ones every 30 days. DIR is a node's data
folder, or the folder of dev; any node of the cluster will do.`, newKeysRotateCommand())
	return cmd
}

func newKeysRotateCommand() *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "forget all keys and make new ones",
		Long: `Forget all keys that tokens and redirects are signed with, and make new ones: for when
somebody may have a copy of a node's data folder or of a backup's metadata. All tokens
are void at once, on every node; docker and others that keep one have to log in again.
Passwords and robots' secrets stay as they are. With registry.tls.acme the certificate
that clients see is ordered anew, too.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rotated, err := askNode(data, func(folder string) (*node.KeysRotated, error) { return node.RotateKeys(cmd.Context(), folder) })
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "all keys are new, tokens are signed with number %d; what was logged in has ended\n", rotated.TokenKey)
			return err
		},
	}
	addDataFlag(cmd, &data)
	return cmd
}
