package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

func newTokenCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "make, list and revoke join tokens, which let new nodes in",
		Long: `A join token lets a node into the cluster that has no certificate yet. It is good for
some time and some nodes, and the node that uses it sends its secret only to a node of
this cluster. DIR is a node's data folder, or the folder of dev; any node will do.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var data string
	cmd.PersistentFlags().StringVar(&data, "data", "./atoll-data", "a node's data folder, or the folder of dev")
	cmd.AddCommand(newTokenCreateCommand(&data), newTokenListCommand(&data), newTokenRevokeCommand(&data))
	return cmd
}

func newTokenCreateCommand(data *string) *cobra.Command {
	var request node.JoinTokenRequest
	cmd := &cobra.Command{
		Use:   "create",
		Short: "make a join token and print it",
		Long: `Make a join token and print it, alone on a line. It can't be shown again. Whoever has
it can make a node of the cluster, until it is used up, expired or revoked: give it to
the new node as token-file (ATOLL_TOKEN_FILE), or token (ATOLL_TOKEN).`,
		Example: `  atoll token create --ttl 1h --description "n4" > n4.token
  atoll serve --name n4 --join n1:5100 --token-file n4.token`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			token, err := askNode(*data, func(folder string) (*node.JoinToken, error) {
				return node.CreateJoinToken(cmd.Context(), folder, request)
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "join token %s: for %d nodes, until %s\n", token.ID, token.Uses, token.Expires.Local().Format(time.DateTime))
			_, err = fmt.Fprintln(cmd.OutOrStdout(), token.Token)
			return err
		},
	}
	cmd.Flags().DurationVar(&request.TTL, "ttl", node.DefaultJoinTokenTTL, "how long it is good for, at most 720h")
	cmd.Flags().IntVar(&request.Uses, "uses", 1, "how many nodes it lets in, at most 100")
	cmd.Flags().StringVar(&request.Member, "member", "", "name of a member that it lets back in, with its data, because its certificate expired or the authority was changed while it was away; by default it is for new nodes, and lets no member in")
	cmd.Flags().StringVar(&request.Description, "description", "", "what 'atoll token list' says it is for")
	return cmd
}

func newTokenListCommand(data *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "list join tokens, without their secrets",
		Long:  `List join tokens, the newest first, without their secrets. Those that are over are shown for another week.`,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			tokens, err := askNode(*data, func(folder string) ([]node.JoinTokenInfo, error) { return node.ListJoinTokens(cmd.Context(), folder) })
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), tokens)
			}
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "ID\tSTATE\tUSES LEFT\tEXPIRES\tNODES\tDESCRIPTION")
			for _, token := range tokens {
				fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\t%s\n", token.ID, token.State, token.Uses, token.Expires.Local().Format(time.DateTime), strings.Join(token.Nodes, ","), oneLine(token.Description))
			}
			return table.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// oneLine keeps what an operator has written from breaking a table, or the terminal.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
}

func newTokenRevokeCommand(data *string) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "end a join token; nodes that it has let in stay",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := askNode(*data, func(folder string) (struct{}, error) {
				return struct{}{}, node.RevokeJoinToken(cmd.Context(), folder, args[0])
			})
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "join token %s is revoked\n", args[0])
			}
			return err
		},
	}
}
