package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/atollregistry/atoll/node"
)

// rotatePoll is how often ca rotate --wait looks how far the change is.
const rotatePoll = time.Second

func newAuthorityCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "show and change the cluster's certificate authority",
		Long: `Show and change the certificate authority by which the nodes know each other. DIR is a
node's data folder, or the folder of dev; any node will do.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var data string
	cmd.PersistentFlags().StringVar(&data, "data", "./atoll-data", "a node's data folder, or the folder of dev")
	cmd.AddCommand(newAuthorityStatusCommand(&data), newAuthorityRotateCommand(&data))
	return cmd
}

func newAuthorityStatusCommand(data *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "show the authority, the nodes' certificates, and how far a change is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := fetchAuthority(cmd.Context(), *data)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), status)
			}
			return printAuthority(cmd.OutOrStdout(), status)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func fetchAuthority(ctx context.Context, data string) (*node.AuthorityStatus, error) {
	return askNode(data, func(folder string) (*node.AuthorityStatus, error) { return node.FetchAuthority(ctx, folder) })
}

func newAuthorityRotateCommand(data *string) *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "have a new authority take the place of the present one, while the cluster serves",
		Long: `Make a new certificate authority and have it take the place of the present one: first
all nodes trust it, then it signs and all nodes renew their certificates, and then the
old one is trusted no more. It goes on when this command ends, and when nodes fail; it
waits for nodes that don't answer, until they count as down. A node that is down until
the end needs a new join token to come back with its data. Join tokens made before are
void afterwards.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := askNode(*data, func(folder string) (*node.AuthorityStatus, error) { return node.RotateAuthority(cmd.Context(), folder) })
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "a new certificate authority takes over: 'atoll ca status' shows how far it is")
			if !wait {
				return nil
			}
			return waitAuthority(cmd.Context(), cmd.OutOrStdout(), *data, status)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the old one is gone, and show how far it is")
	return cmd
}

// waitAuthority waits until a change of the authority is over.
func waitAuthority(ctx context.Context, w io.Writer, data string, last *node.AuthorityStatus) error {
	ticker := time.NewTicker(rotatePoll)
	defer ticker.Stop()
	shown := ""
	for failed := 0; last.State != "settled"; {
		if line := strings.Join(append([]string{last.State}, last.Waiting...), "; "); line != shown {
			fmt.Fprintln(w, line)
			shown = line
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("stopped waiting, the change goes on: %w", ctx.Err())
		case <-ticker.C:
		}
		status, err := fetchAuthority(ctx, data)
		if err != nil {
			if failed++; failed > drainPatience {
				return errors.Join(errors.New("the node that was asked does not answer any more; the change goes on"), err)
			}
			continue
		}
		failed, last = 0, status
	}
	fmt.Fprintln(w, "the new certificate authority is the only one")
	return nil
}

// printAuthority is the form for people.
func printAuthority(w io.Writer, s *node.AuthorityStatus) error {
	fmt.Fprintf(w, "state %s, revision %d\n", s.State, s.Revision)
	for _, reason := range s.Waiting {
		fmt.Fprintf(w, "waiting: %s\n", reason)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nAUTHORITY\tSIGNS\tCREATED\tEXPIRES")
	for _, authority := range s.Authorities {
		signs := "no"
		if authority.Signs {
			signs = "yes"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", short(authority.Fingerprint), signs, authority.Created.Local().Format(time.DateTime), authority.Expires.Local().Format(time.DateTime))
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print status: %w", err)
	}
	fmt.Fprintln(table, "\nNODE\tCERTIFICATE BY\tEXPIRES")
	for _, n := range s.Nodes {
		expires := "unknown"
		if n.Expires != nil {
			expires = n.Expires.Local().Format(time.DateTime)
		}
		if n.Down {
			expires += ", the node is down and not waited for"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", n.Node, short(n.Issuer), expires)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print status: %w", err)
	}
	return nil
}

// short is the beginning of a fingerprint, enough to tell two apart.
func short(fingerprint string) string {
	const digits = 16
	return fingerprint[:min(digits, len(fingerprint))]
}
